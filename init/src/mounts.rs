//! Lines of `/proc/self/mountinfo`.

/// What matters of one. Source: proc_pid_mountinfo(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    /// Which part of the file system is mounted.
    pub(crate) root: &'a str,
    /// Where. Blanks, tabs, line feeds and backslashes are written as three octal digits, here and in `source`.
    pub(crate) point: &'a str,
    /// Type of the file system.
    pub(crate) kind: &'a str,
    /// What it was said to be mounted from.
    pub(crate) source: &'a str,
    /// Options of the file system.
    pub(crate) options: &'a str,
}

impl<'a> Mount<'a> {
    /// Reads a line; none where it is none.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        Some(Self { root, point, kind: system.next()?, source: system.next()?, options: system.next()? })
    }
}
