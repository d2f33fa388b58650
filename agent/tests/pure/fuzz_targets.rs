//! The bodies of the fuzz targets, with octets from proptest.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any},
    prop_oneof, proptest,
};

use crate::fuzz;

/// Octets that are often nearly a PDU: a header that holds, around a payload that need not.
fn nearly_pdus() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        vec(any::<u8>(), 0..64),
        // Small words: lengths, counts and types that make sense.
        vec(prop_oneof![0_u8..7, 64_u8..71, 126_u8..132], 0..128),
    ];
    let session_id = prop_oneof![Just(77_u32), any::<u32>()];
    let header = (any::<bool>(), 0_u8..20, 0_u8..32, session_id, any::<u32>(), any::<u32>());
    let pdu = (header, payload).prop_map(
        |((right, kind, flags, session_id, transaction_id, packet_id), mut payload)| {
            payload.truncate(payload.len() / 4 * 4);
            let number = |number: u32| {
                if flags & 0x10 == 0 { number.to_le_bytes() } else { number.to_be_bytes() }
            };
            let mut pdu = vec![1 + u8::from(!right), kind, flags, 0];
            pdu.extend([session_id, transaction_id, packet_id].map(number).concat());
            pdu.extend(number(u32::try_from(payload.len()).unwrap()));
            pdu.extend(payload);
            pdu
        },
    );
    prop_oneof![
        8 => vec(pdu, 0..4).prop_map(|pdus| pdus.concat()),
        1 => vec(any::<u8>(), 0..256),
    ]
}

/// Inputs of the session target: one in which octets come, or another.
fn inputs() -> impl Strategy<Value = Vec<u8>> {
    let octets = nearly_pdus().prop_map(|octets| {
        octets.chunks(255).fold(Vec::new(), |mut inputs, piece| {
            inputs.extend([6, u8::try_from(piece.len()).unwrap()]);
            inputs.extend(piece);
            inputs
        })
    });
    let other = (0_u8..6, any::<u8>()).prop_map(|(kind, amount)| vec![kind, amount]);
    let accept = Just(vec![5, 0]);
    vec(prop_oneof![3 => octets, 2 => other, 3 => accept], 0..24)
        .prop_map(|inputs| [vec![0, 0], inputs.concat()].concat())
}

proptest! {
    #[test]
    fn codec(octets in nearly_pdus()) {
        fuzz::codec::run(&octets);
    }

    #[test]
    fn btf(octets in vec(any::<u8>(), 0..256)) {
        fuzz::btf::run(&octets);
    }

    #[test]
    fn descriptions(octets in vec(any::<u8>(), 0..256)) {
        #[cfg(feature = "libvirt")]
        fuzz::descriptions::run_xml(&octets);
        fuzz::descriptions::run_command_line(&octets);
        fuzz::descriptions::run_qemu_config(&octets);
        fuzz::descriptions::run_image(&octets);
    }

    #[test]
    fn session(octets in inputs()) {
        fuzz::session::run(&octets);
    }
}
