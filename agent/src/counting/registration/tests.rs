//! A record that passes to another thread while the agent looks at it.

use std::sync::Arc;

use super::*;

const VM: VmSlot = VmSlot(3);
const SLOT: u16 = 9;
const TID: u32 = 100;

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
    ] {
        let of = registration(owner);
        of.release(TID, SLOT, &of.records.threads[usize::from(SLOT)]);
        assert_eq!(state(&of), expected, "{owner:x}");
    }
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
