//! The lab's network: one switch, one cable to each machine, one to the host.
//!
//! Owns the lab's network namespaces, the bridge in the switch's, and the host's end of one cable with its routes. Never
//! changes another interface or a kernel setting of the host.

use std::fs;
use std::io;
use std::net::Ipv4Addr;

use crate::command::{self, CommandError};
use crate::topology::{LabName, Machine, NetworkNamespace, Role, Topology, is_namespace_of};

const BRIDGE: &str = "br0";
const HOST_PORT: &str = "port-host";
const MACHINE_INTERFACE: &str = "eth0";

/// What could not be done with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// `ip` failed.
    #[error(transparent)]
    Ip(#[from] CommandError),
    /// The host's namespaces or routes could not be listed.
    #[error("list the host's network in {path}")]
    List {
        /// The file or directory.
        path: &'static str,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Makes the switch and the host's cable to it. Idempotent.
///
/// # Errors
/// With `ip`'s message.
pub fn ensure_switch(topology: &Topology) -> Result<(), NetworkError> {
    let switch = topology.switch();
    if !switch.path().exists() {
        ip(["netns", "add", switch.as_str()])?;
    }
    if !has_link(&switch, BRIDGE) {
        ip_in(&switch, ["link", "add", BRIDGE, "type", "bridge"])?;
    }
    ip_in(&switch, ["link", "set", BRIDGE, "up"])?;
    let host = topology.host_interface();
    if !has_link(&switch, HOST_PORT) {
        ip(["link", "add", &host, "type", "veth", "peer", "name", HOST_PORT, "netns", switch.as_str()])?;
    }
    ip_in(&switch, ["link", "set", HOST_PORT, "master", BRIDGE, "up"])?;
    ip(["addr", "replace", &format!("{}/24", topology.host_address()), "dev", &host])?;
    ip(["link", "set", &host, "up"])?;
    Ok(())
}

/// Gives `machine` a network namespace as new as a freshly started computer's: whatever its previous life left there,
/// firewall rules above all, is gone.
///
/// # Errors
/// With `ip`'s message.
pub fn plug(topology: &Topology, machine: &Machine) -> Result<(), NetworkError> {
    let (switch, own, port) = (topology.switch(), topology.namespace_of(machine), machine.port());
    if own.path().exists() {
        ip(["netns", "del", own.as_str()])?;
    }
    // The kernel takes namespaces apart in its own time; until then the old cable is still plugged in.
    if has_link(&switch, &port) {
        ip_in(&switch, ["link", "del", &port])?;
    }
    ip(["netns", "add", own.as_str()])?;
    ip_in(&own, ["link", "set", "lo", "up"])?;
    ip([
        "link",
        "add",
        &port,
        "netns",
        switch.as_str(),
        "type",
        "veth",
        "peer",
        "name",
        MACHINE_INTERFACE,
        "address",
        &topology.hardware_address(machine),
        "netns",
        own.as_str(),
    ])?;
    ip_in(&switch, ["link", "set", &port, "master", BRIDGE, "up"])?;
    ip_in(&own, ["addr", "add", &format!("{}/24", machine.address), "dev", MACHINE_INTERFACE])?;
    ip_in(&own, ["link", "set", MACHINE_INTERFACE, "up"])?;
    // Cluster addresses are rewritten only after a route was found, so a machine needs one for everywhere; it leads to
    // the lab's own switch, where nobody answers for the outside world.
    ip_in(&own, ["route", "replace", "default", "dev", MACHINE_INTERFACE])?;
    Ok(())
}

/// Tells the host and `machines` through which worker each pod network is reached. Idempotent.
///
/// # Errors
/// With `ip`'s message.
pub fn route_pods(topology: &Topology, machines: &[Machine]) -> Result<(), NetworkError> {
    for worker in topology.workers() {
        let Role::Worker(number) = worker.role else { continue };
        let (network, via) = (topology.pod_cidr_of(number), worker.address.to_string());
        ip(["route", "replace", &network, "via", &via, "dev", &topology.host_interface()])?;
        for machine in machines.iter().filter(|machine| machine.name != worker.name) {
            ip_in(&topology.namespace_of(machine), ["route", "replace", &network, "via", &via])?;
        }
    }
    Ok(())
}

/// What is done to a machine's cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Pull it: nothing goes in or out, nobody is told.
    Cut,
    /// Let at most so many megabits a second go towards the machine.
    Slow {
        /// Megabits a second.
        megabits: u32,
    },
    /// Plugged in, at full speed.
    Restored,
}

/// Cuts, slows or restores the cable of `machine`, at the switch's end: the machine itself sees no change.
///
/// # Errors
/// With the message of `ip` or `tc`.
pub fn set_link(topology: &Topology, machine: &Machine, link: Link) -> Result<(), NetworkError> {
    // Taking the port off the bridge and not down: a port that goes down takes the machine's carrier with it, and a
    // machine that knows that it is cut off behaves otherwise than one that does not.
    let (switch, port) = (topology.switch(), machine.port());
    match link {
        Link::Cut => ip_in(&switch, ["link", "set", &port, "nomaster"])?,
        Link::Slow { megabits } => {
            let rate = format!("{megabits}mbit");
            // A burst of 256 KiB is more than the kernel hands over at once; packets wait for at most 400 ms.
            tc_in(
                &switch,
                &["qdisc", "replace", "dev", &port, "root", "tbf"],
                &["rate", &rate, "burst", "256kb", "latency", "400ms"],
            )?;
        }
        Link::Restored => {
            // A fresh cable has no queue, and replacing works whether there is one or not.
            tc_in(&switch, &["qdisc", "replace", "dev", &port, "root"], &["noqueue"])?;
            ip_in(&switch, ["link", "set", &port, "master", BRIDGE])?;
        }
    }
    Ok(())
}

/// Has two machines not reach each other's addresses any more, in either direction: what they send is gone, and nobody is told.
/// Their pods, and everybody else, reach both. Idempotent.
///
/// # Errors
/// With `ip`'s message.
pub fn part(topology: &Topology, pair: [&Machine; 2]) -> Result<(), NetworkError> {
    for (from, to) in both_ways(pair) {
        ip_in(&topology.namespace_of(from), ["route", "replace", "blackhole", &format!("{}/32", to.address)])?;
    }
    Ok(())
}

/// Undoes [`part`].
///
/// # Errors
/// With `ip`'s message, also where they are not parted.
pub fn join(topology: &Topology, pair: [&Machine; 2]) -> Result<(), NetworkError> {
    for (from, to) in both_ways(pair) {
        ip_in(&topology.namespace_of(from), ["route", "del", "blackhole", &format!("{}/32", to.address)])?;
    }
    Ok(())
}

fn both_ways([one, other]: [&Machine; 2]) -> [(&Machine, &Machine); 2] {
    [(one, other), (other, one)]
}

/// Removes every namespace that belongs to the lab `name`, and the host's cable with its routes.
///
/// # Errors
/// With `ip`'s message.
pub fn remove(name: &LabName, topology: Option<&Topology>) -> Result<(), NetworkError> {
    if let Some(host) = topology.map(Topology::host_interface)
        && fs::exists(format!("/sys/class/net/{host}")).unwrap_or(false)
    {
        ip(["link", "del", &host])?;
    }
    for namespace in namespaces_of(name)? {
        ip(["netns", "del", &namespace])?;
    }
    Ok(())
}

/// The network namespaces on this host that belong to the lab `name`.
///
/// # Errors
/// When the host's namespaces cannot be listed.
pub fn namespaces_of(name: &LabName) -> Result<Vec<String>, NetworkError> {
    let path = "/run/netns";
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(NetworkError::List { path, source }),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|candidate| is_namespace_of(name, candidate)).collect())
}

/// Whether the host already routes addresses that lab number `index` would use.
///
/// # Errors
/// When the host's routes cannot be read.
pub fn busy_indices() -> Result<impl Fn(u8) -> bool, NetworkError> {
    let path = "/proc/net/route";
    let table = fs::read_to_string(path).map_err(|source| NetworkError::List { path, source })?;
    let routes = parse_routes(&table);
    Ok(move |index| {
        routes.iter().any(|destination| {
            let [a, b, c, _] = destination.octets();
            a == 10 && ((b == 77 && c == index) || b == 128 + index)
        })
    })
}

fn parse_routes(table: &str) -> Vec<Ipv4Addr> {
    // Column 2 is the destination as the hexadecimal of a number in the host's byte order, see proc(5).
    let destination = |line: &str| u32::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    table.lines().skip(1).filter_map(destination).map(|raw| Ipv4Addr::from(raw.to_ne_bytes())).collect()
}

fn has_link(namespace: &NetworkNamespace, link: &str) -> bool {
    ip_in(namespace, ["link", "show", "dev", link]).is_ok()
}

fn ip<const N: usize>(arguments: [&str; N]) -> Result<(), CommandError> {
    command::run(&mut command::program("ip", arguments)).map(drop)
}

fn ip_in<const N: usize>(namespace: &NetworkNamespace, arguments: [&str; N]) -> Result<(), CommandError> {
    command::run(command::program("ip", ["-n", namespace.as_str()]).args(arguments)).map(drop)
}

fn tc_in(namespace: &NetworkNamespace, queue: &[&str], options: &[&str]) -> Result<(), CommandError> {
    command::run(command::program("tc", ["-n", namespace.as_str()]).args(queue).args(options)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn destinations_of_the_host_s_routes_are_read() {
        let table = "Iface\tDestination\tGateway\nx\t00000000\t010200C0\nx\t00054D0A\t0\n";
        assert_eq!(parse_routes(table), [Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 77, 5, 0)]);
    }
}
