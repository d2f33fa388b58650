//! The BTF reader on the types of two real kernels (Debian's 6.1 and a 6.18 build, cut down to what the
//! scheduler's tracepoints touch) and on octets that are none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvmeter::probe::btf::{Btf, BtfError};
use proptest::prelude::*;

const LINUX_6_1: &[u8] = include_bytes!("../data/linux-6.1.btf");
const LINUX_6_18: &[u8] = include_bytes!("../data/linux-6.18.btf");

#[track_caller]
fn check(data: &[u8], expected: &[(&str, &str, u64)]) {
    let btf = Btf::parse(data).unwrap();
    for &(name, path, offset) in expected {
        assert_eq!(btf.field_offset(name, path), Ok(offset), "{name}.{path}");
    }
}

// The numbers are those of `bpftool btf dump`.
#[test]
fn fields_lie_where_bpftool_says_on_6_1() {
    check(
        LINUX_6_1,
        &[
            ("task_struct", "__state", 24),
            ("task_struct", "se.sum_exec_runtime", 200),
            ("task_struct", "preempt_notifiers.first", 960),
            ("task_struct", "sched_info.run_delay", 2168),
            ("task_struct", "pid", 2416),
            ("task_struct", "tgid", 2420),
            ("task_struct", "start_time", 2776),
            ("task_struct", "comm", 2976),
            ("task_struct", "signal", 3072),
            ("signal_struct", "live.counter", 4),
            ("signal_struct", "sum_sched_runtime", 680),
        ],
    );
}

#[test]
fn fields_lie_where_bpftool_says_on_6_18() {
    check(
        LINUX_6_18,
        &[
            ("task_struct", "__state", 24),
            ("task_struct", "se.sum_exec_runtime", 232),
            ("task_struct", "preempt_notifiers.first", 768),
            ("task_struct", "sched_info.run_delay", 1016),
            ("task_struct", "pid", 1264),
            ("task_struct", "tgid", 1268),
            ("task_struct", "start_time", 1552),
            ("task_struct", "comm", 1752),
            ("task_struct", "signal", 1848),
            ("signal_struct", "live.counter", 4),
            ("signal_struct", "sum_sched_runtime", 672),
        ],
    );
}

#[test]
fn tracepoints_have_the_arguments_of_their_kernel() {
    for (data, exit_args) in [(LINUX_6_1, 1), (LINUX_6_18, 2)] {
        let btf = Btf::parse(data).unwrap();
        assert_eq!(btf.tracepoint_args("sched_switch"), Ok(4));
        assert_eq!(btf.tracepoint_args("sched_process_exit"), Ok(exit_args));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let btf = Btf::parse(LINUX_6_18).unwrap();
    for (name, path) in
        [("no_struct", "pid"), ("task_struct", "nothing"), ("task_struct", "pid.deeper")]
    {
        assert!(
            matches!(btf.field_offset(name, path), Err(BtfError::Missing(what)) if what.contains(name))
        );
    }
    assert!(matches!(btf.tracepoint_args("no_such"), Err(BtfError::Missing(_))));
}

#[test]
fn a_bit_field_has_no_offset() {
    let btf = Btf::parse(LINUX_6_18).unwrap();
    assert!(matches!(
        btf.field_offset("task_struct", "sched_remote_wakeup"),
        Err(BtfError::BitField(_))
    ));
}

#[test]
fn data_cut_anywhere_is_an_error_or_smaller() {
    for len in 0..LINUX_6_18.len() {
        if let Ok(btf) = Btf::parse(&LINUX_6_18[..len]) {
            let _ = btf.field_offset("task_struct", "pid");
        }
    }
    assert!(matches!(Btf::parse(&[]), Err(BtfError::Truncated { .. })));
    assert_eq!(Btf::parse(&[0; 64]).err(), Some(BtfError::BadMagic));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_octets_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut data = LINUX_6_18.to_vec();
        for (at, octet) in changes {
            let at = at.index(data.len());
            data[at] = octet;
        }
        if let Ok(btf) = Btf::parse(&data) {
            let _ = btf.field_offset("task_struct", "se.sum_exec_runtime");
            let _ = btf.field_offset("signal_struct", "live.counter");
            let _ = btf.tracepoint_args("sched_switch");
        }
    }
}
