//! Benchmarks of kvmeter.
