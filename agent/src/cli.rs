//! The command line: one file per subcommand.

mod agent;
mod backends;
mod check;
mod crds;
mod link;
mod mirror;
mod services;
mod status;
mod unload;

use crate::{
    control,
    datapath::{KernelMaps, pins::Pins, probe},
    report::Question,
    tables::Installed,
};
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt::Display,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Sends connections to federated Kubernetes Services straight to a healthy pod, in any cluster.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent: program the kernel from manifests.
    Agent(agent::AgentArgs),
    /// Run the mirror: bring the peers' endpoints into this cluster.
    Mirror(mirror::MirrorArgs),
    /// Install the CRDs that the mirror works with, unless newer ones are there.
    Crds(crds::CrdsArgs),
    /// Say what is wrong with this cluster's links. Exit status 0 only if nothing is.
    Check(check::CheckArgs),
    /// Print what has to be applied where so that this cluster imports from another one.
    Link(link::LinkArgs),
    /// Remove from the kernel everything that an agent pinned, and nothing else.
    Unload(unload::UnloadArgs),
    /// Say how the agent is. Exit status 0 only if it is ready.
    Status(AskArgs),
    /// List the frontends: what they should have, and what the kernel has.
    Services(AskArgs),
    /// List the backends that the kernel has, and how often each was chosen.
    Backends(AskArgs),
    /// Print the version, and the layout of the maps.
    Version(VersionArgs),
    /// Dial the probe's addresses once a line comes in. The agent calls it.
    #[command(name = probe::SUBCOMMAND, hide = true)]
    ProbeSocket,
}

/// Where an agent is, or was.
#[derive(Args)]
struct AskArgs {
    /// The agent's socket.
    #[arg(long, env = "TOMBOLO_SOCKET", default_value = "/run/tombolo/agent.sock")]
    socket: PathBuf,
    /// The folder in which maps and links are pinned; read when no agent answers.
    #[arg(long, env = "TOMBOLO_PINS", default_value = "/sys/fs/bpf/tombolo")]
    pins: PathBuf,
    /// As a table for people, or as JSON for programs.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args)]
struct VersionArgs {
    /// As a line for people, or as JSON for programs.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Agent(args) => agent::run(args).map(|()| ExitCode::SUCCESS),
            Command::Mirror(args) => mirror::run(args).map(|()| ExitCode::SUCCESS),
            Command::Crds(args) => crds::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Check(args) => check::run(&args),
            Command::Link(args) => link::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Unload(args) => unload::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Status(args) => status::run(&args),
            Command::Services(args) => services::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Backends(args) => backends::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Version(args) => version(&args).map(|()| ExitCode::SUCCESS),
            Command::ProbeSocket => probe::dial_when_told().map(|()| ExitCode::SUCCESS),
        }
    }
}

impl AskArgs {
    /// What a running agent answers, else what `from_pins` makes of the pinned maps.
    fn ask_or_read<T: DeserializeOwned>(
        &self,
        question: Question,
        from_pins: impl FnOnce(&KernelMaps, &Installed) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if let Some(answer) = control::ask(&self.socket, question)? {
            return Ok(answer);
        }
        let pins = self.pins.display();
        let maps = KernelMaps::open(&Pins::new(&self.pins)).map_err(|error| {
            let place = format!("no agent answers at {}, and", self.socket.display());
            let kind = error.chain().find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
            error.context(match kind {
                Some(io::ErrorKind::PermissionDenied) => {
                    format!("{place} reading the tables that one left in {pins} takes root and CAP_BPF")
                }
                Some(io::ErrorKind::NotFound) => {
                    format!("{place} none left its tables in {pins} (--socket and --pins name other places)")
                }
                _ => format!("{place} the tables that one left in {pins} can't be read"),
            })
        })?;
        let installed = Installed::from_maps(maps.read()?);
        from_pins(&maps, &installed)
    }
}

/// Writes a line to standard output. A reader that has had enough, as in `| head`, is no error.
fn say(line: impl Display) -> anyhow::Result<()> {
    match writeln!(io::stdout().lock(), "{line}") {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

fn print_json(document: &impl Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(document).context("write JSON")?)
}

/// A table without lines and without a header.
fn lines() -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table
}

/// A table without lines, as `kubectl` prints them.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = lines();
    table.set_header(header);
    table
}

fn version(args: &VersionArgs) -> anyhow::Result<()> {
    let (version, layout) = (env!("CARGO_PKG_VERSION"), tombolo_ebpf::abi::LAYOUT);
    if args.output == Output::Json {
        return print_json(&serde_json::json!({ "version": version, "layout": layout }));
    }
    say(format!("tombolo {version}, map layout {layout}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_flag_can_be_given_as_an_environment_variable_of_its_name_but_those_of_link() {
        let mut seen = 0;
        let command = Cli::command();
        let link = command.find_subcommand("link").unwrap();
        assert!(
            link.get_arguments().all(|argument| argument.get_env().is_none()),
            "what they mean is the other cluster's"
        );
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "link") {
            for argument in subcommand.get_arguments() {
                let Some(flag) = argument.get_long().filter(|flag| *flag != "help" && *flag != "output") else {
                    continue;
                };
                let variable = format!("TOMBOLO_{}", flag.replace('-', "_").to_uppercase());
                let declared = argument.get_env().and_then(|name| name.to_str());
                assert_eq!(declared, Some(variable.as_str()), "--{flag} of {}", subcommand.get_name());
                seen += 1;
            }
        }
        assert!(seen > 15, "{seen}");
    }

    #[test]
    fn defaults_are_the_same_for_the_agent_and_for_who_asks_it() {
        let default = |subcommand: &str, flag: &str| {
            let command = Cli::command();
            let subcommand = command.find_subcommand(subcommand).unwrap();
            let argument = subcommand.get_arguments().find(|argument| argument.get_long() == Some(flag)).unwrap();
            argument.get_default_values().to_vec()
        };
        for other in ["status", "services", "backends", "unload"] {
            assert_eq!(default(other, "pins"), default("agent", "pins"), "{other}");
        }
        for other in ["status", "services", "backends"] {
            assert_eq!(default(other, "socket"), default("agent", "socket"), "{other}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_flag() {
        let agent = ["tombolo", "agent", "--manifests", "m", "--cluster", "west", "--node", "n"];
        assert!(Cli::try_parse_from(agent).is_ok());
        for (flag, value) in [("--max-slots", "0"), ("--max-backends", "16777217"), ("--max-frontends", "few")] {
            let error = Cli::try_parse_from(agent.into_iter().chain([flag, value])).err().unwrap().to_string();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
        for (given, flag) in [
            (&["--cluster", "west"][..], "--node"),
            (&["--node", "n", "--manifests", "m"], "--cluster"),
            (&["--node", "n", "--cluster", "west", "--manifests", "m", "--kubeconfig", "k"], "--kubeconfig"),
        ] {
            let error = Cli::try_parse_from(["tombolo", "agent"].iter().chain(given)).err().unwrap().to_string();
            assert!(error.contains(flag), "{error}");
        }
    }

    #[test]
    fn output_is_a_table_unless_json_is_asked_for() {
        for (arguments, json) in [(&["tombolo", "status"][..], false), (&["tombolo", "status", "-o", "json"], true)] {
            let Command::Status(args) = Cli::try_parse_from(arguments).unwrap().command else { panic!("status") };
            assert_eq!(args.output == Output::Json, json);
        }
    }
}
