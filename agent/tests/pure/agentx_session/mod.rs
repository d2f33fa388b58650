//! The session against a scripted master. The master speaks through the crate `agentx`, another codec than ours,
//! where that can say it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod lifetime;
mod requests;
mod sets;

use std::time::{Duration, Instant};

use crate::objects::FixedObjects;
use agentx::{
    encodings::{ID, SearchRange, SearchRangeList},
    pdu,
};
use kvmeter::{
    agentx::{
        Config, Handled, NotEstablished, Objects, Session, SessionError, State,
        codec::{
            Body, ByteOrder, CloseReason, Data, Flags, Frame, FrameError, Header, Pdu, PduType,
            PduWriter, ResError, VarBind, frame,
        },
    },
    snmp::{Oid, OwnedValue, Value},
};

const SUBTREE: &str = "1.3.6.1.2.1.236";
const SESSION: u32 = 4711;

/// A master with one subagent, and a clock of its own.
struct Master<O = FixedObjects> {
    session: Session,
    objects: O,
    now: Instant,
    order: ByteOrder,
    packet_id: u32,
}

/// A response in a form to compare: error, index, and bindings as text.
#[derive(Debug, PartialEq)]
struct Answer {
    error: ResError,
    index: u16,
    bindings: Vec<String>,
}

fn found(bindings: &[&str]) -> Answer {
    let bindings = bindings.iter().map(ToString::to_string).collect();
    Answer { error: ResError::NO_ERROR, index: 0, bindings }
}

fn failed(error: ResError, index: u16) -> Answer {
    Answer { error, index, bindings: Vec::new() }
}

fn config() -> Config {
    Config::new(vec![SUBTREE.parse().unwrap()])
}

/// Names are relative to the subtree; a range is "start", "start..end", or "=start..end" to include the start.
fn ranges(texts: &[&str]) -> SearchRangeList {
    let name = |text: &str| -> ID {
        match text {
            "" => ID::default(),
            text => format!("{SUBTREE}.{text}").parse().unwrap(),
        }
    };
    let range = |text: &&str| {
        let (include, text) = text.strip_prefix('=').map_or((0, *text), |text| (1, text));
        let (start, end) = text.split_once("..").unwrap_or((text, ""));
        let mut range = SearchRange::new(name(start), name(end));
        range.start.include = include;
        range
    };
    SearchRangeList(texts.iter().map(range).collect())
}

/// A binding as text, its name relative to the subtree.
fn text(binding: &VarBind<'_>) -> String {
    let name = binding.name.to_string();
    let name = name.strip_prefix(SUBTREE).map_or(&*name, |suffix| &suffix[1..]);
    match binding.data {
        Data::OctetString(octets) => format!("{name} = {:?}", octets.escape_ascii().to_string()),
        Data::ObjectIdentifier(oid) => format!("{name} = {oid}"),
        data => format!("{name} = {data:?}"),
    }
}

impl<O: Objects> Master<O> {
    fn with_objects(config: Config, objects: O) -> Self {
        let (session, order) = (Session::new(config), ByteOrder::Network);
        Self { session, objects, now: Instant::now(), order, packet_id: 1000 }
    }

    fn connect(&mut self) {
        self.session.connected(self.now).unwrap();
    }

    /// What the subagent sent.
    fn output(&mut self) -> Vec<u8> {
        let output = self.session.output().to_vec();
        self.session.consume_output(output.len());
        output
    }

    fn send(&mut self, octets: &[u8]) -> Result<Handled, SessionError> {
        let frame = frame::split(octets).unwrap().expect("a whole PDU");
        assert_eq!(frame.pdu_len(), octets.len());
        self.session.handle_pdu(&self.objects, frame, self.now)
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

impl Master {
    fn new(config: Config) -> Self {
        Self::with_objects(config, FixedObjects::small())
    }

    /// A master whose subagent has registered everything.
    fn established() -> Self {
        let mut master = Self::new(config());
        master.connect();
        let open = pdu::Open::from_bytes(&master.output()).unwrap();
        master.reply(&open.header, ResError::NO_ERROR).unwrap();
        let register = pdu::Register::from_bytes(&master.output()).unwrap();
        master.reply(&register.header, ResError::NO_ERROR).unwrap();
        assert_eq!(master.session.state(), State::Established { session_id: SESSION, ping: None });
        assert!(master.output().is_empty());
        master
    }

    /// A Response to the subagent's own PDU.
    fn reply(&mut self, to: &pdu::Header, error: ResError) -> Result<Handled, SessionError> {
        let mut response = pdu::Response::from_header(to);
        response.header.session_id = SESSION;
        response.header.flags = to.flags;
        let code = error.0.to_be_bytes();
        response.res_error =
            pdu::ResError::from_bytes(&code, &agentx::ByteOrder::BigEndian).unwrap();
        self.send(&response.to_bytes().unwrap())
    }

    /// The header of the next request.
    fn stamp(&mut self, header: &mut pdu::Header) {
        self.packet_id += 1;
        header.flags |= Flags::of(self.order).0;
        header.session_id = SESSION;
        header.transaction_id = 0x0bad_cafe;
        header.packet_id = self.packet_id;
    }

    /// Sends a request, and takes the one answer with the request's own identifiers.
    fn ask(&mut self, request: &[u8]) -> Answer {
        self.send(request).unwrap();
        self.answer(request)
    }

    fn answer(&mut self, request: &[u8]) -> Answer {
        let output = self.output();
        let asked = frame::split(&request[..Header::LEN])
            .map_or_else(|error| error.header, |_| frame::split(request).unwrap().unwrap().header);
        let answer = frame::split(&output).unwrap().expect("a whole response");
        assert_eq!(answer.pdu_len(), output.len(), "one response");
        assert!(output.len() <= 65_536, "net-snmp drops a longer PDU");
        let header = Header { payload_length: answer.header.payload_length, ..asked.response() };
        assert_eq!(answer.header, header);
        match Pdu::decode(answer).unwrap().body {
            Body::Response { sys_up_time: 0, error, index, bindings } => {
                Answer { error, index, bindings: bindings.map(|binding| text(&binding)).collect() }
            }
            body => panic!("{body:?}"),
        }
    }

    fn get(&mut self, names: &[&str]) -> Answer {
        let mut get = pdu::Get::new(ranges(names));
        self.stamp(&mut get.header);
        self.ask(&get.to_bytes().unwrap())
    }

    fn get_next(&mut self, texts: &[&str]) -> Answer {
        let mut get = pdu::GetNext::new(ranges(texts));
        self.stamp(&mut get.header);
        self.ask(&get.to_bytes().unwrap())
    }

    fn get_bulk(&mut self, non_repeaters: u16, max_repetitions: u16, texts: &[&str]) -> Answer {
        let mut get = pdu::GetBulk::new(ranges(texts));
        self.stamp(&mut get.header);
        (get.non_repeaters, get.max_repetitions) = (non_repeaters, max_repetitions);
        self.ask(&get.to_bytes().unwrap())
    }

    /// Only a header, of any type.
    fn header(&mut self, kind: PduType) -> Header {
        self.packet_id += 1;
        let packet_id = self.packet_id;
        Header { session_id: SESSION, packet_id, ..Header::new(kind, self.order) }
    }

    fn ask_header(&mut self, header: &Header) -> Answer {
        let mut octets = Vec::new();
        PduWriter::new(&mut octets, header, b"").finish();
        self.ask(&octets)
    }
}
