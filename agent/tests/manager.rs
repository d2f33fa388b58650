//! net-snmp's own tools over the whole subtree, with the module that the agent prints.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::{fs, path::Path};

use lab::stage::Stage;
use tempfile::TempDir;
use xtask::lab::{Accelerator, Qemu, TinyGuest, missing};

/// net-snmp's tools with the printed module in place of any that the host may have.
struct Manager {
    mibs: TempDir,
}

impl Manager {
    fn new(stage: &Stage) -> Self {
        let mibs = tempfile::tempdir().unwrap();
        let printed = stage.agent.ask("mib", &[]).unwrap();
        fs::write(mibs.path().join("VM-MIB.txt"), printed.stdout).unwrap();
        Self { mibs }
    }

    fn ask(&self, stage: &Stage, tool: &str, options: &[&str], names: &[&str]) -> String {
        let imports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mib_text/imports");
        let dirs = format!("-M{}:{}", self.mibs.path().display(), imports.display());
        let options = [&[&*dirs, "-mVM-MIB"], options].concat();
        stage.snmpd.ask(tool, &options, names).unwrap()
    }
}

/// Everything that may be read, but for what moves by itself.
fn without_what_moves(walk: &str) -> Vec<&str> {
    let moves = ["UpTime", "CpuTime", "CoreTime"];
    walk.lines().filter(|line| !moves.iter().any(|column| line.contains(column))).collect()
}

#[test]
fn a_manager_sees_the_same_whatever_it_asks_with() {
    require!("ebpf", "kvm", "snmpd");
    let stage = Stage::new();
    let tiny = [
        TinyGuest::start(&["--name", "busy", "--duty", "busy"]).unwrap(),
        TinyGuest::start(&["--name", "many", "--vcpus", "11", "--duty", "idle"]).unwrap(),
    ];
    stage.wait_for_vm(tiny[0].pid(), 1);
    stage.wait_for_vm(tiny[1].pid(), 11);
    let mut qemu = Vec::new();
    if missing("qemu").is_none() {
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            let name = format!("qemu {accelerator:?}");
            let guest = Qemu::start(&name, accelerator, &["-smp", "2"]).unwrap();
            stage.wait_for_vm(guest.child.pid(), 2);
            qemu.push(guest);
        }
    }
    let vms = tiny.len() + qemu.len();
    let manager = Manager::new(&stage);
    let ask = |tool, options: &[&str], names: &[&str]| manager.ask(&stage, tool, options, names);

    let walk = ask("snmpwalk", &[], &["VM-MIB::vmMIB"]);
    // net-snmp's tools stop with "OID not increasing", and say "Wrong Type" where the module has another.
    assert!(!walk.contains("Wrong Type") && !walk.contains("not increasing"), "{walk}");
    assert!(walk.contains(&format!("VM-MIB::vmNumber.0 = INTEGER: {vms}")), "{walk}");
    assert_eq!(walk.lines().filter(|line| line.contains("vmName.")).count(), vms);
    for (column, syntax) in [
        ("vmOperState", "INTEGER: running(4)"),
        ("vmPersistent", "INTEGER: transient(3)"),
        ("vmCpuTime", "microsecond"),
        ("vmCpuCoreTime", "Counter64: "),
        ("vmUpTime", "Timeticks: ("),
        ("vmCpuAffinity", "INTEGER: enable(1)"),
        ("vmHvObjectID", "OID: "),
    ] {
        let mut lines =
            walk.lines().filter(|line| line.contains(&format!("::{column}."))).peekable();
        assert!(lines.peek().is_some(), "{column} is not in {walk}");
        for line in lines {
            assert!(line.contains(syntax), "{line}");
        }
    }

    let numeric = ask("snmpwalk", &["-On"], &["1.3.6.1.2.1.236"]);
    let bulk = ask("snmpbulkwalk", &[], &["VM-MIB::vmMIB"]);
    assert_eq!(without_what_moves(&walk), without_what_moves(&bulk));
    for repetitions in ["1", "2", "100"] {
        let bulk =
            ask("snmpbulkwalk", &["-On", &format!("-Cr{repetitions}")], &["1.3.6.1.2.1.236"]);
        assert_eq!(names(&numeric), names(&bulk), "with {repetitions} repetitions");
    }
    let all = names(&numeric);
    assert!(all.len() > 16 * vms);
    for (at, name) in all.iter().enumerate() {
        // Each can be asked for by itself, and is the next of the one before.
        let got = ask("snmpget", &["-On"], &[name]);
        assert!(got.starts_with(&format!("{name} = ")) && !got.contains("No Such"), "{got}");
        if let Some(following) = all.get(at + 1) {
            let next = ask("snmpgetnext", &["-On"], &[name]);
            assert!(next.starts_with(&format!("{following} = ")), "after {name}: {next}");
        }
    }

    let table = ask("snmptable", &["-Ci"], &["VM-MIB::vmTable"]);
    assert_eq!(table.lines().filter(|line| line.contains(" running ")).count(), vms, "{table}");
    let vcpus = ask("snmptable", &["-Ci"], &["VM-MIB::vmCpuTable"]);
    let rows = vcpus.lines().filter(|line| line.contains("microsecond")).count();
    assert_eq!(rows, 12 + 2 * qemu.len(), "{vcpus}");
}

/// The names of a walk, which must ascend.
fn names(walk: &str) -> Vec<String> {
    let names: Vec<String> = walk
        .lines()
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .filter(|name| name.starts_with(".1.3.6.1.2.1.236."))
        .collect();
    let parts = |name: &String| {
        name.split('.').skip(1).map(|part| part.parse::<u32>().unwrap()).collect::<Vec<_>>()
    };
    assert!(names.iter().map(parts).is_sorted_by(|one, other| one < other), "{names:?}");
    names
}
