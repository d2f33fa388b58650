//! The report for people: short lines and aligned tables.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::time::Duration;

use super::model::{
    Agentx, DiskRequests, Hook, Probe, ProbeMode, Report, SessionState, SourceState, Vcpu, Vm,
};

/// More vCPUs than this are only counted, not listed.
const VCPUS_LISTED: usize = 64;

/// Prints a [`Report`].
#[derive(Clone, Copy, Debug)]
pub struct Text<'a>(pub &'a Report);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { version, pid, uptime_ns, agentx, notifications, probe, sources, vms } = self.0;
        writeln!(
            f,
            "kvmeter {version}, pid {pid}, up {}\n",
            Ago(Duration::from_nanos(*uptime_ns))
        )?;
        session(f, agentx)?;
        writeln!(
            f,
            "Told    {} changes of state; {} notifications sent, {} dropped, {} PDUs refused by the master",
            notifications.changes, notifications.sent, notifications.dropped, notifications.refused
        )?;
        programs(f, probe)?;
        f.write_char('\n')?;
        hooks(&probe.hooks).fmt(f)?;
        f.write_char('\n')?;
        from(sources).fmt(f)?;
        f.write_char('\n')?;
        machines(vms).fmt(f)?;
        let total = vms.iter().map(|vm| vm.vcpus.len()).sum::<usize>();
        if total > VCPUS_LISTED {
            writeln!(f, "\n{total} vCPUs; `kvmeter status --json` lists them")?;
        } else if total > 0 {
            f.write_char('\n')?;
            vcpus(vms).fmt(f)?;
        }
        if vms.iter().any(|vm| !vm.disks.is_empty()) {
            f.write_char('\n')?;
            disks(vms).fmt(f)?;
            remarks(f, vms)?;
        }
        Ok(())
    }
}

fn session(f: &mut fmt::Formatter<'_>, agentx: &Agentx) -> fmt::Result {
    let state = match agentx.state {
        SessionState::Connecting => "connecting to",
        SessionState::Opening => "opening a session with",
        SessionState::Open => "open with",
    };
    writeln!(f, "AgentX  {state} {}", Printable(&agentx.master))?;
    writeln!(
        f,
        "        {} connections, {} of them after a loss; last error: {}",
        agentx.connects,
        agentx.reconnects,
        Printable(agentx.last_error.as_deref().unwrap_or("none"))
    )?;
    let requests = &agentx.requests;
    write!(
        f,
        "        {} requests ({} get, {} get-next, {} get-bulk, {} set), {} errors",
        requests.total(),
        requests.get,
        requests.get_next,
        requests.get_bulk,
        requests.set,
        agentx.errors
    )?;
    if let Some(latency) = &agentx.latency {
        write!(
            f,
            "; answered in {} µs (p50), {} µs (p99), {} µs (max)",
            latency.p50_us, latency.p99_us, latency.max_us
        )?;
    }
    f.write_char('\n')
}

fn programs(f: &mut fmt::Formatter<'_>, probe: &Probe) -> fmt::Result {
    match probe.mode {
        ProbeMode::Ebpf => writeln!(
            f,
            "Probe   eBPF, {} under {}",
            if probe.adopted { "adopted, pinned" } else { "pinned" },
            Printable(&probe.pin_dir)
        )?,
        ProbeMode::Degraded => {
            writeln!(f, "Probe   degraded: no BPF, counters are read from procfs")?;
        }
    }
    writeln!(
        f,
        "        {} events lost, {} threads without a record, {} requests of disks not counted",
        probe.events_lost, probe.unrecorded_threads, probe.uncounted_requests
    )
}

fn hooks(hooks: &[Hook]) -> Table<3> {
    let mut table = Table::new(["HOOK", "STATE", "WHY"], [Align::Left; 3]);
    // Those of one way to count disks come and go together.
    for hook in hooks.chunk_by(|a, b| a.method.is_some() && a.method == b.method) {
        let hook = hook.iter().find(|hook| !hook.live).unwrap_or(&hook[0]);
        table.row([
            hook.method.as_ref().unwrap_or(&hook.name).clone(),
            if hook.live { "live" } else { "off" }.to_owned(),
            hook.why.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn from(sources: &[SourceState]) -> Table<5> {
    let mut table = Table::new(
        ["SOURCE", "STATE", "STALE-SINCE", "VMS", "RESCANS"],
        [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right],
    );
    for source in sources {
        table.row([
            source.name.clone(),
            source.state.clone(),
            number(source.stale_since),
            source.vms.to_string(),
            source.rescans.to_string(),
        ]);
    }
    table
}

fn machines(vms: &[Vm]) -> Table<7> {
    let mut table = Table::new(
        ["VM", "NAME", "STATE", "PID", "VCPUS", "CPU-S", "UUID"],
        [
            Align::Right,
            Align::Left,
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
        ],
    );
    for vm in vms {
        let live = vm.vcpus.iter().filter(|vcpu| vcpu.live).count();
        table.row([
            vm.index.to_string(),
            vm.name.clone(),
            vm.state.clone(),
            number(vm.pid.map(u64::from)),
            if live == vm.vcpus.len() {
                live.to_string()
            } else {
                format!("{live}/{}", vm.vcpus.len())
            },
            seconds(vm.cpu_ns),
            vm.uuid.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn vcpus(vms: &[Vm]) -> Table<7> {
    let mut table = Table::new(
        ["VM", "VCPU", "TID", "CPU-S", "WAIT-S", "SWITCHES", "PREEMPTIONS"],
        [Align::Right; 7],
    );
    for (vm, vcpu) in vms.iter().flat_map(|vm| vm.vcpus.iter().map(move |vcpu| (vm, vcpu))) {
        let Vcpu { id, tid, cpu_ns, wait_ns, switches, preemptions, live: _ } = vcpu;
        table.row([
            vm.index.to_string(),
            id.to_string(),
            number(tid.map(u64::from)),
            seconds(*cpu_ns),
            seconds(*wait_ns),
            number(*switches),
            number(*preemptions),
        ]);
    }
    table
}

fn disks(vms: &[Vm]) -> Table<12> {
    use Align::{Left, Right};
    let mut table = Table::new(
        [
            "VM",
            "DISK",
            "TARGET",
            "COUNTED-BY",
            "READS",
            "P50-US",
            "P99-US",
            "P99.9-US",
            "WRITES",
            "P50-US",
            "P99-US",
            "P99.9-US",
        ],
        [Right, Right, Left, Left, Right, Right, Right, Right, Right, Right, Right, Right],
    );
    for (vm, disk) in vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk))) {
        let [reads, writes] = [disk.read, disk.write].map(|told| {
            let cell = |of: fn(DiskRequests) -> u64| number(told.map(of));
            [
                cell(|told| told.requests),
                cell(|told| told.p50_us),
                cell(|told| told.p99_us),
                cell(|told| told.p999_us),
            ]
        });
        let [reads, read_p50, read_p99, read_p999] = reads;
        let [writes, write_p50, write_p99, write_p999] = writes;
        table.row([
            vm.index.to_string(),
            disk.index.to_string(),
            disk.target.clone(),
            disk.counted_by.clone().unwrap_or_else(|| "-".to_owned()),
            reads,
            read_p50,
            read_p99,
            read_p999,
            writes,
            write_p50,
            write_p99,
            write_p999,
        ]);
    }
    table
}

/// Why the kernel counts disks in these ways, or does not, and how many requests have failed.
fn remarks(f: &mut fmt::Formatter<'_>, vms: &[Vm]) -> fmt::Result {
    let disks = || vms.iter().flat_map(|vm| &vm.disks).filter(|disk| disk.read.is_some());
    let ways: BTreeSet<_> = disks().map(|disk| (&disk.counted_by, &disk.why)).collect();
    for (way, why) in ways {
        if let (Some(way), Some(why)) = (way, why) {
            writeln!(f, "{}: {}", Printable(way), Printable(why))?;
        }
    }
    for (vm, disk) in vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk))) {
        let (index, target) = (vm.index, Printable(&disk.target));
        if let Some(why) = disk.why.as_ref().filter(|_| disk.read.is_none()) {
            writeln!(f, "{target} of VM {index} is not counted in the kernel: {}", Printable(why))?;
        }
        let errors = |told: Option<DiskRequests>| told.map_or(0, |told| told.errors);
        let (reads, writes) = (errors(disk.read), errors(disk.write));
        if reads + writes > 0 {
            writeln!(f, "{target} of VM {index}: {reads} reads and {writes} writes have failed")?;
        }
    }
    Ok(())
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Seconds with milliseconds, cut and not rounded: a counter is never shown ahead of itself.
fn seconds(ns: Option<u64>) -> String {
    ns.map_or_else(
        || "-".to_owned(),
        |ns| format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1000),
    )
}

/// A duration as days and a clock.
struct Ago(Duration);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        if s >= 86_400 {
            write!(f, "{} d ", s / 86_400)?;
        }
        write!(f, "{:02}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60)
    }
}

/// Text from elsewhere, that must not move the cursor or colour the terminal: a VM's name is whatever
/// its owner wrote.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            f.write_char(if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Align {
    Left,
    Right,
}

/// Columns as wide as their widest cell, two blanks between them.
struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    fn new(head: [&str; N], align: [Align; N]) -> Self {
        Self { align, rows: vec![head.map(str::to_owned)] }
    }

    fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| Printable(&cell).to_string()));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), align) in row.iter().zip(widths).zip(self.align) {
                match align {
                    Align::Left => write!(line, "{cell:<width$}  ")?,
                    Align::Right => write!(line, "{cell:>width$}  ")?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
