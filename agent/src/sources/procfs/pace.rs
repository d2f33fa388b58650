//! How often the source's thread may wake up. Reads no clock: the time is a parameter.

use std::time::{Duration, Instant};

use crate::rate::Rate;

/// Turns of the thread: a hundred at once, and in the long run a hundred a second.
const TURNS: Rate = Rate { interval: Duration::from_millis(10), burst: 100 };

/// Length of a rest. What happens meanwhile is handled in one turn.
const REST: Duration = Duration::from_millis(10);

/// The turns of the thread so far.
#[derive(Debug, Default)]
pub(super) struct Pace {
    busy_until: Option<Instant>,
}

impl Pace {
    /// A turn is to begin: how long the thread is to rest before it; `None` = not at all.
    pub(super) fn turn(&mut self, now: Instant) -> Option<Duration> {
        let busy_until = self.busy_until.get_or_insert(now);
        let has_room = TURNS.has_room(*busy_until, now);
        TURNS.use_once(busy_until, now);
        (!has_room).then_some(REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_events_makes_a_hundred_turns_at_once_and_then_a_hundred_a_second() {
        let start = Instant::now();
        let (mut pace, mut now, mut turns) = (Pace::default(), start, 0);
        let mut first = None;
        while now < start + Duration::from_secs(60) {
            match pace.turn(now) {
                Some(rest) => {
                    first.get_or_insert(turns);
                    now += rest;
                }
                None => now += Duration::from_micros(100),
            }
            turns += 1;
        }
        assert!((100..110).contains(&first.unwrap()), "{first:?}");
        assert!((5_900..6_300).contains(&turns), "{turns}");
    }
}
