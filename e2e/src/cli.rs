//! The command line of `lab`.
//!
//! Owns the words a person types and the exit codes; every command is one call into a module.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::image::{import, product};
use crate::lab::{Lab, ServiceAction};
use crate::machine::{enter, launch};
use crate::network::Link;
use crate::progress::Progress;
use crate::topology::LabName;
use crate::up::{self, Wish};
use crate::{command, down, status};

/// A real Kubernetes cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Cli {
    /// Which lab; for kubectl and helm before these words.
    #[arg(long, default_value = "tideover", env = "TIDEOVER_LAB", global = true)]
    name: LabName,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a cluster, or repair one.
    Up {
        /// How many workers; as before where the lab exists, else 3.
        #[arg(long)]
        workers: Option<u8>,
        /// Let etcd wait for the disk, as in production; slower. As before where the lab exists, else not.
        #[arg(long, num_args = 0..=1, default_missing_value = "true")]
        fsync: Option<bool>,
    },
    /// Remove a cluster and everything it left.
    Down,
    /// Show the machines and their services.
    Status,
    /// Print the path of the administrator's kubeconfig.
    Kubeconfig,
    /// Run kubectl for the cluster.
    Kubectl(PassThrough),
    /// Run helm for the cluster.
    Helm(PassThrough),
    /// Do something to one machine.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Build and load images.
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// The launcher of a machine; `up` runs it.
    #[command(hide = true)]
    MachineLaunch { spec: PathBuf, record: PathBuf },
    /// The entrance to a machine; `node exec` runs it.
    #[command(hide = true)]
    MachineEnter {
        record: PathBuf,
        spec: PathBuf,
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct PassThrough {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Run a program in the machine.
    Exec {
        machine: String,
        #[arg(last = true, required = true)]
        argv: Vec<OsString>,
    },
    /// A power cut: all processes gone at once, the disk stays.
    Kill { machine: String },
    /// A clean shut-down.
    Stop { machine: String },
    /// Start a machine that is down.
    Start { machine: String },
    /// Halt, continue or restart one service.
    Service { machine: String, service: String, action: Action },
    /// Pull, plug or slow down the network cable.
    Link {
        machine: String,
        action: LinkAction,
        /// For `slow`: megabits a second towards the machine.
        #[arg(long, default_value_t = 10)]
        rate: u32,
    },
    /// Print the path of a service's log.
    Log { machine: String, service: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Cont,
    /// SIGKILL; the machine starts it again.
    Restart,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LinkAction {
    /// Nothing goes in or out.
    Cut,
    /// What goes in is held up.
    Slow,
    /// As before.
    Restore,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build Tideover's images from the work tree.
    Build,
    /// Put image archives on every worker; without any, those that `build` made.
    Load { archives: Vec<PathBuf> },
}

/// Parses the command line, does what it says, and returns what the shell shall see.
pub fn main() -> ExitCode {
    let Cli { name, command } = Cli::parse();
    match run(name, command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(name: LabName, command: Command) -> Result<u8> {
    match command {
        Command::Up { workers, fsync } => {
            let lab = up::up(&Wish { name, workers, fsync }, &Progress::new())?;
            println!("export KUBECONFIG={}", lab.kubeconfig().display());
        }
        Command::Down => {
            if !down::down(&name, &Progress::new())? {
                println!("there was no lab called {name}");
            }
        }
        Command::Status => println!("{}", status::table(&open(&name)?)?),
        Command::Kubeconfig => println!("{}", open(&name)?.kubeconfig().display()),
        Command::Kubectl(PassThrough { arguments }) => {
            return pass_through(open(&name)?.kubectl_command(arguments));
        }
        Command::Helm(PassThrough { arguments }) => {
            return pass_through(open(&name)?.helm_command(arguments));
        }
        Command::Node { command } => return run_node(&open(&name)?, command),
        Command::Image { command } => run_image(&name, command)?,
        Command::MachineLaunch { spec, record } => launch::run_launcher(&spec, &record)?,
        Command::MachineEnter { record, spec, argv } => {
            let (program, arguments) = argv.split_first().context("no program to run")?;
            return Ok(enter::enter(&record, &spec, program, arguments)?);
        }
    }
    Ok(0)
}

fn run_node(lab: &Lab, command: NodeCommand) -> Result<u8> {
    match command {
        NodeCommand::Exec { machine, argv } => {
            let (program, arguments) = argv.split_first().context("no program to run")?;
            return Ok(lab.node(&machine)?.enter(program, arguments)?);
        }
        NodeCommand::Kill { machine } => report(lab.node(&machine)?.kill()?, "was down already"),
        NodeCommand::Stop { machine } => report(lab.node(&machine)?.stop()?, "was down already"),
        NodeCommand::Start { machine } => report(lab.node(&machine)?.start()?, "is running already"),
        NodeCommand::Service { machine, service, action } => {
            let action = match action {
                Action::Stop => ServiceAction::Stop,
                Action::Cont => ServiceAction::Continue,
                Action::Restart => ServiceAction::Restart,
            };
            lab.node(&machine)?.service(&service, action)?;
        }
        NodeCommand::Link { machine, action, rate } => {
            let link = match action {
                LinkAction::Cut => Link::Cut,
                LinkAction::Slow => Link::Slow { megabits: rate },
                LinkAction::Restore => Link::Restored,
            };
            lab.node(&machine)?.set_link(link)?;
        }
        NodeCommand::Log { machine, service } => println!("{}", lab.node(&machine)?.log(&service).display()),
    }
    Ok(0)
}

fn run_image(name: &LabName, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Build => {
            for image in product::build(&Progress::new())? {
                println!("{} {}", image.reference, image.archive.display());
            }
        }
        ImageCommand::Load { archives } => {
            let lab = open(name)?;
            if archives.is_empty() {
                let images = product::built()?;
                for node in lab.workers() {
                    import::import(&node, &images)?;
                }
            }
            for archive in &archives {
                for node in lab.workers() {
                    import::import_archive(&node, archive)?;
                }
            }
        }
    }
    Ok(())
}

/// Runs `command` on our own standard streams; returns its exit code.
fn pass_through(mut command: process::Command) -> Result<u8> {
    let status = command.status().with_context(|| format!("start `{}`", command::line_of(&command)))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn report(did: bool, otherwise: &str) {
    if !did {
        println!("{otherwise}");
    }
}

fn open(name: &LabName) -> Result<Lab> {
    Ok(Lab::open(name.as_str())?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_lab_s_name_goes_before_or_after_the_command() {
        for line in [["lab", "--name", "other", "status"], ["lab", "status", "--name", "other"]] {
            assert_eq!(Cli::parse_from(line).name.as_str(), "other");
        }
    }

    #[test]
    fn what_follows_kubectl_is_passed_on_as_it_is() {
        let cli = Cli::parse_from(["lab", "kubectl", "get", "pods", "-A", "--name", "x", "--", "y"]);
        let Command::Kubectl(PassThrough { arguments }) = cli.command else { panic!("not kubectl: {cli:?}") };
        assert_eq!(arguments, ["get", "pods", "-A", "--name", "x", "--", "y"]);
    }
}
