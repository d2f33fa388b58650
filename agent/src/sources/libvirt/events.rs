//! The events of libvirt, and the job that they may be about, which its bindings do not wrap: the one place that
//! hands C a function of ours.
//!
//! The functions run on the thread of libvirt's event loop. They take the UUID out of the domain, which asks
//! nobody, and put it into a channel; what has happened is looked at by another thread.

#![expect(unsafe_code, reason = "libvirt calls back through C")]

use std::{
    ffi::{c_char, c_int, c_longlong, c_ulonglong, c_void},
    mem, ptr,
};

use crate::inventory::VmUuid;
use crossbeam_channel::Sender;
use virt::{connect::Connect, domain::Domain, error::Error, sys};

/// What libvirt tells.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// Something about the domain with this UUID is different.
    Changed(VmUuid),
    /// The same, and what has happened: virDomainEventType and the detail that belongs to it.
    LifeCycle(VmUuid, c_int, c_int),
    /// Something copies the memory of the domain with this UUID.
    Copying(VmUuid),
    /// The connection is lost.
    Closed,
    /// Not of libvirt: other domains than before start with the host.
    AutoStart,
    /// Not of libvirt: somebody wants to know whether it answers.
    Ping(Sender<()>),
}

/// A function for the events whose arguments between the domain and the sender have these types, as the call that
/// registers it wants it.
macro_rules! callback {
    ($($argument:ty),+) => { callback!($($argument),+ => Event::Changed) };
    ($($argument:ty),+ => $event:path) => {{
        /// # Safety
        ///
        /// libvirt calls it with a valid domain, and with the pointer that was registered with it.
        unsafe extern "C" fn callback(
            _: sys::virConnectPtr,
            domain: sys::virDomainPtr,
            $(_: $argument,)+
            sender: *mut c_void,
        ) {
            // SAFETY: as this function's own.
            unsafe { send(domain, sender, $event) }
        }
        generic!(callback, ($($argument),+))
    }};
}

/// VIR_DOMAIN_EVENT_CALLBACK() of libvirt's header.
macro_rules! generic {
    ($function:ident, ($($argument:ty),+) $(-> $result:ty)?) => {
        // SAFETY: libvirt calls the function with the arguments of the event with whose number it is registered.
        unsafe {
            mem::transmute::<
                unsafe extern "C" fn(
                    sys::virConnectPtr,
                    sys::virDomainPtr,
                    $($argument,)+
                    *mut c_void,
                ) $(-> $result)?,
                Generic,
            >($function)
        }
    };
}

/// What the call that registers a function takes for any.
type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// The events that have no arguments of their own.
///
/// # Safety
///
/// As the others.
unsafe extern "C" fn plain(_: sys::virConnectPtr, domain: sys::virDomainPtr, sender: *mut c_void) {
    // SAFETY: as this function's own.
    unsafe { send(domain, sender, Event::Changed) }
}

/// The life cycle has its own, which returns a number that nobody reads.
///
/// # Safety
///
/// As the others.
unsafe extern "C" fn life_cycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    sender: *mut c_void,
) -> c_int {
    // SAFETY: as this function's own.
    unsafe { send(domain, sender, |uuid| Event::LifeCycle(uuid, event, detail)) };
    0
}

/// # Safety
///
/// `domain` is valid, `sender` is what [`EventSubscription::new`] registered and has not freed.
unsafe fn send(
    domain: sys::virDomainPtr,
    sender: *mut c_void,
    event: impl FnOnce(VmUuid) -> Event,
) {
    let mut uuid = [0; 16];
    // SAFETY: it writes VIR_UUID_BUFLEN octets, which are 16.
    if unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) } == 0 {
        // SAFETY: the sender lives until `free`, and is only read.
        let sender = unsafe { &*sender.cast::<Sender<Event>>() };
        // Nobody receives when the source has ended.
        let _ = sender.send(event(VmUuid::of_bytes(uuid)));
    }
}

/// # Safety
///
/// `sender` as in [`send`].
unsafe extern "C" fn closed(_: sys::virConnectPtr, _: c_int, sender: *mut c_void) {
    // SAFETY: as in `send`.
    let sender = unsafe { &*sender.cast::<Sender<Event>>() };
    let _ = sender.send(Event::Closed);
}

/// # Safety
///
/// `sender` came from [`Box::into_raw`], and nobody uses it any more: libvirt calls this last, and once.
unsafe extern "C" fn free(sender: *mut c_void) {
    // SAFETY: as this function's own.
    drop(unsafe { Box::from_raw(sender.cast::<Sender<Event>>()) });
}

/// Events of all domains of a connection, until this is dropped.
#[derive(Debug)]
pub(super) struct EventSubscription<'a> {
    connection: &'a Connect,
    ids: Vec<c_int>,
}

impl<'a> EventSubscription<'a> {
    /// Registers for every kind that may change what is served. A kind that this daemon does not know is left
    /// out; without the life cycle there is no source.
    pub(super) fn new(connection: &'a Connect, sender: &Sender<Event>) -> Result<Self, Error> {
        type Text = *const c_char;
        let kinds: [(sys::virDomainEventID, Generic); 20] = [
            (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, generic!(life_cycle, (c_int, c_int) -> c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, plain),
            (sys::VIR_DOMAIN_EVENT_ID_RTC_CHANGE, callback!(c_longlong)),
            (sys::VIR_DOMAIN_EVENT_ID_CONTROL_ERROR, plain),
            (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR, callback!(Text, Text, c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_WATCHDOG, callback!(c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_DISK_CHANGE, callback!(Text, Text, Text, c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_TRAY_CHANGE, callback!(Text, c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_PMWAKEUP, callback!(c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_PMSUSPEND, callback!(c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE, callback!(c_ulonglong)),
            (sys::VIR_DOMAIN_EVENT_ID_PMSUSPEND_DISK, callback!(c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, callback!(Text)),
            (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, callback!(Text)),
            (sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, callback!(Text, c_int, c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, callback!(sys::virTypedParameterPtr, c_int)),
            (sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE, callback!(c_int, Text)),
            (sys::VIR_DOMAIN_EVENT_ID_MEMORY_DEVICE_SIZE_CHANGE, callback!(Text, c_ulonglong)),
            (sys::VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION, callback!(c_int => Event::Copying)),
            (sys::VIR_DOMAIN_EVENT_ID_TUNABLE, callback!(sys::virTypedParameterPtr, c_int)),
        ];
        let mut registered = Self { connection, ids: Vec::with_capacity(kinds.len()) };
        for (kind, function) in kinds {
            match register(connection, kind, function, sender) {
                Ok(id) => registered.ids.push(id),
                Err(error) if kind == sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE => return Err(error),
                Err(_) => {}
            }
        }
        let sender = Box::into_raw(Box::new(sender.clone())).cast();
        // SAFETY: the connection is open; `closed` and `free` have the signatures that are asked for, and
        // `sender` is theirs from here on. Drivers without a connection to lose refuse it.
        let refused = unsafe {
            sys::virConnectRegisterCloseCallback(
                connection.as_ptr(),
                Some(closed),
                sender,
                Some(free),
            )
        } < 0;
        if refused {
            // SAFETY: libvirt has not kept it.
            unsafe { free(sender) };
        }
        Ok(registered)
    }
}

fn register(
    connection: &Connect,
    kind: sys::virDomainEventID,
    function: Generic,
    sender: &Sender<Event>,
) -> Result<c_int, Error> {
    let sender = Box::into_raw(Box::new(sender.clone())).cast();
    let kind = c_int::try_from(kind).unwrap_or(-1);
    // SAFETY: the connection is open; without a domain the events of all are meant; the function takes the arguments
    // of this kind, and `sender` belongs to it and to `free` from here on.
    let id = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            ptr::null_mut(),
            kind,
            Some(function),
            sender,
            Some(free),
        )
    };
    if id < 0 {
        // SAFETY: libvirt has not kept it.
        unsafe { free(sender) };
        return Err(Error::last_error());
    }
    Ok(id)
}

/// Whether a job moves the domain to another host: others copy its memory, too. Waits for a QEMU that hangs.
pub(super) fn is_migrating(domain: &Domain) -> bool {
    let (mut kind, mut parameters, mut count) = (0, ptr::null_mut(), 0);
    // SAFETY: the domain is valid as long as it is borrowed, and the pointers are where libvirt puts its answer.
    let refused = unsafe {
        sys::virDomainGetJobStats(
            domain.as_ptr(),
            &raw mut kind,
            &raw mut parameters,
            &raw mut count,
            0,
        )
    } < 0;
    if refused || parameters.is_null() {
        return false;
    }
    let none = c_int::try_from(sys::VIR_DOMAIN_JOB_NONE).unwrap_or(0);
    let out = c_int::try_from(sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT).unwrap_or(-1);
    let mut operation = 0;
    // SAFETY: so many parameters are libvirt's answer; the number of that name is an int, or there is none, and
    // `operation` stays as it is. The answer is freed once and not used any more.
    unsafe {
        sys::virTypedParamsGetInt(
            parameters,
            count,
            sys::VIR_DOMAIN_JOB_OPERATION.as_ptr(),
            &raw mut operation,
        );
        sys::virTypedParamsFree(parameters, count);
    }
    kind != none && operation == out
}

impl Drop for EventSubscription<'_> {
    fn drop(&mut self) {
        // SAFETY: the connection is open as long as it is borrowed, and the ids are its own. What fails here
        // fails because the connection is lost.
        unsafe {
            for &id in &self.ids {
                sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), id);
            }
            sys::virConnectUnregisterCloseCallback(self.connection.as_ptr(), Some(closed));
        }
    }
}
