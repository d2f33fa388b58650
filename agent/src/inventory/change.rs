//! Changes of state of VMs, in the order in which they happened.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{OperState, Persistence, Vm, VmIndex, VmUuid};

/// What happened to a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// vmIndex; also of a VM that is gone.
    pub index: VmIndex,
    /// vmName.
    pub name: String,
    /// vmUUID.
    pub uuid: Option<VmUuid>,
    /// vmPersistent.
    pub persistence: Persistence,
    /// The state that it was in.
    pub before: OperState,
    /// What it came to.
    pub event: ChangeEvent,
}

/// What a VM came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChangeEvent {
    /// Another state.
    State(OperState),
    /// It is no more.
    Deleted,
}

/// Tells changes to whoever wants to know, each once.
pub(super) struct Changes {
    tell: Box<dyn Fn(Change) + Send + Sync>,
    /// What was told last of each VM.
    told: HashMap<VmIndex, Told>,
    /// States of VMs that no view has had yet: who they are is known with it.
    early: HashMap<VmIndex, Vec<OperState>>,
    /// VMs that were found in a state that events are still to lead to.
    awaited: HashSet<VmIndex>,
}

#[derive(Debug)]
struct Told {
    name: String,
    uuid: Option<VmUuid>,
    persistence: Persistence,
    state: OperState,
}

impl Changes {
    pub(super) fn new(tell: Box<dyn Fn(Change) + Send + Sync>) -> Self {
        Self { tell, told: HashMap::new(), early: HashMap::new(), awaited: HashSet::new() }
    }

    /// A VM went through a state that no view may have shown.
    pub(super) fn note(&mut self, index: VmIndex, state: OperState) {
        let Some(told) = self.told.get_mut(&index) else {
            self.early.entry(index).or_default().push(state);
            return;
        };
        if told.state != state {
            let before = std::mem::replace(&mut told.state, state);
            (self.tell)(told.change(index, before, ChangeEvent::State(state)));
        }
    }

    /// A VM that was off was deleted, and another has its UUID now.
    pub(super) fn note_deleted(&mut self, index: VmIndex) {
        if let Some(told) = self.told.get_mut(&index)
            && is_down(told.state)
        {
            let before = std::mem::replace(&mut told.state, OperState::Shutdown);
            (self.tell)(told.change(index, before, ChangeEvent::Deleted));
        }
    }

    /// A VM was found in this state (`None` = it is gone) after what was noted. Where that does not lead to it,
    /// the rest waits for more to be noted, or for [`settle`](Self::settle): what is found may be ahead of what
    /// happened. Whether it waits.
    pub(super) fn found(&mut self, index: VmIndex, found: Option<OperState>) -> bool {
        let early = self.early.get(&index).and_then(|states| states.last());
        let told = self.told.get(&index).map(|told| told.state);
        let waits = match (told, found) {
            (Some(told), Some(found)) => told != found,
            (Some(told), None) => !is_down(told),
            (None, Some(found)) => *early.unwrap_or(&OperState::Shutdown) != found,
            (None, None) => false,
        };
        if waits {
            self.awaited.insert(index);
        } else {
            self.awaited.remove(&index);
        }
        waits
    }

    /// Nothing more is noted of this VM: it is as it was found.
    pub(super) fn settle(&mut self, index: VmIndex) {
        self.awaited.remove(&index);
    }

    /// The same of all.
    pub(super) fn settle_all(&mut self) {
        self.awaited.clear();
    }

    /// These are the VMs now. `is_first`: what a source knows of old is no change.
    pub(super) fn follow(&mut self, vms: &[Vm], is_first: bool) {
        let there: HashSet<VmIndex> = vms.iter().map(|vm| vm.index).collect();
        let is_gone = |index: &&VmIndex| !there.contains(index) && !self.awaited.contains(index);
        let gone: Vec<VmIndex> = self.told.keys().filter(is_gone).copied().collect();
        for index in gone {
            if self.told.get(&index).is_some_and(|told| !is_down(told.state)) {
                // A process that has ended.
                self.note(index, OperState::Shutdown);
            }
            if let Some(told) = self.told.remove(&index) {
                (self.tell)(told.change(index, told.state, ChangeEvent::Deleted));
            }
        }
        let mut early = std::mem::take(&mut self.early);
        for vm in vms {
            // A VM that was not known was not running.
            let known = self.told.get(&vm.index).map_or(OperState::Shutdown, |told| told.state);
            let state = if is_first { vm.oper_state } else { known };
            let told =
                Told { name: vm.name.clone(), uuid: vm.uuid, persistence: vm.persistence, state };
            self.told.insert(vm.index, told);
            for state in early.remove(&vm.index).unwrap_or_default() {
                self.note(vm.index, state);
            }
            if !self.awaited.contains(&vm.index) {
                self.note(vm.index, vm.oper_state);
            }
        }
    }
}

/// A VM that may be deleted without having ended first.
pub(super) const fn is_down(state: OperState) -> bool {
    matches!(state, OperState::Shutdown | OperState::Suspended | OperState::Crashed)
}

impl Told {
    fn change(&self, index: VmIndex, before: OperState, event: ChangeEvent) -> Change {
        Change {
            index,
            name: self.name.clone(),
            uuid: self.uuid,
            persistence: self.persistence,
            before,
            event,
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("told", &self.told).finish_non_exhaustive()
    }
}
