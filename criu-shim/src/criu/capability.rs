//! Whether this host lets CRIU read the resource limits of other users' processes.

/// What to report where the preload is in use.
pub const NOTE: &str = "CAP_SYS_RESOURCE is missing on this host: resource limits are read from /proc instead";

/// Number of CAP_SYS_RESOURCE. Source: capabilities(7), linux/capability.h.
const SYS_RESOURCE: u32 = 24;

/// True if this process, and so CRIU as its child, lacks CAP_SYS_RESOURCE. prlimit(2) on a process of another user is
/// refused then, and nearly every server runs as another user.
pub fn missing_sys_resource() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| !has_effective(&status, SYS_RESOURCE))
}

fn has_effective(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_counts() {
        let status = "CapPrm:\t000001ffffffffff\nCapEff:\t000001fffeffffff\n";
        assert!(!has_effective(status, SYS_RESOURCE));
        assert!(has_effective(status, 21));
        assert!(!has_effective("", SYS_RESOURCE));
    }
}
