//! Reads and sets the whole subtree with net-snmp's tools and the module that the agent prints.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use crate::lab::stage::Stage;
use tempfile::TempDir;
use xtask::lab::{Accelerator, PATIENCE, Qemu, TinyGuest, missing, wait_until};

/// net-snmp's tools with the printed module instead of one on the host.
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

/// The lines of a walk without the values that change by themselves.
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
    // net-snmp's tools stop with "OID not increasing", and print "Wrong Type" for a type that differs from the module's.
    assert!(!walk.contains("Wrong Type") && !walk.contains("not increasing"), "{walk}");
    assert!(walk.contains(&format!("VM-MIB::vmNumber.0 = INTEGER: {vms}")), "{walk}");
    assert_eq!(walk.lines().filter(|line| line.contains("vmName.")).count(), vms);
    for (column, syntax) in [
        ("vmOperState", "INTEGER: running(4)"),
        ("vmPersistent", "INTEGER: unknown(1)"),
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
        // Each name can be read by get, and by get-next of the previous one.
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

/// The names of a walk. Asserts that they ascend.
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

#[test]
fn a_manager_sets_the_two_switches_and_nothing_else() {
    require!("ebpf", "snmpd");
    let mut stage = Stage::new();
    let set = |stage: &Stage, arguments: &[&str]| {
        stage
            .snmpd
            .ask("snmpset", &["-On", "-cprivate"], arguments)
            .map_err(|error| error.to_string())
    };
    const PER_VM: &str = "1.3.6.1.2.1.236.1.9.0";
    const BULK: &str = "1.3.6.1.2.1.236.1.10.0";
    let values = |stage: &mut Stage| {
        (stage.number(&[9, 0], &[]).unwrap(), stage.number(&[10, 0], &[]).unwrap())
    };
    assert_eq!(values(&mut stage), (2, 2));
    set(&stage, &[PER_VM, "i", "1", BULK, "i", "1"]).unwrap();
    assert_eq!(values(&mut stage), (1, 1));
    set(&stage, &[BULK, "i", "2"]).unwrap();
    assert_eq!(values(&mut stage), (1, 2));

    // All or nothing: the second variable of each request is refused, and the first does not change.
    for (arguments, reason) in [
        ([PER_VM, "i", "2", BULK, "i", "3"], "wrongValue"),
        ([PER_VM, "i", "2", BULK, "s", "x"], "wrongType"),
        ([PER_VM, "i", "2", "1.3.6.1.2.1.236.1.10.1", "i", "1"], "noCreation"),
        ([PER_VM, "i", "2", "1.3.6.1.2.1.236.1.2.0", "i", "1"], "notWritable"),
        ([PER_VM, "i", "2", "1.3.6.1.2.1.236.1.4.1.5.1", "i", "4"], "notWritable"),
    ] {
        let refused = set(&stage, &arguments).unwrap_err();
        assert!(refused.contains(reason), "{arguments:?}: {refused}");
        assert_eq!(values(&mut stage), (1, 2), "{arguments:?}");
    }

    // A value set does not outlive the master in which it was set.
    let kept = |stage: &mut Stage| stage.number(&[9, 0], &[]);
    stage.snmpd.end();
    stage.snmpd.begin().unwrap();
    wait_until(PATIENCE, "served again", || kept(&mut stage)).unwrap();
    assert_eq!(values(&mut stage), (2, 2), "the master has begun anew");
    set(&stage, &[PER_VM, "i", "1"]).unwrap();
    assert_eq!(values(&mut stage), (1, 2));

    // A value set does not survive a restart of the agent.
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    assert_eq!(values(&mut stage), (2, 2));
    let capabilities = stage.snmpd.ask("snmpwalk", &["-On"], &["1.3.6.1.2.1.1.9.1"]).unwrap();
    let statement = "OID: .1.3.6.1.4.1.8072.9999.9999.7666.1";
    assert!(capabilities.contains(statement), "{capabilities}");
    assert!(capabilities.contains("RFC 7666"), "{capabilities}");
}
