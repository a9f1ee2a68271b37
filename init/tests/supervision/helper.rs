//! Applications that speak sd_notify(3): this test program itself, started again with a role.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, exit};
use std::time::Duration;

/// Does nothing unless it was started as an application.
#[test]
fn application() {
    match std::env::var("ROLE").as_deref() {
        Ok("pings-then-hangs") => {
            assert!(std::env::var("WATCHDOG_USEC").unwrap() == "500000");
            say("READY=1");
            for _ in 0..3 {
                std::thread::sleep(Duration::from_millis(250));
                say("WATCHDOG=1");
            }
            say("STATUS=three pings\nERRNO=5");
            std::thread::sleep(Duration::from_secs(1000));
        }
        Ok("barrier") => {
            say("READY=1");
            let (ours, theirs) = nix::unistd::pipe().unwrap();
            send(b"BARRIER=1", Some(theirs.as_raw_fd()));
            drop(theirs);
            let mut waited = [PollFd::new(ours.as_fd(), PollFlags::empty())];
            poll(&mut waited, PollTimeout::try_from(30_000).unwrap()).unwrap();
            assert_eq!(waited[0].revents(), Some(PollFlags::POLLHUP));
            exit(0);
        }
        Ok("hands-over") => {
            let heir = Command::new("sh").args(["-c", "sleep 0.2; exit 44"]).spawn().unwrap();
            say(&format!("MAINPID={}", heir.id()));
            exit(3);
        }
        Ok("names-a-grandchild") => {
            let mut child = Command::new("sleep").arg("0.1").spawn().unwrap();
            say(&format!("MAINPID={}", child.id()));
            child.wait().unwrap();
            std::thread::sleep(Duration::from_secs(1000));
        }
        Ok("child-triggers-the-watchdog") => {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "helper::application", "--nocapture"])
                .env("ROLE", "triggers-the-watchdog")
                .spawn()
                .unwrap();
            child.wait().unwrap();
            exit(9);
        }
        Ok("triggers-the-watchdog") => {
            say("WATCHDOG=trigger");
            // Not gone before it was looked at.
            let (ours, theirs) = nix::unistd::pipe().unwrap();
            send(b"BARRIER=1", Some(theirs.as_raw_fd()));
            drop(theirs);
            poll(&mut [PollFd::new(ours.as_fd(), PollFlags::empty())], PollTimeout::try_from(30_000).unwrap()).unwrap();
            exit(0);
        }
        _ => {}
    }
}

fn say(text: &str) {
    send(text.as_bytes(), None);
}

fn send(text: &[u8], descriptor: Option<i32>) {
    let address = UnixAddr::new(std::env::var("NOTIFY_SOCKET").unwrap().as_str()).unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    let descriptors = descriptor.as_slice();
    let rights = [ControlMessage::ScmRights(descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(text)], control, MsgFlags::empty(), Some(&address)).unwrap();
}
