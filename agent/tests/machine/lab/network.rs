//! Interfaces of a test's own on the host.

use std::{
    fs,
    process::{self, Command, Stdio},
};

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Interfaces and a network namespace of this test's own, which are removed when this is dropped.
pub(crate) struct Network {
    prefix: String,
}

impl Network {
    pub(crate) fn new() -> Self {
        Self { prefix: format!("km{}", process::id() % 100_000) }
    }

    /// A name of this test's own, from a letter or two.
    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}{short}", self.prefix)
    }

    /// A text with `@x` for the name of x.
    pub(crate) fn named(&self, text: &str) -> String {
        text.replace('@', &self.prefix)
    }

    /// Runs `ip` with `@x` for the name of x.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&self.named(arguments));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let delete = |arguments: [&str; 3]| {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        };
        delete(["netns", "delete", &self.name("n")]);
        let links = fs::read_dir("/sys/class/net").unwrap().flatten();
        for link in links.filter_map(|link| link.file_name().into_string().ok()) {
            if link.starts_with(&self.prefix) {
                delete(["link", "delete", &link]);
            }
        }
    }
}

pub(crate) fn if_index(name: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).unwrap();
    text.trim().parse().unwrap()
}

/// An interface with hardware behind it.
pub(crate) fn hardware() -> Option<String> {
    let mut links = fs::read_dir("/sys/class/net").unwrap().flatten();
    let hardware = links.find(|link| link.path().join("device").exists())?;
    hardware.file_name().into_string().ok()
}
