//! runc's command line, as far as the shim must understand it: which command, which container, and for `create` what a
//! `restore` needs to be told as well.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// Global options of runc and crun that take a value. Source: `runc --help` (1.3), `crun --help` (1.28).
const GLOBAL_VALUES: [&str; 7] = ["root", "log", "log-format", "log-level", "rootless", "criu", "cgroup-manager"];

/// Options of `create` that take a value. Source: `runc create --help`, `crun create --help`.
const CREATE_VALUES: [&str; 8] =
    ["bundle", "b", "console-socket", "pidfd-socket", "pid-file", "preserve-fds", "config", "f"];

/// Options of `create` that `restore` has as well and that must be the same.
const CREATE_FLAGS_TO_KEEP: [&str; 2] = ["no-pivot", "no-subreaper"];

/// What was asked of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Create a container.
    Create(Create),
    /// Start the container of this id.
    Start(String),
    /// Delete the container of this id.
    Delete(String),
    /// Send a signal to the container of this id.
    Kill(String),
    /// Anything else; runc's own affair.
    Other,
}

/// `create`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Create {
    /// Options before the command, as they came.
    pub globals: Vec<OsString>,
    /// Container id.
    pub id: String,
    /// `--bundle`; the working directory without it.
    pub bundle: PathBuf,
    /// `--pid-file`.
    pub pid_file: Option<OsString>,
    /// `--console-socket`.
    pub console_socket: Option<OsString>,
    /// Flags that a restore gets as well.
    pub flags: Vec<OsString>,
    /// `--log`.
    pub log: Option<PathBuf>,
}

/// Reads the arguments behind the program's name. What the shim does not understand is [`Command::Other`].
pub(super) fn parse(arguments: &[OsString]) -> Command {
    let globals = read_options(arguments, &GLOBAL_VALUES);
    let Some(command) = arguments.get(globals.end).and_then(|command| command.to_str()) else { return Command::Other };
    let rest = &arguments[globals.end + 1..];
    match command {
        "create" => create(arguments, &globals, rest).map_or(Command::Other, Command::Create),
        "start" => id(rest, &[]).map_or(Command::Other, Command::Start),
        "delete" => id(rest, &[]).map_or(Command::Other, Command::Delete),
        "kill" => id(rest, &[]).map_or(Command::Other, Command::Kill),
        _ => Command::Other,
    }
}

fn create(arguments: &[OsString], globals: &Options, rest: &[OsString]) -> Option<Create> {
    let options = read_options(rest, &CREATE_VALUES);
    let flags = options.flags.iter().filter(|flag| CREATE_FLAGS_TO_KEEP.contains(&flag.as_str()));
    Some(Create {
        globals: arguments[..globals.end].to_vec(),
        id: valid_id(rest.get(options.end)?)?,
        bundle: options.value(&["bundle", "b"]).unwrap_or_else(|| ".".into()).into(),
        pid_file: options.value(&["pid-file"]),
        console_socket: options.value(&["console-socket"]),
        flags: flags.map(|flag| format!("--{flag}").into()).collect(),
        log: globals.value(&["log"]).map(PathBuf::from),
    })
}

fn id(rest: &[OsString], with_values: &[&str]) -> Option<String> {
    valid_id(rest.get(read_options(rest, with_values).end)?)
}

/// A container id that can be the name of a file. Source: runc's `validateID`.
fn valid_id(id: &OsStr) -> Option<String> {
    let id = id.to_str()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    (!id.is_empty() && id.len() <= 1024 && id != "." && id != ".." && id.chars().all(allowed)).then(|| id.to_owned())
}

/// Options up to the first argument that is none.
#[derive(Debug, Default)]
struct Options {
    values: Vec<(String, OsString)>,
    flags: Vec<String>,
    /// Index of the first argument that is no option.
    end: usize,
}

impl Options {
    /// The last value given under one of these names, which is the one that counts.
    fn value(&self, names: &[&str]) -> Option<OsString> {
        self.values.iter().rev().find(|(name, _)| names.contains(&name.as_str())).map(|(_, value)| value.clone())
    }
}

fn read_options(arguments: &[OsString], with_values: &[&str]) -> Options {
    let mut options = Options::default();
    while let Some(argument) = arguments.get(options.end).map(|argument| argument.to_string_lossy()) {
        let Some(option) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { break };
        options.end += 1;
        if option.is_empty() {
            // "--" ends the options.
            break;
        }
        if let Some((name, value)) = option.split_once('=') {
            options.values.push((name.to_owned(), value.into()));
        } else if with_values.contains(&option) {
            if let Some(value) = arguments.get(options.end) {
                options.values.push((option.to_owned(), value.clone()));
                options.end += 1;
            }
        } else {
            options.flags.push(option.to_owned());
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(line: &str) -> Command {
        parse(&line.split_ascii_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn created(line: &str) -> Create {
        match check(line) {
            Command::Create(create) => create,
            other => panic!("{line:?} is {other:?}"),
        }
    }

    #[test]
    fn containerds_create_is_understood() {
        let create = created(
            "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json --systemd-cgroup create \
             --bundle /b --pid-file /b/init.pid --no-pivot abc123",
        );
        assert_eq!(create.id, "abc123");
        assert_eq!(create.bundle, PathBuf::from("/b"));
        assert_eq!(create.pid_file.as_deref(), Some(OsStr::new("/b/init.pid")));
        assert_eq!(create.log, Some("/b/log.json".into()));
        assert_eq!(create.flags, ["--no-pivot"]);
        assert_eq!(create.globals.len(), 7);
        assert_eq!(create.console_socket, None);
    }

    #[test]
    fn values_may_stand_behind_an_equals_sign_or_a_single_dash() {
        let create = created("--root=/r -log /l create -b /b --pid-file=/p --console-socket /c x");
        assert_eq!((create.bundle, create.id), (PathBuf::from("/b"), "x".to_owned()));
        assert_eq!(create.pid_file.as_deref(), Some(OsStr::new("/p")));
        assert_eq!(create.console_socket.as_deref(), Some(OsStr::new("/c")));
        assert_eq!(create.log, Some("/l".into()));
    }

    #[test]
    fn the_bundle_is_the_working_directory_unless_told() {
        assert_eq!(created("create x").bundle, PathBuf::from("."));
    }

    #[test]
    fn start_delete_and_kill_name_their_container() {
        for (line, expected) in [
            ("--root /r --log /l --log-format json start x", Command::Start("x".to_owned())),
            ("--root /r delete --force x", Command::Delete("x".to_owned())),
            ("delete -f x", Command::Delete("x".to_owned())),
            ("--root /r kill x 15", Command::Kill("x".to_owned())),
            ("kill --all x KILL", Command::Kill("x".to_owned())),
        ] {
            assert_eq!(check(line), expected, "{line}");
        }
    }

    #[test]
    fn everything_else_is_runcs() {
        for line in [
            "",
            "--version",
            "--root /r state x",
            "features",
            "--root create",
            "create",
            "start",
            "start ../etc",
            "create --bundle /b ..",
            "checkpoint --image-path /i x",
            "restore --image-path /i x",
            "exec x create y",
        ] {
            assert_eq!(check(line), Command::Other, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_shim_panic_or_name_a_file_elsewhere(
            words in proptest::collection::vec("(create|start|delete|--?[a-z-]{0,8}(=[a-z/]*)?|[a-z./]{0,5})", 0..8),
        ) {
            let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
            if let Command::Create(Create { id, .. }) | Command::Start(id) | Command::Delete(id) | Command::Kill(id) =
                parse(&arguments)
            {
                prop_assert!(!id.contains('/') && id != "." && id != "..");
            }
        }
    }
}
