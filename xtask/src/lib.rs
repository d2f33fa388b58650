//! What the demo, the tests and the benchmarks share.

pub mod harness;
pub mod lab;
