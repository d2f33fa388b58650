//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Serves VM-MIB (RFC 7666) of this KVM host through its SNMP master.
#[derive(Clone, Debug, Parser)]
#[command(name = "kvmeter", version)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Serve the VMs of this host to its SNMP master, until SIGTERM
    Run(ConfigFile),
    /// Check whether this host has what the agent needs, with the fix for what it lacks
    Check(CheckOptions),
    /// Show what the running agent serves, and its state
    Status(StatusOptions),
    /// Print the text of VM-MIB as this agent serves it, for managers that have no copy
    Mib(MibText),
    /// As root: make the directory of the pins for the user that the service runs as, who owns the state directory
    Prepare(ConfigFile),
    /// Stop counting: remove the pinned BPF programs and counters
    Detach(ConfigFile),
}

/// Option of commands that read the configuration.
#[derive(Args, Clone, Debug)]
pub struct ConfigFile {
    /// Configuration file [default: /etc/kvmeter/kvmeter.toml, which may be missing]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Which text is printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct MibText {
    /// Print KVMETER-CAPABILITIES-MIB instead: what the agent implements of VM-MIB, and where it differs
    #[arg(long)]
    pub capabilities: bool,
}

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// The options of every command that prints.
    #[command(flatten)]
    pub inspect: Inspect,
    /// As root: judge what the service can do, with the user, capabilities and mounts of its unit: a name or a path
    #[arg(
        long,
        value_name = "UNIT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "kvmeter.service"
    )]
    pub as_service: Option<String>,
    /// What is known of the service that this process has become: `Service` of `check`, in JSON.
    #[arg(long, hide = true, value_name = "JSON", conflicts_with = "as_service")]
    pub inside: Option<String>,
}

/// Options of commands that print.
#[derive(Args, Clone, Debug)]
pub struct Inspect {
    /// The configuration.
    #[command(flatten)]
    pub file: ConfigFile,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusOptions {
    /// The options of all commands that print.
    #[command(flatten)]
    pub inspect: Inspect,
    /// Show this VM only: its name, UUID or vmIndex
    #[arg(long, value_name = "VM")]
    pub vm: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_the_default_file() {
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut("check").unwrap().render_help().to_string();
        assert!(help.contains(crate::config::DEFAULT_PATH), "{help}");
    }

    #[test]
    fn help_is_a_command_and_a_typing_error_has_a_suggestion() {
        let said = |words: &[&str]| Cli::try_parse_from(words).unwrap_err().to_string();
        assert!(said(&["kvmeter", "help", "status"]).contains("--vm <VM>"));
        assert!(said(&["kvmeter", "stauts"]).contains("'status'"));
        assert!(said(&["kvmeter", "check", "--as-servce"]).contains("'--as-service'"));
    }

    #[test]
    fn a_file_is_named_after_the_command() {
        let words = ["kvmeter", "status", "--json", "--config", "/k.toml", "--vm", "web"];
        let Command::Status(options) = Cli::try_parse_from(words).unwrap().command else {
            panic!()
        };
        assert!(options.inspect.json && options.vm.as_deref() == Some("web"));
        assert_eq!(options.inspect.file.config, Some(PathBuf::from("/k.toml")));
        for (argument, unit) in
            [("--as-service", "kvmeter.service"), ("--as-service=/a/b.service", "/a/b.service")]
        {
            let cli = Cli::try_parse_from(["kvmeter", "check", argument, "--json"]).unwrap();
            let Command::Check(options) = cli.command else { panic!() };
            assert_eq!(options.as_service.as_deref(), Some(unit));
        }
        assert!(Cli::try_parse_from(["kvmeter"]).is_err());
        assert!(Cli::try_parse_from(["kvmeter", "--json", "status"]).is_err());
    }
}
