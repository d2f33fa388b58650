//! The chores of kvmeter.
fn main() {}
