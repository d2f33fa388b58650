//! QEMU's command line as groups of options, in the order in which QEMU reads them, with those of the files that it names.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        named_file::shown,
        options::{Fields, name_of},
    },
    config_file::{self, Group},
};

/// Most bytes that are read of all configuration files of a process, and most files.
const MAX_CONFIG: usize = 1 << 20;
const MAX_CONFIGS: usize = 64;

/// The field of [`Subject::Unread`] with the reason. Absent if the file was not read at all: the caller reports its own reason
/// where `read` of [`entries`] fails.
pub(super) const GAP: &str = "gap";

/// Options without an argument, of any version since 1.0 and of distributions.
const FLAGS: &str = "\
    h help version S s snapshot enable-kvm no-kvm no-kvm-irqchip no-kvm-pit no-kvm-pit-reinjection enable-nesting \
    enable-hax no-acpi no-hpet no-reboot no-shutdown daemonize nographic curses sdl usb portrait full-screen \
    win2k-hack no-fd-bootchk rtc-td-hack localtime singlestep only-migratable nodefaults nodefconfig \
    no-user-config mem-prealloc audio-help preconfig xen-attach xen-create xen-domid-restrict enable-sync-profile \
    semihosting no-frame alt-grab ctrl-grab no-quit show-cursor old-param enable-fips tdf virtfs_synth \
    async-teardown perfmap jitdump igd-passthru";

/// Options whose argument is the next one, whatever it begins with. Of any other option it is not known whether it has one.
const WITH_ARGUMENT: &str = "\
    machine M cpu accel smp numa add-fd set global boot m mem-path k audio audiodev soundhw device name uuid id \
    fda fdb hda hdb hdc hdd cdrom blockdev drive mtdblock sd pflash fsdev virtfs iscsi usbdevice display spice \
    rotate vga g vnc smbios netdev nic net tftp bootp redir smb chardev tpmdev kernel shim append initrd dtb \
    compat fw_cfg serial parallel monitor qmp qmp-pretty mon debugcon virtioconsole pidfile icount watchdog \
    watchdog-action action echr incoming chroot runas run-with prom-env semihosting-config acpitable readconfig \
    writeconfig plugin trace object overcommit msg dump-vmstate sandbox gdb d D dfilter seed L bios xen-domid \
    option-rom rtc startdate clock loadvm tb-size balloon bt qtest qtest-log hdachs";

/// What a group of options is about; others are left out.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Subject {
    Machine,
    Memory,
    Smp,
    Accelerator,
    Name,
    Uuid,
    Smbios,
    Object,
    Global,
    Blockdev,
    Device,
    Drive,
    Netdev,
    Net,
    Nic,
    /// `-S`
    StartsStopped,
    /// A configuration file that was named and could not be read: whatever came before it may have another value.
    Unread,
}

impl Subject {
    /// The subject of an option, or of a group in a configuration file.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "machine" | "M" => Self::Machine,
            "m" | "memory" => Self::Memory,
            "smp" | "smp-opts" => Self::Smp,
            "accel" => Self::Accelerator,
            "name" => Self::Name,
            "uuid" => Self::Uuid,
            "smbios" => Self::Smbios,
            "object" => Self::Object,
            "global" => Self::Global,
            "blockdev" => Self::Blockdev,
            "device" => Self::Device,
            "drive" => Self::Drive,
            "netdev" => Self::Netdev,
            "net" => Self::Net,
            "nic" => Self::Nic,
            _ => return None,
        })
    }
}

/// A group of options.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) subject: Subject,
    pub(super) fields: Fields,
    /// The option that is short for this `-drive`, such as `hda`; empty = it is no short form.
    pub(super) short_for: &'static str,
}

/// A short form of `-drive`, as `drive_add()` of QEMU's `softmmu/vl.c` has it. `name`: the disk's.
struct Short {
    name: &'static str,
    /// Bus; empty = the machine's.
    bus: &'static str,
    is_optical: bool,
}

impl Short {
    fn of(option: &str) -> Option<Self> {
        let (name, bus) = match option {
            "hda" => ("hda", ""),
            "hdb" => ("hdb", ""),
            "hdc" => ("hdc", ""),
            "hdd" => ("hdd", ""),
            "cdrom" => ("cdrom", ""),
            "fda" => ("fda", "floppy"),
            "fdb" => ("fdb", "floppy"),
            "sd" => ("sd", "sd"),
            "mtdblock" => ("mtd", "mtd"),
            "pflash" => ("pflash", "pflash"),
            _ => return None,
        };
        Some(Self { name, bus, is_optical: option == "cdrom" })
    }

    fn entry(&self, image: &str) -> Entry {
        let mut fields = Fields::default();
        // Commas in the name have no meaning here.
        fields.set("file", image);
        if !self.bus.is_empty() {
            fields.set("if", self.bus);
        }
        if self.is_optical {
            fields.set("media", "cdrom");
        }
        Entry { subject: Subject::Drive, fields, short_for: self.name }
    }
}

/// Collects groups.
struct Collector {
    entries: Vec<Entry>,
    /// Where the group with an id is, for `-set`.
    by_id: HashMap<(Subject, String), usize>,
}

impl Collector {
    fn add(&mut self, subject: Subject, fields: Fields) {
        if let Some(id) = fields.get("id") {
            self.by_id.insert((subject, id.to_owned()), self.entries.len());
        }
        self.entries.push(Entry { subject, fields, short_for: "" });
    }

    fn add_file(&mut self, groups: Vec<Group>) {
        for (name, fields) in groups {
            if let Some(subject) = Subject::of(&name) {
                self.add(subject, fields);
            }
        }
    }

    /// `-set GROUP.ID.KEY=VALUE`
    fn set(&mut self, text: &str) {
        let Some((place, value)) = text.split_once('=') else { return };
        let mut parts = place.splitn(3, '.');
        let (Some(group), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return;
        };
        let Some(subject) = Subject::of(group) else { return };
        if let Some(&at) = self.by_id.get(&(subject, id.to_owned())) {
            self.entries[at].fields.set(key, value);
        }
    }

    fn option(&mut self, option: &str, value: &str) {
        if let Some(short) = Short::of(option) {
            self.entries.push(short.entry(value));
            return;
        }
        match (option, Subject::of(option)) {
            ("set", _) => self.set(value),
            ("S", _) => self.add(Subject::StartsStopped, Fields::default()),
            ("enable-kvm", _) => self.add(Subject::Machine, Fields::parse("accel=kvm")),
            (_, Some(subject)) => self.add(subject, Fields::parse_any(value)),
            (_, None) => {}
        }
    }
}

/// The groups of QEMU's arguments. `read` returns the content of a configuration file; `None`: it cannot be read.
pub(super) fn entries(
    arguments: &[&str],
    read: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Vec<Entry> {
    let mut found = Collector { entries: Vec::new(), by_id: HashMap::new() };
    let flags: HashSet<&str> = FLAGS.split(' ').collect();
    let with_argument: HashSet<&str> = WITH_ARGUMENT.split(' ').collect();
    let (mut files, mut bytes) = (0, 0);
    let mut rest = arguments.iter().copied();
    while let Some(argument) = rest.next() {
        let Some(option) = name_of(argument) else {
            // The command line ends with a NUL.
            if !argument.is_empty() {
                found.option("hda", argument);
            }
            continue;
        };
        let value = if flags.contains(option) {
            ""
        } else if with_argument.contains(option) {
            rest.next().unwrap_or_default()
        } else {
            let mut ahead = rest.clone();
            let next = ahead.next().filter(|next| name_of(next).is_none());
            if next.is_some() {
                rest = ahead;
            }
            next.unwrap_or_default()
        };
        if option != "readconfig" {
            found.option(option, value);
            continue;
        }
        files += 1;
        let text = if files <= MAX_CONFIGS { read(value) } else { None };
        let text = text.filter(|text| {
            bytes += text.len();
            bytes <= MAX_CONFIG
        });
        let Some(text) = text else {
            found.add(Subject::Unread, Fields::default());
            continue;
        };
        match config_file::parse(&text) {
            Ok(groups) => found.add_file(groups),
            Err(error) => {
                let mut fields = Fields::default();
                fields.set(
                    GAP,
                    &format!("its file {} is no configuration of QEMU: {error}", shown(value)),
                );
                found.add(Subject::Unread, fields);
            }
        }
    }
    found.entries
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images that are given without an option.
    fn images(line: &str) -> Vec<String> {
        let arguments: Vec<&str> = line.split(' ').collect();
        let entries = entries(&arguments, &mut |_| None);
        let images = entries.iter().filter(|entry| entry.short_for == "hda");
        images.filter_map(|entry| entry.fields.get("file").map(str::to_owned)).collect()
    }

    #[test]
    fn an_image_without_an_option_is_no_argument_of_one() {
        assert_eq!(images("/i/a -S -m 64"), ["/i/a"]);
        assert_eq!(images("-S /i/a -enable-kvm"), ["/i/a"]);
        assert_eq!(images("-net none --enable-kvm /i/a"), ["/i/a"]);
        assert_eq!(images("-append root=/dev/sda -kernel /k /i/a"), ["/i/a"]);
        assert_eq!(images("-append -x /i/a"), ["/i/a"]);
        assert_eq!(images("-kernel /k -device x -append root=/dev/sda"), [""; 0]);
        assert_eq!(images("-new-option /i/a"), [""; 0], "it may be the option's argument");
        assert_eq!(images("-new-option -S /i/a"), ["/i/a"]);
    }

    #[test]
    fn set_changes_what_came_before() {
        let arguments =
            ["-device", "e1000,id=n", "-set", "device.n.mac=1", "-set", "device.x.mac=2"];
        let entries = entries(&arguments, &mut |_| None);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].fields.get("mac"), Some("1"));
    }
}
