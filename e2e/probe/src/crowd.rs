//! What a process is made of besides memory, in numbers: processes, threads, mappings, descriptors.

use clap::Args as ClapArgs;
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use crate::{fork, mapping, ticker};

#[derive(ClapArgs)]
// Its group would have the name of the ticker's.
#[group(skip)]
pub(crate) struct Args {
    /// Processes, with the ticking one.
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Further processes, each a fork of the ticking one that shares all of its memory with it.
    #[arg(long, default_value_t = 0)]
    forks: usize,
    /// Threads of the ticking process, with the ticking one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Further mappings of a page each.
    #[arg(long, default_value_t = 0)]
    vmas: usize,
    /// Further open regular files.
    #[arg(long, default_value_t = 0)]
    files: usize,
    /// Further eventfds.
    #[arg(long, default_value_t = 0)]
    eventfds: usize,
    /// Further Unix stream sockets, in connected pairs.
    #[arg(long, default_value_t = 0)]
    sockets: usize,
    /// Further ends of pipes.
    #[arg(long, default_value_t = 0)]
    pipes: usize,
    /// Established TCP connections over loopback, each with both of its ends.
    #[arg(long, default_value_t = 0)]
    connections: usize,
    #[command(flatten)]
    tick: ticker::Args,
}

/// Makes all of it and ticks.
pub(crate) fn run(args: &Args) -> io::Result<()> {
    let program = std::env::current_exe()?;
    for _ in 1..args.processes {
        // Not one of them ends before this process does, the first of its container.
        Command::new(&program).arg("idle").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    }
    for _ in 1..args.threads {
        std::thread::Builder::new().spawn(idle)?;
    }
    if args.vmas > 0 {
        mapping::many(args.vmas)?;
    }
    // Open for as long as it ticks.
    let _descriptors = descriptors(args)?;
    // They are ended with this process, as those above.
    ticker::run_after(&args.tick, || fork::copies(args.forks).map(drop))
}

/// Does nothing.
pub(crate) fn idle() -> io::Result<()> {
    loop {
        std::thread::park();
    }
}

fn descriptors(args: &Args) -> io::Result<Vec<OwnedFd>> {
    let mut open = Vec::new();
    let program = std::env::current_exe()?;
    for _ in 0..args.files {
        // The same file, each opened on its own: no file of the writable layer has to move for it.
        open.push(File::open(&program)?.into());
    }
    for _ in 0..args.eventfds {
        open.push(eventfd(0, EventfdFlags::CLOEXEC)?);
    }
    for _ in 0..args.sockets / 2 {
        let (one, other) = UnixStream::pair()?;
        open.extend([OwnedFd::from(one), other.into()]);
    }
    for _ in 0..args.pipes / 2 {
        let (reader, writer) = io::pipe()?;
        open.extend([OwnedFd::from(reader), writer.into()]);
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    for _ in 0..args.connections {
        let connected = TcpStream::connect(listener.local_addr()?)?;
        open.extend([OwnedFd::from(connected), listener.accept()?.0.into()]);
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn as_many_descriptors_are_open_as_were_asked_for() {
        let words =
            Words::parse_from(["crowd", "--files=3", "--eventfds=2", "--sockets=4", "--pipes=6", "--connections=5"]);
        assert_eq!(descriptors(&words.args).expect("descriptors").len(), 25);
    }
}
