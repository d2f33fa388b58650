//! Turns changes of state of VMs into the notifications of RFC 7666, per VM and in bulk.
//!
//! A [`Change`] contains everything that its notification carries, so nothing is looked up when it is sent. The queues are
//! bounded. A change or notification that finds its queue full is dropped and counted; nothing waits for room. Changes of VMs
//! of users have a queue of their own and a bounded rate; what was held back or queued of a VM before a change of it that was dropped,
//! or that came by the other queue, is left out: the VM may be gone.

mod bulk;
mod limit;
mod losses;
mod notice;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel, error::TrySendError},
    time::{Instant, sleep_until},
};
use tracing::warn;

use crate::{
    agentx::{Bindings, Notice},
    inventory::Change,
    mib::{NotificationSwitches, context::Switch},
    snmp::OidError,
};
use bulk::{Bulk, Gathered};
use limit::Limit;
use losses::Losses;

/// Capacity of the queue of changes: room for 1,000 VMs that start, pause, resume and end at once.
const QUEUE: usize = 8192;

/// Capacity of the queue of notifications to the session, which sends as fast as the master accepts.
const NOTICES: usize = 8192;

/// Shortest interval between two warnings that changes are left out.
const QUIET: Duration = Duration::from_secs(60);

/// Counts since the start of the agent.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Changes reported.
    pub changes: AtomicU64,
    /// Notifications queued for the session.
    pub notices: AtomicU64,
    /// Changes and notifications that found a queue full, or that fit into no notification.
    pub dropped: AtomicU64,
    /// Changes of VMs of users that were left out, because there were too many.
    pub left_out: AtomicU64,
}

/// The input of the pipeline, for any thread.
#[derive(Clone, Debug)]
pub struct Sink {
    sender: Sender<(u64, Change)>,
    of_users: Sender<(u64, Change)>,
    losses: Arc<Losses>,
    statistics: Arc<Statistics>,
}

impl Sink {
    /// Queues a change. Never waits.
    pub fn note(&self, change: Change) {
        self.statistics.changes.fetch_add(1, Relaxed);
        let number = self.losses.number();
        let queue = if change.account.is_some() { &self.of_users } else { &self.sender };
        let sent = queue.try_send((number, change));
        if let Err((_, change)) = sent.map_err(TrySendError::into_inner) {
            self.losses.note(number, &change);
            self.statistics.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The changes that are sent together, and when.
struct Window {
    bulk: Bulk,
    due: Option<Instant>,
}

/// Turns changes into notifications.
#[derive(Debug)]
pub struct Notifier {
    /// Each with its number, as those of users.
    changes: Receiver<(u64, Change)>,
    of_users: Receiver<(u64, Change)>,
    losses: Arc<Losses>,
    notices: Sender<Notice>,
    window: Duration,
    statistics: Arc<Statistics>,
}

/// Creates the pipeline of a change: the sink takes it, the notifier makes notices of it, and the receiver yields these.
/// Bulk notifications gather changes for `window`.
#[must_use]
pub fn pipeline(window: Duration) -> (Sink, Notifier, Receiver<Notice>, Arc<Statistics>) {
    let statistics = Arc::new(Statistics::default());
    let (sender, changes) = channel(QUEUE);
    let (sender_of_users, of_users) = channel(QUEUE);
    let (notices, receiver) = channel(NOTICES);
    let losses = Arc::new(Losses::default());
    let sink = Sink {
        sender,
        of_users: sender_of_users,
        losses: Arc::clone(&losses),
        statistics: Arc::clone(&statistics),
    };
    let notifier = Notifier {
        changes,
        of_users,
        losses,
        notices,
        window,
        statistics: Arc::clone(&statistics),
    };
    (sink, notifier, receiver, statistics)
}

impl Notifier {
    /// Runs until the last sink is dropped. Sleeps while nothing changes.
    pub async fn run(mut self, switches: &NotificationSwitches) {
        let mut window = Window { bulk: Bulk::default(), due: None };
        let mut limit = Limit::default();
        let mut warned: Option<Instant> = None;
        loop {
            let held_until = limit.due().map(Instant::from_std);
            tokio::select! {
                // What users flood delays nothing else.
                biased;
                change = self.changes.recv() => {
                    let Some((number, change)) = change else { return };
                    // It may end what is held back or queued of the same VM.
                    if !self.of_users.is_empty() {
                        limit.overtake(number, &change);
                    }
                    if let Some(change) = limit.pass(change, Instant::now().into_std()) {
                        self.report(&change, switches, &mut window);
                    }
                }
                () = sleep_until(window.due.unwrap_or_else(Instant::now)), if window.due.is_some() => {
                    window.due = None;
                    for (notification, affected) in window.bulk.take() {
                        if switches.bulk.is_on() {
                            self.send(notice::of_many(notification, affected), &switches.bulk);
                        }
                    }
                }
                () = sleep_until(held_until.unwrap_or_else(Instant::now)), if held_until.is_some() => {
                    limit.lose(self.losses.take());
                    for change in limit.take_due(Instant::now().into_std()) {
                        self.report(&change, switches, &mut window);
                    }
                }
                Some((number, change)) = self.of_users.recv() => {
                    limit.lose(self.losses.take());
                    if !limit.is_outdated(number, &change)
                        && let Some(change) = limit.pass(change, Instant::now().into_std())
                    {
                        self.report(&change, switches, &mut window);
                    }
                    if limit.due().is_some() && warned.is_none_or(|at| at.elapsed() >= QUIET) {
                        warned = Some(Instant::now());
                        warn!(
                            "The VMs of a user change faster than notifications are sent about them; `kvmeter status` counts what is left out"
                        );
                    }
                }
            }
            let left_out = limit.take_left_out();
            if left_out > 0 {
                self.statistics.left_out.fetch_add(left_out, Relaxed);
            }
        }
    }

    fn report(&self, change: &Change, switches: &NotificationSwitches, window: &mut Window) {
        if switches.per_vm.is_on()
            && let Some(bindings) = notice::of_one(change)
        {
            self.send(bindings, &switches.per_vm);
        }
        if switches.bulk.is_on() {
            match window.bulk.gather(change) {
                Gathered::Yes => {
                    window.due.get_or_insert_with(|| Instant::now() + self.window);
                }
                Gathered::Full => window.due = Some(Instant::now()),
                Gathered::Nothing => {}
                Gathered::TooLarge => self.count_dropped(),
            }
        }
    }

    fn send(&self, bindings: Result<Bindings, OidError>, switch: &Switch) {
        let at = Instant::now().into_std();
        let notice = bindings.map(|bindings| Notice { bindings, switch: switch.position(), at });
        match notice.map(|notice| self.notices.try_send(notice)) {
            Ok(Ok(())) => {
                self.statistics.notices.fetch_add(1, Relaxed);
            }
            Ok(Err(_)) | Err(_) => self.count_dropped(),
        }
    }

    fn count_dropped(&self) {
        self.statistics.dropped.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        account::Account,
        inventory::{ChangeEvent, OperState, Persistence, VmIndex, VmUuid},
        mib::vm_mib::notification,
    };

    fn change(index: u32, before: OperState, event: ChangeEvent) -> Change {
        Change {
            index: VmIndex(index),
            name: format!("vm{index}"),
            uuid: Some(VmUuid::of_bytes([7; 16])),
            persistence: Persistence::Persistent,
            account: None,
            before,
            event,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn per_vm_at_once_and_in_bulk_after_the_window() {
        use OperState::{Paused, Running, Shutdown};
        let (sink, notifier, mut notices, statistics) = pipeline(Duration::from_millis(500));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(true, true)));
        let running = tokio::spawn(notifier.run(switches));
        let start = Instant::now();
        for index in 1..=20 {
            sink.note(change(index, Shutdown, ChangeEvent::State(Running)));
        }
        sink.note(change(3, Running, ChangeEvent::State(Paused)));
        sink.note(change(9, Running, ChangeEvent::Deleted));
        // A state without a notification.
        sink.note(change(4, Running, ChangeEvent::State(OperState::Preparing)));
        for _ in 0..22 {
            notices.recv().await.unwrap();
            assert_eq!(start.elapsed(), Duration::ZERO, "per VM, at once");
        }
        let mut bulk = Vec::new();
        for _ in 0..3 {
            bulk.push(notices.recv().await.unwrap().bindings);
            assert_eq!(start.elapsed().as_millis() / 10, 50, "in bulk, after the window");
        }
        let of_many = |event, affected| {
            notice::of_many(notification::bulk(event).unwrap(), affected).unwrap()
        };
        assert_eq!(bulk[0], of_many(ChangeEvent::State(Running), vec![0xff, 0xff, 0xf0]));
        assert_eq!(bulk[1], of_many(ChangeEvent::State(Paused), vec![0x20]));
        assert_eq!(bulk[2], of_many(ChangeEvent::Deleted, vec![0, 0x80]));
        drop(sink);
        running.await.unwrap();
        assert!(notices.recv().await.is_none(), "and nothing else");
        assert_eq!(statistics.notices.load(Relaxed), 25);
        assert_eq!(statistics.dropped.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_fits_into_no_list_is_counted_as_dropped() {
        let (sink, notifier, mut notices, statistics) = pipeline(Duration::from_millis(10));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(false, true)));
        let running = tokio::spawn(notifier.run(switches));
        for index in [480_000, 480_001] {
            sink.note(change(index, OperState::Running, ChangeEvent::Deleted));
        }
        notices.recv().await.unwrap();
        drop(sink);
        running.await.unwrap();
        assert!(notices.recv().await.is_none());
        let counts = [&statistics.changes, &statistics.notices, &statistics.dropped];
        assert_eq!(counts.map(|count| count.load(Relaxed)), [2, 1, 1]);
    }

    #[tokio::test]
    async fn a_change_that_finds_the_queue_full_is_counted() {
        let (sink, notifier, _notices, statistics) = pipeline(Duration::from_millis(1));
        for _ in 0..QUEUE + 5 {
            sink.note(change(1, OperState::Running, ChangeEvent::Deleted));
        }
        assert_eq!(statistics.dropped.load(Relaxed), 5);
        drop((sink, notifier));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_a_user_takes_no_notification_of_libvirt() {
        let (sink, notifier, mut notices, statistics) = pipeline(Duration::from_millis(10));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(true, false)));
        let flood = |index| {
            let of_user = |before, event| Change {
                account: Some(Account::User(9)),
                ..change(index, before, event)
            };
            [
                of_user(OperState::Unknown, ChangeEvent::State(OperState::Running)),
                of_user(OperState::Running, ChangeEvent::State(OperState::Shutdown)),
                of_user(OperState::Shutdown, ChangeEvent::Deleted),
            ]
        };
        // More than the queues hold.
        for change in (1000..11_000).flat_map(flood) {
            sink.note(change);
        }
        for index in 1..=500 {
            sink.note(change(index, OperState::Shutdown, ChangeEvent::State(OperState::Running)));
        }
        let running = tokio::spawn(notifier.run(switches));
        for _ in 0..500 {
            notices.recv().await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        drop(sink);
        running.await.unwrap();
        let mut of_user = 0;
        while notices.recv().await.is_some() {
            of_user += 1;
        }
        assert!((100..=250).contains(&of_user), "{of_user}");
        let [changes, left_out, dropped] =
            [&statistics.changes, &statistics.left_out, &statistics.dropped]
                .map(|count| count.load(Relaxed));
        assert_eq!(changes, 30_500);
        assert!(dropped > 0 && left_out > 0);
        assert!(left_out + dropped + of_user <= 30_000, "{left_out} {dropped} {of_user}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_back_of_a_vm_is_not_told_after_a_later_change_of_it_was_dropped() {
        use OperState::{Running, Shutdown, Unknown};
        const FIRST: u32 = 50_000;
        const QUEUED: u32 = 50_001;
        const NEXT: u32 = 50_002;
        let (sink, notifier, mut notices, statistics) = pipeline(Duration::from_millis(10));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(true, false)));
        let of_user = |index, before, event| {
            sink.note(Change { account: Some(Account::User(9)), ..change(index, before, event) });
        };
        let running = |index| of_user(index, Unknown, ChangeEvent::State(Running));
        let spawned = tokio::spawn(notifier.run(switches));
        // More than the user's rate allows: the last one is held back.
        (0..100).for_each(&running);
        running(FIRST);
        running(NEXT);
        let settled = || {
            let [changes, notices] =
                [&statistics.changes, &statistics.notices].map(|count| count.load(Relaxed));
            (changes, notices) == (102, 100)
        };
        while !settled() {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        // The queue fills up before the notifier takes anything out of it.
        running(QUEUED);
        while statistics.dropped.load(Relaxed) == 0 {
            of_user(99, Running, ChangeEvent::State(Running));
        }
        let dropped = statistics.dropped.load(Relaxed);
        for index in [FIRST, QUEUED] {
            of_user(index, Running, ChangeEvent::State(Shutdown));
            of_user(index, Shutdown, ChangeEvent::Deleted);
        }
        assert_eq!(statistics.dropped.load(Relaxed), dropped + 4, "the queue is full");
        // Another VM has the index of the first one now, and comes after what is queued.
        tokio::time::sleep(Duration::from_secs(60)).await;
        of_user(FIRST, Unknown, ChangeEvent::State(Shutdown));
        tokio::time::sleep(Duration::from_secs(60)).await;
        let sent =
            |index, before, event| notice::of_one(&change(index, before, event)).unwrap().unwrap();
        let mut told = Vec::new();
        drop(sink);
        spawned.await.unwrap();
        while let Some(notice) = notices.recv().await {
            told.push(notice.bindings);
        }
        for index in [FIRST, QUEUED] {
            let running = sent(index, Unknown, ChangeEvent::State(Running));
            assert!(!told.contains(&running), "{index} runs no more");
        }
        assert!(told.contains(&sent(NEXT, Unknown, ChangeEvent::State(Running))), "{told:?}");
        let next = sent(FIRST, Unknown, ChangeEvent::State(Shutdown));
        assert!(told.contains(&next), "it was not what the VM before was");
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_of_a_users_vm_is_not_told_after_a_later_change_of_it_by_libvirt() {
        use OperState::{Paused, Running, Unknown};
        let (sink, notifier, mut notices, statistics) = pipeline(Duration::from_millis(10));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(true, false)));
        let of_user = |index| Change {
            account: Some(Account::User(9)),
            ..change(index, Unknown, ChangeEvent::State(Running))
        };
        // The process was found before libvirt had described its domain.
        sink.note(of_user(1));
        sink.note(of_user(2));
        let paused = change(1, Running, ChangeEvent::State(Paused));
        sink.note(paused.clone());
        // Another VM with the index.
        sink.note(change(1, Paused, ChangeEvent::Deleted));
        sink.note(of_user(1));
        let running = tokio::spawn(notifier.run(switches));
        let mut told = Vec::new();
        for _ in 0..4 {
            told.push(notices.recv().await.unwrap().bindings);
        }
        let sent = |change: &Change| notice::of_one(change).unwrap().unwrap();
        let deleted = change(1, Paused, ChangeEvent::Deleted);
        let expected = [&paused, &deleted, &of_user(2), &of_user(1)].map(sent);
        assert_eq!(told, expected);
        drop(sink);
        running.await.unwrap();
        assert!(notices.recv().await.is_none(), "and nothing else");
        assert_eq!(statistics.left_out.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_switched_off_is_not_sent() {
        let (sink, notifier, mut notices, _) = pipeline(Duration::from_millis(10));
        let switches: &'static NotificationSwitches =
            Box::leak(Box::new(NotificationSwitches::new(false, false)));
        let running = tokio::spawn(notifier.run(switches));
        sink.note(change(1, OperState::Running, ChangeEvent::Deleted));
        drop(sink);
        running.await.unwrap();
        assert!(notices.recv().await.is_none());
    }
}
