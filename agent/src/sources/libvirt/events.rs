//! Domain events and job statistics of libvirt, which its Rust bindings do not wrap.
//!
//! The callbacks run on the thread of libvirt's event loop. They copy the domain's UUID and send it into unbounded
//! channels: they never block and call nothing that sends a request. Another thread queries what has happened.
//!
//! # Safety contract
//!
//! Every `unsafe` in this file rests on these rules, which its SAFETY comments cite by name:
//!
//! - **Signature**: a callback is registered only for an event id whose callback type (libvirt/libvirt-domain.h) has
//!   exactly the callback's arguments. The table in [`EventSubscription::new`] pairs ids and types.
//! - **Domain**: libvirt passes a callback a domain that is valid until the callback returns.
//! - **Sender**: the opaque pointer of a registration is a `Box<EventSender>` turned into a raw pointer, a box of its own
//!   for each registration. libvirt passes it to the callback, which only borrows it, and to [`free`] once, after the
//!   last callback. If libvirt refuses the registration it does not keep the pointer, and this file frees it.
//! - **Connection**: a borrowed [`Connect`] is open, and so is the connection of a borrowed [`Domain`].

#![expect(unsafe_code, reason = "libvirt calls back through C")]

use std::{
    ffi::{c_char, c_int, c_longlong, c_ulonglong, c_void},
    mem, ptr,
    sync::Arc,
};

use super::connection_state::ConnectionState;
use crate::inventory::VmUuid;
use crossbeam_channel::Sender;
use virt::{connect::Connect, domain::Domain, error::Error, sys};

/// What the source's thread is to handle.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The domain with this UUID has changed.
    Changed(VmUuid),
    /// A life-cycle event of the domain: virDomainEventType, the detail of that type, and the number under which the event
    /// was reported when it came.
    LifeCycle(VmUuid, c_int, c_int, u64),
    /// A job copies the memory of the domain: a migration, or a save or snapshot.
    Copying(VmUuid),
    /// The connection is lost.
    Closed,
    /// Not from libvirt: the set of domains that start with the host has changed.
    AutoStart,
    /// Not of libvirt: the answer of a late read of the domain has come.
    Answered(VmUuid),
    /// Not of libvirt: what is to be polled has changed.
    Polled,
    /// Not of libvirt: asks whether the connection answers.
    Ping(Sender<()>),
}

/// Where the callbacks put events.
#[derive(Clone, Debug)]
pub(super) struct EventSender {
    pub(super) events: Sender<Event>,
    pub(super) shared: Arc<ConnectionState>,
}

impl EventSender {
    /// Never waits.
    fn send(&self, event: Event) {
        // Fails only if the source has dropped the receiver.
        let _ = self.events.send(event);
    }

    /// The core learns at once that the event has come: it may wait in the channel while other domains are described.
    fn life_cycle(&self, uuid: VmUuid, event: c_int, detail: c_int) {
        let number = self.shared.event_came(uuid);
        self.send(Event::LifeCycle(uuid, event, detail, number));
    }
}

/// Makes a callback for an event whose arguments between the domain and the opaque pointer have these types.
macro_rules! callback {
    ($($argument:ty),+) => { callback!($($argument),+ => Event::Changed) };
    ($($argument:ty),+ => $event:path) => {{
        /// # Safety
        ///
        /// Called by libvirt only: **Signature**, **Domain**, **Sender**.
        unsafe extern "C" fn callback(
            _: sys::virConnectPtr,
            domain: sys::virDomainPtr,
            $(_: $argument,)+
            sender: *mut c_void,
        ) {
            // SAFETY: **Domain** and **Sender**, upheld by libvirt.
            unsafe { send(domain, sender, |sender, uuid| sender.send($event(uuid))) }
        }
        generic!(callback, ($($argument),+))
    }};
}

/// Casts a callback to the generic type, like VIR_DOMAIN_EVENT_CALLBACK() in libvirt-domain.h.
macro_rules! generic {
    ($function:ident, ($($argument:ty),+) $(-> $result:ty)?) => {
        // SAFETY: **Signature**: libvirt casts the pointer back to the event's own callback type before it calls it.
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

/// virConnectDomainEventGenericCallback: the type under which any callback is registered.
type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// Callback of the events without arguments of their own.
///
/// # Safety
///
/// Called by libvirt only: **Signature**, **Domain**, **Sender**.
unsafe extern "C" fn plain(_: sys::virConnectPtr, domain: sys::virDomainPtr, sender: *mut c_void) {
    // SAFETY: **Domain** and **Sender**, upheld by libvirt.
    unsafe { send(domain, sender, |sender, uuid| sender.send(Event::Changed(uuid))) }
}

/// Callback of life-cycle events, whose type returns an int; libvirt ignores it.
///
/// # Safety
///
/// Called by libvirt only: **Signature**, **Domain**, **Sender**.
unsafe extern "C" fn life_cycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    sender: *mut c_void,
) -> c_int {
    // SAFETY: **Domain** and **Sender**, upheld by libvirt.
    unsafe { send(domain, sender, |sender, uuid| sender.life_cycle(uuid, event, detail)) };
    0
}

/// Sends an event with the domain's UUID.
///
/// # Safety
///
/// `domain` as in **Domain**, `sender` as in **Sender**.
unsafe fn send(
    domain: sys::virDomainPtr,
    sender: *mut c_void,
    send: impl FnOnce(&EventSender, VmUuid),
) {
    let mut uuid = [0; 16];
    // SAFETY: **Domain**; the buffer has the VIR_UUID_BUFLEN (16) bytes that the call writes.
    if unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) } == 0 {
        // SAFETY: **Sender**: the box lives until `free`, and is only borrowed.
        let sender = unsafe { &*sender.cast::<EventSender>() };
        send(sender, VmUuid::of_bytes(uuid));
    }
}

/// Callback of a lost connection.
///
/// # Safety
///
/// Called by libvirt only: **Sender**.
unsafe extern "C" fn closed(_: sys::virConnectPtr, _: c_int, sender: *mut c_void) {
    // SAFETY: **Sender**: the box lives until `free`, and is only borrowed.
    let sender = unsafe { &*sender.cast::<EventSender>() };
    sender.send(Event::Closed);
}

/// Frees the opaque pointer of a registration.
///
/// # Safety
///
/// Called once and last, by libvirt or after a refused registration: **Sender**.
unsafe extern "C" fn free(sender: *mut c_void) {
    // SAFETY: **Sender**: the pointer came from `Box::into_raw`, and this is its last use.
    drop(unsafe { Box::from_raw(sender.cast::<EventSender>()) });
}

/// A subscription to the events of all domains of a connection; ends when dropped.
#[derive(Debug)]
pub(super) struct EventSubscription<'a> {
    connection: &'a Connect,
    ids: Vec<c_int>,
}

impl<'a> EventSubscription<'a> {
    /// Registers for every event that may change what is served. An event that the driver does not support is left out.
    ///
    /// # Errors
    ///
    /// That of libvirt if life-cycle events are not supported.
    pub(super) fn new(connection: &'a Connect, sender: &EventSender) -> Result<Self, Error> {
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
        // SAFETY: **Connection**; `closed` and `free` have the types that the call declares; **Sender**. Drivers without a
        // connection that could be lost refuse.
        let refused = unsafe {
            sys::virConnectRegisterCloseCallback(
                connection.as_ptr(),
                Some(closed),
                sender,
                Some(free),
            )
        } < 0;
        if refused {
            // SAFETY: **Sender**: refused, so libvirt has not kept it.
            unsafe { free(sender) };
        }
        Ok(registered)
    }
}

/// Registers one callback for one event id.
fn register(
    connection: &Connect,
    kind: sys::virDomainEventID,
    function: Generic,
    sender: &EventSender,
) -> Result<c_int, Error> {
    let sender = Box::into_raw(Box::new(sender.clone())).cast();
    let kind = c_int::try_from(kind).unwrap_or(-1);
    // SAFETY: **Connection**; the null domain stands for all domains; **Signature**; **Sender**.
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
        // SAFETY: **Sender**: refused, so libvirt has not kept it.
        unsafe { free(sender) };
        return Err(Error::last_error());
    }
    Ok(id)
}

/// Whether the domain's current job is an outgoing migration; other jobs copy the memory, too. Blocks while QEMU hangs.
pub(super) fn is_migrating(domain: &Domain) -> bool {
    let (mut kind, mut parameters, mut count) = (0, ptr::null_mut(), 0);
    // SAFETY: **Connection**: the borrowed domain is valid; the three pointers are to locals that the call fills.
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
    // SAFETY: libvirt has returned `count` parameters. The lookup checks the parameter's type, and leaves `operation` as it
    // is if there is none. The array is freed once, and not used afterwards.
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
        // SAFETY: **Connection**; the ids are its own. Errors are ignored: they mean that the connection is lost.
        unsafe {
            for &id in &self.ids {
                sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), id);
            }
            sys::virConnectUnregisterCloseCallback(self.connection.as_ptr(), Some(closed));
        }
    }
}
