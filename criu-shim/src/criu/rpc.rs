//! The part of CRIU's RPC that Tideover speaks.
//!
//! Written by hand for the messages and fields in use. Source of names and numbers: CRIU's `images/rpc.proto` (4.2) and
//! <https://criu.org/RPC>. One message is one packet of a SOCK_SEQPACKET socket.

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RequestType {
    /// Not a request; the type of an answer to one that could not be read.
    Empty = 0,
    /// Dump a tree.
    Dump = 1,
    /// Restore a tree.
    Restore = 2,
    /// A notification, and the answer to one.
    Notify = 6,
    /// Which features does the kernel have?
    FeatureCheck = 9,
    /// Which version is it?
    Version = 10,
}

/// `criu_req`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What is asked.
    #[prost(enumeration = "RequestType", required, tag = "1")]
    pub r#type: i32,
    /// Options of a dump or restore.
    #[prost(message, optional, tag = "2")]
    pub opts: Option<Options>,
    /// Answer to a notification; false makes CRIU fail and clean up.
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
    /// Go on with another request after this one (not after a dump or restore).
    #[prost(bool, optional, tag = "4")]
    pub keep_open: Option<bool>,
    /// Features that are asked for.
    #[prost(message, optional, tag = "5")]
    pub features: Option<Features>,
}

/// `criu_features`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Features {
    /// Soft-dirty memory tracking.
    #[prost(bool, optional, tag = "1")]
    pub mem_track: Option<bool>,
    /// userfaultfd with what a lazy restore needs.
    #[prost(bool, optional, tag = "2")]
    pub lazy_pages: Option<bool>,
    /// pidfd_open and pidfd_getfd.
    #[prost(bool, optional, tag = "3")]
    pub pidfd_store: Option<bool>,
}

/// `criu_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// What this answers.
    #[prost(enumeration = "RequestType", required, tag = "1")]
    pub r#type: i32,
    /// Whether it went well.
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    /// Of a restore.
    #[prost(message, optional, tag = "4")]
    pub restore: Option<RestoreResponse>,
    /// Of a notification.
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notify>,
    /// errno of the failure.
    #[prost(int32, optional, tag = "7")]
    pub cr_errno: Option<i32>,
    /// Answer to a feature check.
    #[prost(message, optional, tag = "8")]
    pub features: Option<Features>,
    /// First error line of CRIU's log.
    #[prost(string, optional, tag = "9")]
    pub cr_errmsg: Option<String>,
    /// Answer to a version request.
    #[prost(message, optional, tag = "10")]
    pub version: Option<VersionResponse>,
}

/// `criu_restore_resp`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RestoreResponse {
    /// Process id of the restored root task.
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

/// `criu_notify`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Notify {
    /// Name of the point that CRIU has reached.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Process id of the root task, where there is one.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}

/// `criu_version`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VersionResponse {
    /// Major.
    #[prost(int32, required, tag = "1")]
    pub major: i32,
    /// Minor.
    #[prost(int32, required, tag = "2")]
    pub minor: i32,
    /// Patch level.
    #[prost(int32, optional, tag = "4")]
    pub sublevel: Option<i32>,
}

/// `ext_mount_map`: at a dump `val` is the name that goes into the image; at a restore `key` is that name and `val` the
/// path to bind.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExternalMount {
    /// Mount point in the container (dump), name in the image (restore).
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Name in the image (dump), path on the host (restore).
    #[prost(string, required, tag = "2")]
    pub val: String,
}

/// `criu_cg_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum CgroupMode {
    /// Cgroups are not CRIU's business.
    Ignore = 0,
}

/// `criu_network_lock_method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum NetworkLock {
    /// By iptables rules.
    Iptables = 1,
    /// By nftables rules.
    Nftables = 2,
    /// Not at all.
    Skip = 3,
}

/// `criu_opts`: what Tideover sets at a dump.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    /// Directory of the images: a descriptor of the *client's*, which CRIU opens through `/proc`.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    /// Root of the tree.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    /// Leave the tree as it was found.
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    /// Accept unix sockets whose other end is outside.
    #[prost(bool, optional, tag = "4")]
    pub ext_unix_sk: Option<bool>,
    /// Keep established TCP connections.
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    /// The root task is not a session leader.
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    /// Carry file locks along.
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    /// 0 to 4.
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    /// Name of the log in the work directory.
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    /// Send notifications.
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    /// Root file system of the container, on the host.
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    /// Directory of logs and sockets, like `images_dir_fd`.
    #[prost(int32, optional, tag = "17")]
    pub work_dir_fd: Option<i32>,
    /// Give deleted files that still have another name a temporary name.
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    /// Find the paths of inotify watches by scanning.
    #[prost(bool, optional, tag = "21")]
    pub force_irmap: Option<bool>,
    /// Mounts that are not dumped.
    #[prost(message, repeated, tag = "23")]
    pub ext_mnt: Vec<ExternalMount>,
    /// Older switch for cgroups; `manage_cgroups_mode` overrides it.
    #[prost(bool, optional, tag = "24")]
    pub manage_cgroups: Option<bool>,
    /// What CRIU does about cgroups.
    #[prost(enumeration = "CgroupMode", optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Largest deleted file that is carried along, bytes.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    /// Where to scan for inotify watches.
    #[prost(string, repeated, tag = "36")]
    pub irmap_scan_paths: Vec<String>,
    /// Directory of the freezer cgroup of the tree.
    #[prost(string, optional, tag = "44")]
    pub freeze_cgroup: Option<String>,
    /// How long CRIU tries to seize the tasks, seconds.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    /// Leave out connections that are not accepted yet.
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    /// Accept a terminal whose master is outside.
    #[prost(bool, optional, tag = "50")]
    pub orphan_pts_master: Option<bool>,
    /// Established TCP connections are closed at the restore.
    #[prost(bool, optional, tag = "52")]
    pub tcp_close: Option<bool>,
    /// How the network is locked meanwhile.
    #[prost(enumeration = "NetworkLock", optional, tag = "64")]
    pub network_lock: Option<i32>,
}

/// Field numbers of `criu_req` and `criu_opts` that the relay edits on the wire, where no field may get lost.
pub mod field {
    /// `criu_req.opts`.
    pub const REQUEST_OPTS: u32 = 2;
    /// `criu_opts.images_dir_fd`.
    pub const IMAGES_DIR_FD: u32 = 1;
    /// `criu_opts.file_locks`.
    pub const FILE_LOCKS: u32 = 8;
    /// `criu_opts.log_level`.
    pub const LOG_LEVEL: u32 = 9;
    /// `criu_opts.log_file`.
    pub const LOG_FILE: u32 = 10;
    /// `criu_opts.work_dir_fd`.
    pub const WORK_DIR_FD: u32 = 17;
    /// `criu_opts.link_remap`.
    pub const LINK_REMAP: u32 = 18;
    /// `criu_opts.ext_mnt`.
    pub const EXT_MNT: u32 = 23;
    /// `criu_opts.manage_cgroups`.
    pub const MANAGE_CGROUPS: u32 = 24;
    /// `criu_opts.cg_root`.
    pub const CG_ROOT: u32 = 25;
    /// `criu_opts.inherit_fd`.
    pub const INHERIT_FD: u32 = 27;
    /// `criu_opts.manage_cgroups_mode`.
    pub const MANAGE_CGROUPS_MODE: u32 = 34;
    /// `criu_opts.ghost_limit`.
    pub const GHOST_LIMIT: u32 = 35;
    /// `criu_opts.external`.
    pub const EXTERNAL: u32 = 37;
    /// `criu_opts.empty_ns`.
    pub const EMPTY_NS: u32 = 38;
    /// `criu_opts.join_ns`.
    pub const JOIN_NS: u32 = 39;
    /// `criu_opts.tcp_skip_in_flight`.
    pub const TCP_SKIP_IN_FLIGHT: u32 = 46;
    /// `criu_opts.lazy_pages`.
    pub const LAZY_PAGES: u32 = 48;
    /// `criu_opts.config_file`.
    pub const CONFIG_FILE: u32 = 51;
    /// `criu_opts.tcp_close`.
    pub const TCP_CLOSE: u32 = 52;
    /// `criu_opts.network_lock`.
    pub const NETWORK_LOCK: u32 = 64;
    /// `criu_opts.mntns_compat_mode`.
    pub const MNTNS_COMPAT_MODE: u32 = 65;
}

/// `inherit_fd`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct InheritFd {
    /// What the descriptor replaces in the image.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Descriptor of the CRIU process.
    #[prost(int32, required, tag = "2")]
    pub fd: i32,
}

/// `join_namespace`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct JoinNamespace {
    /// `net`, `uts`, `ipc`, `time`, ...
    #[prost(string, required, tag = "1")]
    pub ns: String,
    /// Path to the namespace.
    #[prost(string, required, tag = "2")]
    pub ns_file: String,
}
