//! A record that passes to another thread while the agent looks at it.

use std::sync::{Arc, atomic::AtomicU32};

use super::*;
use crate::counting::RunState;

const VM: VmSlot = VmSlot(3);
const SLOT: u16 = 9;
const TID: u32 = 100;

/// Rounds of a race.
const ROUNDS: u32 = 200_000;

fn registration(owner: u64) -> Registration<Arc<Records>> {
    let records = Arc::new(Records::in_memory());
    let registration = Registration::adopt(Arc::clone(&records));
    let record = &records.threads[usize::from(SLOT)];
    record.run.store(word::at_rest(5), Ordering::Relaxed);
    record.owner.store(owner, Ordering::Relaxed);
    records.slot_entry(TID).unwrap().store(SLOT, Ordering::Relaxed);
    records.vms[usize::from(VM.0)].dying.store(1, Ordering::Relaxed);
    registration
}

/// The owner and the word of the record, the entry of the thread id, and the number of dying threads.
fn state(of: &Registration<Arc<Records>>) -> (u64, u64, u16, u64) {
    let record = &of.records.threads[usize::from(SLOT)];
    (
        record.owner.load(Ordering::Relaxed),
        record.run.load(Ordering::Relaxed),
        of.records.slot_entry(TID).unwrap().load(Ordering::Relaxed),
        of.vm(VM).dying.load(Ordering::Relaxed),
    )
}

#[test]
fn a_release_takes_no_record_from_another_thread() {
    let run = word::at_rest(5);
    let own = Owner::new(TID, VM.0).0;
    let dying = own | Owner::DYING;
    for (owner, expected) in [
        (own, (0, word::UNKNOWN, 0, 1)),
        (dying, (0, word::UNKNOWN, 0, 0)),
        (dying | Owner::ENDED, (0, word::UNKNOWN, 0, 1)),
        (own + 1, (own + 1, run, 0, 1)),
        ((own + 1) | Owner::DYING, ((own + 1) | Owner::DYING, run, 0, 1)),
        (0, (0, run, 0, 1)),
        (Owner::FREED_BY_PROGRAM.0, (Owner::FREED_BY_PROGRAM.0, run, 0, 1)),
    ] {
        let of = registration(owner);
        of.release(TID, SLOT, &of.records.threads[usize::from(SLOT)]);
        assert_eq!(state(&of), expected, "{owner:x}");
    }
}

/// Frees the record as the programs do, if it is this thread's, and gives it to the next thread, which runs.
fn pass_on(record: &SharedThreadRecord, tid: u32, next: Owner, run: u64) {
    let own = Owner::new(tid, VM.0).0;
    let exchange = |old, new| {
        record.owner.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    };
    if exchange(own, Owner::FREED_BY_PROGRAM.0) {
        record.clear();
        record.owner.store(0, Ordering::Release);
    }
    while !exchange(0, next.0) {
        std::hint::spin_loop();
    }
    record.run.store(run, Ordering::Release);
}

#[test]
fn a_release_resets_no_record_that_has_passed_to_another_thread() {
    let own = Owner::new(TID, VM.0);
    let next = Owner::new(TID + 1, VM.0);
    let run = word::at_rest(7);
    let of = registration(own.0);
    let record = &of.records.threads[usize::from(SLOT)];
    let met = AtomicU64::new(0);
    // A barrier that sleeps would keep the two apart.
    let meet = |times: u32| {
        met.fetch_add(1, Ordering::AcqRel);
        while met.load(Ordering::Acquire) < u64::from(times) * 2 {
            sched_yield();
        }
    };
    let mut reset = 0;
    std::thread::scope(|scope| {
        let programs = scope.spawn(|| {
            for round in 0..ROUNDS {
                meet(2 * round + 1);
                // Each time at another moment of the release.
                (0..round % 64).for_each(|_| std::hint::spin_loop());
                pass_on(record, TID, next, run);
                meet(2 * round + 2);
            }
        });
        for round in 0..ROUNDS {
            record.owner.store(own.0, Ordering::Release);
            meet(2 * round + 1);
            of.release(TID, SLOT, record);
            meet(2 * round + 2);
            let is_kept = record.owner.load(Ordering::Acquire) == next.0
                && record.run.load(Ordering::Acquire) == run;
            reset += u32::from(!is_kept);
        }
        programs.join().unwrap();
    });
    assert_eq!(reset, 0, "of {ROUNDS}");
}

#[test]
fn a_record_that_was_handed_over_is_not_marked() {
    let own = Owner::new(TID, VM.0).0;
    for (owner, is_marked) in [
        (own, true),
        (own | Owner::SEEN_IN_KVM, true),
        (0, false),
        (own + 1, false),
        (Owner::new(TID, VM.0 + 1).0, false),
    ] {
        let of = registration(owner);
        let record = &of.records.threads[usize::from(SLOT)];
        let mark = Registration::<Arc<Records>>::mark;
        assert_eq!(mark(record, VM, TID, Owner::VCPU), is_marked, "{owner:x}");
        let expected = if is_marked { owner | Owner::VCPU } else { owner };
        assert_eq!(state(&of).0, expected, "{owner:x}");
    }
}

#[test]
fn a_watched_vm_has_the_flags_at_its_vcpus_only() {
    let own = Owner::new(TID, VM.0).0;
    let vcpu = own | Owner::VCPU;
    for (owner, halts_outside, expected) in [
        (vcpu, false, vcpu | Owner::WATCHED),
        (vcpu, true, vcpu | Owner::WATCHED | Owner::HALTS_OUTSIDE),
        (vcpu | Owner::HALTS_OUTSIDE, false, vcpu | Owner::WATCHED),
        (own, true, own),
        (0, true, 0),
    ] {
        let of = registration(owner);
        let vm = of.vm(VM);
        vm.blocks[0].store(SLOT / u16::try_from(BLOCK_LEN).unwrap(), Ordering::Relaxed);
        vm.block_count.store(1, Ordering::Relaxed);
        vm.flags.store(VmRecord::PENDING_VCPUS | VmRecord::DELAYED, Ordering::Relaxed);
        of.watch_vcpus(VM, halts_outside);
        assert_eq!(state(&of).0, expected, "{owner:x}");
        assert_eq!(vm.flags.load(Ordering::Relaxed), VmRecord::DELAYED);
    }
}

/// A thread that runs on a CPU that others want, too: it takes long to come there.
struct Crowded {
    tid: u32,
    gate: crossbeam_channel::Receiver<()>,
    visits: Arc<AtomicU32>,
}

/// Time that a visit takes at least.
const CROWD: Duration = Duration::from_millis(4);

impl HeldThread for Crowded {
    fn tid(&self) -> u32 {
        self.tid
    }

    fn schedstat(&self) -> std::io::Result<Schedstat> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    fn run_state(&self) -> std::io::Result<RunState> {
        Ok(RunState { runnable: true, has_ended: false })
    }

    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
        self.visits.fetch_add(1, Ordering::Relaxed);
        let gate = self.gate.clone();
        Box::new(move || {
            let _ = gate.recv_timeout(CROWD);
            None
        })
    }
}

#[test]
fn thousands_of_threads_that_run_do_not_keep_a_scan_with_visits() {
    const THREADS: u32 = 1000;
    let of = registration(Owner::new(TID, VM.0).0);
    of.records.threads[usize::from(SLOT)].run.store(word::UNKNOWN, Ordering::Relaxed);
    let (_open, gate) = crossbeam_channel::bounded(0);
    let visits = Arc::new(AtomicU32::new(0));
    let crowded = |n| Crowded { tid: TID + n, gate: gate.clone(), visits: Arc::clone(&visits) };
    let threads: Vec<Crowded> = (0..THREADS).map(crowded).collect();
    for thread in &threads {
        of.records.slot_entry(thread.tid).unwrap().store(SLOT, Ordering::Relaxed);
    }
    let held: Vec<&dyn HeldThread> = threads.iter().map(|thread| thread as _).collect();
    of.settle(VM, &held, None);
    // The last one begins before the end.
    let most = VISITS.as_millis() / CROWD.as_millis() + 1;
    let visits = visits.load(Ordering::Relaxed);
    assert!(u128::from(visits) <= most, "{visits}");
}

/// The records of a VM whose process starts a thread at each step of the agent.
struct Busy {
    records: Arc<Records>,
    started: AtomicU32,
}

impl AsRef<Records> for Busy {
    fn as_ref(&self) -> &Records {
        self.start_thread();
        &self.records
    }
}

impl Busy {
    /// What the program at `task_newtask` does.
    fn start_thread(&self) {
        let vm = &self.records.vms[usize::from(VM.0)];
        let is_vm = || vm.tgid.load(Ordering::SeqCst) == u64::from(TID);
        if !is_vm() {
            return;
        }
        let tid = TID + self.started.fetch_add(1, Ordering::Relaxed);
        let owner = Owner::new(tid, VM.0).0;
        let exchange = |record: &SharedThreadRecord, old, new| {
            record.owner.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let mut records = self.records.threads_of(vm);
        let Some((slot, record)) = records.find(|(_, record)| exchange(record, 0, owner)) else {
            return;
        };
        self.records.slot_entry(tid).unwrap().store(slot, Ordering::Relaxed);
        if !is_vm() {
            exchange(record, owner, 0);
        }
    }
}

#[test]
fn a_process_that_is_no_vm_any_more_and_starts_threads_has_no_record() {
    let records = Arc::new(Records::in_memory());
    let busy = Busy { records: Arc::clone(&records), started: AtomicU32::new(0) };
    let vm = &records.vms[usize::from(VM.0)];
    vm.tgid.store(TID.into(), Ordering::Relaxed);
    vm.blocks[0].store(1, Ordering::Relaxed);
    vm.block_count.store(1, Ordering::Relaxed);
    (0..BLOCK_LEN).for_each(|_| busy.start_thread());
    let of = Registration::adopt(busy);
    assert_eq!(of.tracked_vms(), [(VM, TID)]);
    of.untrack_vm(VM);
    let in_use = records.threads.iter().filter(|record| record.owner.load(Ordering::Relaxed) != 0);
    assert_eq!(in_use.count(), 0, "the next VM has the block");
    assert_eq!(vm.tgid.load(Ordering::Relaxed), 0);
}

#[test]
fn the_records_of_a_vm_that_an_earlier_agent_was_freeing_are_freed() {
    let of = registration(Owner::new(TID, VM.0).0);
    let vm = of.vm(VM);
    vm.tgid.store(u64::from(TID) | VmRecord::UNTRACKED, Ordering::Relaxed);
    vm.blocks[0].store(1, Ordering::Relaxed);
    vm.block_count.store(1, Ordering::Relaxed);
    let of = Registration::adopt(of.records);
    assert_eq!(of.tracked_vms(), []);
    assert_eq!(state(&of).0, 0);
}
