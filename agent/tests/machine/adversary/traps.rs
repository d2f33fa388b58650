//! The notifications that snmptrapd receives, each with its time.

use std::{
    io::{BufRead as _, BufReader},
    process::ChildStderr,
    sync::{Arc, Mutex},
    thread,
    time::Instant,
};

use xtask::lab::Snmptrapd;

use crate::lab::traps::notifications;

/// A notification about one VM.
#[derive(Clone, Debug)]
pub(super) struct Trap {
    pub(super) at: Instant,
    /// vmIndex.
    pub(super) index: u32,
    /// Number of the notification.
    pub(super) number: u32,
    /// `NUMBER: name = value, …`
    pub(super) line: String,
}

impl Trap {
    fn of(line: String) -> Option<Self> {
        let at = Instant::now();
        let line = notifications(&[line]).pop()?;
        let (number, bindings) = line.split_once(": ")?;
        // `1.4.1.2.INDEX = STRING: …`
        let index = bindings.split(' ').next()?.rsplit('.').next()?.parse().ok()?;
        Some(Self { at, index, number: number.parse().ok()?, line })
    }
}

/// All notifications so far.
#[derive(Debug, Default)]
pub(super) struct Traps(Mutex<Vec<Trap>>);

impl Traps {
    /// Reads the log of snmptrapd on a thread of its own, until it ends.
    pub(super) fn follow(pipe: ChildStderr) -> Arc<Self> {
        let traps = Arc::new(Self::default());
        let of_thread = Arc::clone(&traps);
        thread::spawn(move || {
            let lines = BufReader::new(pipe).lines().map_while(Result::ok);
            for line in lines.filter(|line| Snmptrapd::is_of_vm_mib(line)) {
                if let Some(trap) = Trap::of(line) {
                    of_thread.0.lock().unwrap().push(trap);
                }
            }
        });
        traps
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Those after the first `known`.
    pub(super) fn since(&self, known: usize) -> impl Iterator<Item = Trap> + use<> {
        let all = self.0.lock().unwrap();
        all.get(known..).unwrap_or_default().to_vec().into_iter()
    }
}
