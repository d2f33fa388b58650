//! What VMs are described by, which whoever may start one can write.

#[cfg(feature = "libvirt")]
use kvmeter::sources::libvirt;
use kvmeter::sources::procfs;

/// The XML of a domain.
#[cfg(feature = "libvirt")]
pub fn run_xml(octets: &[u8]) {
    libvirt::read_xml(&String::from_utf8_lossy(octets));
}

/// The beginning of an image, which a guest may have written.
pub fn run_image(octets: &[u8]) {
    procfs::read_image(octets);
    // The octets of a fuzzer rarely begin with the magic number and a version.
    procfs::read_image(&[b"QFI\xfb\0\0\0\x03", octets].concat());
    procfs::read_image(&[b"json:{", octets].concat());
}

/// The command line of a VMM.
pub fn run_command_line(octets: &[u8]) {
    procfs::read_command_line(octets);
    // The octets of a fuzzer rarely begin with the name of one.
    for program in ["qemu-system-x86_64", "cloud-hypervisor", "firecracker"] {
        procfs::read_command_line(&[program.as_bytes(), b"\0", octets].concat());
    }
}

/// The text of a file that QEMU is given with `-readconfig`.
pub fn run_qemu_config(octets: &[u8]) {
    procfs::read_qemu_config(octets);
    // The octets of a fuzzer rarely are a group.
    for group in ["machine", "memory", "drive \"d\"", "device", "object \"o\""] {
        let key = ["[", group, "]\nfile = \""].concat();
        procfs::read_qemu_config(&[key.as_bytes(), octets, b"\"\n"].concat());
    }
}
