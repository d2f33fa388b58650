//! The report as text: short lines and aligned tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    time::Duration,
};

use super::{
    date::Date,
    model::{
        Agentx, Disk, DiskRequests, HangingRead, Hook, Probe, ProbeMode, RecordTable, Refusal,
        Report, SessionState, SourceState, SpentShare, Vcpu, Vm,
    },
};

/// Largest numbers of vCPUs and disks that are listed; more are only counted.
const VCPUS_LISTED: usize = 64;
const DISKS_LISTED: usize = 64;

/// Prints a [`Report`].
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a>(pub &'a Report);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { version, pid, uptime_ns, agentx, notifications, probe, .. } = self.0;
        let Report { sources, blind_spots, vms, .. } = self.0;
        writeln!(
            f,
            "kvmeter {version}, pid {pid}, up {}\n",
            Uptime(Duration::from_nanos(*uptime_ns))
        )?;
        session(f, agentx)?;
        writeln!(
            f,
            "Notify  {}; {} sent, {} unanswered, {} dropped, {} refused by the master",
            Count(notifications.changes, "state change", "state changes"),
            Count(notifications.sent, "notification", "notifications"),
            notifications.unanswered,
            notifications.dropped,
            Count(notifications.refused, "PDU", "PDUs")
        )?;
        programs(f, probe)?;
        f.write_char('\n')?;
        hooks(&probe.hooks).fmt(f)?;
        f.write_char('\n')?;
        source_states(sources).fmt(f)?;
        hanging_reads(f, sources)?;
        spent_shares(f, sources)?;
        left_out(f, notifications.left_out, sources)?;
        for spot in blind_spots {
            writeln!(f, "not all of the host is seen: {}", Printable(spot))?;
        }
        f.write_char('\n')?;
        totals(f, vms)?;
        vm_rows(vms).fmt(f)?;
        let total = vms.iter().map(|vm| vm.vcpus.len()).sum::<usize>();
        if total > VCPUS_LISTED {
            writeln!(f, "\n{total} vCPUs; `kvmeter status --vm VM` lists those of one VM")?;
        } else if total > 0 {
            f.write_char('\n')?;
            vcpus(vms).fmt(f)?;
        }
        for (vm, gap) in vms.iter().flat_map(|vm| vm.gaps.iter().map(move |gap| (vm, gap))) {
            writeln!(f, "VM {}: {}", vm.index, Printable(gap))?;
        }
        missing_interfaces(f, vms)?;
        let total = vms.iter().map(|vm| vm.disks.len()).sum::<usize>();
        if total > 0 {
            f.write_char('\n')?;
            if total > DISKS_LISTED {
                writeln!(f, "{total} disks; `kvmeter status --vm VM` lists those of one VM")?;
            } else {
                disks(vms).fmt(f)?;
            }
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
        "        {}, {} of them after a loss; last error: {}",
        Count(agentx.connects, "connection", "connections"),
        agentx.reconnects,
        Printable(agentx.last_error.as_deref().unwrap_or("none"))
    )?;
    let requests = &agentx.requests;
    write!(
        f,
        "        {} ({} get, {} get-next, {} get-bulk, {} set, {} other), {}, {} unparsable",
        Count(requests.total(), "request", "requests"),
        requests.get,
        requests.get_next,
        requests.get_bulk,
        requests.set,
        requests.other,
        Count(agentx.errors, "error", "errors"),
        agentx.parse_errors
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
            writeln!(f, "Probe   degraded: no BPF, VMs are listed without counters")?;
        }
    }
    writeln!(
        f,
        "        {} lost, {} without a record, {} of disks not counted",
        Count(probe.events_lost, "event", "events"),
        Count(probe.unrecorded_threads, "thread", "threads"),
        Count(probe.uncounted_requests, "request", "requests")
    )?;
    record_tables(f, &probe.tables)
}

fn record_tables(f: &mut fmt::Formatter<'_>, tables: &[RecordTable]) -> fmt::Result {
    if tables.is_empty() {
        return Ok(());
    }
    let fill =
        |RecordTable { name, size, used, .. }: &RecordTable| format!("{used} of {size} {name}");
    writeln!(f, "Tables  {} in use", tables.iter().map(fill).collect::<Vec<_>>().join(", "))?;
    let other = |RecordTable { name, configured, .. }: &RecordTable| {
        configured.map(|size| format!("{size} {name}"))
    };
    let others: Vec<_> = tables.iter().filter_map(other).collect();
    if !others.is_empty() {
        writeln!(
            f,
            "        configured: {}; in effect when no VM runs at a start of the agent, after a reboot, or after `kvmeter detach`, \
             after which the disk counters of running VMs start from zero",
            others.join(", ")
        )?;
    }
    for (table, refusal) in tables.iter().flat_map(|of| of.refused.iter().map(move |it| (of, it))) {
        let Refusal { of, vms, why, .. } = refusal;
        let (vms, of) = (Count(*vms, "VM", "VMs"), Printable(of));
        let lack = if vms.0 == 1 { "lacks" } else { "lack" };
        writeln!(f, "        {vms} of {of} {lack} {}: {}", table.name, Printable(why))?;
    }
    Ok(())
}

fn hooks(hooks: &[Hook]) -> Table<3> {
    let mut table = Table::new(["HOOK", "STATE", "WHY"], [Align::Left; 3]);
    let mut above = None;
    // The hooks of a method are attached and detached together.
    for hook in hooks.chunk_by(|a, b| a.method.is_some() && a.method == b.method) {
        let hook = hook.iter().find(|hook| !hook.live).unwrap_or(&hook[0]);
        let why = hook.why.as_deref().unwrap_or_default();
        let is_told = !why.is_empty() && above == Some(why);
        table.row([
            hook.method.as_ref().unwrap_or(&hook.name).clone(),
            if hook.live { "live" } else { "off" }.to_owned(),
            if is_told { "as above" } else { why }.to_owned(),
        ]);
        above = Some(why);
    }
    table
}

fn hanging_reads(f: &mut fmt::Formatter<'_>, sources: &[SourceState]) -> fmt::Result {
    for read in sources.iter().flat_map(|source| &source.hanging) {
        let HangingRead { pid, program, for_s, function } = read;
        write!(f, "a read of process {pid} ({}) has hung for {for_s} s", Printable(program))?;
        match function {
            Some(function) => writeln!(f, ", in the kernel's {}", Printable(function))?,
            None => f.write_char('\n')?,
        }
    }
    Ok(())
}

fn spent_shares(f: &mut fmt::Formatter<'_>, sources: &[SourceState]) -> fmt::Result {
    for share in sources.iter().flat_map(|source| &source.spent) {
        let SpentShare { of, waiting, deferred, .. } = share;
        let (of, waiting) = (Printable(of), Count(*waiting, "process waits", "processes wait"));
        writeln!(
            f,
            "scans of the processes of {of} cost too much: {deferred} of them came later, {waiting} now"
        )?;
    }
    Ok(())
}

/// What was left out because a user caused too much of it.
fn left_out(f: &mut fmt::Formatter<'_>, changes: u64, sources: &[SourceState]) -> fmt::Result {
    let lines: u64 = sources.iter().map(|source| source.left_out).sum();
    if changes + lines > 0 {
        writeln!(
            f,
            "left out of what VMs of users caused too much of: {} in notifications, {} of the log",
            Count(changes, "state change", "state changes"),
            Count(lines, "line", "lines")
        )?;
    }
    Ok(())
}

fn source_states(sources: &[SourceState]) -> Table<5> {
    let mut table = Table::new(
        ["SOURCE", "STATE", "STALE-SINCE", "VMS", "RESCANS"],
        [Align::Left, Align::Left, Align::Right, Align::Right, Align::Right],
    );
    for source in sources {
        table.row([
            source
                .uri
                .as_ref()
                .map_or_else(|| source.name.clone(), |uri| format!("{} {uri}", source.name)),
            source.state.clone(),
            source.stale_since.map_or_else(|| "-".to_owned(), |since| Date(since).to_string()),
            source.vms.to_string(),
            source.rescans.to_string(),
        ]);
    }
    table
}

/// One line for all VMs: how many are in each state, and what their disks are counted by.
fn totals(f: &mut fmt::Formatter<'_>, vms: &[Vm]) -> fmt::Result {
    let (mut states, mut methods) = (BTreeMap::new(), BTreeMap::new());
    for vm in vms {
        *states.entry(&*vm.state).or_insert(0) += 1;
        for disk in &vm.disks {
            *methods.entry(disk.counted_by.as_deref().unwrap_or("nothing")).or_insert(0) += 1;
        }
    }
    let vcpus: usize = vms.iter().map(|vm| vm.vcpus.len()).sum();
    let disks: usize = methods.values().sum();
    write!(f, "VMs     {}", vms.len())?;
    list(f, &states, "")?;
    let (vcpus, disks) = (Count(vcpus, "vCPU", "vCPUs"), Count(disks, "disk", "disks"));
    write!(f, "; {vcpus}; {disks}")?;
    list(f, &methods, "by ")?;
    f.write_str("\n\n")
}

/// `: 3 running, 1 paused`
fn list(f: &mut fmt::Formatter<'_>, counts: &BTreeMap<&str, usize>, before: &str) -> fmt::Result {
    for (at, (what, count)) in counts.iter().enumerate() {
        let separator = if at == 0 { ":" } else { "," };
        write!(f, "{separator} {count} {before}{}", Printable(what))?;
    }
    Ok(())
}

fn vm_rows(vms: &[Vm]) -> Table<7> {
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
        let Vcpu { id, tid, cpu_ns, wait_ns, switches, preemptions, live: _, why: _ } = vcpu;
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

/// A line for each reason why interfaces of running VMs lack a number, with how many there are and the first of them.
fn missing_interfaces(f: &mut fmt::Formatter<'_>, vms: &[Vm]) -> fmt::Result {
    let mut reasons = BTreeMap::new();
    let running = vms.iter().filter(|vm| vm.pid.is_some());
    for (vm, nic) in running.flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic))) {
        let Some(why) = &nic.why else { continue };
        let column = if nic.if_index.is_none() { "vmNetworkIfIndex" } else { "vmNetworkParent" };
        reasons.entry((column, why)).or_insert((0, vm.index, nic)).0 += 1;
    }
    for ((column, why), (count, vm, nic)) in reasons {
        let device = nic.device.as_deref().map(|name| format!(", {}", Printable(name)));
        let (index, device) = (nic.index, device.unwrap_or_default());
        let others = match count {
            1 => String::new(),
            _ => format!(" and {}", Count(count - 1, "other", "others")),
        };
        writeln!(
            f,
            "{column} is 0 for interface {index} of VM {vm}{device}{others}: {}",
            Printable(why)
        )?;
    }
    Ok(())
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
        let [reads, writes] = [disk.read, disk.write].map(|direction| {
            let cell = |of: fn(DiskRequests) -> Option<u64>| number(direction.and_then(of));
            [
                cell(|requests| Some(requests.requests)),
                cell(|requests| requests.p50_us),
                cell(|requests| requests.p99_us),
                cell(|requests| requests.p999_us),
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

/// Lines below the disks: the reason for each method, disks that the kernel does not count, and failed requests.
fn remarks(f: &mut fmt::Formatter<'_>, vms: &[Vm]) -> fmt::Result {
    let is_in_kernel =
        |disk: &&Disk| disk.counted_by.as_deref().is_some_and(|by| by != "hypervisor");
    let disks = vms.iter().flat_map(|vm| &vm.disks).filter(is_in_kernel);
    let methods: BTreeSet<_> = disks.map(|disk| (&disk.counted_by, &disk.why)).collect();
    for (method, why) in methods {
        if let (Some(method), Some(why)) = (method, why) {
            writeln!(f, "{}: {}", Printable(method), Printable(why))?;
        }
    }
    let all = || vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)));
    // A line for each reason, with how many disks there are and the first of them.
    let mut reasons = BTreeMap::new();
    for (vm, disk) in all() {
        if let Some(why) = disk.why.as_ref().filter(|_| !is_in_kernel(&disk)) {
            reasons.entry(why).or_insert((0, vm, disk)).0 += 1;
        }
    }
    for (why, (count, vm, disk)) in reasons {
        let (index, target, why) = (vm.index, Printable(&disk.target), Printable(why));
        match count {
            1 => writeln!(f, "{target} of VM {index} is not counted in the kernel: {why}")?,
            _ => writeln!(
                f,
                "{target} of VM {index} and {} are not counted in the kernel: {why}",
                Count(count - 1, "other", "others")
            )?,
        }
    }
    for (vm, disk) in all() {
        let (index, target) = (vm.index, Printable(&disk.target));
        let errors =
            |requests: Option<DiskRequests>| requests.and_then(|it| it.errors).unwrap_or(0);
        let (reads, writes) = (errors(disk.read), errors(disk.write));
        if reads + writes > 0 {
            let (reads, writes) = (Count(reads, "read", "reads"), Count(writes, "write", "writes"));
            writeln!(f, "{target} of VM {index}: {reads} and {writes} have failed")?;
        }
    }
    Ok(())
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Seconds with milliseconds, truncated, so that a counter is never shown ahead of its value.
fn seconds(ns: Option<u64>) -> String {
    ns.map_or_else(
        || "-".to_owned(),
        |ns| format!("{}.{:03}", ns / 1_000_000_000, ns / 1_000_000 % 1000),
    )
}

/// A number of something, with the word for one and that for several.
struct Count<'a, T>(T, &'a str, &'a str);

impl<T: fmt::Display + From<u8> + PartialEq> fmt::Display for Count<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, one, several) = self;
        write!(f, "{number} {}", if *number == T::from(1) { one } else { several })
    }
}

/// A duration as days and HH:MM:SS.
struct Uptime(Duration);

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        if s >= 86_400 {
            write!(f, "{} d ", s / 86_400)?;
        }
        write!(f, "{:02}:{:02}:{:02}", s / 3600 % 24, s / 60 % 60, s % 60)
    }
}

/// Untrusted text, such as a VM's name, without the control characters that would act on the terminal.
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

/// Columns as wide as their widest cell, with two spaces between them.
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
