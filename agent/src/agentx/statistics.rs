//! Statistics of the AgentX side, for `kvmeter status`. On the request path each costs one atomic addition.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use kvmeter_common::image::{LATENCY_BUCKETS, bucket_of};

use super::{
    codec::{PduType, ResError},
    session::Handled,
    state::State,
};
use crate::histogram::Histogram;

/// Counts since the start of the agent, which only grow. Each is exact; two that are read one after the other may differ by
/// what happened in between.
#[derive(Debug, Default)]
pub struct Statistics {
    phase: AtomicU8,
    /// Connections that were established.
    pub connects: AtomicU64,
    /// Sessions in which every subtree was registered.
    pub sessions: AtomicU64,
    /// Failed attempts to connect, and lost connections.
    pub failures: AtomicU64,
    /// agentx-Get-PDUs.
    pub get: AtomicU64,
    /// agentx-GetNext-PDUs.
    pub get_next: AtomicU64,
    /// agentx-GetBulk-PDUs.
    pub get_bulk: AtomicU64,
    /// agentx-TestSet, CommitSet, UndoSet and CleanupSet-PDUs.
    pub set: AtomicU64,
    /// PDUs of other types, without the master's Responses.
    pub other: AtomicU64,
    /// PDUs of the master that were answered with a `res.error` other than 0.
    pub errors: AtomicU64,
    /// PDUs of the master that could not be parsed; requests among them are in `errors`, too.
    pub parse_errors: AtomicU64,
    /// agentx-Notify-PDUs that were sent.
    pub notified: AtomicU64,
    /// Notifications dropped because no session was opened within their time.
    pub unsent: AtomicU64,
    /// Notifications that were sent, and that the master did not answer in time or before the session was lost. It may have
    /// passed them on all the same.
    pub unanswered: AtomicU64,
    /// Responses of the master with an error.
    pub master_errors: AtomicU64,
    /// Time from the arrival of a request's last bytes to the write of its response.
    pub latency: Latency,
    last_error: Mutex<Option<String>>,
}

/// Phase of the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// No connection.
    Disconnected,
    /// Open or Register has not been answered.
    Opening,
    /// Every subtree is registered.
    Established,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disconnected => "disconnected",
            Self::Opening => "opening",
            Self::Established => "established",
        })
    }
}

impl Statistics {
    /// The current phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Disconnected,
            1 => Phase::Opening,
            _ => Phase::Established,
        }
    }

    /// Error of the last failed connection.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_state(&self, state: State) {
        let phase = match state {
            State::Disconnected => 0,
            State::Opening { .. } | State::Registering { .. } => 1,
            State::Established { .. } => 2,
        };
        if self.phase.swap(phase, Relaxed) != phase && phase == 2 {
            self.sessions.fetch_add(1, Relaxed);
        }
    }

    /// Counts a failed connection.
    pub(super) fn record_failure(&self, error: String) {
        self.failures.fetch_add(1, Relaxed);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn record(&self, Handled { kind, error }: Handled) {
        let count = match kind {
            Some(PduType::Response) => {
                if error == ResError::PARSE_ERROR {
                    self.parse_errors.fetch_add(1, Relaxed);
                } else if error != ResError::NO_ERROR {
                    self.master_errors.fetch_add(1, Relaxed);
                }
                return;
            }
            Some(PduType::Get) => &self.get,
            Some(PduType::GetNext) => &self.get_next,
            Some(PduType::GetBulk) => &self.get_bulk,
            Some(
                PduType::TestSet | PduType::CommitSet | PduType::UndoSet | PduType::CleanupSet,
            ) => &self.set,
            _ => &self.other,
        };
        count.fetch_add(1, Relaxed);
        if error != ResError::NO_ERROR {
            self.errors.fetch_add(1, Relaxed);
        }
        if error == ResError::PARSE_ERROR {
            self.parse_errors.fetch_add(1, Relaxed);
        }
    }
}

/// A histogram of durations that is recorded and read at the same time. Recording takes one atomic add and a maximum.
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; LATENCY_BUCKETS],
    max_ns: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; LATENCY_BUCKETS], max_ns: AtomicU64::new(0) }
    }
}

impl Latency {
    pub(super) fn record(&self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Relaxed);
        self.max_ns.fetch_max(ns, Relaxed);
    }

    /// Number of durations recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram().count()
    }

    /// The longest duration.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Relaxed))
    }

    /// The duration that `per_mille` of 1000 do not exceed, within an eighth: 500 is the median, 990 the 99th
    /// percentile. 0 before the first.
    #[must_use]
    pub fn quantile(&self, per_mille: u16) -> Duration {
        Duration::from_nanos(self.histogram().quantile(per_mille)).min(self.max())
    }

    fn histogram(&self) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(self.buckets.iter().map(|bucket| bucket.load(Relaxed)));
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let latency = Latency::default();
        assert_eq!((latency.count(), latency.max(), latency.quantile(500)), Default::default());
        for us in 1..=1000 {
            latency.record(Duration::from_micros(us));
        }
        assert_eq!((latency.count(), latency.max()), (1000, Duration::from_millis(1)));
        let median = latency.quantile(500).as_micros();
        assert!((440..=560).contains(&median), "{median}");
        assert!(latency.quantile(1000) <= latency.max());
    }

    #[test]
    fn a_response_of_the_master_is_not_counted_as_a_request() {
        let statistics = Statistics::default();
        let record = |kind, error| statistics.record(Handled { kind, error });
        record(Some(PduType::Response), ResError::PROCESSING_ERROR);
        record(Some(PduType::Get), ResError::NO_ERROR);
        record(Some(PduType::UndoSet), ResError::UNDO_FAILED);
        record(None, ResError::PARSE_ERROR);
        let counts = [
            &statistics.get,
            &statistics.set,
            &statistics.other,
            &statistics.errors,
            &statistics.parse_errors,
            &statistics.master_errors,
        ];
        assert_eq!(counts.map(|count| count.load(Relaxed)), [1, 1, 1, 2, 1, 1]);
    }

    #[test]
    fn a_session_counts_once() {
        let statistics = Statistics::default();
        let established = State::Established { session_id: 1, ping: None };
        statistics.set_state(established);
        statistics.set_state(established);
        assert_eq!(statistics.phase(), Phase::Established);
        assert_eq!(statistics.sessions.load(Relaxed), 1);
        statistics.record_failure("gone".to_owned());
        assert_eq!(statistics.last_error().as_deref(), Some("gone"));
    }
}
