//! Disks.

use super::{described, disks, words};
use crate::inventory::{DomainDisk, StorageAccess, StorageMedia, StorageSource, Submission};

#[test]
fn nodes_in_json() {
    let disks = disks(&[
        "-blockdev",
        r#"{"driver":"file","filename":"/i/a,b.qcow2","node-name":"libvirt-1-storage"}"#,
        "-blockdev",
        r#"{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2","file":"libvirt-1-storage"}"#,
        "-device",
        r#"{"driver":"virtio-blk-pci","drive":"libvirt-1-format","id":"virtio-disk0"}"#,
        "-cdrom",
        "/i/boot.iso",
    ]);
    assert_eq!((&*disks[0].target, &*disks[0].bus), ("virtio-disk0", "virtio"));
    assert_eq!((&*disks[0].resource, &*disks[0].format), ("/i/a,b.qcow2", "qcow2"));
    assert_eq!(disks[0].source, StorageSource::Sparse);
    assert_eq!((disks[1].media, &*disks[1].bus), (StorageMedia::OpticalDisk, "ide"));
}

#[test]
fn nodes_as_proxmox_starts_them_since_version_9() {
    let disks = disks(&[
        "-blockdev",
        r#"{"driver":"throttle","file":{"cache":{"direct":true,"no-flush":false},"driver":"raw","file":{"aio":"io_uring","cache":{"direct":true,"no-flush":false},"driver":"host_device","filename":"/dev/pve/vm-100-disk-0","node-name":"e1"},"node-name":"f1"},"node-name":"drive-scsi0","throttle-group":"throttle-drive-scsi0"}"#,
        "-device",
        "scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,write-cache=on",
        "-blockdev",
        r#"{"driver":"throttle","file":{"driver":"qcow2","backing":{"driver":"qcow2","file":{"driver":"file","filename":"/i/snap.qcow2"}},"file":{"aio":"threads","driver":"file","filename":"/i/vm.qcow2"}},"node-name":"drive-scsi1"}"#,
        "-device",
        "scsi-hd,bus=scsihw0.0,drive=drive-scsi1,id=scsi1",
        "-blockdev",
        r#"{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/i/whole.qcow2"},"node-name":"drive-scsi2"}"#,
        "-device",
        "scsi-hd,bus=scsihw0.0,drive=drive-scsi2,id=scsi2",
    ]);
    let of = |at: usize| {
        let DomainDisk { target, source, format, resource, submission, .. } = &disks[at];
        (&**target, *source, &**format, &**resource, *submission)
    };
    assert_eq!(
        of(0),
        ("scsi0", StorageSource::Block, "raw", "/dev/pve/vm-100-disk-0", Submission::IoUring)
    );
    assert_eq!(
        of(1),
        ("scsi1", StorageSource::Sparse, "qcow2", "/i/vm.qcow2", Submission::Threads)
    );
    assert_eq!(disks[1].others, ["/i/snap.qcow2"]);
    // The last image may have a backing file that only its header names, unless `backing` is null.
    let open: Vec<_> = disks.iter().map(|disk| disk.chain_is_in_image).collect();
    assert_eq!(open, [false, true, false]);
}

#[test]
fn network_disks_without_a_file_name() {
    let rbd = r#"{"driver":"rbd","node-name":"e","pool":"tank","namespace":"n","image":"d0","snapshot":"s","user":"secret"}"#;
    let held = |format: &str| {
        format!(
            r#"{{"driver":"throttle","node-name":"d","throttle-group":"t","file":{{"driver":"{format}","node-name":"f","file":{rbd}}}}}"#
        )
    };
    let device = ["-device", "scsi-hd,id=scsi0,drive=d"];
    let nodes = |list: &[&str]| {
        let mut arguments = device.to_vec();
        list.iter().for_each(|node| arguments.extend(["-blockdev", node]));
        disks(&arguments)
    };
    let mut found: Vec<DomainDisk> = Vec::new();
    for format in ["raw", "qcow2", "luks"] {
        found.extend(nodes(&[&held(format)]));
        let format = format!(r#"{{"driver":"{format}","node-name":"d","file":"e"}}"#);
        found.extend(nodes(&[rbd, &format]));
        found.extend(nodes(&[&format, rbd]));
    }
    found.extend(nodes(&[
        "rbd,node-name=e,pool=tank,namespace=n,image=d0,snapshot=s,user=secret",
        "driver=raw,node-name=d,file=e",
    ]));
    found.extend(nodes(&[
        "driver=raw,node-name=d,file.driver=rbd,file.pool=tank,file.namespace=n,file.image=d0,file.snapshot=s",
    ]));
    let keys = "file.driver=rbd,file.pool=tank,file.namespace=n,file.image=d0,file.snapshot=s";
    found.extend(disks(&["-drive", &format!("{keys},format=raw,if=virtio")]));
    found.extend(disks(&["-drive", &format!("{keys},format=raw,media=cdrom")]));
    found.extend(disks(&[
        "-drive",
        &format!("driver=qcow2,{},if=virtio", keys.replace("file.", "file.file."))
            .replace("driver=qcow2", "driver=throttle"),
    ]));
    found.extend(disks(&["-drive", &format!("{keys},if=none,id=d"), device[0], device[1]]));
    let json = format!(r#"file=json:{{"driver":"qcow2","file":{rbd}}},if=virtio"#);
    let json = json.replace("\",\"", "\",,\"").replace("\"},", "\"},,").replace("}},,if", "}},if");
    found.extend(disks(&["-drive", &json]));
    assert_eq!(found.len(), 16);
    for disk in found {
        assert_eq!(
            (disk.source, &*disk.format, &*disk.resource),
            (StorageSource::Network, "rbd", "rbd:tank/n/d0@s"),
            "{disk:?}"
        );
    }
    let cd = disks(&["-blockdev", rbd, "-device", "ide-cd,drive=e,id=ide2"]);
    assert_eq!((cd[0].media, cd[0].access), (StorageMedia::OpticalDisk, StorageAccess::ReadOnly));
    assert_eq!(cd[0].resource, "rbd:tank/n/d0@s");
    let nbd = disks(&[
        "-drive",
        "file.driver=nbd,file.server.type=unix,file.server.path=/s,file.export=x,format=raw,if=virtio",
    ]);
    assert_eq!((&*nbd[0].format, &*nbd[0].resource), ("nbd", "nbd:x@/s"));
}

#[test]
fn a_drive_names_its_chain_or_leaves_it_to_the_header() {
    let disks = words(
        "-drive file=/i/a.qcow2,format=qcow2,id=a -drive file=/i/b,id=b \
             -drive file=/i/c,format=raw,id=c -hda /i/d \
             -drive file=/i/e,format=qcow2,backing.driver=raw,backing.file.filename=/i/f,id=e",
    )
    .devices
    .disks;
    let open: Vec<_> = disks.iter().map(|disk| disk.chain_is_in_image).collect();
    assert_eq!(open, [true, true, false, true, false]);
    assert_eq!(disks[4].others, ["/i/f"]);
}

#[test]
fn images_of_the_old_kind_are_disks() {
    let of = |program, arguments: &[&str]| {
        let disks = described(program, arguments, &[]).devices.disks;
        let seen = |d: &DomainDisk| (d.target.clone(), d.resource.clone(), d.bus.clone(), d.media);
        disks.iter().map(seen).collect::<Vec<_>>()
    };
    let disk = |target: &str, resource: &str, bus: &str, media| {
        (target.to_owned(), resource.to_owned(), bus.to_owned(), media)
    };
    use StorageMedia::{FloppyDisk, HardDisk, OpticalDisk};
    let x86 = "qemu-system-x86_64";
    assert_eq!(of(x86, &["/i/a,b", "-S"]), [disk("hda", "/i/a,b", "ide", HardDisk)]);
    assert_eq!(
        of(
            x86,
            &[
                "-hdb",
                "/i/b",
                "-cdrom",
                "/i/c",
                "-fda",
                "/i/f",
                "-sd",
                "/i/s",
                "-mtdblock",
                "/i/m",
                "-pflash",
                "/i/p",
                ""
            ]
        ),
        [
            disk("hdb", "/i/b", "ide", HardDisk),
            disk("cdrom", "/i/c", "ide", OpticalDisk),
            disk("fda", "/i/f", "floppy", FloppyDisk),
            disk("sd", "/i/s", "sd", HardDisk),
            disk("mtd", "/i/m", "mtd", HardDisk),
        ]
    );
    assert_eq!(
        of("qemu-system-aarch64", &["-M", "virt", "/i/a"]),
        [disk("hda", "/i/a", "virtio", HardDisk)]
    );
}

#[test]
fn the_device_says_what_a_drive_is() {
    let disks = words(
        "-drive file=/i/a,if=none,id=a -device floppy,drive=a -drive file=/i/b,if=none,id=b -device usb-storage,drive=b \
         -drive file=/i/c,if=none,id=c -device scsi-cd,drive=c -blockdev file,filename=/i/d,node-name=d -device floppy,drive=d \
         -drive file=/i/e,if=none,id=e -global isa-fdc.driveA=e -drive file=/i/f,if=none,id=f -machine pflash0=f",
    )
    .devices
    .disks;
    let seen: Vec<_> = disks.iter().map(|d| (&*d.target, &*d.bus, d.media, d.access)).collect();
    use StorageAccess::{ReadOnly, ReadWrite};
    use StorageMedia::{FloppyDisk, HardDisk, OpticalDisk};
    assert_eq!(
        seen,
        [
            ("a", "floppy", FloppyDisk, ReadWrite),
            ("b", "usb", HardDisk, ReadWrite),
            ("c", "scsi", OpticalDisk, ReadOnly),
            ("d", "floppy", FloppyDisk, ReadWrite),
            ("e", "floppy", FloppyDisk, ReadWrite),
        ]
    );
}

#[test]
fn no_spelling_shows_a_credential() {
    let url = "https://user:secret@h/a?token=secret";
    let json = |name: &str| {
        let inner =
            serde_json::json!({"driver": "https", "url": url, "cookie": "secret"}).to_string();
        let mut json = inner;
        for _ in 0..3 {
            json =
                serde_json::json!({"driver": "raw", "file": {"filename": format!("json:{json}")}})
                    .to_string();
        }
        format!("{name}json:{json}")
    };
    let drive = |text: &str| text.replace(',', ",,");
    let rbd = "rbd:pool/a:id=u:key=secret";
    let lines: &[Vec<String>] = &[
        vec!["-drive".into(), format!("file={url},id=a")],
        vec!["-drive".into(), format!("file.filename={url},id=a")],
        vec![
            "-drive".into(),
            format!("file.driver=https,file.url={url},file.username=secret,if=virtio"),
        ],
        vec![
            "-drive".into(),
            format!("driver=qcow2,file.driver=raw,file.file.driver=https,file.file.filename={url}"),
        ],
        vec!["-drive".into(), format!("file={},id=a", drive(&json("")))],
        vec!["-drive".into(), format!("file={}", drive(&json("")[..60]))],
        vec!["-drive".into(), format!("file={rbd}")],
        vec![
            "-drive".into(),
            format!("file.driver=rbd,file.filename={rbd},file.password-secret=secret"),
        ],
        vec![
            "-drive".into(),
            format!("file=/i/a,backing={url},backing.file.filename={url},driver=qcow2"),
        ],
        vec!["-hda".into(), url.into()],
        vec!["-hda".into(), json("")],
        vec![rbd.into()],
        vec!["-cdrom".into(), "iscsi://u%secret@h/iqn/1".into()],
        vec![
            "-blockdev".into(),
            format!(
                r#"{{"driver":"raw","node-name":"n","file":{{"driver":"https","url":"{url}","cookie":"secret"}}}}"#
            ),
            "-device".into(),
            "ide-hd,drive=n".into(),
        ],
        vec![
            "-blockdev".into(),
            format!(r#"{{"driver":"file","node-name":"n","filename":"{url}"}}"#),
            "-device".into(),
            "ide-hd,drive=n".into(),
        ],
        vec![
            "-blockdev".into(),
            format!("driver=qcow2,node-name=n,file.driver=https,file.url={url}"),
            "-device".into(),
            "ide-hd,drive=n".into(),
        ],
    ];
    for line in lines {
        let arguments: Vec<&str> = line.iter().map(String::as_str).collect();
        let found = described("qemu-system-x86_64", &arguments, &[]);
        assert_eq!(found.devices.disks.len(), 1, "{line:?}");
        assert!(!format!("{found:?}").contains("secret"), "{found:#?}");
    }
}

#[test]
fn options_by_which_images_are_not_written() {
    let has =
        |arguments: &[&str]| described("qemu-system-x86_64", arguments, &[]).has_temporary_overlays;
    assert!(has(&["-hda", "/i/a", "-snapshot"]) && has(&["--snapshot", "/i/a"]));
    assert!(has(&["-drive", "file=/i/a,snapshot=on"]));
    assert!(!has(&["-drive", "file=/i/a,snapshot=off"]) && !has(&["-hda", "/i/snapshot"]));
}
