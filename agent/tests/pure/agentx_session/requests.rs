//! What is asked in a session, and answered.

use super::*;

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
fn large(rows: u32, len: usize) -> FixedObjects {
    let name = |row| Oid::of(&[1, 3, 6, 1, 2, 1, 236, 2, row]);
    FixedObjects(
        (1..=rows).map(|row| (name(row), OwnedValue::OctetString(vec![b'x'; len]))).collect(),
    )
}

/// What net-snmp's agentx_parse takes, with the header.
const LARGEST: usize = 65_536;

#[test]
fn get_bulk_stops_after_the_last_whole_repetition_that_fits() {
    let mut master = Master::established();
    master.objects = large(100_000, 200);
    let repetition = ["1"; 7];
    let answer = master.get_bulk(0, 65535, &repetition);
    assert_eq!(answer.error, ResError::NO_ERROR);
    assert_eq!(answer.bindings.len() % repetition.len(), 0);
    // Header, fixed fields, and each binding: type, name of five sub-identifiers after the prefix, length, value.
    let octets = 20 + 8 + answer.bindings.len() * (4 + 4 + 16 + 4 + 200);
    assert!((LARGEST - 7 * 228 + 1..=LARGEST).contains(&octets), "{octets}");
    let rows: Vec<_> = answer.bindings.chunks(7).map(|row| &row[0][..4]).take(3).collect();
    assert_eq!(rows, ["2.1 ", "2.2 ", "2.3 "]);
}

#[test]
fn a_response_too_large_for_any_master_is_an_error_that_names_the_range() {
    let mut master = Master::established();
    master.objects = large(2, 13_000);
    // Five values fit.
    let names = ["2.1"; 9];
    assert_eq!(master.get(&names), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get_next(&["1"; 9]), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get_bulk(2, 9, &["1"; 9]), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get_bulk(9, 9, &["1"; 9]), failed(ResError::GEN_ERR, 6));
    assert_eq!(master.get(&names[..5]).bindings.len(), 5);
    master.objects = large(2, LARGEST);
    assert_eq!(master.get(&names[..1]), failed(ResError::GEN_ERR, 1));
    assert_eq!(master.get_bulk(0, 1, &["1"]), failed(ResError::GEN_ERR, 1));
}

#[test]
fn a_response_fills_the_limit_to_the_last_octet_and_does_not_exceed_it() {
    let mut master = Master::established();
    // 32 octets a binding: 2,047 of them, with header and fixed fields, have 65,532.
    let names = ["1.5.0"; 2048];
    assert_eq!(master.get(&names[..2047]).bindings.len(), 2047);
    assert_eq!(master.get(&names), failed(ResError::GEN_ERR, 2048));
    assert_eq!(master.get_next(&["1.4.0"; 2047]).bindings.len(), 2047);
    assert_eq!(master.get_next(&["1.4.0"; 2048]), failed(ResError::GEN_ERR, 2048));
    // The only binding has all that is left after 20 + 8 octets of the PDU, and 28 of its own.
    let rest = LARGEST - 20 - 8 - 28;
    master.objects = large(1, rest);
    assert_eq!(master.get(&["2.1"]).bindings.len(), 1);
    master.objects = large(1, rest + 1);
    assert_eq!(master.get(&["2.1"]), failed(ResError::GEN_ERR, 1));
}

#[test]
fn a_repetition_that_does_not_fit_whole_is_left_out() {
    let mut master = Master::established();
    master.objects = large(2, 13_000);
    master.objects.0.first_entry().unwrap().insert(OwnedValue::Integer(1));
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
        &master.objects,
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
    assert!(matches!(master.send(&octets), Err(SessionError::ParseErrors(_))));
    let output = master.output();
    let answer = frame::split(&output).unwrap().unwrap();
    assert_eq!(answer.header.kind(), Some(PduType::Response));
    let close = pdu::Close::from_bytes(&output[answer.pdu_len()..]).unwrap();
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
        assert!(matches!(lost, SessionError::Frame(_)));
        let output = master.output();
        let answer = frame::split(&output).unwrap().unwrap();
        let Body::Response { error, .. } = Pdu::decode(answer).unwrap().body else { panic!() };
        assert_eq!(error, ResError::PARSE_ERROR);
        assert_eq!(answer.header.packet_id, header.packet_id);
        let close = pdu::Close::from_bytes(&output[answer.pdu_len()..]).unwrap();
        assert_eq!(close.reason, pdu::CloseReason::ParseError);
        assert_eq!(master.session.state(), State::Disconnected);
    }
}
