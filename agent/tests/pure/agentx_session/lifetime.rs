//! How a session begins, is kept and ends.

use super::*;

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
    assert!(matches!(lost, SessionError::OpenRefused(ResError::OPEN_FAILED)));
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
fn responses_are_never_answered() {
    let mut master = Master::established();
    // One that nobody waits for, one that cannot be parsed.
    let stray = master.header(PduType::Response);
    let octets = [&[0; 8][..], &[0, 9, 0, 0]];
    for payload in [octets[0].to_vec(), octets.concat()] {
        let frame = Frame { header: stray, payload: &payload };
        master.session.handle_pdu(&master.objects, frame, master.now).unwrap();
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
    assert_eq!(seconds(&master.session), 60);
    master.wait(59);
    master.session.handle_timeout(master.now).unwrap();
    assert!(master.output().is_empty(), "too early");
    assert_eq!(master.get(&["1.5.0"]).error, ResError::NO_ERROR);
    assert_eq!(seconds(&master.session), 119, "a request is a sign of life");

    master.wait(60);
    master.session.handle_timeout(master.now).unwrap();
    let ping = pdu::Ping::from_bytes(&master.output()).unwrap();
    assert_eq!(ping.header.session_id, SESSION);
    assert_eq!(seconds(&master.session), 119 + 5);
    master.wait(1);
    master.reply(&ping.header, ResError::NO_ERROR).unwrap();
    assert_eq!(seconds(&master.session), 120 + 60);
}

#[test]
fn a_request_is_as_good_an_answer_to_a_ping() {
    let mut master = Master::established();
    master.wait(60);
    master.session.handle_timeout(master.now).unwrap();
    master.output();
    master.wait(4);
    assert_eq!(master.get(&["1.5.0"]).error, ResError::NO_ERROR);
    master.wait(59);
    master.session.handle_timeout(master.now).unwrap();
    assert!(master.output().is_empty());
}

#[test]
fn a_master_that_hangs_or_forgot_the_session_is_given_up() {
    let mut master = Master::established();
    master.wait(60);
    master.session.handle_timeout(master.now).unwrap();
    let ping = pdu::Ping::from_bytes(&master.output()).unwrap();
    let lost = master.reply(&ping.header, ResError::NOT_OPEN).unwrap_err();
    assert!(matches!(lost, SessionError::SessionGone(ResError::NOT_OPEN)));

    let mut master = Master::established();
    master.wait(60);
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
    assert!(matches!(lost, SessionError::TimedOut("Register")));

    master.connect();
    master.output();
    master.wait(5);
    let lost = master.session.handle_timeout(master.now).unwrap_err();
    assert!(matches!(lost, SessionError::TimedOut("Open")));
}

#[test]
fn notifications_need_a_session() {
    let trap_oid = Oid::of(&[1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0]);
    let trap = Oid::of(&[1, 3, 6, 1, 2, 1, 236, 0, 1]);
    let bindings = || [(&trap_oid, Value::ObjectIdentifier(&trap)), (&trap, Value::Integer(4))];
    let mut idle = Session::new(config());
    assert_eq!(idle.notify(bindings(), Instant::now()), Err(NotEstablished));
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
}

#[test]
fn capabilities_follow_the_last_registration() {
    let id: Oid = SUBTREE.parse().unwrap();
    let capabilities = vec![(id, "VM-MIB".to_owned())];
    let mut master = Master::new(Config { capabilities, ..config() });
    master.connect();
    let open = pdu::Open::from_bytes(&master.output()).unwrap();
    master.reply(&open.header, ResError::NO_ERROR).unwrap();
    let register = pdu::Register::from_bytes(&master.output()).unwrap();
    master.reply(&register.header, ResError::NO_ERROR).unwrap();
    let caps = pdu::AddAgentCaps::from_bytes(&master.output()).unwrap();
    assert_eq!((caps.header.session_id, caps.id.to_string()), (SESSION, SUBTREE.to_owned()));
    assert_eq!(caps.descr.0, "VM-MIB");
    master.reply(&caps.header, ResError::REQUEST_DENIED).unwrap();
    assert_eq!(master.session.state(), State::Established { session_id: SESSION, ping: None });
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
