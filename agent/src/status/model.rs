//! The document of `kvmeter status --json`. Names of times end in their unit; an unknown value is `null`, never 0.

use serde::{Deserialize, Serialize};

/// The document.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Time since the agent started, in ns.
    pub uptime_ns: u64,
    /// The session with the SNMP master.
    pub agentx: Agentx,
    /// Notifications.
    pub notifications: Notifications,
    /// The BPF programs.
    pub probe: Probe,
    /// The sources of VMs.
    pub sources: Vec<SourceState>,
    /// What the agent does not see of the host because it does not live in the host's namespaces, each with the fix.
    #[serde(default)]
    pub blind_spots: Vec<String>,
    /// The VMs in the order of vmIndex.
    pub vms: Vec<Vm>,
}

/// The session with the SNMP master, since the agent started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Agentx {
    /// State of the session.
    pub state: SessionState,
    /// Address of the master, as configured.
    pub master: String,
    /// Connections that were established.
    pub connects: u64,
    /// Sessions that were opened after the loss of another.
    pub reconnects: u64,
    /// Error of the last failed attempt or session; `None`: none has failed.
    pub last_error: Option<String>,
    /// PDUs of the master, by type.
    pub requests: Requests,
    /// PDUs of the master that were answered with an error.
    pub errors: u64,
    /// PDUs of the master that could not be parsed.
    pub parse_errors: u64,
    /// Time from the last byte of a request to its response; `None`: no request yet.
    pub latency: Option<Latency>,
}

/// Notifications since the agent started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Notifications {
    /// State changes of VMs, reported or not.
    pub changes: u64,
    /// Notifications that were sent to the master.
    pub sent: u64,
    /// State changes and notifications dropped: a queue was full, no session was opened in time, or a vmIndex fits into no
    /// vmAffectedVMs.
    pub dropped: u64,
    /// State changes of VMs of users that were left out, because there were too many.
    #[serde(default)]
    pub left_out: u64,
    /// Notifications sent that the master did not answer in time. It may have passed them on.
    pub unanswered: u64,
    /// PDUs of the agent that the master refused.
    pub refused: u64,
}

/// State of a session.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Not connected: an attempt is running or the next one is scheduled.
    Connecting,
    /// Connected; Open or Register has not been answered.
    Opening,
    /// Registered: the master sends requests.
    Open,
}

/// Number of PDUs of the master by type (RFC 2741 section 6.1).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Requests {
    /// agentx-Get-PDU
    pub get: u64,
    /// agentx-GetNext-PDU
    pub get_next: u64,
    /// agentx-GetBulk-PDU
    pub get_bulk: u64,
    /// agentx-TestSet-PDU, agentx-CommitSet-PDU, agentx-UndoSet-PDU, agentx-CleanupSet-PDU
    pub set: u64,
    /// PDUs of other types, without Responses
    pub other: u64,
}

impl Report {
    /// Leaves out all VMs but those with this name, UUID or vmIndex. Returns whether there is one.
    pub fn retain_vm(&mut self, name: &str) -> bool {
        let is_named = |vm: &Vm| {
            vm.name == name
                || vm.uuid.as_deref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(name))
                || vm.index.to_string() == name
        };
        self.vms.retain(is_named);
        !self.vms.is_empty()
    }
}

impl Requests {
    /// Sum over all types.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.get
            .saturating_add(self.get_next)
            .saturating_add(self.get_bulk)
            .saturating_add(self.set)
            .saturating_add(self.other)
    }
}

/// Distribution of latencies, in µs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: u64,
    /// 99th percentile.
    pub p99_us: u64,
    /// Maximum.
    pub max_us: u64,
}

/// The BPF programs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Probe {
    /// Whether there are counters.
    pub mode: ProbeMode,
    /// The hooks of this version, live or not.
    pub hooks: Vec<Hook>,
    /// Whether the maps were adopted from an earlier agent.
    pub adopted: bool,
    /// Directory of the pins.
    pub pin_dir: String,
    /// Events that were lost because the ring was full; a scan followed.
    pub events_lost: u64,
    /// Threads of VMs without a record; their time is added to the VM's total when they exit.
    pub unrecorded_threads: u64,
    /// Requests of disks that were not counted: no record was free, or too many requests were in flight.
    pub uncounted_requests: u64,
    /// The tables of records; none without counters.
    #[serde(default)]
    pub tables: Vec<RecordTable>,
}

/// A table of records: memory that the BPF programs count in.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RecordTable {
    /// What the records are of: `VM records`, `thread records` or `image records`.
    pub name: String,
    /// Records in the table.
    pub size: u64,
    /// Records that the configuration asks for, if the table has another size: tables keep their sizes while a VM is counted in
    /// them. `None`: as many as the table has.
    #[serde(default)]
    pub configured: Option<u64>,
    /// Records in use. VMs get thread records in blocks.
    pub used: u64,
    /// Those in use by VMs of users who are neither root nor libvirt; `None`: not distinguished.
    pub of_users: Option<u64>,
    /// VMs that are without a record now.
    pub refused: Vec<Refusal>,
}

/// VMs without a record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Refusal {
    /// The user; `None`: `of` says whose they are.
    pub user: Option<u32>,
    /// Whose they are, such as `user 1000`.
    #[serde(default)]
    pub of: String,
    /// Number of the VMs.
    pub vms: u64,
    /// Why.
    pub why: String,
}

/// Whether there are counters.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeMode {
    /// BPF programs count.
    Ebpf,
    /// No BPF, no counters.
    Degraded,
}

/// A hook of a BPF program.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hook {
    /// Name of the program; at a tracepoint it is the tracepoint's name, such as `sched_switch`.
    pub name: String,
    /// The method to count disks that the hook belongs to, such as `dio`; `None`: a hook for CPU time.
    pub method: Option<String>,
    /// Whether the program is attached.
    pub live: bool,
    /// Why it is not; `None`: it is.
    pub why: Option<String>,
}

/// One source of VMs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceState {
    /// `procfs` or `libvirt`.
    pub name: String,
    /// The libvirt connection; `None`: it is not one of libvirt's.
    pub uri: Option<String>,
    /// `live`, `stale`, `off`, or why the source does not work.
    pub state: String,
    /// Since when the source's facts may be outdated, in seconds since 1970; `None`: they are current.
    pub stale_since: Option<u64>,
    /// Number of VMs from this source.
    pub vms: u64,
    /// Number of full scans since the start.
    pub rescans: u64,
    /// Reads of processes that have not returned. What was known of these processes stays.
    #[serde(default)]
    pub hanging: Vec<HangingRead>,
    /// Users and containers whose share of the CPU time of scans was spent of late. Their VMs may be shown late; no one else's are.
    #[serde(default)]
    pub spent: Vec<SpentShare>,
    /// Lines about VMs of users that were left out of the log, because there were too many.
    #[serde(default)]
    pub left_out: u64,
}

/// A user or container whose processes are scanned later than something happens to them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SpentShare {
    /// The user; `None`: a container, see `of`.
    pub user: Option<u32>,
    /// Whose processes they are, such as `user 1000`.
    #[serde(default)]
    pub of: String,
    /// Processes that wait to be scanned.
    pub waiting: u64,
    /// Scans that had to wait so far.
    pub deferred: u64,
}

/// A read of a process that has not returned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct HangingRead {
    /// Process id.
    pub pid: u32,
    /// Name of the program.
    pub program: String,
    /// For how long it has hung, in seconds.
    pub for_s: u64,
    /// The function of the kernel in which it waits; `None`: the kernel does not say.
    pub function: Option<String>,
}

/// One VM.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vm {
    /// vmIndex.
    pub index: u32,
    /// vmName.
    pub name: String,
    /// vmUUID as text.
    pub uuid: Option<String>,
    /// Process id; `None`: the VM is off, or no process of it is known.
    pub pid: Option<u32>,
    /// Name of vmOperState in the MIB.
    pub state: String,
    /// CPU time of all threads in ns, 0 while the VM is off; `None`: not known.
    pub cpu_ns: Option<u64>,
    /// Why `cpu_ns` is not known; `None`: it is.
    pub why: Option<String>,
    /// The vCPUs in the order of their ids.
    pub vcpus: Vec<Vcpu>,
    /// The disks in the order of vmStorageIndex.
    pub disks: Vec<Disk>,
    /// The network interfaces in the order of vmNetworkIndex.
    #[serde(default)]
    pub nics: Vec<Nic>,
    /// What could not be found out about the VM, each with the reason.
    pub gaps: Vec<String>,
}

/// One virtual CPU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vcpu {
    /// KVM's id; vmCpuIndex is one more.
    pub id: u32,
    /// Thread id; `None`: unknown.
    pub tid: Option<u32>,
    /// Time on a CPU in ns. Like the next three, it is 0 while the VM is off; `None`: not known.
    pub cpu_ns: Option<u64>,
    /// Time runnable but without a CPU in ns.
    pub wait_ns: Option<u64>,
    /// Number of times the vCPU got a CPU.
    pub switches: Option<u64>,
    /// Number of times the vCPU lost its CPU while it was runnable.
    pub preemptions: Option<u64>,
    /// Whether the vCPU is counted.
    pub live: bool,
    /// Why `cpu_ns` is not known; `None`: it is.
    pub why: Option<String>,
}

/// One virtual disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Disk {
    /// vmStorageIndex.
    pub index: u32,
    /// Name in the guest, such as `vda`.
    pub target: String,
    /// The method that counts the disk's I/O: `dio`, `vfs`, `aio`, `bdev`, `syscall` or `io_uring`, in the kernel, or
    /// `hypervisor`; `None`: none.
    pub counted_by: Option<String>,
    /// Why the disk is counted by this method, not in the kernel, or not at all.
    pub why: Option<String>,
    /// How old the numbers are in ms, where the hypervisor counts; `None` = they are of this moment, or there are none.
    pub age_ms: Option<u64>,
    /// What was read, nothing while the VM is off; `None` = not known.
    pub read: Option<DiskRequests>,
    /// What was written, nothing while the VM is off; `None` = not known.
    pub write: Option<DiskRequests>,
}

/// One virtual network interface.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Nic {
    /// vmNetworkIndex.
    pub index: u32,
    /// Name of the host's interface; `None` = not known, or there is none.
    pub device: Option<String>,
    /// vmNetworkIfIndex; `None` = it is 0.
    pub if_index: Option<u32>,
    /// vmNetworkParent; `None` = it is 0.
    pub parent_if_index: Option<u32>,
    /// Why one of them is 0; `None` = neither is.
    pub why: Option<String>,
}

/// Requests on a disk in one direction.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskRequests {
    /// Completed requests.
    pub requests: u64,
    /// Bytes that they moved.
    pub octets: u64,
    /// Failed requests; `None`: the hypervisor counts, and does not say.
    pub errors: Option<u64>,
    /// Sum of their latencies in ns.
    pub latency_ns: u64,
    /// Median of the latencies in µs; like the next two, it is at most an eighth off. `None`: no request has succeeded, or
    /// the hypervisor counts, and does not say.
    pub p50_us: Option<u64>,
    /// 99th percentile in µs.
    pub p99_us: Option<u64>,
    /// 99.9th percentile in µs.
    pub p999_us: Option<u64>,
}
