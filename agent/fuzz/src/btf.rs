//! BTF data that may be anything.

use kvmeter::probe::btf::Btf;

/// Looks for what the probe looks for.
pub fn run(octets: &[u8]) {
    if let Ok(btf) = Btf::parse(octets) {
        for (name, path) in [
            ("task_struct", "pid"),
            ("task_struct", "se.sum_exec_runtime"),
            ("task_struct", "preempt_notifiers.first"),
            ("signal_struct", "live.counter"),
        ] {
            let _ = btf.field_offset(name, path);
        }
        let _ = btf.tracepoint_args("sched_switch");
    }
}
