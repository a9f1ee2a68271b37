//! `tideover-agent`: moves state between nodes, and puts Tideover on a node.

use clap::{Parser, Subcommand};
use criu_shim::agent::host::NodeRoot;
use criu_shim::agent::injector;
use criu_shim::agent::install::{self, containerd};
use criu_shim::agent::keeper;
use criu_shim::agent::run::{self, READY};
use criu_shim::agent::settings::Settings;
use criu_shim::causes::chain;
use criu_shim::criu::leave_container;
use criu_shim::memory::serve_injections;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

#[derive(Debug, Parser)]
#[command(name = "tideover-agent", version, about = "Moves the state of pods between nodes")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Be the agent of this node.
    Run(Settings),
    /// Exit with 0 if the agent of this node is ready.
    Ready,
    /// Put Tideover's programs on this node and register its runtime handler.
    Install {
        /// Directory with what goes under /opt/tideover.
        #[arg(long, default_value = "/payload")]
        payload: PathBuf,
        /// The node's file system.
        #[arg(long, default_value = "/proc/1/root")]
        root: PathBuf,
    },
    /// Take Tideover off this node. Running pods go on.
    Uninstall {
        /// The node's file system.
        #[arg(long, default_value = "/proc/1/root")]
        root: PathBuf,
    },
    /// Make processes run system calls, as standard input says.
    #[command(hide = true, name = injector::TASK)]
    Inject {
        /// The node's file system.
        #[arg(long = injector::ROOT)]
        root: PathBuf,
    },
    /// Run a program of the node, with the node's file system as root directory.
    #[command(hide = true)]
    OnNode {
        /// The node's file system.
        #[arg(long)]
        root: PathBuf,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        program: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tideover-agent: {message}");
            ExitCode::FAILURE
        }
    }
}

fn execute(task: Task) -> Result<(), String> {
    match task {
        Task::Run(settings) => {
            log_to_stderr();
            if settings.kept { be_agent(settings) } else { be_keeper() }
        }
        Task::Ready => {
            if std::path::Path::new(READY).exists() {
                Ok(())
            } else {
                Err("not ready".to_owned())
            }
        }
        Task::Install { payload, root } => {
            log_to_stderr();
            install::install(&NodeRoot::at(&root), &payload).map_err(|error| chain(&error))
        }
        Task::Uninstall { root } => {
            log_to_stderr();
            install::uninstall(&NodeRoot::at(&root)).map_err(|error| chain(&error))
        }
        Task::Inject { root } => {
            leave_container(&root).map_err(|error| chain(&error))?;
            serve_injections().map_err(|error| chain(&error))
        }
        Task::OnNode { root, program } => {
            Err(format!("run {program:?}: {}", containerd::become_on_node(&root, &program)))
        }
    }
}

fn be_agent(settings: Settings) -> Result<(), String> {
    keeper::tie().map_err(|error| chain(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start the runtime: {error}"))?;
    runtime.block_on(run::run(settings)).map_err(|error| chain(&error))
}

/// On one thread, because the agent's life is tied to that of the thread that started it.
fn be_keeper() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start the runtime: {error}"))?;
    runtime.block_on(keeper::keep(&["--kept"])).map_err(|error| chain(&error))
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}
