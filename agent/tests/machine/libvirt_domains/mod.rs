//! Domains of many kinds on a real libvirtd: every object of VM-MIB, as a manager walks it through snmpd, against
//! what virsh and the kernel say of them, and against the module.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod kinds;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use crate::lab::{
    libvirt::{Host, uuid},
    module::{Binding, Module, Value, WALK, bindings},
};
use kinds::Kinds;
use kvmeter::mib;
use serde_json::Value as Json;
use xtask::lab::wait_until;

/// What libvirt and the agent say of a CPU time at one moment differs by the steps of libvirt, 10 ms.
const STEPS_US: u64 = 30_000;

/// Until all domains have come to rest, and the counts of their disks are the newest.
const LIMIT: Duration = Duration::from_secs(90);

/// vmUpTime and the times on a CPU, by table and column.
/// vmStorageReadIOs to vmStorageWriteLatency.
const IO: std::ops::RangeInclusive<u32> = 13..=18;
const MOVING: [[u32; 3]; 3] = [[4, 1, 16], [4, 1, 17], [5, 1, 2]];

/// hrDeviceType and ifDescr.
const HR_DEVICE_TYPE: &str = ".1.3.6.1.2.1.25.3.2.1.2";
const IF_DESCR: &str = ".1.3.6.1.2.1.2.2.1.2";

type Rows = BTreeMap<Vec<u32>, Value>;

#[test]
fn every_object_of_domains_of_many_kinds_is_as_virsh_has_it() {
    require!("ebpf", "kvm", "snmpd", "qemu", "libvirt", "pysmi");
    let host = Host::new();
    let kinds = Kinds::make(&host);
    // A request that QEMU counts, as a guest would make it.
    for request in ["aio_write 0 64k", "aio_read 0 8k"] {
        let request =
            format!("qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"{request}\"");
        host.libvirtd.virsh(&["qemu-monitor-command", &uuid(1), "--hmp", &request]).unwrap();
    }
    let in_column = |rows: &Rows| rows.keys().filter(|name| name.starts_with(&[4, 1, 2])).count();
    let mut difference = String::new();
    let mut seen = Vec::new();
    let settled = wait_until(LIMIT, "all is as virsh has it", || {
        let before = virsh(&host);
        seen = walk(&host);
        let after = virsh(&host);
        let (before, after) = (expected(&host, &seen, &before), expected(&host, &seen, &after));
        difference = differences(&own_rows(&seen), &before, &after);
        // A walk is several requests, between which VMs of other tests come and go.
        let vms = i64::try_from(in_column(&rows(&seen))).unwrap();
        if rows(&seen)[&vec![2, 0]] != Value::Number(vms) {
            difference.push_str("vmNumber is not the number of rows");
        }
        difference.is_empty().then_some(())
    });
    assert!(settled.is_ok(), "{difference}\n{}", host.stage.agent.log());

    let of = |column: u32, vm: u32| rows(&seen).get(&vec![4, 1, column, vm]).cloned();
    assert_eq!(in_column(&own_rows(&seen)), kinds.names.len());
    // What the comparison rests on, told once without the script: 3 TiB of memory are told in MiB, and so on.
    let large = index_of(&seen, &uuid(18)).unwrap();
    assert_eq!(of(12, large), Some(Value::Number(1 << 20)));
    assert_eq!(of(15, large), Some(Value::Number(3 << 20)));
    assert_eq!(rows(&seen)[&vec![7, 1, 11, large, 1]], Value::Number(40 << 20));
    let raw = index_of(&seen, &uuid(1)).unwrap();
    let io = |column: u32| match rows(&seen)[&vec![7, 1, column, raw, 1]] {
        Value::Counter(count) => count,
        ref other => panic!("{other:?}"),
    };
    assert!(io(13) >= 1 && io(14) == 1 && io(15) >= 8 << 10 && io(16) == 64 << 10 && io(18) > 0);

    // What points into other modules points at what snmpd has there.
    let processors = pointed_at(&host, HR_DEVICE_TYPE, "OID: .1.3.6.1.2.1.25.3.1.3");
    let interfaces = pointed_at(&host, IF_DESCR, "");
    for (name, value) in rows(&seen) {
        match (&name[..], value) {
            ([6, 1, 3, _, _, processor], _) => assert!(processors.contains(processor)),
            ([8, 1, 2 | 3, ..], Value::Number(interface)) if interface != 0 => {
                assert!(interfaces.contains(&u32::try_from(interface).unwrap()), "{name:?}");
            }
            _ => {}
        }
    }

    let text = mib::text();
    let published = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/mibs/VM-MIB.txt");
    for text in std::iter::once(text).chain(fs::read_to_string(published)) {
        let violations = Module::compile(&text).violations(&seen);
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// The last sub-identifiers of a column of snmpd's own whose values begin so.
fn pointed_at(host: &Host, column: &str, value: &str) -> BTreeSet<u32> {
    let walk = host.stage.snmpd.ask("snmpbulkwalk", &["-m", "", "-On"], &[column]).unwrap();
    walk.lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(_, is)| is.starts_with(value))
        .map(|(name, _)| name.rsplit('.').next().unwrap().parse().unwrap())
        .collect()
}

fn walk(host: &Host) -> Vec<Binding> {
    let options = [&WALK[..], &["-Cr20"]].concat();
    bindings(&host.stage.snmpd.ask("snmpbulkwalk", &options, &[".1.3.6.1.2.1.236"]).unwrap())
}

/// Below vmObjects, of all VMs of the host.
fn rows(walk: &[Binding]) -> Rows {
    walk.iter().map(|binding| (binding.name[8..].to_vec(), binding.value.clone())).collect()
}

/// The rows of this test's domains in vmTable and in the tables that begin with vmIndex: other tests have VMs, too.
fn own_rows(walk: &[Binding]) -> Rows {
    let mut rows = rows(walk);
    let begin = hex(&uuid(0)[..8]);
    let is_own = |value: &Value| matches!(value, Value::Octets(uuid) if uuid.starts_with(&begin));
    let own: BTreeSet<u32> = rows
        .iter()
        .filter(|(name, value)| name.starts_with(&[4, 1, 3]) && is_own(value))
        .map(|(name, _)| name[3])
        .collect();
    rows.retain(|name, _| (4..=8).contains(&name[0]) && own.contains(&name[3]));
    rows
}

/// What virsh says of all domains, as the script puts it.
fn virsh(host: &Host) -> Json {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/libvirt_domains/virsh.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(host.libvirtd.uri_read_only())
        .arg(host.libvirtd.pid_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The vmIndex of the VM with this UUID.
fn index_of(walk: &[Binding], uuid: &str) -> Option<u32> {
    let octets = hex(&uuid.replace('-', ""));
    let rows = rows(walk);
    let (name, _) = rows.iter().find(|(name, value)| {
        name.starts_with(&[4, 1, 3]) && **value == Value::Octets(octets.clone())
    })?;
    name.last().copied()
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.replace(':', "");
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

/// The tables that follow from what the script found. The indexes of VMs, disks and interfaces are the agent's
/// own choice; it is asked which is which.
fn expected(host: &Host, walk: &[Binding], told: &Json) -> Rows {
    let status = host.stage.status();
    let mut rows = Rows::new();
    for (uuid, domain) in told.as_object().unwrap() {
        let Some(vm) = index_of(walk, uuid) else {
            // Nothing of it is served: the first column tells.
            rows.insert(vec![4, 1, 3, 0], Value::Other(uuid.clone()));
            continue;
        };
        let mut put = |table: u32, index: &[u32], columns: &Json| {
            for (column, value) in columns.as_object().unwrap() {
                let column: u32 = column.parse().unwrap();
                if !value.is_null() {
                    let name = [&[table, 1, column, vm], index].concat();
                    rows.insert(name, value_of(table, column, value));
                }
            }
        };
        let mut columns = domain["vm"].clone();
        if columns["16"].is_null() {
            let served = walk.iter().find(|binding| binding.name[8..] == [4, 1, 16, vm]);
            if let Some(Value::Number(up)) = served.map(|binding| &binding.value) {
                assert!(*up > 0, "{uuid}");
                columns["16"] = (*up).into();
            }
        }
        put(4, &[], &columns);
        for (id, cpu) in domain["cpus"].as_object().unwrap() {
            let index = id.parse::<u32>().unwrap() + 1;
            put(5, &[index], &serde_json::json!({ "2": cpu["time"] }));
            for (number, physical) in (196_608..).take(host_cpus()).enumerate() {
                let affinity = cpu["affinity"].get(number).cloned().unwrap_or_else(|| 0.into());
                put(6, &[index, physical], &serde_json::json!({ "3": affinity }));
            }
        }
        let vms = status["vms"].as_array().unwrap();
        let Some(of_agent) = vms.iter().find(|one| one["index"] == vm) else { continue };
        for (target, disk) in domain["disks"].as_object().unwrap() {
            let disks = of_agent["disks"].as_array().unwrap();
            let known = disks.iter().find(|disk| disk["target"] == **target);
            let index = known.map_or(0, |known| known["index"].as_u64().unwrap());
            let index = u32::try_from(index).unwrap();
            let mut disk = disk.clone();
            if known.is_some_and(|known| known["read"].is_object()) {
                // What the kernel counts is not what QEMU counts; another test compares that.
                let disk = disk.as_object_mut().unwrap();
                disk.retain(|column, _| !IO.contains(&column.parse::<u32>().unwrap()));
                for column in IO {
                    let name = [7, 1, column, vm, index];
                    let served = walk.iter().find(|binding| binding.name[8..] == name);
                    if let Some(&Value::Counter(count)) = served.map(|binding| &binding.value) {
                        disk.insert(column.to_string(), count.into());
                    }
                }
                assert!(IO.clone().all(|column| disk.contains_key(&column.to_string())));
            }
            put(7, &[index], &disk);
        }
        for (address, nic) in domain["nics"].as_object().unwrap() {
            let address = Value::Octets(hex(address));
            let name = walk.iter().find(|binding| {
                binding.name[8..].starts_with(&[8, 1, 5, vm]) && binding.value == address
            });
            put(8, &[name.map_or(0, |binding| *binding.name.last().unwrap())], nic);
        }
    }
    rows
}

fn host_cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

fn value_of(table: u32, column: u32, value: &Json) -> Value {
    match (table, column, value) {
        (4, 3, Json::String(text)) => Value::Octets(hex(&text.replace('-', ""))),
        (8, 5, Json::String(text)) => Value::Octets(hex(text)),
        (_, _, Json::String(text)) => Value::Octets(text.clone().into_bytes()),
        (4, 17, number) | (5, 2, number) | (7, 13..=18, number) => {
            Value::Counter(number.as_u64().unwrap())
        }
        (_, _, number) => Value::Number(number.as_i64().unwrap()),
    }
}

/// What is served and what was expected before and after it, where they do not agree.
fn differences(seen: &Rows, before: &Rows, after: &Rows) -> String {
    let mut differences = Vec::new();
    for (name, value) in seen {
        let (low, high) = (before.get(name), after.get(name));
        let agrees = match (low, high, value) {
            (Some(Value::Counter(low)), Some(Value::Counter(high)), Value::Counter(value))
                if MOVING.iter().any(|column| name.starts_with(column)) =>
            {
                (low.saturating_sub(STEPS_US)..=high + STEPS_US).contains(value)
            }
            (Some(Value::Number(low)), Some(Value::Number(high)), Value::Number(value))
                if MOVING.iter().any(|column| name.starts_with(column)) =>
            {
                (low - 3..=high + 3).contains(value)
            }
            (Some(low), Some(high), value) => low == value && high == value,
            _ => false,
        };
        if !agrees {
            differences.push(format!("{name:?}: served {value:?}, virsh {low:?} then {high:?}"));
        }
    }
    let absent = after.keys().filter(|name| !seen.contains_key(*name));
    differences
        .extend(absent.map(|name| format!("{name:?} is absent: virsh has {:?}", after[name])));
    differences.join("\n")
}
