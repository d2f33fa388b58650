//! Our codec against another one, the crate `agentx`, and against damage.
//!
//! The oracle cannot do everything: its octet strings are UTF-8, its TimeTicks are signed, it multiplies
//! `res.sysUpTime` by 10 in 32 bits, and it has no `res.error` of SNMP's own. What is compared stays within that:
//! text, TimeTicks below 2^31, a sysUpTime below 2^32 / 10, errors of AgentX. The rest is tested on our side alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use agentx::{
    encodings::{ID, OctetString, SearchRange, SearchRangeList, VarBindList},
    pdu,
};
use kvmeter::{
    agentx::codec::{
        Body, ByteOrder, Data, DecodeError, Flags, Frame, Header, Pdu, PduType, PduWriter,
        ResError, ResponseWriter, VarBind, frame,
    },
    snmp::{Oid, Value},
};
use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_assert, prop_assert_eq, prop_oneof, proptest,
};

/// Identifiers of all shapes; the oracle counts sub-identifiers in an u8, and after a prefix adds 5.
fn oids() -> impl Strategy<Value = Oid> {
    let part = prop_oneof![0_u32..300, any::<u32>()];
    prop_oneof![
        vec(part.clone(), 0..=128).prop_map(|parts| Oid::of(&parts)),
        vec(part, 0..=124).prop_map(|parts| Oid::of(&[&[1, 3, 6, 1], &parts[..]].concat())),
    ]
}

fn orders() -> impl Strategy<Value = ByteOrder> {
    prop_oneof![Just(ByteOrder::Network), Just(ByteOrder::Little)]
}

fn headers(kind: PduType) -> impl Strategy<Value = Header> {
    (orders(), any::<[u32; 3]>()).prop_map(
        move |(order, [session_id, transaction_id, packet_id])| Header {
            session_id,
            transaction_id,
            packet_id,
            ..Header::new(kind, order)
        },
    )
}

/// What is bound, in a form that both codecs can be made from.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "few are made, and none is kept")]
enum Bound {
    Integer(i32),
    Text(String),
    Null,
    Oid(Oid),
    Address([u8; 4]),
    Counter32(u32),
    Gauge32(u32),
    TimeTicks(u32),
    Opaque(String),
    Counter64(u64),
    NoSuchObject,
    NoSuchInstance,
    EndOfMibView,
}

impl Bound {
    fn ours(&self) -> Data<'_> {
        match self {
            Self::Integer(number) => Data::Integer(*number),
            Self::Text(text) => Data::OctetString(text.as_bytes()),
            Self::Null => Data::Null,
            Self::Oid(oid) => Data::ObjectIdentifier(*oid),
            Self::Address(address) => Data::IpAddress(*address),
            Self::Counter32(count) => Data::Counter32(*count),
            Self::Gauge32(gauge) => Data::Gauge32(*gauge),
            Self::TimeTicks(ticks) => Data::TimeTicks(*ticks),
            Self::Opaque(text) => Data::Opaque(text.as_bytes()),
            Self::Counter64(count) => Data::Counter64(*count),
            Self::NoSuchObject => Data::NoSuchObject,
            Self::NoSuchInstance => Data::NoSuchInstance,
            Self::EndOfMibView => Data::EndOfMibView,
        }
    }

    fn theirs(&self) -> agentx::encodings::Value {
        use agentx::encodings::Value;
        match self {
            Self::Integer(number) => Value::Integer(*number),
            Self::Text(text) => Value::OctetString(OctetString(text.clone())),
            Self::Null => Value::Null,
            Self::Oid(oid) => Value::ObjectIdentifier(id(oid)),
            Self::Address(address) => {
                Value::IpAddress(OctetString(String::from_utf8(address.to_vec()).unwrap()))
            }
            Self::Counter32(count) => Value::Counter32(*count),
            Self::Gauge32(gauge) => Value::Gauge32(*gauge),
            Self::TimeTicks(ticks) => Value::TimeTicks(i32::try_from(*ticks).unwrap()),
            Self::Opaque(text) => Value::Opaque(OctetString(text.clone())),
            Self::Counter64(count) => Value::Counter64(*count),
            Self::NoSuchObject => Value::NoSuchObject,
            Self::NoSuchInstance => Value::NoSuchInstance,
            Self::EndOfMibView => Value::EndOfMibView,
        }
    }
}

fn bounds() -> impl Strategy<Value = Bound> {
    prop_oneof![
        any::<i32>().prop_map(Bound::Integer),
        ".{0,40}".prop_map(Bound::Text),
        Just(Bound::Null),
        oids().prop_map(Bound::Oid),
        any::<[u8; 4]>().prop_map(|octets| Bound::Address(octets.map(|octet| octet & 0x7f))),
        any::<u32>().prop_map(Bound::Counter32),
        any::<u32>().prop_map(Bound::Gauge32),
        (0_u32..1 << 31).prop_map(Bound::TimeTicks),
        ".{0,9}".prop_map(Bound::Opaque),
        any::<u64>().prop_map(Bound::Counter64),
        Just(Bound::NoSuchObject),
        Just(Bound::NoSuchInstance),
        Just(Bound::EndOfMibView),
    ]
}

type Bindings = Vec<(Oid, Bound)>;

fn bindings() -> impl Strategy<Value = Bindings> {
    vec((oids(), bounds()), 0..8)
}

fn ours(bindings: &Bindings) -> impl Iterator<Item = VarBind<'_>> {
    bindings.iter().map(|(name, bound)| VarBind { name: *name, data: bound.ours() })
}

fn theirs(bindings: &Bindings) -> VarBindList {
    let binding =
        |(name, bound): &(Oid, Bound)| agentx::encodings::VarBind::new(id(name), bound.theirs());
    VarBindList(bindings.iter().map(binding).collect())
}

fn id(oid: &Oid) -> ID {
    oid.parts().to_vec().try_into().unwrap()
}

/// A range with its `include`.
type Ranges = Vec<(Oid, bool, Oid)>;

fn ranges() -> impl Strategy<Value = Ranges> {
    vec((oids(), any::<bool>(), oids()), 0..8)
}

fn range_list(ranges: &Ranges) -> SearchRangeList {
    let range = |(start, include, end): &(Oid, bool, Oid)| {
        let mut start = id(start);
        start.include = u8::from(*include);
        SearchRange::new(start, id(end))
    };
    SearchRangeList(ranges.iter().map(range).collect())
}

/// Stamps our header's fields on theirs.
fn stamp(theirs: &mut pdu::Header, ours: &Header) {
    theirs.flags = ours.flags.0;
    theirs.session_id = ours.session_id;
    theirs.transaction_id = ours.transaction_id;
    theirs.packet_id = ours.packet_id;
}

fn check_header(theirs: &pdu::Header, ours: &Header) {
    assert_eq!(theirs.ty.to_byte(), ours.pdu_type);
    assert_eq!(
        (theirs.version, theirs.flags, theirs.session_id, theirs.transaction_id, theirs.packet_id),
        (ours.version, ours.flags.0, ours.session_id, ours.transaction_id, ours.packet_id),
    );
}

fn whole(octets: &[u8]) -> Frame<'_> {
    let frame = frame::split(octets).unwrap().unwrap();
    assert_eq!(frame.pdu_len(), octets.len());
    frame
}

proptest! {
    #[test]
    fn their_requests_are_read(
        header in headers(PduType::Get),
        list in ranges(),
        context in proptest::option::of(".{0,20}"),
        (non, max) in any::<(u16, u16)>(),
    ) {
        let mut header = header;
        if context.is_some() {
            header.flags = Flags(header.flags.0 | Flags::NON_DEFAULT_CONTEXT);
        }
        let their_context = context.clone().map(|name| agentx::encodings::Context(OctetString(name)));
        let expected = |found: &mut dyn Iterator<Item = kvmeter::agentx::codec::SearchRange>| {
            found.map(|range| (range.start, range.include, range.end)).collect::<Vec<_>>() == list
        };

        let mut get = pdu::Get::new(range_list(&list));
        stamp(&mut get.header, &header);
        get.context = their_context.clone();
        let octets = get.to_bytes().unwrap();
        let read = Pdu::decode(whole(&octets)).unwrap();
        prop_assert_eq!(read.context, context.as_deref().map(str::as_bytes));
        check_header(&get.header, &read.header);
        let Body::Get { mut ranges } = read.body else { panic!("{:?}", read.body) };
        prop_assert!(expected(&mut ranges));

        let mut bulk = pdu::GetBulk::new(range_list(&list));
        stamp(&mut bulk.header, &header);
        (bulk.context, bulk.non_repeaters, bulk.max_repetitions) = (their_context, non, max);
        let octets = bulk.to_bytes().unwrap();
        let read = Pdu::decode(whole(&octets)).unwrap();
        let Body::GetBulk { non_repeaters, max_repetitions, mut ranges } = read.body else {
            panic!("{:?}", read.body)
        };
        prop_assert_eq!((non_repeaters, max_repetitions), (non, max));
        prop_assert!(expected(&mut ranges));
    }

    #[test]
    fn they_read_our_requests(
        header in headers(PduType::GetBulk),
        list in ranges(),
        (non, max) in any::<(u16, u16)>(),
    ) {
        let mut octets = Vec::new();
        let mut bulk = PduWriter::new(&mut octets, &header, &[]);
        bulk.numbers(non, max);
        for (start, include, end) in &list {
            let range = kvmeter::agentx::codec::SearchRange { start: *start, include: *include, end: *end };
            bulk.range(&range);
        }
        bulk.finish();
        let read = pdu::GetBulk::from_bytes(&octets).unwrap();
        check_header(&read.header, &header);
        prop_assert_eq!((read.non_repeaters, read.max_repetitions), (non, max));
        prop_assert_eq!(&read.sr, &range_list(&list));
        let includes: Vec<_> = read.sr.0.iter().map(|range| range.start.include != 0).collect();
        prop_assert_eq!(includes, list.iter().map(|range| range.1).collect::<Vec<_>>());
    }

    #[test]
    fn their_bindings_are_read(header in headers(PduType::TestSet), bindings in bindings()) {
        let mut set = pdu::TestSet::new(theirs(&bindings));
        stamp(&mut set.header, &header);
        let octets = set.to_bytes().unwrap();
        let Body::TestSet { bindings: read } = Pdu::decode(whole(&octets)).unwrap().body else {
            panic!("no TestSet")
        };
        prop_assert_eq!(read.len(), bindings.len());
        prop_assert!(read.eq(ours(&bindings)));
    }

    /// Values are written in the same way, whether they are served or part of a binding that was read.
    #[test]
    fn they_read_our_bindings(header in headers(PduType::Notify), bindings in bindings()) {
        let mut octets = Vec::new();
        let mut notify = PduWriter::new(&mut octets, &header, &[]);
        ours(&bindings).for_each(|binding| match binding.data.value() {
            Some(value) => notify.value(&binding.name, value),
            None => notify.binding(&binding),
        });
        notify.finish();
        let read = pdu::Notify::from_bytes(&octets).unwrap();
        check_header(&read.header, &header);
        prop_assert_eq!(read.vb, theirs(&bindings));
    }

    #[test]
    fn responses_agree_both_ways(
        header in headers(PduType::Response),
        bindings in bindings(),
        sys_up_time in 0..u32::MAX / 10,
        (error, index) in (prop_oneof![Just(0_u16), 256..=268_u16], any::<u16>()),
    ) {
        let mut response = pdu::Response::new();
        stamp(&mut response.header, &header);
        response.sys_uptime = std::time::Duration::from_millis(u64::from(sys_up_time) * 10);
        response.res_error = pdu::ResError::from_bytes(&error.to_be_bytes(), &agentx::ByteOrder::BigEndian).unwrap();
        response.res_index = index;
        response.vb = Some(theirs(&bindings));
        let octets = response.to_bytes().unwrap();
        let read = Pdu::decode(whole(&octets)).unwrap();
        let Body::Response { sys_up_time: time, error: code, index: at, bindings: found } = &read.body else {
            panic!("no Response")
        };
        prop_assert_eq!((*time, code.0, *at), (sys_up_time, error, index));
        prop_assert!(found.clone().eq(ours(&bindings)));

        let mut octets = Vec::new();
        read.encode(&mut octets);
        let again = pdu::Response::from_bytes(&octets).unwrap();
        check_header(&again.header, &header);
        prop_assert_eq!(again.vb, response.vb);
        prop_assert_eq!(again.sys_uptime, response.sys_uptime);
        prop_assert_eq!((again.res_error, again.res_index), (response.res_error, index));
    }

    /// What the oracle cannot express: any octets, any TimeTicks, any sysUpTime.
    #[test]
    fn everything_comes_back(
        header in headers(PduType::Response),
        name in oids(),
        octets in vec(any::<u8>(), 0..300),
        ticks in any::<u32>(),
    ) {
        let bindings = [
            Data::OctetString(&octets),
            Data::Opaque(&octets),
            Data::TimeTicks(ticks),
            Data::IpAddress(ticks.to_be_bytes()),
        ].map(|data| VarBind { name, data });
        let mut written = Vec::new();
        let mut response = PduWriter::new(&mut written, &header, &[]);
        let [a, b, c, d] = ticks.to_be_bytes().map(u16::from);
        response.numbers(a, b);
        response.numbers(c, d);
        bindings.iter().for_each(|binding| response.binding(binding));
        response.finish();
        let Body::Response { index, bindings: read, .. } = Pdu::decode(whole(&written)).unwrap().body else {
            panic!("no Response")
        };
        prop_assert_eq!(index, d);
        prop_assert!(read.eq(bindings));
    }

    /// Every PDU that ends early is refused, wherever it ends.
    #[test]
    fn a_shortened_pdu_is_refused(
        bindings in vec((oids(), bounds()), 1..4),
        list in vec((oids(), any::<bool>(), oids()), 1..4),
        order in orders(),
    ) {
        let header = Header::new(PduType::TestSet, order);
        let mut set = Vec::new();
        let mut writer = PduWriter::new(&mut set, &header, &[]);
        ours(&bindings).for_each(|binding| writer.binding(&binding));
        writer.finish();
        let mut ends = vec![0];
        let mut at = 0;
        for (name, bound) in &bindings {
            let mut one = Vec::new();
            let mut writer = PduWriter::new(&mut one, &header, &[]);
            writer.binding(&VarBind { name: *name, data: bound.ours() });
            at += writer.payload_len();
            ends.push(at);
        }
        let payload = &set[Header::LEN..];
        for len in 0..payload.len() {
            prop_assert_eq!(frame::split(&set[..Header::LEN + len]), Ok(None));
            let short = Frame { header, payload: &payload[..len] };
            prop_assert_eq!(Pdu::decode(short).is_ok(), ends.contains(&len), "{} of {}", len, payload.len());
        }

        let mut bulk = pdu::GetBulk::new(range_list(&list));
        bulk.header.flags = Flags::of(order).0;
        let octets = bulk.to_bytes().unwrap();
        let whole_ranges = (0..=list.len()).map(|count| {
            4 + list[..count].iter().map(|(a, _, b)| 8 + 4 * (a.len() + b.len())).sum::<usize>()
        }).collect::<Vec<_>>();
        let frame = whole(&octets);
        for len in 0..frame.payload.len() {
            let short = Frame { payload: &frame.payload[..len], ..frame };
            prop_assert_eq!(Pdu::decode(short).is_ok(), whole_ranges.contains(&len));
        }
    }
}

#[track_caller]
fn check_refused(kind: PduType, payload: &[u8], expected: DecodeError) {
    let header = Header::new(kind, ByteOrder::Network);
    assert_eq!(Pdu::decode(Frame { header, payload }).unwrap_err(), expected);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    use PduType::{CleanupSet, Close, CommitSet, Get, GetBulk, Ping, TestSet};
    let truncated = |offset, needed, left| DecodeError::Truncated { offset, needed, left };
    check_refused(Close, &[], truncated(0, 4, 0));
    check_refused(GetBulk, &[0, 1], truncated(2, 2, 0));
    for kind in [CommitSet, CleanupSet, Ping] {
        check_refused(kind, &[0; 4], DecodeError::Trailing { offset: 0, count: 4 });
    }
    check_refused(Get, &[2, 0, 0, 0, 0, 0, 0, 1], truncated(4, 8, 4));
    check_refused(Get, &[129, 0, 0, 0], DecodeError::OidTooLong { offset: 0 });
    check_refused(
        TestSet,
        &[0, 9, 0, 0, 0, 0, 0, 0],
        DecodeError::ValueType { offset: 0, kind: 9 },
    );
    let huge = [0, 4, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
    check_refused(TestSet, &huge, truncated(8, 1 << 32, 0));
    let address = [0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 0];
    check_refused(TestSet, &address, DecodeError::IpAddress { offset: 8, len: 3 });
}

#[test]
fn types_that_a_master_does_not_send_and_other_versions_are_refused() {
    for number in 0..=u8::MAX {
        let mut header = Header::new(PduType::Ping, ByteOrder::Little);
        header.pdu_type = number;
        let refused = matches!(
            Pdu::decode(Frame { header, payload: &[] }),
            Err(DecodeError::PduType(refused)) if refused == number
        );
        let sent_by_masters = matches!(number, 2 | 5..=11 | 13 | 18);
        assert_eq!(refused, !sent_by_masters, "{number}");
    }
    let header = Header { version: 2, ..Header::new(PduType::Ping, ByteOrder::Little) };
    let read = Pdu::decode(Frame { header, payload: &[] });
    assert_eq!(read.unwrap_err(), DecodeError::Version(2));
}

/// The oracle multiplied sysUpTime by 10 in 32 bits: a master that is up for 49.7 days ended its process.
#[test]
fn a_master_may_be_up_for_longer_than_50_days() {
    let mut octets = Vec::new();
    let header = Header::new(PduType::Response, ByteOrder::Network);
    ResponseWriter::new(&mut octets, &header).finish();
    octets[Header::LEN..Header::LEN + 4].fill(0xff);
    let Body::Response { sys_up_time, error, .. } = Pdu::decode(whole(&octets)).unwrap().body
    else {
        panic!("no Response")
    };
    assert_eq!((sys_up_time, error), (u32::MAX, ResError::NO_ERROR));
}

#[test]
fn values_are_the_same_as_bindings() {
    let name = Oid::of(&[1, 3, 6, 1, 2, 1, 236]);
    let pairs = [
        (Value::Integer(i32::MIN), Data::Integer(i32::MIN)),
        (Value::OctetString(&[0xff, 0, 1]), Data::OctetString(&[0xff, 0, 1])),
        (Value::ObjectIdentifier(&name), Data::ObjectIdentifier(name)),
        (Value::IpAddress([192, 0, 2, 255]), Data::IpAddress([192, 0, 2, 255])),
        (Value::Counter32(u32::MAX), Data::Counter32(u32::MAX)),
        (Value::Gauge32(u32::MAX), Data::Gauge32(u32::MAX)),
        (Value::TimeTicks(u32::MAX), Data::TimeTicks(u32::MAX)),
        (Value::Opaque(&[0xff, 0]), Data::Opaque(&[0xff, 0])),
        (Value::Counter64(u64::MAX), Data::Counter64(u64::MAX)),
    ];
    for order in [ByteOrder::Network, ByteOrder::Little] {
        let header = Header::new(PduType::TestSet, order);
        let mut octets = Vec::new();
        let mut set = PduWriter::new(&mut octets, &header, &[]);
        pairs.iter().for_each(|(value, _)| set.value(&name, *value));
        set.finish();
        let Body::TestSet { bindings } = Pdu::decode(whole(&octets)).unwrap().body else {
            panic!("no TestSet")
        };
        let bindings: Vec<_> = bindings.collect();
        assert!(
            bindings.iter().map(|binding| binding.data).eq(pairs.iter().map(|(_, data)| *data))
        );
        let values = bindings.iter().map(|binding| binding.data.value());
        assert!(values.eq(pairs.iter().map(|(value, _)| Some(*value))));
    }
}
