//! A process of a test.

use std::{ops::Deref, process::Child};

/// A process that is killed and waited for at the end of the test, also if the test fails.
pub(super) struct TestChild(pub(super) Child);

impl Deref for TestChild {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl Drop for TestChild {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
