//! The records of vCPUs whose threads come and go.
//!
//! A vCPU that is unplugged and plugged in again has another thread. At the end of the first one the programs leave its record to the
//! vCPU; the record of the next one names that record, and the counts of the vCPU are the sum of both. The agent only names it, before
//! it marks the thread as a vCPU's: nothing is lost if it ends at any moment. Only of a thread whose last switch the programs do not see,
//! the agent adds the counts itself.

use std::sync::atomic::Ordering;

use kvmeter_common::{Owner, Vcpu, word};
use rustix::thread::sched_yield;

use super::{Registration, TrackError};
use crate::counters::{
    Records, VmSlot,
    mapped::{SharedThreadRecord, SharedVmRecord},
    records::monotonic_ns,
};

/// Age of a thread in ns from which on another one that is said to run the same vCPU, and has not begun to exit, is no earlier one that
/// is about to: the VMM has a second thread run it.
const GROWN_UP: u64 = 1_000_000_000;

/// Attempts to see the end of hand-overs, which take the programs less than a microsecond.
const HANDOVER_TRIES: usize = 1_000_000;

/// The number of a vCPU as a record has it.
pub(super) fn number_of(vcpu: u32) -> u16 {
    u16::try_from(vcpu).unwrap_or(Vcpu::UNNUMBERED.number())
}

impl<R: AsRef<Records>> Registration<R> {
    /// Notes in a thread's record which vCPU it runs.
    ///
    /// # Errors
    ///
    /// [`TrackError::NotAlone`]; [`TrackError::Gone`] if the thread has handed its record over.
    pub(super) fn assign(
        &self,
        vm: VmSlot,
        tid: u32,
        record: &SharedThreadRecord,
        vcpu: u32,
    ) -> Result<(), TrackError> {
        let number = number_of(vcpu);
        let owner = Owner(record.owner.load(Ordering::Acquire));
        let is_vcpu = owner.has(Owner::VCPU);
        if !is_vcpu || Vcpu(record.vcpu.load(Ordering::Relaxed)).number() != number {
            let started = record.start.load(Ordering::Relaxed);
            let Some(earlier) = self.earlier(vm, tid, number, started) else {
                if is_vcpu {
                    // Two threads that change places must not wait for each other.
                    record.vcpu.store(Vcpu::UNNUMBERED.0, Ordering::Release);
                }
                return Err(TrackError::NotAlone { tid });
            };
            record.vcpu.store(Vcpu::new(number, earlier).0, Ordering::Release);
        }
        if Self::mark(record, vm, tid, Owner::VCPU) {
            Ok(())
        } else {
            Err(TrackError::Gone { tid })
        }
    }

    /// Slot of the record that keeps the counts of earlier threads of a vCPU, 0 = there were none. `None` = an earlier thread has
    /// not made its last switch, so its counts are not there yet.
    fn earlier(&self, vm: VmSlot, tid: u32, number: u16, started: u64) -> Option<u16> {
        if number == Vcpu::UNNUMBERED.number() {
            return Some(0);
        }
        let is_young = started == 0 || monotonic_ns().saturating_sub(started) < GROWN_UP;
        let mut found = None;
        for (slot, record) in self.records().threads_of(self.vm(vm)) {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            let vcpu = Vcpu(record.vcpu.load(Ordering::Acquire));
            if vcpu.number() != number || owner.tid() == tid {
                continue;
            }
            if owner.is_kept() && vcpu.earlier() == 0 {
                // A program that has not found the first one leaves a second.
                found = found.max(Some((record.run.load(Ordering::Relaxed), slot)));
            } else if owner.has(Owner::VCPU)
                && !owner.has(Owner::ENDED)
                && (owner.is_dying() || is_young)
            {
                return None;
            }
        }
        Some(found.map_or(0, |(_, slot)| slot))
    }

    /// Closes the record of a thread whose last switch the programs do not see. `ran`: what is known of its CPU time, in ns; it is kept
    /// for a vCPU, and the VM's CPU time lacks it.
    pub(super) fn close(&self, tid: u32, slot: u16, record: &SharedThreadRecord, ran: u64) {
        let owner = Owner(record.owner.load(Ordering::Acquire));
        let vcpu = Vcpu(record.vcpu.load(Ordering::Acquire));
        if owner.tid() != tid || !owner.has(Owner::VCPU) || !vcpu.is_numbered() {
            return self.release(tid, slot, record);
        }
        let wait = word::at_rest(word::shows(record.wait.load(Ordering::Acquire), monotonic_ns()));
        let run = word::at_rest(ran);
        let earlier = usize::from(vcpu.earlier());
        let kept = self.records().threads.get(earlier).filter(|_| earlier != 0);
        let Some(kept) = kept else {
            let next =
                |now: u64| (Owner(now).tid() == tid).then_some(Owner::kept(owner.vm_slot()).0);
            if let Ok(before) = record.owner.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            {
                record.run.store(run, Ordering::Release);
                record.wait.store(wait, Ordering::Release);
                self.stop_dying(Owner(before));
            }
            return self.forget_id(tid, slot);
        };
        let (switches, preemptions) = (
            record.switches_in.load(Ordering::Relaxed),
            record.preemptions.load(Ordering::Relaxed),
        );
        self.forget_id(tid, slot);
        if let Some(before) = record.take(tid) {
            kept.run.fetch_add(run, Ordering::AcqRel);
            kept.wait.fetch_add(wait, Ordering::AcqRel);
            kept.switches_in.fetch_add(switches, Ordering::AcqRel);
            kept.preemptions.fetch_add(preemptions, Ordering::AcqRel);
            record.free();
            self.stop_dying(before);
        }
    }

    /// Frees the records that keep counts of a VM's vCPUs. No thread of the VM has a record any more.
    pub(super) fn free_kept(&self, vm: &SharedVmRecord) {
        // A hand-over that has begun may still add to such a record.
        for _ in 0..HANDOVER_TRIES {
            let done = vm.handovers_done.load(Ordering::Acquire);
            if vm.handovers_begun.load(Ordering::Acquire) == done {
                break;
            }
            sched_yield();
        }
        for (_, record) in self.records().threads_of(vm) {
            if Owner(record.owner.load(Ordering::Acquire)).is_kept() {
                record.free();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvmeter_common::LAYOUT;

    use super::*;
    use crate::{
        counters::{Readings as _, ThreadSlot},
        counting::{HeldThread, RunState, Schedstat, Tracker as _},
    };

    const NUMBER: u32 = 4;

    /// A thread that is asleep and has not run.
    struct Asleep(u32);

    impl HeldThread for Asleep {
        fn tid(&self) -> u32 {
            self.0
        }
        fn schedstat(&self) -> std::io::Result<Schedstat> {
            Ok(Schedstat { run_ns: 0, wait_ns: 0 })
        }
        fn run_state(&self) -> std::io::Result<RunState> {
            Ok(RunState { runnable: false, has_ended: false })
        }
        fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
            Box::new(|| None)
        }
    }

    type Of = Registration<Arc<Records>>;

    /// A VM, this process, with its first thread.
    fn vm() -> (Of, VmSlot) {
        let records = Arc::new(Records::in_memory());
        records.meta[0].layout.store(u64::from(LAYOUT), Ordering::Relaxed);
        let of = Registration::adopt(records);
        let vm = of.track_vm(std::process::id()).unwrap();
        of.track_thread(vm, &Asleep(std::process::id()), None).unwrap();
        of.settle(vm, &[&Asleep(std::process::id())], Some(of.unrecorded(vm)));
        of.vm(vm).exited.store(0, Ordering::Relaxed);
        (of, vm)
    }

    fn track(of: &Of, vm: VmSlot, tid: u32, number: u32) -> Result<ThreadSlot, TrackError> {
        of.track_thread(vm, &Asleep(tid), Some(number))
    }

    fn record(of: &Of, thread: ThreadSlot) -> &SharedThreadRecord {
        &of.records.threads[usize::from(thread.record)]
    }

    /// The thread has run for this long and waited for twice as long.
    fn run(of: &Of, thread: ThreadSlot, ns: u64) {
        let record = record(of, thread);
        record.run.store(word::at_rest(ns), Ordering::Relaxed);
        record.wait.store(word::at_rest(2 * ns), Ordering::Relaxed);
        record.switches_in.store(3, Ordering::Relaxed);
        record.preemptions.store(1, Ordering::Relaxed);
    }

    /// What the programs do at the thread's last switch (`hand_over`).
    fn end(of: &Of, thread: ThreadSlot) {
        let record = record(of, thread);
        let owner = Owner(record.owner.load(Ordering::Relaxed));
        let vcpu = Vcpu(record.vcpu.load(Ordering::Relaxed));
        let [run, wait, switches_in, preemptions] =
            [&record.run, &record.wait, &record.switches_in, &record.preemptions]
                .map(|cell| cell.load(Ordering::Relaxed));
        of.vm(VmSlot(owner.vm_slot())).exited.fetch_add(word::shows(run, 0), Ordering::Relaxed);
        of.forget_id(thread.tid, thread.record);
        if vcpu.is_numbered() && vcpu.earlier() == 0 {
            record.owner.store(Owner::kept(owner.vm_slot()).0, Ordering::Relaxed);
            return;
        }
        if vcpu.is_numbered() {
            let kept = &of.records.threads[usize::from(vcpu.earlier())];
            kept.run.fetch_add(run, Ordering::Relaxed);
            kept.wait.fetch_add(wait, Ordering::Relaxed);
            kept.switches_in.fetch_add(switches_in, Ordering::Relaxed);
            kept.preemptions.fetch_add(preemptions, Ordering::Relaxed);
        }
        record.free();
    }

    fn in_use(of: &Of, vm: VmSlot) -> usize {
        let records = of.records.threads_of(of.vm(vm));
        records.filter(|(_, record)| record.owner.load(Ordering::Relaxed) != 0).count()
    }

    #[test]
    fn the_counts_of_a_vcpu_go_on_with_its_next_thread_and_over_a_restart() {
        let (mut of, vm) = vm();
        let mut ran = 0;
        for round in 0..30 {
            let thread = track(&of, vm, 100 + round, NUMBER).unwrap();
            let time = |of: &Of| of.records.vcpu_time_ns(thread).unwrap();
            run(&of, thread, 7);
            assert_eq!(time(&of), ran + 7);
            run(&of, thread, 10);
            assert_eq!(time(&of), ran + 10);
            assert!(of.records.vm_time_ns(vm).unwrap() >= ran + 10);
            ran += 10;
            let reading = of.records.thread(thread).unwrap();
            let rounds = u64::from(round + 1);
            assert_eq!(
                (reading.wait_ns, reading.switches_in, reading.preemptions),
                (Some(2 * ran), 3 * rounds, rounds)
            );
            if round % 3 == 1 {
                of = Registration::adopt(of.records);
                // As a scan finds it.
                assert_eq!(track(&of, vm, 100 + round, NUMBER).unwrap(), thread);
                assert_eq!(time(&of), ran);
            }
            end(&of, thread);
            assert_eq!(time_of(&of, thread), None);
            if round % 3 == 2 {
                of = Registration::adopt(of.records);
            }
            assert_eq!(in_use(&of, vm), 2, "the first thread and what is kept");
        }
        // Another vCPU has no part in it.
        let other = track(&of, vm, 200, NUMBER + 1).unwrap();
        run(&of, other, 3);
        assert_eq!(time_of(&of, other), Some(3));
    }

    fn time_of(of: &Of, thread: ThreadSlot) -> Option<u64> {
        of.records.vcpu_time_ns(thread)
    }

    #[test]
    fn what_a_reader_was_given_is_not_more_than_what_the_next_thread_shows() {
        let (of, vm) = vm();
        let first = track(&of, vm, 100, NUMBER).unwrap();
        run(&of, first, 20);
        // A word that followed the clock was ahead of the kernel's count.
        record(&of, first).high_water.store(25, Ordering::Relaxed);
        end(&of, first);
        let mut last = first;
        for tid in 101..103 {
            let next = track(&of, vm, tid, NUMBER).unwrap();
            run(&of, next, 2);
            assert_eq!(time_of(&of, next), Some(25), "{tid}");
            assert!(of.records.vm_time_ns(vm).unwrap() >= 25);
            end(&of, next);
            last = next;
        }
        assert_eq!(record(&of, first).run.load(Ordering::Relaxed), word::at_rest(24));
        assert_eq!(time_of(&of, last), None);
        // The kernel's own sum over the exited threads, which lacks something.
        of.vm(vm).exited.store(23, Ordering::Relaxed);
        let next = track(&of, vm, 110, NUMBER).unwrap();
        run(&of, next, 2);
        assert_eq!((time_of(&of, next), of.records.vm_time_ns(vm)), (Some(26), Some(26)));
    }

    #[test]
    fn a_thread_is_the_vcpus_when_the_one_before_has_ended() {
        let (of, vm) = vm();
        let first = track(&of, vm, 100, NUMBER).unwrap();
        run(&of, first, 20);
        let early = || {
            let found = track(&of, vm, 101, NUMBER);
            assert!(matches!(found, Err(TrackError::NotAlone { tid: 101 })), "{found:?}");
            assert_eq!(in_use(&of, vm), 3, "it is counted");
        };
        // It has begun to exit, and the program has not been told yet.
        early();
        record(&of, first).owner.fetch_or(Owner::DYING, Ordering::Relaxed);
        of.vm(vm).dying.store(1, Ordering::Relaxed);
        early();
        end(&of, first);
        let second = track(&of, vm, 101, NUMBER).unwrap();
        run(&of, second, 1);
        assert_eq!(time_of(&of, second), Some(21));
        // The VMM has a second thread run the vCPU, and the first one goes on.
        let third = of.track_thread(vm, &Asleep(102), None).unwrap();
        record(&of, third).start.store(1, Ordering::Relaxed);
        let third = track(&of, vm, 102, NUMBER).unwrap();
        run(&of, third, 2);
        assert_eq!(time_of(&of, third), Some(22));
    }

    #[test]
    fn a_thread_that_a_scan_finds_on_its_way_to_its_end_is_counted_once() {
        let (of, vm) = vm();
        let thread = track(&of, vm, 100, NUMBER).unwrap();
        run(&of, thread, 20);
        record(&of, thread).owner.fetch_or(Owner::DYING, Ordering::Relaxed);
        of.vm(vm).dying.store(1, Ordering::Relaxed);
        let found = track(&of, vm, 100, NUMBER);
        let is_leaving = found.is_err();
        let thread = found.unwrap_or(thread);
        run(&of, thread, 25);
        assert!(of.records.vm_time_ns(vm).unwrap() >= 25);
        end(&of, thread);
        let next = track(&of, vm, 101, NUMBER).unwrap();
        run(&of, next, 1);
        assert_eq!(time_of(&of, next), Some(26));
        assert!(is_leaving, "a row has no thread that ends");
    }

    #[test]
    fn threads_that_change_places_do_not_wait_for_each_other() {
        let (of, vm) = vm();
        track(&of, vm, 100, 0).unwrap();
        track(&of, vm, 101, 1).unwrap();
        let swapped = || track(&of, vm, 100, 1).is_ok() & track(&of, vm, 101, 0).is_ok();
        assert!(!swapped() && swapped());
        // A vCPU without a row has no earlier threads, and keeps nothing.
        let other = track(&of, vm, 102, u32::MAX).unwrap();
        run(&of, other, 5);
        end(&of, other);
        let next = track(&of, vm, 103, u32::MAX).unwrap();
        run(&of, next, 1);
        assert_eq!(time_of(&of, next), Some(1));
    }

    #[test]
    fn what_is_known_of_a_thread_whose_end_is_not_seen_is_kept() {
        let (of, vm) = vm();
        for tid in 100..103 {
            let thread = track(&of, vm, tid, NUMBER).unwrap();
            run(&of, thread, 20);
            record(&of, thread).owner.fetch_or(Owner::DYING, Ordering::Relaxed);
            of.vm(vm).dying.store(1, Ordering::Relaxed);
            of.close(tid, thread.record, record(&of, thread), 30);
            assert_eq!((in_use(&of, vm), of.vm(vm).dying.load(Ordering::Relaxed)), (2, 0));
        }
        let last = track(&of, vm, 110, NUMBER).unwrap();
        run(&of, last, 1);
        assert_eq!(time_of(&of, last), Some(91));
    }

    #[test]
    fn a_vm_leaves_nothing_to_the_next_one() {
        let (of, vm) = vm();
        for (tid, number) in (100..120).zip(0..) {
            let thread = track(&of, vm, tid, number).unwrap();
            run(&of, thread, 20);
            end(&of, thread);
        }
        assert_eq!(in_use(&of, vm), 21);
        of.untrack_vm(vm);
        assert!(of.records.threads.iter().all(|record| record.owner.load(Ordering::Relaxed) == 0));
        // A record that an agent has left without its VM is freed at the next start.
        of.records.threads[9].owner.store(Owner::kept(vm.0).0, Ordering::Relaxed);
        let of = Registration::adopt(of.records);
        assert_eq!(of.records.threads[9].owner.load(Ordering::Relaxed), 0);
    }
}
