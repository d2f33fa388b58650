//! The session's socket and clock: a loop that connects and reconnects.

use std::{future::Future, io, pin::pin, sync::atomic::Ordering::Relaxed, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::mpsc::Receiver,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use super::{
    Address, Config, Notice, Objects, Session, SessionError, State, Statistics, TimerKind,
    backoff::Backoff,
    codec::{CloseReason, Inbox},
    timer::Timer,
};

/// Size in bytes up to which responses are gathered before they are written, while the inbox has more PDUs.
const GATHER: usize = 64 * 1024;

/// Timeout of an attempt to connect. Why: to a host that is down the kernel retransmits SYN after 1 s, 3 s and 7 s only; a
/// new attempt sends one at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

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
/// wakes the task. `notices` are sent one at a time, each after the master's response to the previous one; those that come
/// while no session is open are dropped.
pub async fn run<S, O>(
    config: TransportConfig,
    source: S,
    mut notices: Receiver<Notice>,
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
    let mut reported = None;
    loop {
        let sessions = statistics.sessions.load(Relaxed);
        let lost = tokio::select! {
            () = &mut shutdown => return,
            connected = connect(&config.address) => match connected {
                Err(error) => error,
                Ok(mut stream) => {
                    statistics.connects.fetch_add(1, Relaxed);
                    let mut connection = Connection {
                        stream: &mut stream,
                        session: &mut session,
                        inbox: &mut inbox,
                        source: &source,
                        notices: &mut notices,
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
                    lost
                }
            },
        };
        session.disconnected();
        inbox.clear();
        statistics.set_state(session.state());
        if statistics.sessions.load(Relaxed) != sessions {
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
            () = time::sleep(wait) => {}
        }
        while notices.try_recv().is_ok() {
            statistics.unsent.fetch_add(1, Relaxed);
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
    stream: &'c mut Box<dyn Stream>,
    session: &'c mut Session,
    inbox: &'c mut Inbox,
    source: &'c S,
    notices: &'c mut Receiver<Notice>,
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

    async fn try_serve(&mut self) -> Result<std::convert::Infallible, ConnectionError> {
        self.session.connected(Instant::now().into_std())?;
        self.changed();
        self.write().await?;
        let mut timer = Timer::new(self.timer).map_err(ConnectionError::Broken)?;
        timer.set(self.session.poll_timeout()).map_err(ConnectionError::Broken)?;
        loop {
            let full_until = self.session.notify_after().map(Instant::from_std);
            tokio::select! {
                read = self.stream.read_buf(self.inbox.fill()) => {
                    let arrived = std::time::Instant::now();
                    match read {
                        Ok(0) => return Err(ConnectionError::EndOfFile),
                        Ok(_) => self.answer(arrived).await?,
                        Err(error) => return Err(ConnectionError::Broken(error)),
                    }
                }
                Some(notice) = self.notices.recv(), if full_until.is_none() => {
                    self.notify(&notice);
                    self.write().await?;
                }
                () = time::sleep_until(full_until.unwrap_or_else(Instant::now)), if full_until.is_some() => {
                    self.session.give_up_notified();
                    self.statistics.unsent.fetch_add(1, Relaxed);
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
    async fn answer(&mut self, arrived: std::time::Instant) -> Result<(), ConnectionError> {
        let now = Instant::now().into_std();
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
            }
        }
        self.write().await?;
        self.record_latency(&mut answered, arrived);
        Ok(())
    }

    /// Sends a notification. Without a session it is dropped, not queued: it would be outdated.
    fn notify(&mut self, notice: &Notice) {
        let bindings = notice.bindings.iter().map(|(name, value)| (name, value.as_value()));
        let counter = match self.session.notify(bindings, Instant::now().into_std()) {
            Ok(_) => &self.statistics.notified,
            Err(_) => &self.statistics.unsent,
        };
        counter.fetch_add(1, Relaxed);
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
    fn changed(&self) {
        let state = self.session.state();
        let sessions = self.statistics.sessions.load(Relaxed);
        self.statistics.set_state(state);
        if let State::Established { session_id, .. } = state
            && self.statistics.sessions.load(Relaxed) != sessions
        {
            info!(session_id, "AgentX session established");
        }
    }

    async fn write(&mut self) -> Result<(), ConnectionError> {
        let timeout = self.session.config().timeout;
        while !self.session.output().is_empty() {
            let written = time::timeout(timeout, self.stream.write(self.session.output())).await;
            let written = written.map_err(|_| ConnectionError::Stuck(timeout))?;
            match written.map_err(ConnectionError::Broken)? {
                0 => return Err(ConnectionError::Broken(io::ErrorKind::WriteZero.into())),
                bytes => self.session.consume_output(bytes),
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
        if let Err(error) = self.stream.shutdown().await {
            debug!(%error, "the AgentX connection was gone before it was closed");
        }
    }
}
