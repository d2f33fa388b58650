//! An AgentX subagent in forty lines: one scalar, and nothing of VMs.
//!
//!     cargo run --example agentx_hello -- unix:/var/agentx/master
//!     snmpget -v2c -cpublic localhost 1.3.6.1.4.1.8072.9999.9999.1.0

use kvmeter::{
    agentx::{self, Config, Lookup, Objects, Statistics, TransportConfig},
    snmp::{Oid, Value},
};

/// Below net-snmp's netSnmpPlaypen, which is there to try things out.
const HELLO: Oid = Oid::of(&[1, 3, 6, 1, 4, 1, 8072, 9999, 9999, 1]);
const INSTANCE: Oid = Oid::of(&[1, 3, 6, 1, 4, 1, 8072, 9999, 9999, 1, 0]);

struct Hello;

impl Objects for Hello {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        match name.strip_prefix(HELLO.parts()) {
            Some([0]) => Lookup::Found(Value::OctetString(b"Hello, world")),
            Some(_) => Lookup::NoSuchInstance,
            None => Lookup::NoSuchObject,
        }
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        let is_after = *start < INSTANCE || (include && *start == INSTANCE);
        let is_before = end.is_empty() || INSTANCE < *end;
        (is_after && is_before).then_some((INSTANCE, Value::OctetString(b"Hello, world")))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "unix:/var/agentx/master".to_owned());
    let transport = TransportConfig::new(address.parse()?, Config::new(vec![HELLO]));
    // No notifications, and no end but that of the process.
    let (_notices, none) = tokio::sync::mpsc::channel(1);
    agentx::run(transport, || Hello, none, &Statistics::default(), std::future::pending()).await;
    Ok(())
}
