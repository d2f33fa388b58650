//! Decides whether a VM runs or is paused, by where the threads of its vCPUs are. Reads no clock: the time is a parameter.
//!
//! A vCPU that runs or halts is inside `KVM_RUN`; one that is paused sleeps outside. A vCPU also sleeps outside for some
//! milliseconds while it waits for a lock of its VMM. So a VM is paused once all of its vCPUs have slept outside for
//! [`PAUSED_AFTER`] without getting a CPU, and a scan shows that they wait for a condition or are stopped. It runs again once one
//! of them was inside. The programs report when a vCPU goes to sleep outside, or wakes there. From then on the VM is suspected,
//! and looked at, for [`SUSPECTED`]; otherwise it costs nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kvmeter_common::Place;

use super::vcpus::Rest;
use crate::{counters::VcpuPlace, inventory::VcpuState};

/// Longest time for which all vCPUs of a VM that runs may sleep outside `KVM_RUN`: QEMU holds its lock for less, unless its
/// storage hangs.
const PAUSED_AFTER: Duration = Duration::from_millis(300);

/// The same, if they may be waiting for a lock.
const PAUSED_AFTER_LOCK: Duration = Duration::from_secs(2);

/// A VM whose vCPUs were found at work is not scanned for that again within this time: each scan costs as much as a new VM.
const BETWEEN_SCANS: Duration = Duration::from_secs(2);

/// Interval between looks at a VM that is suspected.
const PAUSE: Duration = Duration::from_millis(100);

/// A VM is suspected for this long. Its programs report nothing meanwhile, however often its vCPUs sleep outside.
const SUSPECTED: Duration = Duration::from_secs(4);

/// VMs that are due within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Age from which a VM that has never run counts as paused: until then it starts, and reserves its memory.
pub(super) const STARTED: Duration = Duration::from_secs(60);

/// The VMs whose vCPUs are watched, by process id.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    vms: BTreeMap<u32, Watched>,
    /// When each VM that is to be looked at is: a turn costs what is due, not what is watched.
    due: BTreeSet<(Instant, u32)>,
}

#[derive(Debug, Default)]
struct Watched {
    /// What was found out last.
    state: VcpuState,
    /// The next look; `None` = after the programs have reported something.
    due: Option<Instant>,
    /// Until when it is suspected.
    until: Option<Instant>,
    /// All vCPUs have been asleep outside `KVM_RUN` since then, after this number of switches.
    still: Option<(u64, Instant)>,
    /// Some vCPU has had its CPU since then, after this number of switches.
    busy: Option<(u64, Instant)>,
    /// What its vCPUs wait for, after this number of switches; `None` = this is to be found out.
    waits_for: Option<(u64, Option<Rest>)>,
    /// When its vCPUs were found at work last.
    at_work: Option<Instant>,
    /// How often its vCPUs have come into `KVM_RUN`, at the last look.
    entries: Option<u64>,
}

/// What is known of a VM beside the places of its vCPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    /// One of its vCPUs has been in `KVM_RUN`, or it is to be paused before that.
    pub(super) may_pause: bool,
    /// Only a VM whose process is stopped can be seen to be paused.
    pub(super) only_stopped: bool,
    /// If it is paused, a user has asked for that.
    pub(super) by_user: bool,
    /// When it counts as paused though it has never run.
    pub(super) started: Instant,
}

/// The result of a look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Look {
    /// The new state; `None` = it is the same.
    pub(super) state: Option<VcpuState>,
    /// Whether the programs are to report again. The VM is looked at once more after that: a vCPU may have moved meanwhile.
    pub(super) ends: bool,
}

impl Pauses {
    /// A vCPU of a VM has moved, or a VM is new: it is looked at now, and for some time.
    pub(super) fn suspect(&mut self, pid: u32, now: Instant) {
        let vm = self.vms.entry(pid).or_default();
        vm.until = Some(now + SUSPECTED);
        vm.look_at(Some(now), pid, &mut self.due);
    }

    /// Events may have been lost.
    pub(super) fn suspect_all(&mut self, now: Instant) {
        for (pid, vm) in &mut self.vms {
            vm.until = Some(now + SUSPECTED);
            vm.look_at(Some(now), *pid, &mut self.due);
        }
    }

    /// A VM has ended, or its vCPUs cannot be seen.
    pub(super) fn forget(&mut self, pid: u32) {
        if let Some(due) = self.vms.remove(&pid).and_then(|vm| vm.due) {
            self.due.remove(&(due, pid));
        }
    }

    /// Whether a scan is to find out what the vCPUs of a VM wait for.
    pub(super) fn asks(&self, pid: u32) -> bool {
        let vm = self.vms.get(&pid);
        vm.is_some_and(|vm| matches!(vm.waits_for, Some((_, None))))
    }

    /// What the vCPUs of a VM wait for: the least that speaks for a pause.
    pub(super) fn answer(&mut self, pid: u32, rest: Rest, now: Instant) {
        if let Some(vm) = self.vms.get_mut(&pid)
            && let Some((_, answer @ None)) = &mut vm.waits_for
        {
            *answer = Some(rest);
            vm.at_work = (rest == Rest::Other).then_some(now);
            vm.look_at(Some(now), pid, &mut self.due);
        }
    }

    /// When a VM is to be looked at; `None` = none is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The VMs to be looked at now, ascending.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<u32> {
        let mut found = Vec::new();
        if self.next().is_none_or(|due| due > now) {
            return found;
        }
        while let Some(&(due, pid)) = self.due.first()
            && due <= now + TOGETHER
        {
            self.due.pop_first();
            if let Some(vm) = self.vms.get_mut(&pid) {
                vm.due = None;
                found.push(pid);
            }
        }
        found.sort_unstable();
        found
    }

    /// Looks at a VM. `places`: of all its vCPUs.
    pub(super) fn look(
        &mut self,
        pid: u32,
        places: &[VcpuPlace],
        past: Past,
        now: Instant,
    ) -> Look {
        let Some(vm) = self.vms.get_mut(&pid) else { return Look::default() };
        let found = vm.judge(places, past, now);
        let is_over = vm.until.is_some_and(|until| now >= until);
        // A VM that is not seen to pause runs: a pause after this is a change.
        let runs = is_over && vm.state == VcpuState::Unknown && vm.still.is_none();
        let found = found.or_else(|| runs.then_some(VcpuState::Running));
        let state = found.filter(|found| *found != vm.state);
        vm.state = state.unwrap_or(vm.state);
        if vm.until.is_some() && !is_over {
            vm.look_at(Some(now + PAUSE), pid, &mut self.due);
            return Look { state, ends: false };
        }
        let may_stop = !matches!(vm.waits_for, Some((_, Some(Rest::Other))));
        let waits =
            vm.still.is_some() && may_stop && !matches!(vm.state, VcpuState::Stopped { .. });
        let is_starting = !past.may_pause && now < past.started;
        let ends = vm.until.take().is_some();
        // A program that has read that it need not report stores the place within microseconds.
        let soon = (ends || waits && !is_starting).then_some(now + PAUSE);
        vm.look_at(soon.or_else(|| waits.then_some(past.started)), pid, &mut self.due);
        Look { state, ends }
    }
}

impl Watched {
    /// Sets when it is to be looked at.
    fn look_at(&mut self, due: Option<Instant>, pid: u32, all: &mut BTreeSet<(Instant, u32)>) {
        if let Some(before) = std::mem::replace(&mut self.due, due) {
            all.remove(&(before, pid));
        }
        all.extend(due.map(|due| (due, pid)));
    }

    /// The state of the VM; `None` = not clear now.
    fn judge(&mut self, places: &[VcpuPlace], past: Past, now: Instant) -> Option<VcpuState> {
        let switches = places.iter().fold(0_u64, |sum, of| sum.wrapping_add(of.switches_in));
        let entries = places.iter().map(|of| u64::from(of.place.entries())).sum();
        let has_entered = self.entries.replace(entries).is_some_and(|before| before != entries);
        let since = |known: Option<(u64, Instant)>| {
            known.filter(|(of, _)| *of == switches).map_or(now, |(_, since)| since)
        };
        let is_in = |of: &VcpuPlace| {
            of.place.is(Place::IN_KVM_RUN) || past.only_stopped && of.place.is(Place::AWAKE)
        };
        let sleeps = |of: &VcpuPlace| of.place.is(Place::ASLEEP) && of.is_at_rest;
        let is_still = !places.is_empty() && places.iter().all(sleeps);
        let is_busy = places.iter().any(|of| of.is_on_cpu);
        self.still = is_still.then(|| (switches, since(self.still)));
        self.busy = is_busy.then(|| (switches, since(self.busy)));
        self.waits_for = self.waits_for.filter(|(of, _)| is_still && *of == switches);
        let lasts_for = |since: Option<(u64, Instant)>, time| {
            since.is_some_and(|(_, since)| now >= since + time)
        };
        let lasts = |since| lasts_for(since, PAUSED_AFTER);
        // A vCPU that never leaves its CPU is in the guest.
        if places.iter().any(is_in) || has_entered || lasts(self.busy) {
            Some(VcpuState::Running)
        } else if lasts(self.still)
            && (past.may_pause || now >= past.started)
            && (self.waits_for.is_some() || self.at_work.is_none_or(|at| now >= at + BETWEEN_SCANS))
        {
            let (_, rest) = self.waits_for.get_or_insert((switches, None));
            let is_paused = match rest {
                Some(Rest::Stopped | Rest::Paused | Rest::InKvmRun) => true,
                Some(Rest::Locked) => lasts_for(self.still, PAUSED_AFTER_LOCK),
                Some(Rest::Other) | None => false,
            };
            is_paused.then_some(VcpuState::Stopped { by_user: past.by_user })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: VcpuState = VcpuState::Stopped { by_user: false };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// One VM whose vCPUs are moved by the test; the time is made up.
    struct Vm {
        pauses: Pauses,
        vcpus: Vec<VcpuPlace>,
        past: Past,
        now: Instant,
        is_pending: bool,
        looks: usize,
        scans: usize,
        /// What a scan finds.
        rest: Rest,
        /// The states that were found, each with the ms since the last call of [`Vm::states`].
        found: Vec<(u64, VcpuState)>,
        since: Instant,
    }

    impl Vm {
        /// It has run before, and is inside `KVM_RUN` now.
        fn new(vcpus: usize) -> Self {
            let now = Instant::now();
            let place = Place::default().enter();
            let vcpu = VcpuPlace { place, is_on_cpu: false, is_at_rest: true, switches_in: 9 };
            let (only_stopped, by_user) = (false, false);
            let past = Past { may_pause: true, only_stopped, by_user, started: now };
            let mut vm = Self {
                pauses: Pauses::default(),
                vcpus: vec![vcpu; vcpus],
                past,
                now,
                is_pending: true,
                looks: 0,
                scans: 0,
                rest: Rest::Paused,
                found: Vec::new(),
                since: now,
            };
            vm.pauses.suspect(1, now);
            vm.pass(6_000);
            assert_eq!(vm.states(), [(0, VcpuState::Running)]);
            vm
        }

        fn states(&mut self) -> Vec<(u64, VcpuState)> {
            self.since = self.now;
            std::mem::take(&mut self.found)
        }

        /// As the programs do.
        fn report(&mut self) {
            if !std::mem::replace(&mut self.is_pending, true) {
                self.pauses.suspect(1, self.now);
            }
        }

        fn sleep(&mut self, vcpu: usize) {
            let of = &mut self.vcpus[vcpu];
            (of.is_on_cpu, of.is_at_rest) = (false, true);
            of.place = of.place.at(Place::ASLEEP);
            self.report();
        }

        fn wake(&mut self, vcpu: usize) {
            let of = &mut self.vcpus[vcpu];
            (of.is_on_cpu, of.is_at_rest) = (true, false);
            of.switches_in += 1;
            if of.place.is(Place::ASLEEP) {
                of.place = of.place.at(Place::AWAKE);
                self.report();
            }
        }

        fn halt(&mut self, vcpu: usize) {
            let of = &mut self.vcpus[vcpu];
            (of.is_on_cpu, of.is_at_rest) = (false, true);
            if !of.place.is(Place::IN_KVM_RUN) {
                of.place = of.place.enter();
            }
        }

        fn look(&mut self) -> bool {
            self.looks += 1;
            let look = self.pauses.look(1, &self.vcpus, self.past, self.now);
            let ms = u64::try_from((self.now - self.since).as_millis()).unwrap();
            self.found.extend(look.state.map(|state| (ms, state)));
            look.ends
        }

        fn pass(&mut self, time: u64) {
            let end = self.now + ms(time);
            loop {
                for _ in self.pauses.take_due(self.now) {
                    if self.look() {
                        self.is_pending = false;
                    }
                    if self.pauses.asks(1) {
                        self.scans += 1;
                        self.pauses.answer(1, self.rest, self.now);
                    }
                }
                let Some(due) = self.pauses.next().filter(|due| *due <= end) else { break };
                self.now = due;
            }
            self.now = end;
        }
    }

    #[test]
    fn a_vm_is_due_once_however_often_it_is_suspected() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        for pid in 1..=1000 {
            pauses.suspect(pid, now + ms(u64::from(pid)));
            pauses.suspect(pid, now + ms(u64::from(pid) + 500));
        }
        assert_eq!(pauses.due.len(), 1000);
        assert_eq!(pauses.next(), Some(now + ms(501)));
        assert_eq!(pauses.take_due(now + ms(500)), [0_u32; 0]);
        let together: Vec<u32> = (1..=21).collect();
        assert_eq!(pauses.take_due(now + ms(501)), together);
        (1..=999).for_each(|pid| pauses.forget(pid));
        assert_eq!((pauses.next(), pauses.due.len()), (Some(now + ms(1500)), 1));
    }

    #[test]
    fn a_vm_is_paused_once_all_its_vcpus_sleep_outside() {
        let mut vm = Vm::new(2);
        vm.sleep(0);
        vm.pass(10_000);
        assert_eq!(vm.states(), [], "the other one halts");
        vm.sleep(1);
        vm.pass(10_000);
        assert_eq!(vm.states(), [(300, STOPPED)]);
        // Its monitor has a vCPU say its registers.
        vm.wake(0);
        vm.pass(1);
        vm.sleep(0);
        vm.pass(10_000);
        assert_eq!(vm.states(), []);
        vm.wake(0);
        vm.wake(1);
        vm.pass(1);
        vm.halt(0);
        vm.halt(1);
        vm.pass(10_000);
        assert_eq!(vm.states(), [(100, VcpuState::Running)]);
        let looks = vm.looks;
        vm.pass(3_600_000);
        assert_eq!(vm.looks, looks, "nothing happens");
    }

    #[test]
    fn a_vm_that_never_leaves_its_cpu_runs_again() {
        let mut vm = Vm::new(1);
        vm.sleep(0);
        vm.pass(1_000);
        vm.states();
        vm.wake(0);
        vm.pass(1_000);
        assert_eq!(vm.states(), [(400, VcpuState::Running)]);
    }

    #[test]
    fn a_vm_that_was_in_its_guest_between_two_looks_runs_again() {
        let mut vm = Vm::new(1);
        vm.sleep(0);
        vm.pass(10_000);
        vm.states();
        vm.wake(0);
        vm.halt(0);
        vm.wake(0);
        vm.sleep(0);
        vm.pass(10_000);
        assert_eq!(vm.states(), [(0, VcpuState::Running), (300, STOPPED)], "and was paused again");
    }

    #[test]
    fn a_vcpu_that_often_waits_for_a_lock_of_its_vmm_runs_and_costs_ten_looks_a_second() {
        let mut vm = Vm::new(1);
        let looks = vm.looks;
        for _ in 0..600 {
            // The guest's exits are handled in user space; now and then another thread has the lock.
            vm.sleep(0);
            vm.pass(90);
            vm.wake(0);
            vm.pass(10);
        }
        assert_eq!(vm.states(), []);
        assert!(vm.looks - looks < 700, "{} looks in a minute", vm.looks - looks);
        // A vCPU that waits for its storage sleeps in a way that no signal ends: it is AWAKE to the programs.
        (vm.vcpus[0].is_on_cpu, vm.vcpus[0].is_at_rest) = (false, true);
        vm.pass(60_000);
        assert_eq!(vm.states(), []);
    }

    #[test]
    fn what_its_vcpus_wait_for_decides() {
        for (rest, found) in [
            (Rest::Other, &[][..]),
            (Rest::Locked, &[(2000, STOPPED)]),
            (Rest::Paused, &[(300, STOPPED)]),
            (Rest::Stopped, &[(300, STOPPED)]),
            (Rest::InKvmRun, &[(300, STOPPED)]),
        ] {
            let mut vm = Vm::new(1);
            vm.rest = rest;
            vm.sleep(0);
            vm.pass(3_000);
            assert_eq!(vm.states(), found, "{rest:?}");
            let looks = vm.looks;
            vm.pass(3_600_000);
            assert!(vm.looks - looks < 20, "{} looks in an hour", vm.looks - looks);
        }
    }

    #[test]
    fn a_vcpu_that_slept_while_the_programs_were_told_to_report_is_seen() {
        let mut vm = Vm::new(1);
        vm.sleep(0);
        vm.wake(0);
        vm.halt(0);
        vm.pass(u64::try_from(SUSPECTED.as_millis()).unwrap());
        assert!(!std::mem::replace(&mut vm.is_pending, true));
        vm.sleep(0);
        vm.is_pending = false;
        vm.pass(1_000);
        assert_eq!(vm.states().last().map(|(_, state)| *state), Some(STOPPED));
    }

    #[test]
    fn a_vm_without_kvm_is_paused_while_its_process_is_stopped() {
        let mut vm = Vm::new(1);
        vm.past.only_stopped = true;
        // It sleeps and wakes: the programs leave that out.
        vm.vcpus[0].place = vm.vcpus[0].place.at(Place::AWAKE);
        vm.pass(10_000);
        vm.rest = Rest::Stopped;
        vm.sleep(0);
        vm.pass(10_000);
        assert_eq!(vm.states().last().map(|(_, state)| *state), Some(STOPPED));
        vm.wake(0);
        vm.pass(1);
        (vm.vcpus[0].is_on_cpu, vm.vcpus[0].is_at_rest) = (false, true);
        vm.pass(10_000);
        assert_eq!(vm.states(), [(0, VcpuState::Running)]);
    }

    #[test]
    fn a_vmm_that_sleeps_outside_by_itself_is_scanned_seldom() {
        let mut vm = Vm::new(1);
        vm.rest = Rest::Other;
        for _ in 0..100 {
            vm.sleep(0);
            vm.pass(500);
            vm.wake(0);
            vm.pass(500);
        }
        assert_eq!(vm.states(), []);
        assert!((30..=50).contains(&vm.scans), "{} scans in 100 s", vm.scans);
        vm.rest = Rest::Paused;
        vm.sleep(0);
        vm.pass(3_000);
        assert_eq!(vm.states().len(), 1);
    }

    #[test]
    fn a_vm_that_starts_is_not_paused() {
        let mut vm = Vm::new(1);
        vm.vcpus[0].place = Place(Place::UNKNOWN);
        vm.past = Past { may_pause: false, started: vm.now + STARTED, ..vm.past };
        vm.pauses = Pauses::default();
        vm.pauses.suspect(1, vm.now);
        vm.is_pending = true;
        vm.sleep(0);
        vm.pass(30_000);
        assert_eq!(vm.states(), []);
        // It was restored, and is not resumed.
        vm.pass(60_000);
        assert_eq!(vm.states(), [(30_000, STOPPED)]);
        vm.past.may_pause = true;
        vm.wake(0);
        vm.halt(0);
        vm.pass(200);
        assert_eq!(vm.states(), [(0, VcpuState::Running)]);
    }
}
