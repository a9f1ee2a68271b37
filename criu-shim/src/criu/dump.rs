//! What is asked of CRIU in a dump.

use super::CriuError;
use super::bundle::{Bundle, Spec};
use super::mounts::{self, Mount};
use super::prepared::{self, Entry, Kind};
use super::rpc::{CgroupMode, ExternalMount, NetworkLock, Options};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Name of CRIU's log in the work directory of a dump.
pub(super) const LOG_FILE: &str = "dump.log";

/// How long CRIU tries to seize the tasks, seconds. The tasks are frozen already, so this takes milliseconds; a stopped
/// task on the v1 freezer can't be seized at all.
const SEIZE_SECONDS: u32 = 10;

/// More than the list of a container's mounts has, mostly, bytes.
const MOUNTINFO: usize = 16 << 10;

/// One dump of one container's processes into a directory of images.
///
/// The cgroup must be frozen when CRIU gets the word, and stays frozen whatever comes of it.
#[derive(Clone, Debug)]
pub struct DumpRequest {
    /// Init process of the container, as the caller's `/proc` names it.
    pub pid: i32,
    /// Where the images go, in the caller's mount namespace. Empty.
    pub images_dir: PathBuf,
    /// Where the log goes, in the caller's mount namespace.
    pub work_dir: PathBuf,
    /// [`crate::freezer::Freezer::path_in_node`] of the container's cgroup.
    pub freeze_cgroup: PathBuf,
    /// The container's bundle.
    pub bundle: Bundle,
    /// What the policy and the processes ask for.
    pub options: DumpOptions,
}

/// What differs between dumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpOptions {
    /// Largest deleted but open file that is carried along, bytes.
    pub ghost_limit: u32,
    /// CRIU's log level, 0 to 4. Everything above 2 costs milliseconds of freeze.
    pub log_level: i32,
    /// Where to look for files with inotify watches; empty unless a process has any, because it costs a scan.
    pub inotify_paths: Vec<String>,
    /// Mounts that are not dumped beyond those of the specification: mount point to name in the image. The restore needs
    /// a path for each name ([`crate::local::ReleaseOptions::external_mounts`]).
    pub external_mounts: BTreeMap<PathBuf, String>,
    /// How much of the processes' private memory goes into the images.
    pub memory: Memory,
}

/// How much of the processes' private memory goes into the images of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// All of it.
    #[default]
    All,
    /// All but what [`super::Telling`] says, at the latest while CRIU is at work, which must be accounted for before a restore
    /// ([`super::pagemap::settle`]). The same holds as for shared memory ([`super::BegunDump::go`]).
    ButWithheld,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self {
            ghost_limit: 64 << 20,
            log_level: 2,
            inotify_paths: Vec::new(),
            external_mounts: BTreeMap::new(),
            memory: Memory::All,
        }
    }
}

impl DumpRequest {
    /// CRIU's options, given the container's mounts. Pure but for `resolve` (see [`mounts::external`]) and `look` (see
    /// [`prepared::external`]).
    pub(super) fn options(
        &self,
        images: &OwnedFd,
        work: &OwnedFd,
        mounts: &[Mount],
        resolve: impl Fn(&Path) -> Option<PathBuf>,
        look: impl Fn(&Path) -> Option<Vec<Entry>>,
    ) -> Options {
        let mut ext_mnt = external(&self.bundle.spec, mounts, resolve, look);
        ext_mnt.extend(self.options.external_mounts.iter().map(|(mount_point, name)| ExternalMount {
            key: mount_point.to_string_lossy().into_owned(),
            val: name.clone(),
        }));
        Options {
            images_dir_fd: images.as_raw_fd(),
            work_dir_fd: Some(work.as_raw_fd()),
            pid: Some(self.pid),
            log_level: Some(self.options.log_level),
            log_file: Some(LOG_FILE.to_owned()),
            notify_scripts: Some(true),
            root: Some(self.bundle.rootfs.to_string_lossy().into_owned()),
            ext_mnt,
            freeze_cgroup: Some(self.freeze_cgroup.to_string_lossy().into_owned()),
            timeout: Some(SEIZE_SECONDS),
            // Running means "as it was found", which is frozen: the cgroup is frozen before CRIU comes.
            leave_running: Some(true),
            // The other end of such a socket does not move.
            ext_unix_sk: Some(false),
            shell_job: Some(false),
            orphan_pts_master: Some(false),
            // The new pod has another address: connections can't go on. Never keep one half alive.
            tcp_established: Some(false),
            tcp_close: Some(true),
            tcp_skip_in_flight: Some(true),
            // Rules left behind by a failed restore would black-hole the pod, and a frozen cgroup sends nothing.
            network_lock: Some(NetworkLock::Skip.into()),
            // runc puts the new processes into the new pod's cgroups.
            manage_cgroups: Some(true),
            manage_cgroups_mode: Some(CgroupMode::Ignore.into()),
            file_locks: Some(true),
            link_remap: Some(true),
            ghost_limit: Some(self.options.ghost_limit),
            force_irmap: Some(!self.options.inotify_paths.is_empty()),
            irmap_scan_paths: self.options.inotify_paths.clone(),
        }
    }
}

/// The mounts that a dump leaves out.
fn external(
    spec: &Spec,
    mounts: &[Mount],
    resolve: impl Fn(&Path) -> Option<PathBuf>,
    look: impl Fn(&Path) -> Option<Vec<Entry>>,
) -> Vec<ExternalMount> {
    let mut external = mounts::external(spec, mounts, resolve);
    external.extend(prepared::external(spec, mounts, look));
    external
}

/// Whether the mounts of process `pid`, the first of `all` of a container with this specification, have peers of which CRIU would have to
/// make some ([`super::mount_image`]). Those of a process in a mount namespace of its own are not looked at: they may.
///
/// # Errors
/// [`CriuError::Mounts`].
pub fn have_peers(pid: i32, all: &[i32], spec: &Spec) -> Result<bool, CriuError> {
    // Of one that has ended there is none.
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace(pid);
    if all.iter().filter_map(|other| namespace(*other)).any(|other| own.as_ref() != Some(&other)) {
        return Ok(true);
    }
    let mounts = read_mounts(pid)?;
    let resolve = |path: &Path| resolve_in_container(pid, path);
    Ok(mounts::have_peers(&mounts, &external(spec, &mounts, resolve, |path| look_in_container(pid, path))))
}

fn read_mounts(pid: i32) -> Result<Vec<Mount>, CriuError> {
    read_mountinfo(pid).map(|text| mounts::parse(&text))
}

/// The mounts of process `pid`, as the kernel lists them.
pub(super) fn read_mountinfo(pid: i32) -> Result<String, CriuError> {
    let path = format!("/proc/{pid}/mountinfo");
    // Or it would be read in a dozen pieces, of 32 bytes at first.
    let mut text = String::with_capacity(MOUNTINFO);
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|source| CriuError::Mounts { pid, source })
}

/// Follows the symbolic links of `path` inside the root of process `pid`, without ever leaving it.
pub(super) fn resolve_in_container(pid: i32, path: &Path) -> Option<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(format!("/proc/{pid}/root"), flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let found = rustix::fs::openat2(&root, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?;
    // The kernel names a file of another mount namespace by its path from that namespace's root.
    std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()
}

/// Lists a directory of process `pid`; none where it can't be read or holds more than any that is left out of a dump.
pub(super) fn look_in_container(pid: i32, path: &Path) -> Option<Vec<Entry>> {
    const MOST: usize = 100;
    let inside = PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path));
    let entries: Vec<Entry> = std::fs::read_dir(inside)
        .ok()?
        .take(MOST)
        .map(|entry| {
            let entry = entry.ok()?;
            Some(Entry { name: entry.file_name().into_string().ok()?, kind: kind(&entry)? })
        })
        .collect::<Option<_>>()?;
    (entries.len() < MOST).then_some(entries)
}

fn kind(entry: &std::fs::DirEntry) -> Option<Kind> {
    let file_type = entry.file_type().ok()?;
    Some(if file_type.is_dir() {
        Kind::Directory
    } else if file_type.is_symlink() {
        Kind::Link(std::fs::read_link(entry.path()).ok()?)
    } else if file_type.is_char_device() {
        let device = entry.metadata().ok()?.rdev();
        Kind::Device { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    } else {
        Kind::Other
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> DumpRequest {
        DumpRequest {
            pid: 42,
            images_dir: "/i".into(),
            work_dir: "/w".into(),
            freeze_cgroup: "/sys/fs/cgroup/freezer/c".into(),
            bundle: Bundle { rootfs: "/b/rootfs".into(), spec: Default::default() },
            options: DumpOptions::default(),
        }
    }

    fn options(request: &DumpRequest) -> Options {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        request.options(&null(), &null(), &[], |_| None, |_| None)
    }

    #[test]
    fn the_tasks_stay_frozen_and_the_network_is_left_alone() {
        let options = options(&request());
        assert_eq!(options.leave_running, Some(true));
        assert_eq!(options.freeze_cgroup.as_deref(), Some("/sys/fs/cgroup/freezer/c"));
        assert_eq!(options.network_lock, Some(3));
        assert_eq!(options.manage_cgroups_mode, Some(0));
        assert_eq!((options.tcp_close, options.tcp_established), (Some(true), Some(false)));
        assert_eq!(options.tcp_skip_in_flight, Some(true));
    }

    #[test]
    fn inotify_paths_are_scanned_only_when_there_are_any() {
        assert_eq!(options(&request()).force_irmap, Some(false));
        let mut request = request();
        request.options.inotify_paths = vec!["/etc".to_owned()];
        assert_eq!(options(&request).force_irmap, Some(true));
    }

    #[test]
    fn extra_external_mounts_keep_their_names() {
        let mut request = request();
        request.options.external_mounts.insert("/dev".into(), "tideover-dev".into());
        let mount = ExternalMount { key: "/dev".to_owned(), val: "tideover-dev".to_owned() };
        assert_eq!(options(&request).ext_mnt, [mount]);
    }
}
