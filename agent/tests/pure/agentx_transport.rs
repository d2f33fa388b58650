//! The transport against a master on a real socket. Time is tokio's simulated clock, which only goes on while
//! everything waits; both ends live in one thread, so that what was written is there before time passes.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::objects::FixedObjects;
use agentx::{
    encodings::{SearchRange, SearchRangeList},
    pdu,
};
use kvmeter::{
    agentx::{
        Address, Config, Notice, Phase, Statistics, TimerKind, TransportConfig,
        codec::{Body, Header, Inbox, Pdu, ResError},
        run,
    },
    snmp::{Oid, OwnedValue},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

const SESSION: u32 = 7;

/// A running agent.
struct Agent {
    statistics: Arc<Statistics>,
    notices: mpsc::Sender<Notice>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(address: Address) -> Self {
        Self::start_with(address, Config::new(vec!["1.3.6.1.2.1.236".parse().unwrap()]))
    }

    fn start_with(address: Address, config: Config) -> Self {
        let statistics = Arc::new(Statistics::default());
        let (shutdown, stop) = oneshot::channel();
        let (sender, notices) = mpsc::channel(8192);
        let objects = FixedObjects::small();
        let task = tokio::spawn({
            let statistics = Arc::clone(&statistics);
            async move {
                let stop = async { stop.await.unwrap() };
                let source = || objects.clone();
                let mut config = TransportConfig::new(address, config);
                // Its clock is paused in most of these tests.
                config.timer = TimerKind::Runtime;
                run(config, source, notices, &statistics, stop).await;
            }
        });
        Self { statistics, notices: sender, shutdown, task }
    }

    fn on_unix(path: &Path) -> Self {
        Self::start(Address::Unix(path.to_owned()))
    }

    /// Queues a notification with this number, as one that is to be sent.
    fn note(&self, number: i32) -> Arc<AtomicBool> {
        let switch = Arc::new(AtomicBool::new(true));
        let name = Oid::of(&[1, 3, 6, 1, 2, 1, 236, 1, 2, 0]);
        let notice = Notice {
            bindings: vec![(name, OwnedValue::Integer(number))],
            switch: Arc::clone(&switch),
            at: Instant::now().into_std(),
        };
        self.notices.try_send(notice).unwrap();
        switch
    }

    async fn stop(self) {
        self.shutdown.send(()).unwrap();
        self.task.await.unwrap();
    }
}

/// The master's end of one connection.
struct Master<S> {
    stream: S,
    inbox: Inbox,
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Master<S> {
    fn new(stream: S) -> Self {
        Self { stream, inbox: Inbox::default() }
    }

    /// The next PDU of the agent; `None` when it has closed the connection.
    async fn read(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            if let Some(frame) = self.inbox.next_frame().unwrap() {
                return Some((frame.header, frame.payload.to_vec()));
            }
            if self.stream.read_buf(self.inbox.fill()).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn accept(&mut self, kind: u8) -> Header {
        let (header, _) = self.read().await.expect("the agent speaks");
        assert_eq!(header.pdu_type, kind);
        self.reply(header).await;
        header
    }

    async fn reply(&mut self, header: Header) {
        let response = Header { session_id: SESSION, ..header.response() };
        let response = kvmeter::agentx::codec::Frame { header: response, payload: &[0; 8] };
        let mut octets = Vec::new();
        Pdu::decode(response).unwrap().encode(&mut octets);
        self.stream.write_all(&octets).await.unwrap();
    }

    /// The number of the next PDU, a notification.
    async fn notified(&mut self) -> i32 {
        let (header, payload) = self.read().await.expect("a notification");
        assert_eq!(header.pdu_type, 12);
        self.reply(header).await;
        let number = payload.last_chunk().unwrap();
        i32::from_be_bytes(*number)
    }

    async fn establish(&mut self) {
        self.accept(1).await;
        self.accept(3).await;
    }

    async fn read_integer(&mut self) -> i32 {
        let (header, payload) = self.read().await.expect("an answer");
        let frame = kvmeter::agentx::codec::Frame { header, payload: &payload };
        match Pdu::decode(frame).unwrap().body {
            Body::Response { error: ResError::NO_ERROR, mut bindings, .. } => {
                match bindings.next().unwrap().data {
                    kvmeter::agentx::codec::Data::Integer(number) => number,
                    data => panic!("{data:?}"),
                }
            }
            body => panic!("{body:?}"),
        }
    }

    async fn get(&mut self) {
        self.stream.write_all(&get()).await.unwrap();
        assert_eq!(self.read_integer().await, -1);
    }
}

/// The socket at which the masters listen.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _directory: TempDir,
}

impl Socket {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master");
        Self { listener: UnixListener::bind(&path).unwrap(), path, _directory: directory }
    }
}

/// The master's end of the next connection.
async fn accept(listener: &UnixListener) -> Master<UnixStream> {
    Master::new(listener.accept().await.unwrap().0)
}

/// The same, with a session.
async fn next(listener: &UnixListener) -> Master<UnixStream> {
    let mut master = accept(listener).await;
    master.establish().await;
    master
}

/// An agent that has a session with its master.
async fn begun() -> (Agent, Master<UnixStream>, Socket) {
    let socket = Socket::new();
    let agent = Agent::on_unix(&socket.path);
    (agent, next(&socket.listener).await, socket)
}

fn get() -> Vec<u8> {
    let range = SearchRange::new("1.3.6.1.2.1.236.1.5.0".parse().unwrap(), Default::default());
    let mut get = pdu::Get::new(SearchRangeList(vec![range]));
    get.header.session_id = SESSION;
    get.to_bytes().unwrap()
}

#[tokio::test(start_paused = true)]
async fn requests_are_answered_however_their_octets_arrive() {
    let (agent, mut master, _socket) = begun().await;

    // One by one, each octet in a read of its own.
    for octet in get() {
        master.stream.write_all(&[octet]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(master.read_integer().await, -1);
    // Many at once, the last one in two pieces.
    let many = get().repeat(1000);
    let (most, last) = many.split_at(many.len() - 10);
    master.stream.write_all(most).await.unwrap();
    for _ in 0..999 {
        assert_eq!(master.read_integer().await, -1);
    }
    master.stream.write_all(last).await.unwrap();
    assert_eq!(master.read_integer().await, -1);

    assert_eq!(agent.statistics.get.load(Relaxed), 1001);
    assert_eq!(agent.statistics.latency.count(), 1001);
    assert_eq!(agent.statistics.errors.load(Relaxed), 0);
    assert_eq!(agent.statistics.phase(), Phase::Established);
    agent.stop().await;
    let (close, payload) = master.read().await.unwrap();
    assert_eq!((close.pdu_type, close.session_id, payload[0]), (2, SESSION, 5));
    assert_eq!(master.read().await, None);
}

/// On the real clock: what goes over TCP may be on its way while everything waits.
#[tokio::test]
async fn tcp_serves_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let agent = Agent::start(format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap());
    let mut master = Master::new(listener.accept().await.unwrap().0);
    master.establish().await;
    master.get().await;
    agent.stop().await;
    assert_eq!(master.read().await.unwrap().0.pdu_type, 2);
}

#[tokio::test(start_paused = true)]
async fn a_master_that_is_back_is_found_within_3_seconds_however_long_it_was_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master");
    let agent = Agent::on_unix(&path);
    for away in [0, 1, 60, 86_400] {
        // Nobody listens: the file is not there, or left behind.
        tokio::time::sleep(Duration::from_secs(away)).await;
        let listener = UnixListener::bind(&path).unwrap();
        let back = Instant::now();
        let mut master = next(&listener).await;
        master.get().await;
        assert!(back.elapsed() <= Duration::from_secs(3), "{:?}", back.elapsed());
        drop(listener);
        if away == 60 {
            // The file stays, as after kill -9; the next bind needs the place.
            drop(master);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(agent.statistics.sessions.load(Relaxed), 4);
    assert!(agent.statistics.failures.load(Relaxed) > 86_400 / 2);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn waits_grow_while_the_master_refuses_and_are_short_again_after_a_session() {
    let socket = Socket::new();
    let agent = Agent::on_unix(&socket.path);
    let mut last = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..10 {
        let mut master = accept(&socket.listener).await;
        assert_eq!(master.read().await.unwrap().0.pdu_type, 1);
        waits.push(last.elapsed());
        last = Instant::now();
    }
    assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(2010)), "{waits:?}");
    assert!(waits[8] >= Duration::from_secs(1), "{waits:?}");
    assert_eq!(agent.statistics.last_error().unwrap(), "The master closed the connection");
    // A session that is closed at once does not end the growth.
    let master = next(&socket.listener).await;
    drop(master);
    let lost = Instant::now();
    let mut master = accept(&socket.listener).await;
    assert!(lost.elapsed() >= Duration::from_secs(1), "{:?}", lost.elapsed());
    master.establish().await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(master);
    let lost = Instant::now();
    drop(socket.listener.accept().await.unwrap());
    assert!(lost.elapsed() <= Duration::from_millis(110), "{:?}", lost.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn idle_means_one_ping_a_minute_and_a_silent_master_is_left() {
    let (agent, mut master, _socket) = begun().await;
    let mut last = Instant::now();
    for _ in 0..5 {
        master.accept(13).await;
        let silence = last.elapsed();
        assert!((59_990..60_010).contains(&silence.as_millis()), "{silence:?}");
        last = Instant::now();
    }
    // A request puts the ping off.
    tokio::time::sleep(Duration::from_secs(40)).await;
    master.get().await;
    let asked = Instant::now();
    assert_eq!(master.read().await.unwrap().0.pdu_type, 13);
    assert!((59_990..60_010).contains(&asked.elapsed().as_millis()), "{:?}", asked.elapsed());

    let (close, _) = master.read().await.unwrap();
    assert_eq!(close.pdu_type, 2);
    assert_eq!(asked.elapsed().as_secs(), 65);
    assert_eq!(master.read().await, None);
    assert_eq!(agent.statistics.last_error().unwrap(), "The master did not answer Ping in time");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ping_may_be_due_before_a_response_would_have_been() {
    let socket = Socket::new();
    let ping_interval = Duration::from_secs(1);
    let config = Config { ping_interval, ..Config::new(vec!["1.3".parse().unwrap()]) };
    let agent = Agent::start_with(Address::Unix(socket.path.clone()), config);
    let mut master = next(&socket.listener).await;
    let established = Instant::now();
    master.accept(13).await;
    assert!(established.elapsed().as_millis() <= 1010, "{:?}", established.elapsed());
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_reads_nothing_does_not_hold_the_agent() {
    let (agent, mut master, socket) = begun().await;
    let flood = get().repeat(1000);
    let flooded = async { while master.stream.write_all(&flood).await.is_ok() {} };
    let mut flooded = pin!(flooded);
    let (again, ()) = tokio::join!(socket.listener.accept(), &mut flooded);
    drop(again);
    let error = agent.statistics.last_error().unwrap();
    assert_eq!(error, "The master has read no byte for 5s");
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_length_that_cannot_be_is_answered_and_the_connection_made_anew() {
    let (agent, mut master, socket) = begun().await;
    let mut octets = get();
    octets[16..20].fill(0xff);
    master.stream.write_all(&octets).await.unwrap();
    assert_eq!(master.read().await.unwrap().0.pdu_type, 18);
    let (close, payload) = master.read().await.unwrap();
    assert_eq!((close.pdu_type, payload[0]), (2, 2));
    let mut master = next(&socket.listener).await;
    master.get().await;
    assert_eq!(agent.statistics.parse_errors.load(Relaxed), 1);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_a_master() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("master");
    let agent = Agent::on_unix(&path);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(agent.statistics.phase(), Phase::Disconnected);
    let error = agent.statistics.last_error().unwrap();
    assert!(error.starts_with(&format!("No connection to the master at unix:{}", path.display())));
    let before = Instant::now();
    agent.stop().await;
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn notifications_wait_for_a_master_that_takes_its_time() {
    let socket = Socket::new();
    let agent = Agent::on_unix(&socket.path);
    agent.note(1);
    let mut master = accept(&socket.listener).await;
    for (kind, number) in [(1, 2), (3, 3)] {
        let (header, _) = master.read().await.unwrap();
        assert_eq!(header.pdu_type, kind);
        tokio::time::sleep(Duration::from_millis(4500)).await;
        agent.note(number);
        master.reply(header).await;
    }
    for number in 1..=3 {
        assert_eq!(master.notified().await, number);
    }
    assert_eq!(agent.statistics.unsent.load(Relaxed), 0);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn young_notifications_outlive_a_session_in_order_and_none_is_sent_twice() {
    let (agent, mut master, mut socket) = begun().await;
    for number in 1..=4 {
        agent.note(number);
    }
    assert_eq!(master.notified().await, 1);
    // The second is sent and not answered.
    assert_eq!(master.read().await.unwrap().0.pdu_type, 12);
    drop(master);
    drop(socket.listener);
    std::fs::remove_file(&socket.path).unwrap();
    agent.note(5);
    tokio::time::sleep(Duration::from_secs(2)).await;
    agent.note(6);
    let switched_off = agent.note(7);
    agent.note(8);
    socket.listener = UnixListener::bind(&socket.path).unwrap();
    let mut master = next(&socket.listener).await;
    switched_off.store(false, Relaxed);
    for number in [3, 4, 5, 6, 8] {
        assert_eq!(master.notified().await, number);
    }
    // Away for longer than a notification is kept.
    drop((master, socket.listener));
    std::fs::remove_file(&socket.path).unwrap();
    agent.note(9);
    tokio::time::sleep(Duration::from_secs(20)).await;
    agent.note(10);
    socket.listener = UnixListener::bind(&socket.path).unwrap();
    let mut master = next(&socket.listener).await;
    assert_eq!(master.notified().await, 10);
    master.get().await;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    let statistics = &agent.statistics;
    let counts = [&statistics.notified, &statistics.unanswered, &statistics.unsent].map(count);
    assert_eq!(counts, [8, 1, 1]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_late_response_is_no_drop() {
    let (agent, mut master, _socket) = begun().await;
    agent.note(1);
    agent.note(2);
    let (late, _) = master.read().await.unwrap();
    assert_eq!(late.pdu_type, 12);
    // The second one is sent after the timeout.
    assert_eq!(master.notified().await, 2);
    master.reply(late).await;
    master.get().await;
    let statistics = &agent.statistics;
    let counts = [&statistics.notified, &statistics.unanswered, &statistics.unsent];
    assert_eq!(counts.map(|count| count.load(Relaxed)), [2, 1, 0]);
    agent.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_master_that_writes_all_its_requests_before_it_reads_is_served() {
    let (agent, mut master, _socket) = begun().await;
    // More than the socket takes in either direction.
    let many = 12_000;
    master.stream.write_all(&get().repeat(many)).await.unwrap();
    for _ in 0..many {
        assert_eq!(master.read_integer().await, -1);
    }
    assert_eq!(agent.statistics.connects.load(Relaxed), 1);
    agent.stop().await;
}
