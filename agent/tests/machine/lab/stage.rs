//! An SNMP master, the agent and a manager, all private to one test.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use xtask::lab::{Agent, Client, PATIENCE, Snmpd, wait_until};

const VM_MIB: [u32; 8] = [1, 3, 6, 1, 2, 1, 236, 1];

/// Columns and scalars below vmObjects.
pub(crate) const VM_NUMBER: &[u32] = &[2, 0];
pub(crate) const VM_CUR_CPU_NUMBER: &[u32] = &[4, 1, 9];
pub(crate) const VM_CPU_TIME: &[u32] = &[4, 1, 17];
pub(crate) const VM_CPU_CORE_TIME: &[u32] = &[5, 1, 2];

/// The fields are dropped in this order: the agent before its master.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) snmpd: Snmpd,
    pub(crate) client: Client,
    _dir: TempDir,
}

impl Stage {
    /// Starts everything, and waits until the agent serves.
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// The same, with additional lines for the configurations of the master and of the agent.
    pub(crate) fn configured(uri: &str, snmpd: &str, agent: &str) -> Self {
        Self::made(uri, snmpd, agent, |_| {})
    }

    /// The same, and prepares the agent before its start.
    pub(crate) fn with(prepare: impl FnOnce(&mut Agent)) -> Self {
        Self::made("", "", "", prepare)
    }

    /// The same with all of these.
    pub(crate) fn made(
        libvirt: &str,
        of_snmpd: &str,
        of_agent: &str,
        prepare: impl FnOnce(&mut Agent),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let snmpd = Snmpd::start(dir.path(), of_snmpd).unwrap();
        // A list stands as it is.
        let libvirt =
            if libvirt.starts_with('[') { libvirt.to_owned() } else { format!("\"{libvirt}\"") };
        let more = format!("[inventory]\nlibvirt = {libvirt}\n{of_agent}");
        let mut agent = Agent::new(dir.path(), &snmpd.agentx_address(), &more).unwrap();
        prepare(&mut agent);
        agent.start().unwrap();
        let client = Client::new(snmpd.port()).unwrap();
        Self { agent, snmpd, client, _dir: dir }
    }

    /// Gets the number at vmObjects.`column`.`index`.
    pub(crate) fn number(&mut self, column: &[u32], index: &[u32]) -> Option<u64> {
        self.client.number(&name(column, index)).unwrap()
    }

    /// Repeats a get until it returns the value. Returns how long that took.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        column: &[u32],
        index: &[u32],
        is_wanted: impl Fn(Option<u64>) -> bool,
    ) -> Duration {
        let start = Instant::now();
        wait_until(PATIENCE, what, || is_wanted(self.number(column, index)).then_some(()))
            .unwrap_or_else(|error| panic!("{error}; the agent says:\n{}", self.agent.log()));
        start.elapsed()
    }

    /// The vmIndex under which the agent lists this process.
    pub(crate) fn index_of(&self, pid: u32) -> Option<u32> {
        index(&self.vm("pid", pid)?)
    }

    /// The vmIndex of the domain with this UUID, once it is served.
    pub(crate) fn index_by_uuid(&self, uuid: &str) -> u32 {
        wait_until(PATIENCE, "the domain is served", || index(&self.vm("uuid", uuid)?))
            .unwrap_or_else(|error| panic!("{error}\n{}", self.agent.log()))
    }

    /// The JSON status of a VM's disk.
    pub(crate) fn disk(&self, index: u32, target: &str) -> Value {
        self.find_disk(index, target).unwrap()
    }

    /// The same; `None` = the disk is not listed.
    pub(crate) fn find_disk(&self, index: u32, target: &str) -> Option<Value> {
        let vm = self.vm("index", index)?;
        vm["disks"].as_array()?.iter().find(|disk| disk["target"] == target).cloned()
    }

    /// Waits until the agent lists this process with this number of counted vCPUs.
    pub(crate) fn wait_for_vm(&self, pid: u32, vcpus: usize) -> u32 {
        wait_until(PATIENCE, "the VM and its vCPUs are listed", || {
            let vm = self.vm("pid", pid)?;
            let live = vm["vcpus"].as_array().unwrap().iter().filter(|vcpu| vcpu["live"] == true);
            (live.count() == vcpus).then(|| index(&vm)).flatten()
        })
        .unwrap_or_else(|error| panic!("{error}; the agent says:\n{}", self.agent.log()))
    }

    /// The JSON status of the VM that has this value at this key.
    pub(crate) fn vm(&self, key: &str, value: impl Into<Value>) -> Option<Value> {
        vm_in(&self.status(), key, value).cloned()
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.agent.ask("status", &["--json"]).unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
        })
    }
}

/// The VM in a JSON status that has this value at this key.
pub(crate) fn vm_in<'a>(
    status: &'a Value,
    key: &str,
    value: impl Into<Value>,
) -> Option<&'a Value> {
    let value = value.into();
    status["vms"].as_array().unwrap().iter().find(|vm| vm[key] == value)
}

/// The index of a VM or of one of its devices in a JSON status.
pub(crate) fn index(of: &Value) -> Option<u32> {
    of["index"].as_u64()?.try_into().ok()
}

/// vmObjects.`column`.`index`
pub(crate) fn name(column: &[u32], index: &[u32]) -> Vec<u32> {
    [&VM_MIB, column, index].concat()
}

/// Time on a CPU in ns, as the kernel shows it for a thread.
pub(crate) fn schedstat_ns(pid: u32, tid: u32) -> u64 {
    schedstat(pid, tid)[0]
}

/// The times that a thread was on a CPU, and that it waited for one, in ns.
pub(crate) fn schedstat(pid: u32, tid: u32) -> [u64; 2] {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap();
    let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
    [words.next().unwrap(), words.next().unwrap()]
}

/// CPU time in ns of all threads of a process, including exited ones, from its CPU-time clock.
pub(crate) fn process_clock_ns(pid: u32) -> u64 {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    let time = nix::time::clock_getcpuclockid(pid).unwrap().now().unwrap();
    u64::try_from(time.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap()
}
