//! The configuration file as an operator meets it: the one that is shipped, and those with a mistake.

use std::fs;
use std::path::Path;

use kvmeter::config::{Config, ConfigError};

const SHIPPED: &str = include_str!("../../etc/kvmeter.toml");

/// The message for `text`, which must not be accepted.
fn problem(text: &str) -> String {
    match Config::parse(text) {
        Err(problem) => problem.to_string(),
        Ok(config) => panic!("{text} was taken as {config:?}"),
    }
}

#[test]
fn the_shipped_file_says_the_defaults() {
    assert_eq!(Config::parse(SHIPPED).unwrap(), Config::default());
}

#[test]
fn the_shipped_file_has_every_key_and_explains_it() {
    let shipped: toml::Table = SHIPPED.parse().unwrap();
    let all = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(shipped, all);

    for (section, keys) in &all {
        for key in keys.as_table().unwrap().keys() {
            let comment: Vec<&str> = SHIPPED
                .lines()
                .skip_while(|line| *line != format!("[{section}]"))
                .skip(1)
                .take_while(|line| !line.starts_with(&format!("{key} = ")))
                .collect();
            let own = comment.rsplit(|line| line.is_empty()).next().unwrap();
            assert!(own.iter().any(|line| line.starts_with("# Cost: ")), "{section}.{key}");
            assert!(own.iter().all(|line| line.starts_with('#')), "{section}.{key}");
        }
    }
}

#[test]
fn an_empty_file_and_an_empty_section_say_the_defaults() {
    assert_eq!(Config::parse("").unwrap(), Config::default());
    assert_eq!(Config::parse("[agentx]\n[probe]\n").unwrap(), Config::default());
}

#[test]
fn each_key_is_taken_from_the_file() {
    let changed = [
        ("agentx", "address", "\"tcp:[::1]:705\""),
        ("agentx", "timeout_s", "255"),
        ("agentx", "reconnect_max_s", "3600"),
        ("agentx", "ping_s", "1"),
        ("inventory", "libvirt", "\"\""),
        ("inventory", "procfs", "false"),
        ("inventory", "block_statistics_s", "0"),
        ("inventory", "hv_object_id", "\"1.3.6.1.4.1.8072\""),
        ("state", "dir", "\"/srv/kvmeter\""),
        ("state", "runtime_dir", "\"/tmp/kvmeter\""),
        ("probe", "pin_dir", "\"/sys/fs/bpf/other\""),
        ("probe", "system_calls", "false"),
        ("mib", "affinity", "false"),
        ("limits", "vms", "32767"),
        ("limits", "threads", "128"),
        ("limits", "images", "65536"),
        ("notifications", "per_vm", "true"),
        ("notifications", "bulk", "true"),
        ("notifications", "bulk_window_ms", "10"),
    ];
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for (section, key, value) in changed {
        let text = format!("[{section}]\n{key} = {value}\n");
        let config = toml::Table::try_from(Config::parse(&text).unwrap()).unwrap();
        let told: toml::Table = text.parse().unwrap();
        assert_eq!(config[section][key], told[section][key], "{section}.{key}");
        assert_ne!(defaults[section][key], told[section][key], "{section}.{key}");
    }
    let keys: usize = defaults.values().map(|section| section.as_table().unwrap().len()).sum();
    assert_eq!(keys, changed.len(), "a key is not tested here");
}

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_one_that_was_meant() {
    assert_eq!(
        problem("# mine\n[agentx]\nadress = \"tcp:localhost:705\"\n"),
        "3: agentx.adress: no such key; [agentx] has address, ping_s, reconnect_max_s, timeout_s. \
         Did you mean address?"
    );
    assert_eq!(
        problem("[agentx]\nbulk_window_ms = 1\n"),
        "2: agentx.bulk_window_ms: no such key; [agentx] has address, ping_s, reconnect_max_s, \
         timeout_s. Did you mean notifications.bulk_window_ms?"
    );
    assert_eq!(
        problem("[probe]\nverbosity = 3\n"),
        "2: probe.verbosity: no such key; [probe] has pin_dir, system_calls"
    );
    assert_eq!(
        problem("\n[agent-x]\n"),
        "2: agent-x: no such section; there are agentx, inventory, limits, mib, notifications, probe, state. \
         Did you mean [agentx]?"
    );
    assert_eq!(
        problem("timeout_s = 3\n"),
        "1: timeout_s: no such section; there are agentx, inventory, limits, mib, notifications, probe, state. \
         Did you mean agentx.timeout_s?"
    );
    for (text, meant) in [("[LIMITS]\n", "[limits]"), ("[limits]\nVMS = 16\n", "vms")] {
        let said = problem(text);
        assert!(said.ends_with(&format!(". Did you mean {meant}?")), "{said}");
    }
    assert_eq!(
        problem("state = \"/var\"\n"),
        "1: state: this is a section: write [state] and its keys below"
    );
}

#[test]
fn the_first_of_several_wrong_keys_is_told() {
    assert!(problem("[state]\ndri = 1\n[agentx]\nadress = 2\n").starts_with("2: state.dri: "));
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_what_is_allowed() {
    for (text, message) in [
        (
            "[agentx]\n\ntimeout_s = 0\n",
            "3: agentx.timeout_s: invalid value: integer `0`, expected a whole number of seconds from 1 to 255",
        ),
        (
            "[agentx]\ntimeout_s = 256\n",
            "2: agentx.timeout_s: invalid value: integer `256`, expected a whole number of seconds from 1 to 255",
        ),
        (
            "[agentx]\nreconnect_max_s = -1\n",
            "2: agentx.reconnect_max_s: invalid value: integer `-1`, expected a whole number of seconds from 1 to 3600",
        ),
        (
            "[agentx]\nping_s = \"5\"\n",
            "2: agentx.ping_s: invalid type: string \"5\", expected a whole number of seconds from 1 to 3600",
        ),
        (
            "agentx.address = \"/var/agentx/master\"\n",
            "1: agentx.address: invalid value: string \"/var/agentx/master\", expected \"unix:/PATH\" of at most 107 bytes, or \"tcp:HOST:PORT\"",
        ),
        (
            "[inventory]\nprocfs = 1\n",
            "2: inventory.procfs: invalid type: integer `1`, expected a boolean",
        ),
        (
            "[inventory]\nlibvirt = \"system\"\n",
            "2: inventory.libvirt: invalid value: string \"system\", expected a libvirt URI such as \"qemu:///system\", a list of up to 16 of them, or \"\" for none",
        ),
        (
            "[inventory]\nhv_object_id = \"enterprises.1\"\n",
            "2: inventory.hv_object_id: invalid value: string \"enterprises.1\", expected an object identifier such as \"1.3.6.1.4.1.8072\"",
        ),
        ("[limits]\nvms = 16\nvms = 17\n", "3: vms is there twice"),
        (
            "[state]\ndir = \"var/lib\"\n",
            "2: state.dir: invalid value: string \"var/lib\", expected an absolute path below \"/\" without \"..\", of at most 4000 bytes",
        ),
        (
            "[probe]\npin_dir = \"/sys/fs/bpf/..\"\n",
            "2: probe.pin_dir: invalid value: string \"/sys/fs/bpf/..\", expected an absolute path below \"/\" without \"..\", of at most 4000 bytes",
        ),
        (
            "[notifications]\nbulk_window_ms = 9\n",
            "2: notifications.bulk_window_ms: invalid value: integer `9`, expected a whole number of milliseconds from 10 to 60000",
        ),
        (
            "[inventory]\nlibvirt = \"\"\nprocfs = false\n",
            "3: inventory.procfs: no VM would ever be found: libvirt is \"\" and procfs is false; turn one of them on",
        ),
    ] {
        assert_eq!(problem(text), message);
    }
}

#[test]
fn an_object_identifier_that_no_message_can_carry_is_refused() {
    let of = |id: &str| format!("[inventory]\nprocfs = true\nhv_object_id = \"{id}\"\n");
    for id in ["3.1", "1", "0.40", "1.40.1", "2.4294967216", "2"] {
        let said = problem(&of(id));
        assert!(said.starts_with("3: inventory.hv_object_id: no SNMP message"), "{said}");
    }
    for id in ["0.0", "1.39", "2.999.1", "1.3.6.1.4.1.8072", "2.4294967215"] {
        Config::parse(&of(id)).unwrap();
    }
}

#[test]
fn a_runtime_dir_too_long_for_a_socket_is_refused() {
    let longest = format!("[state]\nruntime_dir = \"/{}\"\n", "x".repeat(89));
    assert!(Config::parse(&longest).is_ok());
    let longer = format!("[state]\nruntime_dir = \"/{}\"\n", "x".repeat(90));
    assert!(problem(&longer).contains("of at most 90 bytes"));
}

#[test]
fn text_that_is_no_toml_is_named_with_its_line() {
    for (text, line) in [
        ("[agentx\n", "1: "),
        ("\n[agentx]\nping_s: 1\n", "3: "),
        ("[agentx]\nping_s = 1s\n", "2: "),
    ] {
        let message = problem(text);
        assert!(message.starts_with(line), "{message}");
        assert!(!message.contains('\n'), "{message}");
        assert!(message.contains(": no TOML: "), "{message}");
        assert!(message.contains("KEY = VALUE"), "{message}");
    }
}

#[test]
fn a_key_without_a_value_is_named_with_its_default() {
    for text in [
        "[agentx]\n timeout_s =\nping_s = 3\n",
        "[agentx]\ntimeout_s = # s",
        "[agentx]\ntimeout_s\n",
    ] {
        assert_eq!(
            problem(text),
            "2: timeout_s has no value; write one, or the default: timeout_s = 5"
        );
    }
    assert_eq!(
        problem("[agentx]\naddress=\n"),
        "2: address has no value; write one, or the default: address = \"unix:/var/agentx/master\""
    );
    assert_eq!(problem("x =\n"), "1: x has no value; write one, or take the line out");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let missing = Path::new("/nonexistent/kvmeter.toml");
    let error = Config::load(Some(missing)).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }));
    assert_eq!(error.to_string(), "Cannot read the configuration file /nonexistent/kvmeter.toml");
}

#[test]
fn a_fault_in_a_file_is_told_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kvmeter.toml");
    fs::write(&path, "[state]\nruntimedir = \"/run\"\n").unwrap();
    assert_eq!(
        Config::load(Some(&path)).unwrap_err().to_string(),
        format!(
            "{}:2: state.runtimedir: no such key; [state] has dir, runtime_dir. \
             Did you mean runtime_dir?",
            path.display()
        )
    );
    fs::write(&path, "[state]\nruntime_dir = \"/run/x\"\n").unwrap();
    assert_eq!(Config::load(Some(&path)).unwrap().state.runtime_dir, Path::new("/run/x"));
}

#[test]
fn what_is_no_configuration_file_at_all_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Config::load(Some(dir.path())).is_err(), "a directory");
    assert!(Config::load(Some(Path::new("/dev/zero"))).is_err(), "without an end");
    let path = dir.path().join("octets");
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Config::load(Some(&path)).is_err(), "no UTF-8");
    fs::write(&path, b"[agentx]\n# caf\xe9\n").unwrap();
    let ConfigError::Unreadable { source, .. } = Config::load(Some(&path)).unwrap_err() else {
        panic!()
    };
    assert_eq!(source.to_string(), "line 2 is no UTF-8");
}

#[test]
fn the_operators_page_has_every_key_with_its_default() {
    let page = include_str!("../../docs/configuration.md");
    let all: toml::Table = SHIPPED.parse().unwrap();
    for (section, keys) in &all {
        for (key, value) in keys.as_table().unwrap() {
            let value = match value {
                toml::Value::String(text) => format!("\"{text}\""),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(truth) => truth.to_string(),
                other => panic!("{other:?}"),
            };
            let row = format!("| `{section}.{key}` | `{value}` |");
            assert!(page.contains(&row), "{row}");
        }
    }
}
