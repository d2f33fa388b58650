//! VMMs other than QEMU, whose configuration does not say how they hand their requests to the kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{ChildStdout, Command, Stdio},
};

use xtask::lab::{Child, PATIENCE, wait_until};

use crate::lab::{
    sandbox::{raw, temporary},
    stage::Stage,
};

const READ_IOS: &[u32] = &[7, 1, 13];

/// A process with a VM of KVM and its disk open, both at descriptors of its own. For each line of its input it makes ten reads of
/// 4 KiB: by pread64(2), or by io_submit(2) in a context that is gone before a scan of the process can see it.
const VMM: &str = r#"
use strict; $| = 1;
open(my $disk, "+<", $ENV{IMAGE}) or die; open(my $kvm, "+<", "/dev/kvm") or die;
ioctl($kvm, 0xAE01, 0) or die;
my ($buffer, $context, $event) = ("\0" x 4096, "\0" x 8, "\0" x 32);
my $address = unpack("J", pack("P", $buffer));
while (<STDIN>) {
  chomp;
  if ($_ eq "submit") { syscall(206, 8, $context) == 0 or die "io_setup: $!"; $context = unpack("J", $context) }
  for my $page (0..9) {
    if ($_ eq "read") { syscall(17, fileno($disk), $buffer, 4096, $page * 4096) == 4096 or die "pread: $!" }
    if ($_ eq "submit") {
      my $request = pack("QLLSsLQQqQLL", 0, 0, 0, 0, 0, fileno($disk), $address, 4096, $page * 4096, 0, 0, 0);
      my $list = pack("J", unpack("J", pack("P", $request)));
      syscall(209, $context, 1, $list) == 1 or die "io_submit: $!";
      syscall(208, $context, 1, 1, $event, 0) == 1 or die "io_getevents: $!";
    }
  }
  if ($_ eq "submit") { syscall(207, $context) == 0 or die "io_destroy: $!"; $context = "\0" x 8 }
  print "done\n";
}"#;

pub(crate) struct Vmm {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Vmm {
    pub(crate) fn start(image: &str) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", "exec -a cloud-hypervisor perl -e \"$PROGRAM\" -- \"$@\"", "sh"]);
        command.args(["--cpus", "boot=1", "--memory", "size=64M", "--disk"]);
        command.arg(format!("path={image},id=d0")).env("PROGRAM", VMM).env("IMAGE", image);
        let mut child = Child::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
        let said = BufReader::new(child.process().stdout.take().unwrap());
        Self { child, said }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Has it read `what`: by "read" or "submit".
    pub(crate) fn order(&mut self, what: &str) {
        writeln!(self.child.process().stdin.as_mut().unwrap(), "{what}").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n", "{what}");
    }
}

#[test]
fn a_disk_whose_vmm_turns_to_io_submit_is_not_shown_as_idle() {
    require!("ebpf", "snmpd", "kvm", "root");
    let dir = temporary();
    let image = dir.path().join("disk.img");
    raw(&image);
    let mut stage = Stage::new();
    let mut vmm = Vmm::start(image.to_str().unwrap());
    let pid = vmm.pid();
    let disk = |stage: &Stage| stage.vm("pid", pid)?["disks"].get(0).cloned();
    let wait = |stage: &Stage, what: &str, is_wanted: &dyn Fn(&serde_json::Value) -> bool| {
        wait_until(PATIENCE, what, || disk(stage).filter(is_wanted))
            .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", disk(stage), stage.agent.log()))
    };
    wait(&stage, "the disk is counted", &|disk| disk["counted_by"] == "syscall");
    let index = stage.index_of(pid).unwrap();
    vmm.order("read");
    stage.wait_for("its reads are counted", READ_IOS, &[index, 1], |reads| reads == Some(10));
    vmm.order("submit");
    // It may be counted by other methods, where they work.
    let turned = wait(&stage, "its other way is known", &|disk| disk["counted_by"] != "syscall");
    if turned["counted_by"].is_null() {
        assert!(turned["why"].as_str().unwrap().contains("needs aio"), "{turned}");
        assert_eq!(stage.number(READ_IOS, &[index, 1]), None);
    }
    // What it has done once it may do again, also when another agent looks.
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    let again = wait(&stage, "the disk is listed", &|disk| {
        disk["counted_by"].is_string() || disk["why"].is_string()
    });
    assert_eq!(again["counted_by"], turned["counted_by"], "{again}");
}
