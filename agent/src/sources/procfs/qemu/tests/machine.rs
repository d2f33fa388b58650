//! Memory, CPUs, accelerator and name.

use super::{described, memory, words};

#[test]
fn qemu_without_options_has_its_defaults() {
    let found = words("-display none");
    assert_eq!(memory(&found), (Some(128), Some(128)));
    assert_eq!((found.cpus, found.max_cpus), (Some(1), Some(1)));
    assert!(found.tcg && found.name.is_none());
    assert!(words("-S -machine none,accel=kvm:tcg -qmp unix:x").no_machine);
    assert!(!words("--enable-kvm").tcg);
    assert!(!words("-accel kvm -accel tcg").tcg);
    // A board of another architecture may have a default of its own.
    let of = |program, line: &str| {
        memory(&described(program, &line.split(' ').collect::<Vec<_>>(), &[])).0
    };
    assert_eq!(of("qemu-system-ppc64", "-S"), None);
    assert_eq!(of("qemu-system-aarch64", "-M virt-8.0"), Some(128));
    assert_eq!(of("qemu-system-aarch64", "-M raspi3b"), None);
}

#[test]
fn cpus_are_those_of_the_topology_where_none_are_told() {
    let cpus = |line| {
        let found = words(line);
        (found.cpus, found.max_cpus)
    };
    assert_eq!(cpus("-smp sockets=2,cores=3"), (Some(6), Some(6)));
    assert_eq!(cpus("-smp 2,maxcpus=4"), (Some(2), Some(4)));
    assert_eq!(cpus("-smp 2 -smp maxcpus=4"), (Some(2), Some(4)));
    assert_eq!(cpus("-smp maxcpus=4"), (Some(4), Some(4)));
    assert_eq!(cpus("-M q35,smp.cpus=2,smp.maxcpus=3"), (Some(2), Some(3)));
    assert_eq!(cpus("-M q35,smp.cpus=2 -smp 4"), (Some(4), Some(4)));
    assert_eq!(cpus("-smp sockets=65536,cores=65536"), (None, None));
    assert_eq!(cpus("-smp 2,maxcpus=x"), (Some(2), None));
    assert_eq!(cpus("-smp x"), (None, None));
}

#[test]
fn memory_is_what_was_told_or_is_not_known() {
    for (line, expected) in [
        ("-m 1.5G", (Some(1536), Some(1536))),
        ("-m 0.25G", (Some(256), Some(256))),
        ("-m 64,maxmem=1G", (Some(64), Some(1024))),
        ("-m maxmem=1G -m size=64", (Some(64), Some(1024))),
        ("-m 64 -m 65", (Some(65), Some(65))),
        ("-m 1P", (Some(1 << 30), Some(1 << 30))),
        ("-m 64Q", (None, None)),
        ("-m 64,maxmem=Q", (Some(64), None)),
        ("-m 64Q -m 64", (Some(64), Some(64))),
        ("-m 0", (Some(128), Some(128))),
        ("-m maxmem=1G", (Some(128), Some(1024))),
        ("-machine q35,memory.size=768M,memory.max-size=1G", (Some(768), Some(1024))),
        ("-machine q35,memory.size=805306368", (Some(768), Some(768))),
        ("-m 64 -machine q35 -machine memory.size=768M", (Some(64), Some(64))),
        (
            "-machine memory-backend=m -object memory-backend-memfd,id=m,size=2G",
            (Some(2048), Some(2048)),
        ),
        (
            "-object qom-type=memory-backend-ram,id=m,size=2147483648 -machine memory-backend=m",
            (Some(2048), Some(2048)),
        ),
        (
            "-m 2G -object memory-backend-ram,id=m,size=2G -machine memory-backend=m",
            (Some(2048), Some(2048)),
        ),
        (
            "-object {\"qom-type\":\"memory-backend-ram\",\"id\":\"m\",\"size\":268435456} -machine memory-backend=m",
            (Some(256), Some(256)),
        ),
        ("-machine memory-backend=gone", (None, None)),
        ("-machine memory-backend=m -object memory-backend-ram,id=m,size=x", (None, None)),
        (
            "-m 64,slots=2,maxmem=1G -object memory-backend-ram,id=d,size=128M -device pc-dimm,id=x,memdev=d",
            (Some(192), Some(1024)),
        ),
    ] {
        assert_eq!(memory(&words(line)), expected, "{line}");
    }
}

const FILE: &str = "[machine]\n type = \"q35\"\n accel = \"kvm\"\n[memory]\nsize = \"3072M\"\nmaxmem = \"4G\"\n\
    [smp-opts]\n cpus = \"2\"\n maxcpus = \"4\"\n[name]\nguest = \"fromfile\"\n\
    [drive \"d0\"]\nfile = \"/i/a,b\"\nif = \"none\"\nformat = \"qcow2\"\n\
    [netdev \"n0\"]\ntype = \"tap\"\nifname = \"t0\"\n\
    [device \"net0\"]\ndriver = \"virtio-net-pci\"\nnetdev = \"n0\"\nmac = \"52:54:00:00:00:01\"\n\
    [device]\ndriver = \"virtio-blk-pci\"\ndrive = \"d0\"\n\
    [object \"m\"]\nqom-type = \"memory-backend-memfd\"\nsize = \"3072M\"\n";

#[test]
fn a_configuration_file_tells_the_machine() {
    let of = |line: &str, files: &[(&str, &str)]| {
        described("qemu-system-x86_64", &line.split(' ').collect::<Vec<_>>(), files)
    };
    let found = of("-readconfig /c", &[("/c", FILE)]);
    assert_eq!(found.name.as_deref(), Some("fromfile"));
    assert_eq!(memory(&found), (Some(3072), Some(4096)));
    assert_eq!((found.cpus, found.max_cpus, found.tcg), (Some(2), Some(4), false));
    let disk = &found.devices.disks[0];
    assert_eq!(
        (&*disk.target, &*disk.resource, &*disk.format, &*disk.bus),
        ("d0", "/i/a,b", "qcow2", "virtio")
    );
    assert_eq!(found.devices.nics[0].device.as_deref(), Some("t0"));
    // What comes later counts, each key for itself.
    let found = of("-m 64 -name a -readconfig /c -smp 3", &[("/c", FILE)]);
    assert_eq!(memory(&found), (Some(3072), Some(4096)));
    assert_eq!((found.cpus, found.max_cpus), (Some(3), Some(4)));
    assert_eq!(found.name.as_deref(), Some("fromfile"));
    let found = of("--readconfig /c -m 64 -name a", &[("/c", FILE)]);
    assert_eq!(memory(&found), (Some(64), Some(4096)));
    assert_eq!(found.name.as_deref(), Some("a"));
    let more = [("/c", FILE), ("/d", "[memory]\nsize = \"1G\"\n[name]\nguest = \"d\"\n")];
    let found = of("-readconfig /c -readconfig /d", &more);
    assert_eq!((memory(&found).0, found.name.as_deref()), (Some(1024), Some("d")));
    // The backend in the file, the machine on the command line.
    let found = of(
        "-machine memory-backend=m -readconfig /c",
        &[("/c", &FILE[FILE.find("[object").unwrap()..])],
    );
    assert_eq!(memory(&found), (Some(3072), Some(3072)));
    let found = of("-readconfig /c -set drive.d0.file=/i/c", &[("/c", FILE)]);
    assert_eq!(found.devices.disks[0].resource, "/i/c");
}

#[test]
fn after_a_file_that_cannot_be_read_no_default_counts() {
    let of = |line: &str, files: &[(&str, &str)]| {
        described("qemu-system-x86_64", &line.split(' ').collect::<Vec<_>>(), files)
    };
    for files in [&[][..], &[("/c", "[memory]\nsize 3G")], &[("/c", "no text of QEMU")]] {
        let found = of("-m 64 -smp 2 -name a -readconfig /c", files);
        assert_eq!((memory(&found), found.cpus, found.max_cpus), ((None, None), None, None));
        assert_eq!((found.name.as_deref(), found.tcg), (None, false));
        // Of a file that is not there, whoever reads it knows.
        let gaps: &[&str] = match files {
            [] => &[],
            [(_, text), ..] if text.starts_with('[') => {
                &["its file /c is no configuration of QEMU: line 2 is not understood"]
            }
            _ => &["its file /c is no configuration of QEMU: line 1 is not understood"],
        };
        assert_eq!(found.gaps, gaps);
        let found = of("-readconfig /c -m 64 -smp 2,maxcpus=3 -name a", files);
        assert_eq!(
            (memory(&found), found.cpus, found.max_cpus),
            ((Some(64), None), Some(2), Some(3))
        );
        assert_eq!(found.name.as_deref(), Some("a"));
    }
}
