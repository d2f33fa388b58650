//! The session's socket and clock: a loop that connects and reconnects.

use std::{
    convert::Infallible, future::Future, io, pin::pin, sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::{TcpStream, UnixStream},
    sync::mpsc::Receiver,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use super::{
    Address, Config, Notice, Objects, Session, SessionError, State, Statistics, TimerKind,
    backoff::Backoff,
    codec::{CloseReason, Inbox},
    pending::Pending,
    timer::Timer,
};

/// Size in bytes up to which responses are gathered before they are written, while the inbox has more PDUs.
const GATHER: usize = 64 * 1024;

/// Timeout of an attempt to connect. Why: to a host that is down the kernel retransmits SYN after 1 s, 3 s and 7 s only; a
/// new attempt sends one at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Size in bytes up to which requests are read while the master reads no responses: a master that writes all of its
/// requests before it reads would wait for the agent, and the agent for the master.
const READ_AHEAD: usize = 1024 * 1024;

/// A session of this length ends the back-off. One that the master closes at once says that the next will not last, either.
const STABLE: Duration = Duration::from_secs(5);

/// Time beyond [`TransportConfig::reconnect_max`] for which notifications are kept while there is no connection: an attempt
/// to connect, and a master that needs a moment to begin.
const KEEPS_BEYOND: Duration = Duration::from_secs(3);

/// Timeout for sending the last PDUs of a connection.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_millis(500);

/// Default of [`TransportConfig::reconnect_max`]: a master that is back is found within 3 s.
pub const DEFAULT_RECONNECT_MAX: Duration = Duration::from_secs(2);

/// Parameters of the connection.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Address of the master.
    pub address: Address,
    /// Largest delay between two attempts to connect.
    pub reconnect_max: Duration,
    /// Session parameters. The timeout also bounds writes.
    pub session: Config,
    /// The timer to use.
    pub timer: TimerKind,
}

impl TransportConfig {
    /// A connection to `address`.
    #[must_use]
    pub fn new(address: Address, session: Config) -> Self {
        Self { address, reconnect_max: DEFAULT_RECONNECT_MAX, session, timer: TimerKind::default() }
    }
}

/// Why a connection failed.
#[derive(Debug, Error)]
enum ConnectionError {
    #[error(
        "No connection to the master at {address}: {source}; is it running, with AgentX enabled?"
    )]
    Connect { address: Address, source: io::Error },
    #[error("The master closed the connection")]
    EndOfFile,
    #[error("The connection to the master broke: {0}")]
    Broken(io::Error),
    #[error("The master has read no byte for {0:?}")]
    Stuck(Duration),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Serves objects over sessions with the master until `shutdown` is ready, then closes the session.
///
/// `source` yields the objects for each PDU; they are dropped before the next read or write. Without PDUs only the ping
/// wakes the task. `notices` are sent one at a time, each after the master's response to the previous one, and none twice.
/// Without a session they wait: up to [`TransportConfig::reconnect_max`] and 3 s until there is a connection, and as long as
/// the master takes to open a session. Then they are dropped and counted.
pub async fn run<S, O>(
    config: TransportConfig,
    source: S,
    notices: Receiver<Notice>,
    statistics: &Statistics,
    shutdown: impl Future<Output = ()>,
) where
    S: Fn() -> O,
    O: Objects,
{
    let mut shutdown = pin!(shutdown);
    let mut backoff = Backoff::new(config.reconnect_max);
    let mut session = Session::new(config.session);
    let mut inbox = Inbox::default();
    let max_age = config.reconnect_max.saturating_add(KEEPS_BEYOND);
    let mut notices = Pending::new(notices, max_age);
    let dropped = |old| {
        statistics.unsent.fetch_add(old, Relaxed);
    };
    let mut reported = None;
    loop {
        let mut established = None;
        let lost = tokio::select! {
            () = &mut shutdown => return,
            never = notices.keep(dropped) => match never {},
            connected = connect(&config.address) => match connected {
                Err(error) => error,
                Ok(stream) => {
                    statistics.connects.fetch_add(1, Relaxed);
                    dropped(notices.drop_old());
                    let (reader, writer) = split(stream);
                    let mut connection = Connection {
                        reader,
                        writer,
                        session: &mut session,
                        inbox: &mut inbox,
                        arrived: std::time::Instant::now(),
                        source: &source,
                        notices: &mut notices,
                        unwritten: None,
                        established: &mut established,
                        timer: config.timer,
                        statistics,
                    };
                    let served = tokio::select! {
                        () = &mut shutdown => None,
                        lost = connection.serve() => Some(lost),
                    };
                    let Some(lost) = served else {
                        connection.shut_down().await;
                        return;
                    };
                    connection.flush().await;
                    connection.settle_notices();
                    lost
                }
            },
        };
        session.disconnected();
        inbox.clear();
        statistics.set_state(session.state());
        if established.is_some_and(|at: Instant| at.elapsed() >= STABLE) {
            backoff.reset();
            reported = None;
        }
        let wait = backoff.delay(fastrand::f64());
        let error = lost.to_string();
        // The same error is logged once, not at every attempt.
        if reported.as_ref() == Some(&error) {
            debug!(error, ?wait, "no AgentX session");
        } else {
            warn!(error, "no AgentX session; trying again until there is one");
        }
        statistics.record_failure(error.clone());
        reported = Some(error);
        tokio::select! {
            () = &mut shutdown => return,
            never = notices.keep(dropped) => match never {},
            () = time::sleep(wait) => {}
        }
    }
}

/// A unix or TCP stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(address: &Address) -> Result<Box<dyn Stream>, ConnectionError> {
    let connecting = async {
        Ok::<Box<dyn Stream>, io::Error>(match address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    };
    time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ConnectionError::Connect { address: address.clone(), source })
}

/// A connection and what is needed to serve it.
struct Connection<'c, S> {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    session: &'c mut Session,
    inbox: &'c mut Inbox,
    /// When bytes were last read.
    arrived: std::time::Instant,
    source: &'c S,
    notices: &'c mut Pending,
    /// The notification at the end of the output, until all of the output is written.
    unwritten: Option<Notice>,
    /// When the session was established.
    established: &'c mut Option<Instant>,
    timer: TimerKind,
    statistics: &'c Statistics,
}

impl<S, O> Connection<'_, S>
where
    S: Fn() -> O,
    O: Objects,
{
    /// Serves until the connection fails. May be dropped at any await: bytes that were read are in the inbox, and the session
    /// knows how many bytes of its output were written.
    async fn serve(&mut self) -> ConnectionError {
        match self.try_serve().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn try_serve(&mut self) -> Result<Infallible, ConnectionError> {
        self.session.connected(Instant::now().into_std())?;
        self.changed();
        self.write().await?;
        let mut timer = Timer::new(self.timer).map_err(ConnectionError::Broken)?;
        timer.set(self.session.poll_timeout()).map_err(ConnectionError::Broken)?;
        loop {
            let full_until = self.session.notify_after().map(Instant::from_std);
            let may_notify = full_until.is_none() && self.established.is_some();
            tokio::select! {
                read = self.reader.read_buf(self.inbox.fill()) => {
                    self.arrived = std::time::Instant::now();
                    match read {
                        Ok(0) => return Err(ConnectionError::EndOfFile),
                        Ok(_) => self.answer().await?,
                        Err(error) => return Err(ConnectionError::Broken(error)),
                    }
                }
                notice = self.notices.next(), if may_notify => self.notify(notice).await?,
                () = time::sleep_until(full_until.unwrap_or_else(Instant::now)), if full_until.is_some() => {
                    self.count_unanswered();
                }
                fired = timer.fired() => {
                    fired.map_err(ConnectionError::Broken)?;
                    self.session.handle_timeout(Instant::now().into_std())?;
                    self.write().await?;
                    timer.set(self.session.poll_timeout()).map_err(ConnectionError::Broken)?;
                }
            }
            // The timer is set only to an earlier deadline. Each PDU postpones the ping; that the timer learns when it fires,
            // which is cheaper than to set it for every PDU.
            let wanted = self.session.poll_timeout();
            if wanted.is_some_and(|wanted| timer.deadline().is_none_or(|set| wanted < set)) {
                timer.set(wanted).map_err(ConnectionError::Broken)?;
            }
        }
    }

    /// Answers every complete PDU in the inbox.
    async fn answer(&mut self) -> Result<(), ConnectionError> {
        let now = Instant::now().into_std();
        let mut arrived = self.arrived;
        let mut answered = 0_u32;
        loop {
            let frame = match self.inbox.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    self.statistics.parse_errors.fetch_add(1, Relaxed);
                    return Err(self.session.handle_frame_error(error).into());
                }
            };
            let asked = frame.header.asks_for_response();
            let handled = {
                let objects = (self.source)();
                self.session.handle_pdu(&objects, frame, now)?
            };
            self.statistics.record(handled);
            self.changed();
            answered += u32::from(asked);
            if self.session.output().len() >= GATHER {
                self.write().await?;
                self.record_latency(&mut answered, arrived);
                arrived = self.arrived;
            }
        }
        self.write().await?;
        self.record_latency(&mut answered, arrived);
        Ok(())
    }

    /// Sends a notification, unless it was switched off meanwhile.
    async fn notify(&mut self, notice: Notice) -> Result<(), ConnectionError> {
        if !notice.is_wanted() {
            return Ok(());
        }
        let bindings = notice.bindings.iter().map(|(name, value)| (name, value.as_value()));
        if self.session.notify(bindings, Instant::now().into_std()).is_err() {
            self.notices.put_back(notice);
            return Ok(());
        }
        self.unwritten = Some(notice);
        self.write().await?;
        self.unwritten = None;
        self.statistics.notified.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Stops waiting for the Response to the last notification.
    fn count_unanswered(&mut self) {
        if self.session.give_up_notified() {
            self.statistics.unanswered.fetch_add(1, Relaxed);
        }
    }

    /// After the connection: a notification that the master cannot have read as a whole is sent in the next session, and no
    /// other is sent twice.
    fn settle_notices(&mut self) {
        match self.unwritten.take() {
            Some(notice) if !self.session.output().is_empty() => self.notices.put_back(notice),
            unwritten => {
                self.statistics.notified.fetch_add(u64::from(unwritten.is_some()), Relaxed);
                self.count_unanswered();
            }
        }
    }

    fn record_latency(&self, answered: &mut u32, arrived: std::time::Instant) {
        if *answered > 0 {
            let latency = arrived.elapsed();
            for _ in 0..std::mem::take(answered) {
                self.statistics.latency.record(latency);
            }
        }
    }

    /// Reports the session's state to the statistics and the log.
    fn changed(&mut self) {
        let state = self.session.state();
        self.statistics.set_state(state);
        if let State::Established { session_id, .. } = state
            && self.established.is_none()
        {
            *self.established = Some(Instant::now());
            info!(session_id, "AgentX session established");
        }
    }

    /// Writes the output. Where the master does not take it at once, requests are read meanwhile, and answered later.
    async fn write(&mut self) -> Result<(), ConnectionError> {
        let timeout = self.session.config().timeout;
        let mut deadline = Instant::now() + timeout;
        while !self.session.output().is_empty() {
            let has_room = self.inbox.len() < READ_AHEAD;
            tokio::select! {
                biased;
                written = self.writer.write(self.session.output()) => {
                    match written.map_err(ConnectionError::Broken)? {
                        0 => return Err(ConnectionError::Broken(io::ErrorKind::WriteZero.into())),
                        bytes => self.session.consume_output(bytes),
                    }
                    deadline = Instant::now() + timeout;
                }
                read = self.reader.read_buf(self.inbox.fill()), if has_room => {
                    if read.map_err(ConnectionError::Broken)? == 0 {
                        return Err(ConnectionError::EndOfFile);
                    }
                    self.arrived = std::time::Instant::now();
                }
                () = time::sleep_until(deadline) => return Err(ConnectionError::Stuck(timeout)),
            }
        }
        Ok(())
    }

    /// Sends the rest of the output before the connection is dropped.
    async fn flush(&mut self) {
        match time::timeout(LAST_WRITE_TIMEOUT, self.write()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the last PDUs to the AgentX master were lost"),
            Err(_) => debug!("the AgentX master did not read the last PDUs"),
        }
    }

    /// Closes the session, after the rest of the output.
    async fn shut_down(&mut self) {
        self.session.close(CloseReason::SHUTDOWN);
        self.flush().await;
        self.statistics.set_state(self.session.state());
        if let Err(error) = self.writer.shutdown().await {
            debug!(%error, "the AgentX connection was gone before it was closed");
        }
    }
}
