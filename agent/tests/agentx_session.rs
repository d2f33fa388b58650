//! The session against a scripted master. The master speaks through the crate `agentx`, another codec than ours,
//! where that can say it.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../fuzz/src/view.rs"]
#[expect(unreachable_pub, reason = "shared with the fuzzer's crate")]
mod view;

use std::time::{Duration, Instant};

use agentx::{
    encodings::{ID, SearchRange, SearchRangeList},
    pdu,
};
use kvmeter::{
    agentx::{
        CommandError, Config, Handled, Lost, Session, State,
        codec::{
            Body, ByteOrder, CloseReason, Data, Flags, Frame, FrameError, Header, Pdu, PduType,
            PduWriter, ResError, VarBind, frame,
        },
    },
    snmp::{Oid, Value},
};
use view::{FixedView, Owned};

const SUBTREE: &str = "1.3.6.1.2.1.236";
const SESSION: u32 = 4711;

/// A master with one subagent, and a clock of its own.
struct Master {
    session: Session,
    view: FixedView,
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

impl Master {
    fn new(config: Config) -> Self {
        let (view, order) = (FixedView::small(), ByteOrder::Network);
        Self { session: Session::new(config), view, now: Instant::now(), order, packet_id: 1000 }
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

    fn connect(&mut self) {
        self.session.connected(self.now).unwrap();
    }

    /// What the subagent sent.
    fn output(&mut self) -> Vec<u8> {
        let output = self.session.output().to_vec();
        self.session.consume_output(output.len());
        output
    }

    fn send(&mut self, octets: &[u8]) -> Result<Handled, Lost> {
        let frame = frame::split(octets).unwrap().expect("a whole PDU");
        assert_eq!(frame.len(), octets.len());
        self.session.handle_pdu(&self.view, frame, self.now)
    }

    /// A Response to the subagent's own PDU.
    fn reply(&mut self, to: &pdu::Header, error: ResError) -> Result<Handled, Lost> {
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
        assert_eq!(answer.len(), output.len(), "one response");
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

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }
}

#[test]
fn a_session_opens_and_registers_each_subtree() {
    let subtrees = [SUBTREE, "1.3.6.1.4.1.8072"];
    let mut master = Master::new(Config {
        timeout: Duration::from_millis(7900),
        ..Config::new(subtrees.map(|subtree| subtree.parse().unwrap()).to_vec())
    });
    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    assert_eq!(open.header.session_id, 0);
    assert_eq!(open.timeout, Duration::from_secs(7));
    assert_eq!(open.id.to_string(), "0.0");
    assert_eq!(open.descr.0, concat!("kvmeter ", env!("CARGO_PKG_VERSION")));
    let mut packets = vec![open.header.packet_id];
    master.reply(&open.header, ResError::NO_ERROR).unwrap();
    for subtree in subtrees {
        assert!(matches!(master.session.state(), State::Registering { session_id: SESSION, .. }));
        let register = pdu::Register::from_bytes(&master.output()).unwrap();
        assert_eq!(register.header.session_id, SESSION);
        assert_eq!(register.subtree.to_string(), subtree);
        assert_eq!((register.priority, register.range_subid), (127, 0));
        packets.push(register.header.packet_id);
        // What is registered is asked for at once, before the next Response.
        assert_eq!(master.get(&["1.5.0"]), found(&["1.5.0 = Integer(-1)"]));
        master.reply(&register.header, ResError::NO_ERROR).unwrap();
    }
    assert_eq!(master.session.state(), State::Established { session_id: SESSION, ping: None });
    packets.dedup();
    assert_eq!(packets.len(), 3, "each PDU has a packetID of its own");
}

#[test]
fn a_refused_open_or_register_ends_the_connection() {
    let mut master = Master::new(config());
    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    let lost = master.reply(&open.header, ResError::OPEN_FAILED).unwrap_err();
    assert!(matches!(lost, Lost::OpenRefused(ResError::OPEN_FAILED)));
    assert!(master.output().is_empty());

    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    master.reply(&open.header, ResError::NO_ERROR).unwrap();
    let register = pdu::Register::from_bytes(&master.output()).unwrap();
    let lost = master.reply(&register.header, ResError::DUPLICATE_REGISTRATION).unwrap_err();
    assert_eq!(
        lost.to_string(),
        "The master refused to register 1.3.6.1.2.1.236: duplicateRegistration (263); does another subagent serve it?"
    );
    let close = pdu::Close::from_bytes(&master.output()).unwrap();
    assert_eq!((close.header.session_id, close.reason), (SESSION, pdu::CloseReason::Other));
}

#[test]
fn every_type_of_value_is_answered_in_the_byte_order_of_the_request() {
    let mut master = Master::established();
    for order in [ByteOrder::Network, ByteOrder::Little] {
        master.order = order;
        let names = ["1.1.0", "1.2.0", "1.3.0", "1.4.0", "1.5.0", "1.6.1.3.4294967295"];
        assert_eq!(
            master.get(&names),
            found(&[
                r#"1.1.0 = "KVM""#,
                r#"1.2.0 = "\\x00\\xff\\x80""#,
                "1.3.0 = 1.3.6.1.4.1.8072",
                "1.4.0 = TimeTicks(4294967295)",
                "1.5.0 = Integer(-1)",
                "1.6.1.3.4294967295 = Counter64(18446744069414584320)",
            ])
        );
    }
}

#[test]
fn get_tells_objects_from_instances() {
    let mut master = Master::established();
    assert_eq!(
        master.get(&["1.5", "1.5.1", "1.6.1.3.3", "9.1.0"]),
        found(&[
            "1.5 = NoSuchObject",
            "1.5.1 = NoSuchInstance",
            "1.6.1.3.3 = NoSuchInstance",
            "9.1.0 = NoSuchObject",
        ])
    );
    assert_eq!(master.get(&[]), found(&[]));
}

#[test]
fn get_next_keeps_to_include_and_end() {
    let mut master = Master::established();
    let first = r#"1.1.0 = "KVM""#;
    assert_eq!(master.get_next(&["1", "1.1.0"]), found(&[first, r#"1.2.0 = "\\x00\\xff\\x80""#]));
    assert_eq!(master.get_next(&["=1.1.0", "=1.0"]), found(&[first, first]));
    // The end is no answer itself.
    assert_eq!(master.get_next(&["1..1.1.0"]), found(&["1 = EndOfMibView"]));
    assert_eq!(master.get_next(&["1..1.1.0.0"]), found(&[first]));
    assert_eq!(
        master.get_next(&["1.6.1.3.4294967295", "=9"]),
        found(&["1.6.1.3.4294967295 = EndOfMibView", "9 = EndOfMibView"])
    );
}

#[test]
fn get_bulk_answers_non_repeaters_once_and_the_others_in_whole_repetitions() {
    let mut master = Master::established();
    assert_eq!(
        master.get_bulk(1, 3, &["1.4", "1.6.1.2..1.6.1.3", "1.6.1.3.1"]),
        found(&[
            "1.4.0 = TimeTicks(4294967295)",
            r#"1.6.1.2.1 = "vm1""#,
            "1.6.1.3.2 = Counter64(18446744073709551613)",
            r#"1.6.1.2.2 = "vm2""#,
            "1.6.1.3.7 = Counter64(18446744073709551608)",
            r#"1.6.1.2.7 = "vm7""#,
            "1.6.1.3.4294967295 = Counter64(18446744069414584320)",
        ])
    );
}

#[test]
fn get_bulk_repeats_an_end_until_all_are_at_their_end() {
    let mut master = Master::established();
    assert_eq!(
        master.get_bulk(0, 65535, &["1.6.1.2.7..1.6.1.3", "1.6.1.3.2"]),
        found(&[
            r#"1.6.1.2.4294967295 = "vm4294967295""#,
            "1.6.1.3.7 = Counter64(18446744073709551608)",
            "1.6.1.2.4294967295 = EndOfMibView",
            "1.6.1.3.4294967295 = Counter64(18446744069414584320)",
            "1.6.1.2.4294967295 = EndOfMibView",
            "1.6.1.3.4294967295 = EndOfMibView",
        ])
    );
    // An included start is included once.
    assert_eq!(
        master.get_bulk(0, 2, &["=1.4.0"]),
        found(&["1.4.0 = TimeTicks(4294967295)", "1.5.0 = Integer(-1)"])
    );
}

#[test]
fn get_bulk_without_repetitions_or_with_non_repeaters_alone() {
    let mut master = Master::established();
    assert_eq!(master.get_bulk(0, 0, &["1"]), found(&[]));
    assert_eq!(master.get_bulk(0, 5, &[]), found(&[]));
    let first = r#"1.1.0 = "KVM""#;
    assert_eq!(master.get_bulk(9, 5, &["1", "1"]), found(&[first, first]));
    assert_eq!(master.get_bulk(1, 0, &["1", "1"]), found(&[first]));
}

/// A table of `rows` instances with values of `len` octets.
fn large(rows: u32, len: usize) -> FixedView {
    let name = |row| Oid::of(&[1, 3, 6, 1, 2, 1, 236, 2, row]);
    FixedView((1..=rows).map(|row| (name(row), Owned::OctetString(vec![b'x'; len]))).collect())
}

#[test]
fn get_bulk_stops_after_a_whole_repetition_when_there_is_enough() {
    let mut master = Master::established();
    master.view = large(100_000, 200);
    let repetition = ["1"; 7];
    let answer = master.get_bulk(0, 65535, &repetition);
    assert_eq!(answer.error, ResError::NO_ERROR);
    assert_eq!(answer.bindings.len() % repetition.len(), 0);
    let octets = answer.bindings.len() * (4 + 4 + 16 + 4 + 200);
    assert!((64 * 1024..64 * 1024 + 7 * 228).contains(&octets), "{octets}");
    let rows: Vec<_> = answer.bindings.chunks(7).map(|row| &row[0][..4]).take(3).collect();
    assert_eq!(rows, ["2.1 ", "2.2 ", "2.3 "]);
}

#[test]
fn a_response_too_large_for_any_master_is_an_error_that_names_the_range() {
    let mut master = Master::established();
    master.view = large(2, 100_000);
    // Five values fit.
    let names = ["2.1"; 6];
    assert_eq!(master.get(&names), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get_next(&["1"; 6]), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get_bulk(2, 9, &["1"; 6]), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get(&names[..5]).bindings.len(), 5);
}

#[test]
fn a_repetition_that_does_not_fit_whole_is_left_out() {
    let mut master = Master::established();
    master.view = large(2, 100_000);
    master.view.0.first_entry().unwrap().insert(Owned::Integer(1));
    // Five of the second row would fit.
    assert_eq!(master.get_bulk(0, 9, &["1"; 6]), found(&["2.1 = Integer(1)"; 6]));
}

#[test]
fn nothing_can_be_set() {
    let mut master = Master::established();
    let header = master.header(PduType::TestSet);
    let mut set = Vec::new();
    let mut writer = PduWriter::new(&mut set, &header, b"");
    writer.value(&Oid::of(&[1, 3, 6, 1, 2, 1, 236, 1, 5, 0]), Value::Integer(5));
    writer.finish();
    assert_eq!(master.ask(&set), failed(ResError::NOT_WRITABLE, 1));
    let cleanup = master.header(PduType::CleanupSet);
    let handled = master.session.handle_pdu(
        &master.view,
        Frame { header: cleanup, payload: &[] },
        master.now,
    );
    assert_eq!(handled.unwrap().error, ResError::NO_ERROR);
    assert!(master.output().is_empty(), "CleanupSet has no response");
    let commit = master.header(PduType::CommitSet);
    assert_eq!(master.ask_header(&commit), failed(ResError::COMMIT_FAILED, 0));
    let undo = master.header(PduType::UndoSet);
    assert_eq!(master.ask_header(&undo), found(&[]));
}

#[test]
fn another_session_or_context_is_refused() {
    let mut master = Master::established();
    let mut other = master.header(PduType::Get);
    other.session_id = SESSION + 1;
    assert_eq!(master.ask_header(&other), failed(ResError::NOT_OPEN, 0));

    let mut get = pdu::Get::new(ranges(&["1.5.0"]));
    master.stamp(&mut get.header);
    get.header.flags |= Flags::NON_DEFAULT_CONTEXT;
    get.context = Some(agentx::encodings::Context(agentx::encodings::OctetString("vrf1".into())));
    let get = get.to_bytes().unwrap();
    assert_eq!(master.ask(&get), failed(ResError::UNSUPPORTED_CONTEXT, 0));
    assert_eq!(master.get(&["1.5.0"]), found(&["1.5.0 = Integer(-1)"]), "the session goes on");
}

#[test]
fn what_cannot_be_parsed_is_answered_so_and_too_much_of_it_ends_the_session() {
    let mut master = Master::established();
    let unknown = Header { pdu_type: 99, ..master.header(PduType::Get) };
    assert_eq!(master.ask_header(&unknown), failed(ResError::PARSE_ERROR, 0));
    // The version comes before the session.
    let old = Header { version: 0, session_id: 1, ..master.header(PduType::Get) };
    assert_eq!(master.ask_header(&old), failed(ResError::PARSE_ERROR, 0));
    let open = master.header(PduType::Open);
    assert_eq!(master.ask_header(&open), failed(ResError::PARSE_ERROR, 0));
    assert_eq!(master.get(&["1.5.0"]), found(&["1.5.0 = Integer(-1)"]));

    for _ in 0..7 {
        assert_eq!(master.ask_header(&unknown), failed(ResError::PARSE_ERROR, 0));
    }
    let mut octets = Vec::new();
    PduWriter::new(&mut octets, &unknown, b"").finish();
    assert!(matches!(master.send(&octets), Err(Lost::ParseErrors(_))));
    let output = master.output();
    let answer = frame::split(&output).unwrap().unwrap();
    assert_eq!(answer.header.kind(), Some(PduType::Response));
    let close = pdu::Close::from_bytes(&output[answer.len()..]).unwrap();
    assert_eq!(close.reason, pdu::CloseReason::ParseError);
}

#[test]
fn every_truncation_of_a_request_is_answered() {
    let mut master = Master::established();
    let mut get = pdu::GetBulk::new(ranges(&["1.5.0", "=1.6.1.2..1.6.1.3"]));
    master.stamp(&mut get.header);
    let whole = get.to_bytes().unwrap();
    let ends = [4, 4 + 4 + 4 * 10 + 4, whole.len() - Header::LEN];
    for len in (0..=whole.len() - Header::LEN).step_by(4) {
        let mut short = whole[..Header::LEN + len].to_vec();
        short[16..20].copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        let error = master.ask(&short).error;
        let expected = if ends.contains(&len) { ResError::NO_ERROR } else { ResError::PARSE_ERROR };
        assert_eq!(error, expected, "{len}");
        // Parse errors must not add up here.
        assert_eq!(master.get(&["1.5.0"]).error, ResError::NO_ERROR);
    }
}

#[test]
fn a_length_that_cannot_be_ends_the_connection() {
    for length in [3, u32::MAX, 1 << 30] {
        let mut master = Master::established();
        let header = Header { payload_length: length, ..master.header(PduType::Get) };
        let lost = master.session.handle_frame_error(FrameError { header });
        assert!(matches!(lost, Lost::Frame(_)));
        let output = master.output();
        let answer = frame::split(&output).unwrap().unwrap();
        let Body::Response { error, .. } = Pdu::decode(answer).unwrap().body else { panic!() };
        assert_eq!(error, ResError::PARSE_ERROR);
        assert_eq!(answer.header.packet_id, header.packet_id);
        let close = pdu::Close::from_bytes(&output[answer.len()..]).unwrap();
        assert_eq!(close.reason, pdu::CloseReason::ParseError);
        assert_eq!(master.session.state(), State::Disconnected);
    }
}

#[test]
fn responses_are_never_answered() {
    let mut master = Master::established();
    // One that nobody waits for, one that cannot be parsed.
    let stray = master.header(PduType::Response);
    let octets = [&[0; 8][..], &[0, 9, 0, 0]];
    for payload in [octets[0].to_vec(), octets.concat()] {
        let frame = Frame { header: stray, payload: &payload };
        master.session.handle_pdu(&master.view, frame, master.now).unwrap();
        assert!(master.output().is_empty());
    }
}

#[test]
fn the_master_ends_the_session() {
    let mut master = Master::established();
    let mut close = pdu::Close::new(pdu::CloseReason::Shutdown);
    master.stamp(&mut close.header);
    close.header.session_id += 1;
    master.send(&close.to_bytes().unwrap()).expect("another session is not ours");
    close.header.session_id = SESSION;
    let lost = master.send(&close.to_bytes().unwrap()).unwrap_err();
    assert_eq!(lost.to_string(), "The master closed the session: reasonShutdown (5)");
    assert!(master.output().is_empty());
}

#[test]
fn the_agent_ends_the_session() {
    let mut master = Master::established();
    master.session.close(CloseReason::SHUTDOWN);
    let close = pdu::Close::from_bytes(&master.output()).unwrap();
    assert_eq!((close.header.session_id, close.reason), (SESSION, pdu::CloseReason::Shutdown));
    master.session.close(CloseReason::SHUTDOWN);
    assert!(master.output().is_empty(), "once is enough");
}

#[test]
fn silence_is_broken_by_a_ping_and_its_answer_by_another() {
    let mut master = Master::established();
    let start = master.now;
    let seconds = |session: &Session| (session.poll_timeout().unwrap() - start).as_secs();
    assert_eq!(seconds(&master.session), 30);
    master.wait(29);
    master.session.handle_timeout(master.now).unwrap();
    assert!(master.output().is_empty(), "too early");
    assert_eq!(master.get(&["1.5.0"]).error, ResError::NO_ERROR);
    assert_eq!(seconds(&master.session), 59, "a request is a sign of life");

    master.wait(30);
    master.session.handle_timeout(master.now).unwrap();
    let ping = pdu::Ping::from_bytes(&master.output()).unwrap();
    assert_eq!(ping.header.session_id, SESSION);
    assert_eq!(seconds(&master.session), 59 + 5);
    master.wait(1);
    master.reply(&ping.header, ResError::NO_ERROR).unwrap();
    assert_eq!(seconds(&master.session), 60 + 30);
}

#[test]
fn a_request_is_as_good_an_answer_to_a_ping() {
    let mut master = Master::established();
    master.wait(30);
    master.session.handle_timeout(master.now).unwrap();
    master.output();
    master.wait(4);
    assert_eq!(master.get(&["1.5.0"]).error, ResError::NO_ERROR);
    master.wait(29);
    master.session.handle_timeout(master.now).unwrap();
    assert!(master.output().is_empty());
}

#[test]
fn a_master_that_hangs_or_forgot_the_session_is_given_up() {
    let mut master = Master::established();
    master.wait(30);
    master.session.handle_timeout(master.now).unwrap();
    let ping = pdu::Ping::from_bytes(&master.output()).unwrap();
    let lost = master.reply(&ping.header, ResError::NOT_OPEN).unwrap_err();
    assert!(matches!(lost, Lost::SessionGone(ResError::NOT_OPEN)));

    let mut master = Master::established();
    master.wait(30);
    master.session.handle_timeout(master.now).unwrap();
    master.output();
    master.wait(5);
    let lost = master.session.handle_timeout(master.now).unwrap_err();
    assert_eq!(lost.to_string(), "The master did not answer Ping in time");
    let close = pdu::Close::from_bytes(&master.output()).unwrap();
    assert_eq!(close.reason, pdu::CloseReason::Timeouts);
}

#[test]
fn open_and_register_have_their_time() {
    let mut master = Master::new(config());
    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    master.wait(4);
    master.reply(&open.header, ResError::NO_ERROR).unwrap();
    master.output();
    master.wait(4);
    master.session.handle_timeout(master.now).unwrap();
    master.wait(1);
    let lost = master.session.handle_timeout(master.now).unwrap_err();
    assert!(matches!(lost, Lost::TimedOut("Register")));

    master.connect();
    master.output();
    master.wait(5);
    let lost = master.session.handle_timeout(master.now).unwrap_err();
    assert!(matches!(lost, Lost::TimedOut("Open")));
}

#[test]
fn notifications_and_capabilities_need_a_session() {
    let trap_oid = Oid::of(&[1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0]);
    let trap = Oid::of(&[1, 3, 6, 1, 2, 1, 236, 0, 1]);
    let bindings = || [(&trap_oid, Value::ObjectIdentifier(&trap)), (&trap, Value::Integer(4))];
    let mut idle = Session::new(config());
    assert!(matches!(idle.notify(bindings(), Instant::now()), Err(CommandError::NotEstablished)));
    assert!(matches!(idle.add_agent_caps(&trap, ""), Err(CommandError::NotEstablished)));
    assert!(idle.output().is_empty());

    let mut master = Master::established();
    assert_eq!(master.session.notify_after(), None);
    let packet_id = master.session.notify(bindings(), master.now).unwrap();
    let notify = pdu::Notify::from_bytes(&master.output()).unwrap();
    assert_eq!((notify.header.session_id, notify.header.packet_id), (SESSION, packet_id));
    let names: Vec<_> = notify.vb.0.iter().map(|binding| binding.name.to_string()).collect();
    assert_eq!(names, [trap_oid.to_string(), trap.to_string()]);
    let timeout = master.session.config().timeout;
    assert_eq!(master.session.notify_after(), Some(master.now + timeout), "one after the other");
    let handled = master.reply(&notify.header, ResError::PROCESSING_ERROR).unwrap();
    assert_eq!(master.session.notify_after(), None);
    assert_eq!(handled.error, ResError::PROCESSING_ERROR, "the session goes on");

    let packet_id = master.session.add_agent_caps(&trap, "VM-MIB").unwrap();
    let caps = pdu::AddAgentCaps::from_bytes(&master.output()).unwrap();
    assert_eq!((caps.header.packet_id, caps.id.to_string()), (packet_id, trap.to_string()));
    assert_eq!(caps.descr.0, "VM-MIB");
}

#[test]
fn a_new_connection_begins_anew() {
    let mut master = Master::established();
    master.session.disconnected();
    assert_eq!(master.session.poll_timeout(), None);
    let stale = master.header(PduType::Get);
    assert_eq!(master.ask_header(&stale), failed(ResError::NOT_OPEN, 0));
    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    assert_eq!(open.header.session_id, 0);
    assert_eq!(master.ask_header(&stale), failed(ResError::NOT_OPEN, 0));
}
