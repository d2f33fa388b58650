//! kvmeter's BPF programs.
fn main() {}
