//! Finds the shared libraries that a program of the Debian tree needs.
//!
//! Owns the reading of ldd's output. Runs the tree's own loader inside the tree, so that the host's libraries never get
//! into an image.

use std::path::{Path, PathBuf};

use crate::command::{self, CommandError};

/// The libraries and the loader of `program`, both as paths inside `tree`, sorted. A static program has none.
///
/// # Errors
/// When the tree's ldd fails.
pub fn of_program(tree: &Path, program: &str) -> Result<Vec<PathBuf>, CommandError> {
    let listing = command::read(command::program("chroot", [tree]).args(["/usr/bin/ldd", program]))?;
    Ok(parse(&listing))
}

fn parse(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, or the loader's path alone; the vDSO has no path.
        let found = line.split_once(" => ").map_or(line, |(_, right)| right).trim();
        let found = found.split(" (0x").next()?.trim();
        found.starts_with('/').then(|| PathBuf::from(found))
    };
    let mut paths: Vec<_> = listing.lines().filter_map(path).collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_loader_are_found_and_the_vdso_is_not() {
        let listing = "\
\tlinux-vdso.so.1 (0x00007ffd)
\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f01)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f02)
";
        let expected =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(listing), expected.map(PathBuf::from));
    }

    #[test]
    fn a_static_program_has_none() {
        assert!(parse("\tstatically linked\n").is_empty());
    }
}
