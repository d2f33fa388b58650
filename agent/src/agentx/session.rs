//! The subagent's side of a session, without a socket and without a clock; for one connection after the other.
//!
//! Input is PDUs and instants; output is bytes, a deadline, and an error when the connection must be dropped. The methods
//! come in four kinds:
//!
//! * inputs, `connected`, `handle_*`, `disconnected`: report what happened. Time must not go back.
//! * commands, `notify`, `close`: make the session send something.
//! * outputs, `output` and `consume_output`, `poll_timeout`: what to send, and when to call
//!   [`handle_timeout`](Session::handle_timeout). Both may change with each input and command.
//! * `state` and `config`: for observers.
//!
//! When an input returns [`SessionError`], send the pending output, close the socket, and call
//! [`disconnected`](Session::disconnected).

use std::{
    io,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    admin_pdus::{self, Origin},
    codec::{
        Body, ByteOrder, CloseReason, DecodeError, Frame, FrameError, Header, Pdu, PduType,
        PduWriter, ResError, ResponseWriter,
    },
    objects::Objects,
    request, set,
    state::State,
};
use crate::snmp::{Oid, Value};

/// Number of unparsable PDUs in a row that ends the session (section 6.2.2, `reasonParseError`).
const MAX_PARSE_ERRORS: u32 = 8;

/// Default of [`Config::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`Config::ping_interval`]. A master that ends closes its socket, which is seen at once; the ping detects one
/// that hangs.
pub const DEFAULT_PING_INTERVAL: Duration = Duration::from_mins(1);

/// Parameters of a session.
#[derive(Clone, Debug)]
pub struct Config {
    /// `o.id`: names the subagent; may be null.
    pub id: Oid,
    /// `o.descr`: a DisplayString of at most 255 octets.
    pub description: String,
    /// Subtrees to register.
    pub subtrees: Vec<Oid>,
    /// Rows for the master's sysORTable, with their texts (section 6.2.12), sent when every subtree is registered.
    pub capabilities: Vec<(Oid, String)>,
    /// Timeout for the master's Responses, and, as `o.timeout` in whole seconds from 1 to 255, for those of this side.
    pub timeout: Duration,
    /// Idle time after which a Ping is sent.
    pub ping_interval: Duration,
    /// Byte order of the PDUs that this side originates. Responses have the byte order of their request.
    pub byte_order: ByteOrder,
}

impl Config {
    /// A session that registers `subtrees`.
    #[must_use]
    pub fn new(subtrees: Vec<Oid>) -> Self {
        Self {
            id: Oid::of(&[0, 0]),
            description: concat!("kvmeter ", env!("CARGO_PKG_VERSION")).to_owned(),
            subtrees,
            capabilities: Vec::new(),
            timeout: DEFAULT_TIMEOUT,
            ping_interval: DEFAULT_PING_INTERVAL,
            byte_order: ByteOrder::Network,
        }
    }
}

/// Why the connection must be dropped.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Section 7.1.1.
    #[error("The master refused the session: {0}")]
    OpenRefused(ResError),
    /// Section 7.1.4.
    #[error("The master refused to register {subtree}: {error}{}", hint(*error))]
    RegisterRefused {
        /// The subtree.
        subtree: Box<Oid>,
        /// Its reason.
        error: ResError,
    },
    /// Section 7.1.8.
    #[error("The master closed the session: {0}")]
    Closed(CloseReason),
    /// A Response of the master says that the session is not open.
    #[error("The master no longer knows the session: {0}")]
    SessionGone(ResError),
    /// A Response did not come in time.
    #[error("The master did not answer {0} in time")]
    TimedOut(&'static str),
    /// The stream cannot be split into PDUs.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Too many PDUs in a row cannot be parsed.
    #[error("The master sent {MAX_PARSE_ERRORS} PDUs in a row that cannot be parsed")]
    ParseErrors(#[source] DecodeError),
    /// A PDU of this side cannot be encoded.
    #[error("A PDU for the master cannot be built; is the configured description too long?")]
    Encode(#[source] io::Error),
}

fn hint(error: ResError) -> &'static str {
    match error {
        ResError::DUPLICATE_REGISTRATION => "; does another subagent serve it?",
        ResError::REQUEST_DENIED => "; does the master's configuration allow it?",
        _ => "",
    }
}

/// What was handled, for statistics.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handled {
    /// `h.type`, if it is known.
    pub kind: Option<PduType>,
    /// `res.error` of the response: this side's to a request, or the master's to a PDU of this side.
    pub error: ResError,
}

/// The session is not established, so the command was not carried out.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("There is no session with the master")]
pub struct NotEstablished;

/// A session of a subagent; see the module.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    /// `h.packetID` of the last PDU that this side originated.
    packet_id: u32,
    /// When the pending Response is overdue.
    deadline: Option<Instant>,
    /// Arrival of the last PDU.
    heard: Option<Instant>,
    parse_errors: u32,
    /// The SETs that were tested, until their CleanupSets.
    transactions: set::Transactions,
    /// Time of the last CommitSet that was carried out; it outlives the connection.
    committed: Option<Instant>,
    /// `h.packetID` and time of the last notification, until its Response.
    notified: Option<(u32, Instant)>,
    output: Vec<u8>,
    /// Number of bytes at the beginning of `output` that were sent.
    sent: usize,
}

impl Session {
    /// Capacity in bytes that the output keeps after a large response.
    const OUTPUT_KEPT: usize = 64 * 1024;

    /// A session without a connection.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Disconnected,
            packet_id: 0,
            deadline: None,
            heard: None,
            parse_errors: 0,
            transactions: set::Transactions::default(),
            committed: None,
            notified: None,
            output: Vec::new(),
            sent: 0,
        }
    }

    /// The current state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The parameters.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes to send.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// Reports that `bytes` bytes of the output were sent.
    pub fn consume_output(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes);
        if self.sent >= self.output.len() {
            self.output.clear();
            self.output.shrink_to(Self::OUTPUT_KEPT);
            self.sent = 0;
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). Each PDU postpones it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Established { ping: None, .. } => {
                self.heard?.checked_add(self.config.ping_interval)
            }
            _ => self.deadline,
        }
    }

    /// Reports a new connection: sends Open.
    ///
    /// # Errors
    ///
    /// [`SessionError::Encode`].
    pub fn connected(&mut self, now: Instant) -> Result<(), SessionError> {
        self.disconnected();
        let origin = self.origin();
        let Config { timeout, id, description, .. } = &self.config;
        let open = admin_pdus::open(origin, *timeout, id, description);
        self.send(open)?;
        self.state = State::Opening { packet_id: origin.packet_id };
        self.await_response(now);
        Ok(())
    }

    /// Reports that the connection is gone; drops the pending output.
    pub fn disconnected(&mut self) {
        self.consume_output(usize::MAX);
        self.state = State::Disconnected;
        self.deadline = None;
        self.heard = None;
        self.parse_errors = 0;
        self.transactions.clear();
        self.notified = None;
    }

    /// Handles a PDU of the master. A request is answered from `objects`; its response is in the output then.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the connection must be dropped, after the pending output is sent.
    pub fn handle_pdu<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        frame: Frame<'_>,
        now: Instant,
    ) -> Result<Handled, SessionError> {
        self.heard = Some(now);
        if let State::Established { ping, .. } = &mut self.state {
            *ping = None;
        }
        let header = frame.header;
        let pdu = match Pdu::decode(frame) {
            Ok(pdu) => pdu,
            Err(error) => return self.handle_parse_error(&header, error),
        };
        self.parse_errors = 0;
        let error = match &pdu.body {
            Body::Response { sys_up_time, error, .. } => {
                self.handle_response(objects, &header, *sys_up_time, *error, now)?
            }
            Body::Close { reason } => {
                if self.state.session_id() == Some(header.session_id) {
                    return Err(SessionError::Closed(*reason));
                }
                ResError::NOT_OPEN
            }
            _ => {
                let error = self.respond(objects, &pdu);
                if matches!(pdu.body, Body::CommitSet) && error == ResError::NO_ERROR {
                    self.committed = Some(now);
                }
                error
            }
        };
        Ok(Handled { kind: header.kind(), error })
    }

    /// Reports that the stream cannot be split into PDUs any further: sends a parse error, if the PDU needs a response, and
    /// Close.
    pub fn handle_frame_error(&mut self, error: FrameError) -> SessionError {
        if error.header.asks_for_response() {
            ResponseWriter::new(&mut self.output, &error.header).fail(ResError::PARSE_ERROR, 0);
        }
        self.close(CloseReason::PARSE_ERROR);
        SessionError::Frame(error)
    }

    /// Reports the time. Does nothing before [`poll_timeout`](Self::poll_timeout).
    ///
    /// # Errors
    ///
    /// [`SessionError::TimedOut`] if a Response is overdue; send the pending output before the connection is dropped.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if let State::Established { session_id, ping: None } = self.state {
            let origin = self.origin();
            self.send(admin_pdus::ping(origin))?;
            self.state = State::Established { session_id, ping: Some(origin.packet_id) };
            self.await_response(now);
            return Ok(());
        }
        let awaited = self.state.awaited();
        self.close(CloseReason::TIMEOUTS);
        Err(SessionError::TimedOut(awaited))
    }

    /// Sends a notification (section 6.2.10): `bindings` begin with snmpTrapOID.0, and have no sysUpTime.0
    /// unless it is to differ from the master's. Returns the `h.packetID` of the Response to come.
    ///
    /// # Errors
    ///
    /// [`NotEstablished`]; the notification is not sent later, either.
    pub fn notify<'v>(
        &mut self,
        bindings: impl IntoIterator<Item = (&'v Oid, Value<'v>)>,
        now: Instant,
    ) -> Result<u32, NotEstablished> {
        let Origin { order, session_id, packet_id } = self.established_origin()?;
        let header = Header {
            session_id,
            transaction_id: packet_id,
            packet_id,
            ..Header::new(PduType::Notify, order)
        };
        let mut notify = PduWriter::new(&mut self.output, &header, &[]);
        for (name, value) in bindings {
            notify.value(name, value);
        }
        notify.finish();
        self.notified = Some((packet_id, now));
        Ok(packet_id)
    }

    /// Until when the next notification should wait for the Response to the previous one, which the master sends first.
    /// `None`: it need not wait.
    #[must_use]
    pub fn notify_after(&self) -> Option<Instant> {
        self.notified.and_then(|(_, at)| at.checked_add(self.config.timeout))
    }

    /// Stops waiting for the Response to the last notification. Whether it was waited for.
    pub const fn give_up_notified(&mut self) -> bool {
        self.notified.take().is_some()
    }

    /// Ends the session: sends Close, if a session is open.
    pub fn close(&mut self, reason: CloseReason) {
        if self.state.session_id().is_some() {
            let origin = self.origin();
            // If Close cannot be encoded, the master notices the closed socket.
            if let Ok(close) = admin_pdus::close(origin, reason) {
                self.output.extend(close);
            }
        }
        self.state = State::Disconnected;
        self.deadline = None;
    }

    /// Answers a request, also an invalid one (section 7.2.2).
    fn respond<O: Objects + ?Sized>(&mut self, objects: &O, pdu: &Pdu<'_>) -> ResError {
        let header = &pdu.header;
        let established = self.state.session_id() == Some(header.session_id);
        if matches!(pdu.body, Body::CleanupSet) {
            if !established {
                return ResError::NOT_OPEN;
            }
            self.transactions.cleanup(objects, header.transaction_id);
            return ResError::NO_ERROR;
        }
        let mut response = ResponseWriter::new(&mut self.output, header);
        let refused = if !established {
            Some(ResError::NOT_OPEN)
        } else if pdu.context.is_some_and(|context| !context.is_empty()) {
            Some(ResError::UNSUPPORTED_CONTEXT)
        } else {
            None
        };
        if let Some(error) = refused {
            response.fail(error, 0);
            return error;
        }
        let answered = match &pdu.body {
            Body::Get { ranges } => request::get(objects, ranges.clone(), &mut response),
            Body::GetNext { ranges } => request::get_next(objects, ranges.clone(), &mut response),
            Body::GetBulk { non_repeaters, max_repetitions, ranges } => request::get_bulk(
                objects,
                *non_repeaters,
                *max_repetitions,
                ranges.clone(),
                &mut response,
            ),
            Body::TestSet { bindings } => {
                self.transactions.test(objects, header.transaction_id, bindings.clone())
            }
            Body::CommitSet => self.transactions.commit(objects, header.transaction_id),
            Body::UndoSet => self.transactions.undo(objects, header.transaction_id),
            Body::Ping | Body::CleanupSet | Body::Close { .. } | Body::Response { .. } => Ok(()),
        };
        match answered {
            Ok(()) => {
                response.finish();
                ResError::NO_ERROR
            }
            Err(failure) => {
                response.fail(failure.error, failure.index);
                failure.error
            }
        }
    }

    /// Handles an unparsable PDU (section 7.2.2): a Response is dropped, a request is answered with an error.
    fn handle_parse_error(
        &mut self,
        header: &Header,
        error: DecodeError,
    ) -> Result<Handled, SessionError> {
        if header.asks_for_response() {
            ResponseWriter::new(&mut self.output, header).fail(ResError::PARSE_ERROR, 0);
        }
        self.parse_errors += 1;
        if self.parse_errors >= MAX_PARSE_ERRORS {
            self.close(CloseReason::PARSE_ERROR);
            return Err(SessionError::ParseErrors(error));
        }
        Ok(Handled { kind: header.kind(), error: ResError::PARSE_ERROR })
    }

    /// Handles a Response, matched by its `h.packetID` (section 7.2.2). One that is not pending is ignored, unless it says
    /// that the session is not open.
    fn handle_response<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        header: &Header,
        sys_up_time: u32,
        error: ResError,
        now: Instant,
    ) -> Result<ResError, SessionError> {
        let ours = self.state.session_id() == Some(header.session_id);
        match self.state {
            State::Opening { packet_id } if packet_id == header.packet_id => {
                if error != ResError::NO_ERROR {
                    self.close(CloseReason::OTHER);
                    return Err(SessionError::OpenRefused(error));
                }
                if self.has_begun(sys_up_time, now) {
                    self.committed = None;
                    objects.reinitialize();
                }
                self.register(header.session_id, 0, now)?;
            }
            State::Registering { session_id, packet_id, subtree }
                if ours && packet_id == header.packet_id =>
            {
                if error != ResError::NO_ERROR {
                    self.close(CloseReason::OTHER);
                    let subtree = self.config.subtrees.get(subtree).copied().unwrap_or_default();
                    return Err(SessionError::RegisterRefused { subtree: subtree.into(), error });
                }
                self.register(session_id, subtree + 1, now)?;
            }
            State::Established { .. } if ours && error == ResError::NOT_OPEN => {
                self.state = State::Disconnected;
                return Err(SessionError::SessionGone(error));
            }
            _ => {}
        }
        if ours && self.notified.is_some_and(|(packet_id, _)| packet_id == header.packet_id) {
            self.notified = None;
        }
        Ok(error)
    }

    /// Whether the master, which has been up for `sys_up_time` centiseconds, began after the last SET. A time that has
    /// wrapped, after 497 days, looks as if it did.
    fn has_begun(&self, sys_up_time: u32, now: Instant) -> bool {
        let began = now.checked_sub(Duration::from_millis(u64::from(sys_up_time) * 10));
        self.committed.zip(began).is_some_and(|(committed, began)| began >= committed)
    }

    /// Registers the subtree with this index; without one, the session is established.
    fn register(
        &mut self,
        session_id: u32,
        subtree: usize,
        now: Instant,
    ) -> Result<(), SessionError> {
        self.state = State::Established { session_id, ping: None };
        if let Some(oid) = self.config.subtrees.get(subtree).copied() {
            let origin = self.origin();
            self.send(admin_pdus::register(origin, &oid))?;
            self.state = State::Registering { session_id, packet_id: origin.packet_id, subtree };
            self.await_response(now);
            return Ok(());
        }
        for (oid, text) in self.config.capabilities.clone() {
            // The Response is ignored: a master that refuses the row serves the subtrees all the same.
            let origin = self.origin();
            self.send(admin_pdus::add_agent_caps(origin, &oid, &text))?;
        }
        Ok(())
    }

    /// Header fields of the next PDU that this side originates.
    fn origin(&mut self) -> Origin {
        self.packet_id = self.packet_id.wrapping_add(1);
        Origin {
            order: self.config.byte_order,
            session_id: self.state.session_id().unwrap_or(0),
            packet_id: self.packet_id,
        }
    }

    /// [`origin`](Self::origin), if the session is established.
    fn established_origin(&mut self) -> Result<Origin, NotEstablished> {
        match self.state {
            State::Established { .. } => Ok(self.origin()),
            _ => Err(NotEstablished),
        }
    }

    fn send(&mut self, pdu: io::Result<Vec<u8>>) -> Result<(), SessionError> {
        self.output.extend(pdu.map_err(SessionError::Encode)?);
        Ok(())
    }

    /// Sets the deadline of a Response; no deadline if the clock cannot represent it.
    fn await_response(&mut self, now: Instant) {
        self.deadline = now.checked_add(self.config.timeout);
    }
}
