//! The document that `kvmeter status --json` prints. Times end in their unit; a value that is not known is
//! `null`, never 0.

use serde::{Deserialize, Serialize};

/// All of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Report {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Time since it started, in ns.
    pub uptime_ns: u64,
    /// The session with the SNMP master.
    pub agentx: Agentx,
    /// What is told without being asked for.
    pub notifications: Notifications,
    /// The BPF programs.
    pub probe: Probe,
    /// Where VMs come from.
    pub sources: Vec<SourceState>,
    /// The VMs in the order of vmIndex.
    pub vms: Vec<Vm>,
}

/// The session with the SNMP master, since the agent started.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Agentx {
    /// How far the session is.
    pub state: SessionState,
    /// Where the master listens, as configured.
    pub master: String,
    /// Connections that the master accepted.
    pub connects: u64,
    /// How many of them came after a session had been lost.
    pub reconnects: u64,
    /// Why the last attempt or session failed; `None` = none has.
    pub last_error: Option<String>,
    /// PDUs of the master that were answered, by their kind.
    pub requests: Requests,
    /// Answers with an error other than noError, and PDUs that could not be understood.
    pub errors: u64,
    /// From the last octet of a request to the first of its answer; `None` = nothing answered yet.
    pub latency: Option<Latency>,
}

/// Notifications since the agent started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Notifications {
    /// Changes of state that VMs went through, told or not.
    pub changes: u64,
    /// Notifications that were sent to the master.
    pub sent: u64,
    /// What found a queue full or no session, and what the master did not answer in time.
    pub dropped: u64,
    /// PDUs of the agent that the master answered with an error.
    pub refused: u64,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// There is no connection; the next attempt is waited for or under way.
    Connecting,
    /// Connected, but Open or Register is not answered yet.
    Opening,
    /// Registered: requests come.
    Open,
}

/// PDUs by the kinds of RFC 2741 section 6.1 that a master sends as a request.
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
}

impl Requests {
    /// All kinds together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.get
            .saturating_add(self.get_next)
            .saturating_add(self.get_bulk)
            .saturating_add(self.set)
    }
}

/// A distribution of latencies, in µs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the answers were no slower.
    pub p50_us: u64,
    /// 99 of 100 were no slower.
    pub p99_us: u64,
    /// None was slower.
    pub max_us: u64,
}

/// The BPF programs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Probe {
    /// How counters come to be.
    pub mode: ProbeMode,
    /// The hooks that this version knows, live or not.
    pub hooks: Vec<Hook>,
    /// Whether the maps were found pinned and taken over from an earlier agent.
    pub adopted: bool,
    /// Where they are pinned.
    pub pin_dir: String,
    /// Events that found the ring full; each was followed by a scan.
    pub events_lost: u64,
    /// Threads of VMs for which there is no record; their time is missing in the VM's total.
    pub unrecorded_threads: u64,
    /// Requests of disks for which there was no record, or too many under way.
    pub uncounted_requests: u64,
}

/// How counters come to be.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeMode {
    /// BPF programs write them.
    Ebpf,
    /// Without BPF there are none.
    Degraded,
}

/// One place in the kernel where a BPF program may be attached.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hook {
    /// The program's name; that of one at a tracepoint is the tracepoint's, such as `sched_switch`.
    pub name: String,
    /// The way to count disks that it belongs to, such as `dio`; `None` where it is for CPUs.
    pub method: Option<String>,
    /// Whether the program is attached.
    pub live: bool,
    /// Why it is not; `None` where it is.
    pub why: Option<String>,
}

/// One source of VMs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceState {
    /// `procfs` or `libvirt`.
    pub name: String,
    /// What it does: `live`, `stale`, `off`, or why it cannot work.
    pub state: String,
    /// Since when what it says may be old, in seconds since 1970; `None` = it is up to date.
    pub stale_since: Option<u64>,
    /// How many VMs come from it.
    pub vms: u64,
    /// How often all was read again since the start.
    pub rescans: u64,
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
    /// Process id; `None` = it is shut down.
    pub pid: Option<u32>,
    /// vmOperState, by its name in the MIB.
    pub state: String,
    /// CPU time of all its threads in ns; `None` = not counted.
    pub cpu_ns: Option<u64>,
    /// In the order of their ids.
    pub vcpus: Vec<Vcpu>,
    /// In the order of vmStorageIndex.
    pub disks: Vec<Disk>,
}

/// One virtual CPU.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Vcpu {
    /// The id that KVM gives it; vmCpuIndex is one more.
    pub id: u32,
    /// Its thread; `None` = not known.
    pub tid: Option<u32>,
    /// Time on a CPU in ns.
    pub cpu_ns: Option<u64>,
    /// Time runnable but without a CPU in ns.
    pub wait_ns: Option<u64>,
    /// How often it was given a CPU.
    pub switches: Option<u64>,
    /// How often it lost the CPU while it could have gone on.
    pub preemptions: Option<u64>,
    /// Whether it is counted.
    pub live: bool,
}

/// One virtual disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Disk {
    /// vmStorageIndex.
    pub index: u32,
    /// What the guest knows it by, such as `vda`.
    pub target: String,
    /// What counts its I/O: `dio`, `vfs`, `aio`, `bdev`, `syscall` or `io_uring`, in the kernel, or `hypervisor`; `None` = nothing.
    pub counted_by: Option<String>,
    /// Why the kernel counts it in this way, or does not.
    pub why: Option<String>,
    /// What was read, where the kernel counts.
    pub read: Option<DiskRequests>,
    /// What was written, where the kernel counts.
    pub write: Option<DiskRequests>,
}

/// Requests on a disk in one direction.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskRequests {
    /// Requests that were done.
    pub requests: u64,
    /// Octets that they moved.
    pub octets: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Time that they took together in ns.
    pub latency_ns: u64,
    /// Half of them took no longer; in µs, as the next two, with an error of an eighth at most.
    pub p50_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// 999 of 1,000 took no longer.
    pub p999_us: u64,
}
