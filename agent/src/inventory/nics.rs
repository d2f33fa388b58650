//! The network interfaces of a VM's row, and their numbers in the host's interface table.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    Core, DomainNic, IfIndex, Nic, NicNumbers, Taps, UnnamedTap, Vm, VmProcess,
    indexes::{Identity, Part},
    state::VmState,
};

impl Core {
    /// The network interfaces, as libvirt reports them, or the process alone.
    pub(super) fn nics(
        &mut self,
        identity: Identity,
        vm: &VmState,
        process: Option<&VmProcess>,
    ) -> Vec<Nic> {
        let reported = match (&vm.domain, process) {
            (Some((_, domain)), _) => &domain.nics[..],
            (None, Some(process)) => &process.devices.nics[..],
            (None, None) => &[],
        };
        self.note_nic_users(identity, vm.row.as_deref(), reported);
        let mut nics: Vec<Nic> = reported
            .iter()
            .zip(nic_keys(reported))
            .map(|(nic, key)| {
                let index = self.indexes.assign_part(identity, Part::Nic(&key));
                let (if_index, parent) = match self.numbers(nic, process) {
                    Ok(numbers) => (IfIndex::Is(numbers.if_index), numbers.parent),
                    Err(why) => (IfIndex::Absent(why), IfIndex::Absent(why)),
                };
                Nic {
                    index,
                    device: nic.device.clone(),
                    if_index,
                    parent,
                    model: nic.model.clone(),
                    phys_address: nic.mac.clone(),
                }
            })
            .collect();
        nics.sort_by_key(|nic| nic.index);
        nics.dedup_by_key(|nic| nic.index);
        nics
    }

    /// The numbers of the host's interface behind one of a VM's, or why there are none. A name is only text: the process has
    /// to hold the interface.
    fn numbers(
        &self,
        nic: &DomainNic,
        process: Option<&VmProcess>,
    ) -> Result<NicNumbers, &'static str> {
        let process = process.ok_or("no process of the VM is known on this host")?;
        let held = match &process.taps {
            Taps::Held(held) => held,
            Taps::Elsewhere => return Err("the VM's process is in another network namespace"),
            Taps::Unknown => return Err("the descriptors of the VM's process cannot be read"),
        };
        let device = match (&nic.device, &nic.unnamed) {
            (Some(device), _) => device,
            (None, None) => return Err("the host has no interface for it"),
            (None, Some(UnnamedTap::Descriptors(_))) => {
                return Err("the descriptor that the VM's process was told is no tap");
            }
            (None, Some(UnnamedTap::Opened(_))) => {
                return Err("which tap of the VM's process it is cannot be told");
            }
        };
        if !held.contains(device) {
            return Err("the VM's process does not hold a tap of this name");
        }
        let owner = self.nics.get(device).and_then(|numbers| numbers.owner);
        self.is_holder(process, device, owner)?;
        match self.nics.get(device) {
            Some(numbers) if numbers.is_tap => Ok(*numbers),
            Some(_) => Err("the host's interface of this name is no tap"),
            None => Err("the host's network namespace has no interface of this name"),
        }
    }

    /// Whether the interface of the host is the one that the process holds. The kernel tells the name of a tap, and not in which
    /// network namespace the tap is: a user can make a tap of any name in a namespace of their own, and hand its descriptor to a
    /// VM in the host's. So of several processes that hold a tap of one name, that of root or of a domain has the host's, or else
    /// that of `owner`, the user to whom the host's was given.
    fn is_holder(
        &self,
        process: &VmProcess,
        device: &str,
        owner: Option<u32>,
    ) -> Result<(), &'static str> {
        let others = self.tap_holders.get(device).into_iter().flatten();
        let mut others = others
            .filter(|pid| **pid != process.pid)
            .filter_map(|pid| Some(&self.processes.get(pid)?.process))
            .peekable();
        if others.peek().is_none() {
            return Ok(());
        }
        if let Some(account) = process.account {
            // The processes of one user may deceive one another only.
            let is_apart = |other: &Arc<VmProcess>| other.account.is_some_and(|of| of != account);
            if owner.is_some() && owner == account.user() && others.all(is_apart) {
                return Ok(());
            }
            return Err(
                "another VM's process holds a tap of this name, too; which of them is the host's cannot be told",
            );
        }
        if others.any(|other| other.account.is_none()) {
            return Err("several processes of root or of domains hold a tap of this name");
        }
        Ok(())
    }

    /// Keeps the list of the processes that hold taps, by the names of the taps: of one process, as it was before and as it is
    /// now.
    pub(super) fn note_taps(
        &mut self,
        pid: u32,
        before: Option<&VmProcess>,
        now: Option<&VmProcess>,
    ) {
        let names = |process: Option<&VmProcess>| match process.map(|process| &process.taps) {
            Some(Taps::Held(held)) => held.clone(),
            Some(Taps::Elsewhere | Taps::Unknown) | None => Vec::new(),
        };
        let account = |process: Option<&VmProcess>| process.map(|process| process.account);
        let (old, new) = (names(before), names(now));
        if old == new && (old.is_empty() || account(before) == account(now)) {
            return;
        }
        for name in &old {
            if let Some(holders) = self.tap_holders.get_mut(name) {
                holders.remove(&pid);
                if holders.is_empty() {
                    self.tap_holders.remove(name);
                }
            }
        }
        for name in &new {
            self.tap_holders.entry(name.clone()).or_default().insert(pid);
        }
        for name in old.iter().chain(&new) {
            self.dirty.extend(self.nic_users.get(name).into_iter().flatten());
        }
    }

    /// Keeps the list of the VMs that use an interface of the host.
    pub(super) fn note_nic_users(
        &mut self,
        identity: Identity,
        before: Option<&Vm>,
        now: &[DomainNic],
    ) {
        let before = before.map_or(&[][..], |row| &row.nics);
        let used: HashSet<&String> = now.iter().filter_map(|nic| nic.device.as_ref()).collect();
        for device in before.iter().filter_map(|nic| nic.device.as_ref()) {
            if !used.contains(device)
                && let Some(users) = self.nic_users.get_mut(device)
            {
                users.remove(&identity);
                if users.is_empty() {
                    self.nic_users.remove(device);
                }
            }
        }
        for device in now.iter().filter_map(|nic| nic.device.as_ref()) {
            if !self.nic_users.get(device).is_some_and(|users| users.contains(&identity)) {
                self.nic_users.entry(device.clone()).or_default().insert(identity);
            }
        }
    }
}

/// What each network interface keeps its index by: its address, which may be missing, and need not be unique in a VM. Of those
/// with one address the second has `#2` behind it.
fn nic_keys(nics: &[DomainNic]) -> Vec<String> {
    let mut counts: HashMap<String, u32> = HashMap::new();
    let key = |(at, nic): (usize, &DomainNic)| {
        let key = match (&nic.mac[..], &nic.device) {
            (&[], Some(device)) => device.clone(),
            (&[], None) => return format!("#{at}"),
            (mac, _) => mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
        };
        let count = counts.entry(key.clone()).or_default();
        *count += 1;
        if *count == 1 { key } else { format!("{key}#{count}") }
    };
    nics.iter().enumerate().map(key).collect()
}
