//! The hypervisor's own I/O counters of a domain's disks, through libvirt: the fallback, since libvirt queries QEMU for them.
//!
//! The Rust bindings return the records of virDomainListGetStats() as raw C structures, which are read here.

#![expect(unsafe_code, reason = "libvirt returns the statistics as C structures")]

use std::{
    collections::BTreeMap,
    ffi::CStr,
    os::raw::c_char,
    ptr::{self, NonNull},
    slice,
};

use virt::{domain::Domain, error::Error, sys};

use crate::counters::DiskIo;

/// Queries the I/O counters of each disk, by target name. Empty for a domain that is off. Blocks while QEMU hangs.
///
/// # Errors
///
/// That of libvirt.
pub(super) fn query(domain: &Domain) -> Result<Vec<(String, DiskIo)>, Error> {
    // SAFETY: the pointer is used only while the domain is borrowed.
    let domain = unsafe { domain.as_ptr() };
    let mut domains = [domain, ptr::null_mut()];
    let mut records = ptr::null_mut();
    // SAFETY: the list ends with a null pointer, and the borrowed domain in it is valid; `records` receives a list that
    // belongs to the caller.
    let count = unsafe {
        sys::virDomainListGetStats(
            domains.as_mut_ptr(),
            sys::VIR_DOMAIN_STATS_BLOCK,
            &raw mut records,
            0,
        )
    };
    let count = usize::try_from(count).map_err(|_| Error::last_error())?;
    let Some(records) = NonNull::new(records) else { return Ok(Vec::new()) };
    let records = Records { records, count };
    let mut disks = Disks::default();
    // SAFETY: libvirt has returned `count` record pointers, valid until `Records` frees the list.
    for &record in unsafe { slice::from_raw_parts(records.records.as_ptr(), records.count) } {
        // SAFETY: a record of the list, valid until `Records` frees it.
        let record = unsafe { &*record };
        let count = usize::try_from(record.nparams).unwrap_or(0);
        if count == 0 {
            continue;
        }
        // SAFETY: `params` has `nparams` elements (struct _virDomainStatsRecord).
        for parameter in unsafe { slice::from_raw_parts(record.params, count) } {
            // SAFETY: `field` is NUL-terminated within its array, and `type_` says which member of the union is set; a
            // string value is NUL-terminated (struct _virTypedParameter).
            unsafe {
                let name = text(parameter.field.as_ptr());
                match u32::try_from(parameter.type_) {
                    Ok(sys::VIR_TYPED_PARAM_ULLONG) => disks.number(&name, parameter.value.ul),
                    Ok(sys::VIR_TYPED_PARAM_STRING) => disks.text(&name, text(parameter.value.s)),
                    _ => {}
                }
            }
        }
    }
    Ok(disks.counted())
}

/// Copies a C string.
///
/// # Safety
///
/// `from` is NUL-terminated.
unsafe fn text(from: *const c_char) -> String {
    // SAFETY: upheld by this function's own contract.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

/// The list that virDomainListGetStats() returned; freed when dropped.
struct Records {
    records: NonNull<sys::virDomainStatsRecordPtr>,
    count: usize,
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: the list came from virDomainListGetStats(), and this is its last use.
        unsafe { sys::virDomainStatsRecordListFree(self.records.as_ptr()) }
    }
}

/// The disks of a record by their number in it, assembled from parameters such as `block.0.rd.reqs`.
#[derive(Debug, Default)]
struct Disks(BTreeMap<u32, Disk>);

#[derive(Debug, Default)]
struct Disk {
    name: Option<String>,
    /// Whether there were any request counters: a domain that is off has sizes only.
    is_counted: bool,
    io: DiskIo,
}

impl Disks {
    fn number(&mut self, name: &str, value: u64) {
        let Some((disk, name)) = self.part(name) else { return };
        let io = &mut disk.io;
        let field = match name {
            "rd.reqs" => &mut io.reads,
            "wr.reqs" => &mut io.writes,
            "rd.bytes" => &mut io.read_octets,
            "wr.bytes" => &mut io.write_octets,
            "rd.times" => &mut io.read_ns,
            "wr.times" => &mut io.write_ns,
            _ => return,
        };
        *field = value;
        disk.is_counted = true;
    }

    fn text(&mut self, name: &str, value: String) {
        if let Some((disk, "name")) = self.part(name) {
            disk.name = Some(value);
        }
    }

    fn part<'a>(&mut self, name: &'a str) -> Option<(&mut Disk, &'a str)> {
        let (number, name) = name.strip_prefix("block.")?.split_once('.')?;
        Some((self.0.entry(number.parse().ok()?).or_default(), name))
    }

    fn counted(self) -> Vec<(String, DiskIo)> {
        let counted = self.0.into_values().filter(|disk| disk.is_counted);
        counted.filter_map(|disk| Some((disk.name?, disk.io))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_assembled_by_their_number() {
        let mut disks = Disks::default();
        disks.number("block.count", 4);
        for (number, name) in [(0, "vda"), (1, "sda"), (10, "vdk")] {
            disks.text(&format!("block.{number}.name"), name.to_owned());
        }
        for (name, value) in [
            ("block.0.rd.reqs", 1),
            ("block.0.rd.bytes", 2),
            ("block.0.rd.times", 3),
            ("block.0.wr.reqs", 4),
            ("block.0.wr.bytes", 5),
            ("block.0.wr.times", 6),
            ("block.0.fl.reqs", 7),
            ("block.1.allocation", 8),
            ("block.10.wr.reqs", 9),
            ("block.11.rd.reqs", 10),
            ("block.x.rd.reqs", 11),
            ("vcpu.0.rd.reqs", 12),
        ] {
            disks.number(name, value);
        }
        let vda = DiskIo {
            reads: 1,
            writes: 4,
            read_octets: 2,
            write_octets: 5,
            read_ns: 3,
            write_ns: 6,
        };
        let vdk = DiskIo { writes: 9, ..DiskIo::default() };
        assert_eq!(disks.counted(), [("vda".to_owned(), vda), ("vdk".to_owned(), vdk)]);
    }
}
