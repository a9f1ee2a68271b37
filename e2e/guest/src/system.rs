//! A bare kernel made into a system that runc works on: file systems, controllers, standard descriptors.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};
use std::fs::{self, File};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Controllers that a kubelet hands down, as far as they matter here.
const CONTROLLERS: &str = "+cpu +memory +pids";

/// Everything before the first check. Nothing is mounted on `/tmp`, which is in memory anyway: where the work tree is below it, so is
/// what the tests look for in that place.
pub fn prepare() -> Result<()> {
    leave_initial_root()?;
    for (kind, target, options) in [
        ("proc", "/proc", None),
        ("sysfs", "/sys", None),
        ("devtmpfs", "/dev", None),
        ("cgroup2", CGROUPS, None),
        ("devpts", "/dev/pts", Some("ptmxmode=0666")),
        ("tmpfs", "/dev/shm", None),
        ("tmpfs", "/run", None),
    ] {
        fs::create_dir_all(target).with_context(|| target.to_owned())?;
        mount(Some(kind), target, Some(kind), MsFlags::empty(), options).with_context(|| format!("mount {target}"))?;
    }
    standard_descriptors()?;
    loopback_up()?;
    fs::write(format!("{CGROUPS}/cgroup.subtree_control"), CONTROLLERS).context("hand down the controllers")?;
    // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
    unsafe { std::env::set_var("PATH", "/usr/sbin:/usr/bin") };
    Ok(())
}

/// pivot_root(2), by which runc changes the root, refuses to leave the kernel's initial one: this puts another mount of the same
/// files over it.
fn leave_initial_root() -> Result<()> {
    const ABOVE: &str = "/above";
    fs::create_dir(ABOVE).context(ABOVE)?;
    mount(Some("/"), ABOVE, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("bind the root")?;
    chdir(ABOVE).context(ABOVE)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).context("move the root")?;
    chroot(".").context("change the root")?;
    chdir("/").context("/")
}

/// CRIU finds out by connections to itself what the kernel can do.
fn loopback_up() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("a socket")?;
    // SAFETY: all zeros are a value of this type.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: the request takes such a structure, which lives through the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    nix::errno::Errno::result(result).context("loopback")?;
    Ok(())
}

/// The kernel opens its console for the first process only if there is a node for it among the initial files.
fn standard_descriptors() -> Result<()> {
    let console = File::options().read(true).write(true).open("/dev/console").context("/dev/console")?;
    nix::unistd::dup2_stdin(&console).context("standard input")?;
    nix::unistd::dup2_stdout(&console).context("standard output")?;
    nix::unistd::dup2_stderr(&console).context("standard error")
}

/// The end.
pub fn power_off() -> Result<()> {
    // SAFETY: reboot(2) takes a number. There are no disks whose caches would be lost.
    nix::errno::Errno::result(unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_POWER_OFF) }).context("power off")?;
    Ok(())
}
