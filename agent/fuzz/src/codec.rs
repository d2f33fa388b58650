//! Any octets, as one PDU after the other.

use kvmeter::agentx::codec::{Body, Header, Inbox, Pdu, frame};

/// What decodes is encoded again, and must decode to an equal PDU, which encodes to the same octets. A
/// shortened PDU never decodes, nor does anything panic.
pub fn run(octets: &[u8]) {
    let mut rest = octets;
    let mut inbox = Inbox::default();
    inbox.fill().extend_from_slice(octets);
    while let Ok(Some(found)) = frame::split(rest) {
        assert_eq!(inbox.next_frame(), Ok(Some(found)), "the inbox finds the same PDUs");
        assert_eq!(frame::split(&rest[..found.pdu_len() - 1]), Ok(None));
        rest = &rest[found.pdu_len()..];
        let Ok(pdu) = Pdu::decode(found) else { continue };
        let mut once = Vec::new();
        pdu.encode(&mut once);
        assert!(once.len() <= found.pdu_len(), "the short form is never longer");
        let again = frame::split(&once).expect("a length that can be").expect("a whole PDU");
        assert_eq!(again.pdu_len(), once.len());
        let again = Pdu::decode(again).expect("what was encoded decodes");
        check_equal(&pdu, &again);
        let mut twice = Vec::new();
        again.encode(&mut twice);
        assert_eq!(once, twice);
    }
}

fn check_equal(a: &Pdu<'_>, b: &Pdu<'_>) {
    let length = b.header.payload_length;
    assert_eq!(Header { payload_length: length, ..a.header }, b.header);
    assert_eq!(a.context, b.context);
    match (&a.body, &b.body) {
        (Body::Close { reason: a }, Body::Close { reason: b }) => assert_eq!(a, b),
        (Body::Get { ranges: a }, Body::Get { ranges: b })
        | (Body::GetNext { ranges: a }, Body::GetNext { ranges: b }) => {
            assert!(a.clone().eq(b.clone()));
        }
        (
            Body::GetBulk { non_repeaters: n, max_repetitions: m, ranges: a },
            Body::GetBulk { non_repeaters, max_repetitions, ranges: b },
        ) => {
            assert_eq!((n, m), (non_repeaters, max_repetitions));
            assert!(a.clone().eq(b.clone()));
        }
        (Body::TestSet { bindings: a }, Body::TestSet { bindings: b }) => {
            assert!(a.clone().eq(b.clone()));
        }
        (Body::CommitSet, Body::CommitSet)
        | (Body::UndoSet, Body::UndoSet)
        | (Body::CleanupSet, Body::CleanupSet)
        | (Body::Ping, Body::Ping) => {}
        (
            Body::Response { sys_up_time: t, error: e, index: i, bindings: a },
            Body::Response { sys_up_time, error, index, bindings: b },
        ) => {
            assert_eq!((t, e, i), (sys_up_time, error, index));
            assert!(a.clone().eq(b.clone()));
        }
        _ => panic!("{:?} became {:?}", a.body, b.body),
    }
}
