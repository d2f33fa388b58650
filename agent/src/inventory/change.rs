//! Changes of state of VMs, in the order in which they happened.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{OperState, Persistence, Vm, VmIndex};

/// What happened to a VM.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// vmIndex; also of a VM that is gone.
    pub index: VmIndex,
    /// vmName.
    pub name: String,
    /// vmUUID.
    pub uuid: Option<[u8; 16]>,
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
}

#[derive(Debug)]
struct Told {
    name: String,
    uuid: Option<[u8; 16]>,
    persistence: Persistence,
    state: OperState,
}

impl Changes {
    pub(super) fn new(tell: Box<dyn Fn(Change) + Send + Sync>) -> Self {
        Self { tell, told: HashMap::new(), early: HashMap::new() }
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

    /// These are the VMs now. `is_first`: what a source knows of old is no change.
    pub(super) fn follow(&mut self, vms: &[Vm], is_first: bool) {
        let there: HashSet<VmIndex> = vms.iter().map(|vm| vm.index).collect();
        let gone: Vec<VmIndex> =
            self.told.keys().filter(|index| !there.contains(index)).copied().collect();
        for index in gone {
            let is_down = |told: &Told| {
                matches!(
                    told.state,
                    OperState::Shutdown | OperState::Suspended | OperState::Crashed
                )
            };
            if self.told.get(&index).is_some_and(|told| !is_down(told)) {
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
            self.note(vm.index, vm.oper_state);
        }
    }
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
