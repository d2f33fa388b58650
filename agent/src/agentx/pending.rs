//! Notifications that wait for a session.

use std::{collections::VecDeque, convert::Infallible, future::pending, time::Duration};

use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep_until},
};

use super::Notice;

/// Most notifications that are kept while there is no connection; as many again wait in the channel.
const MOST: usize = 8192;

/// Notifications in the order in which they were made. Without a connection the young ones are kept and the old ones
/// dropped: news of minutes ago would arrive as if they were new.
#[derive(Debug)]
pub(super) struct Pending {
    channel: Receiver<Notice>,
    is_closed: bool,
    kept: VecDeque<Notice>,
    max_age: Duration,
}

impl Pending {
    /// Notifications out of a channel. Without a connection they are kept for `max_age`.
    pub(super) fn new(channel: Receiver<Notice>, max_age: Duration) -> Self {
        Self { channel, is_closed: false, kept: VecDeque::new(), max_age }
    }

    /// The next one. May be dropped at any await.
    pub(super) async fn next(&mut self) -> Notice {
        if let Some(notice) = self.kept.pop_front() {
            return notice;
        }
        match self.channel.recv().await {
            Some(notice) => notice,
            None => pending().await,
        }
    }

    /// Puts back one that was not sent.
    pub(super) fn put_back(&mut self, notice: Notice) {
        self.kept.push_front(notice);
    }

    /// Keeps what comes while there is no connection. Calls `dropped` with the number of those that became too old. May be
    /// dropped at any await.
    pub(super) async fn keep(&mut self, mut dropped: impl FnMut(u64)) -> Infallible {
        loop {
            dropped(self.drop_old());
            let oldest = self.kept.front().and_then(|oldest| self.end_of(oldest));
            let is_full = self.kept.len() >= MOST;
            tokio::select! {
                notice = self.channel.recv(), if !is_full && !self.is_closed => match notice {
                    Some(notice) => self.kept.push_back(notice),
                    None => self.is_closed = true,
                },
                () = sleep_until(oldest.unwrap_or_else(Instant::now)), if is_full => {}
                () = pending(), if !is_full && self.is_closed => {}
            }
        }
    }

    /// Drops those that are too old, and returns their number.
    pub(super) fn drop_old(&mut self) -> u64 {
        let now = Instant::now();
        let is_old = |notice: &Notice| self.end_of(notice).is_some_and(|end| end <= now);
        let old = self.kept.iter().take_while(|notice| is_old(notice)).count();
        self.kept.drain(..old);
        u64::try_from(old).unwrap_or(u64::MAX)
    }

    /// When a notification is too old; `None` = never, as far as the clock goes.
    fn end_of(&self, notice: &Notice) -> Option<Instant> {
        notice.at.checked_add(self.max_age).map(Instant::from_std)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicBool};

    use tokio::{sync::mpsc::channel, time::timeout};

    use super::*;
    use crate::snmp::{Oid, OwnedValue};

    fn notice(number: i32) -> Notice {
        Notice {
            bindings: vec![(Oid::of(&[1, 3]), OwnedValue::Integer(number))],
            switch: Arc::new(AtomicBool::new(true)),
            at: Instant::now().into_std(),
        }
    }

    fn number(notice: &Notice) -> i32 {
        match notice.bindings[0].1 {
            OwnedValue::Integer(number) => number,
            _ => panic!("{notice:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn young_notices_are_kept_in_order_and_old_ones_are_dropped() {
        let (sender, channel) = channel(10);
        let mut pending = Pending::new(channel, Duration::from_secs(5));
        sender.try_send(notice(1)).unwrap();
        let mut dropped = 0;
        let keeping = Duration::from_secs(3);
        assert!(timeout(keeping, pending.keep(|old| dropped += old)).await.is_err());
        sender.try_send(notice(2)).unwrap();
        assert!(timeout(keeping, pending.keep(|old| dropped += old)).await.is_err());
        sender.try_send(notice(3)).unwrap();
        dropped += pending.drop_old();
        assert_eq!(dropped, 1);
        let second = pending.next().await;
        assert_eq!(number(&second), 2);
        pending.put_back(second);
        assert_eq!([number(&pending.next().await), number(&pending.next().await)], [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_is_kept_and_room_comes_with_time() {
        let (sender, channel) = channel(3 * MOST);
        let mut pending = Pending::new(channel, Duration::from_secs(5));
        let last = i32::try_from(MOST).unwrap() + 10;
        for at in 0..last {
            sender.try_send(notice(at)).unwrap();
        }
        let mut dropped = 0;
        let keeping = Duration::from_secs(1);
        assert!(timeout(keeping, pending.keep(|old| dropped += old)).await.is_err());
        assert_eq!((pending.kept.len(), dropped), (MOST, 0));
        sender.try_send(notice(last)).unwrap();
        let keeping = Duration::from_millis(4500);
        assert!(timeout(keeping, pending.keep(|old| dropped += old)).await.is_err());
        assert_eq!(dropped, u64::try_from(last).unwrap());
        assert_eq!(number(&pending.next().await), last, "the young one");
    }
}
