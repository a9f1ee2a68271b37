//! runc's restore request: what the relay reads in it, and how it edits it.
//!
//! Edited field by field on the wire, so that nothing that runc wrote and we do not know gets lost.

use crate::criu::rpc::{CgroupMode, ExternalMount, InheritFd, JoinNamespace, NetworkLock, Request, RequestType, field};
use crate::criu::wire::{self, Field, WireError};
use crate::local::ReleaseOptions;
use nix::sched::CloneFlags;
use prost::Message;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Key by which runc hands CRIU the network namespace to join.
const NETWORK_KEY: &str = "extRootNetNS";

/// Namespaces that the relay enters itself before it becomes CRIU.
const ENTERED: [(&str, CloneFlags); 2] = [("uts", CloneFlags::CLONE_NEWUTS), ("ipc", CloneFlags::CLONE_NEWIPC)];

fn entered(kind: &str) -> Option<CloneFlags> {
    ENTERED.iter().find(|(name, _)| *name == kind).map(|(_, flag)| *flag)
}

/// Why a request is not one.
#[derive(Debug, Error)]
pub enum RequestError {
    /// The outer message.
    #[error("decode runc's request")]
    Decode(#[source] prost::DecodeError),
    /// The outer message or its options, field by field.
    #[error("decode the fields of runc's request")]
    Fields(#[source] WireError),
    /// A restore without options.
    #[error("runc's request has no options")]
    NoOptions,
}

/// True if these are the bytes of a restore request. What can't be read is for CRIU to refuse.
pub fn is_restore(bytes: &[u8]) -> bool {
    Request::decode(bytes).is_ok_and(|request| request.r#type == i32::from(RequestType::Restore))
}

/// A restore request as runc sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreRequest {
    outer: Vec<Field>,
    options: Vec<Field>,
}

/// Descriptors of the process that becomes CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directories {
    /// The image directory.
    pub images: i32,
    /// The work directory, if runc named one.
    pub work: Option<i32>,
}

impl RestoreRequest {
    /// # Errors
    /// [`RequestError`] for bytes that are no request with options.
    pub fn decode(bytes: &[u8]) -> Result<Self, RequestError> {
        let outer = wire::decode(bytes).map_err(RequestError::Fields)?;
        let options = outer
            .iter()
            .find(|entry| entry.number == field::REQUEST_OPTS)
            .and_then(Field::as_bytes)
            .ok_or(RequestError::NoOptions)?;
        let options = wire::decode(options).map_err(RequestError::Fields)?;
        Ok(Self { outer, options })
    }

    /// runc's own descriptors of the image and work directories.
    pub fn directories(&self) -> Option<Directories> {
        let number = |number: u32| self.last(number).and_then(Field::as_varint).map(|value| value as i32);
        Some(Directories { images: number(field::IMAGES_DIR_FD)?, work: number(field::WORK_DIR_FD) })
    }

    /// Name of CRIU's log in the work directory.
    pub fn log_file(&self) -> Option<String> {
        self.last(field::LOG_FILE).and_then(Field::as_bytes).map(|name| String::from_utf8_lossy(name).into_owned())
    }

    /// Descriptor of the network namespace of the new pod, inherited from runc.
    pub fn network_namespace(&self) -> Option<i32> {
        self.messages::<InheritFd>(field::INHERIT_FD).find(|entry| entry.key == NETWORK_KEY).map(|entry| entry.fd)
    }

    /// The other namespaces of the new pod that the relay enters itself.
    pub fn joined_namespaces(&self) -> Vec<(CloneFlags, PathBuf)> {
        self.messages::<JoinNamespace>(field::JOIN_NS)
            .filter_map(|entry| Some((entered(&entry.ns)?, entry.ns_file.into())))
            .collect()
    }

    /// v1 cgroups that runc binds into the container: mount point in the container and path on the node.
    pub fn cgroup_mounts(&self) -> Vec<(PathBuf, PathBuf)> {
        self.messages::<ExternalMount>(field::EXT_MNT)
            .map(|mount| (PathBuf::from(mount.key), PathBuf::from(mount.val)))
            .filter(|(key, _)| key.parent() == Some(Path::new("/sys/fs/cgroup")))
            .collect()
    }

    /// The request that CRIU gets, once it runs in the new pod's network, UTS and IPC namespaces with `directories` open.
    pub fn edit(&self, directories: Directories, release: &ReleaseOptions) -> Vec<u8> {
        let mut options: Vec<Field> =
            self.options.iter().filter(|entry| !self.replaced(entry, release)).cloned().collect();
        options.extend(replacements(directories, release));
        let options = wire::encode(&options);
        let outer: Vec<Field> = self
            .outer
            .iter()
            .map(|entry| match entry.number {
                field::REQUEST_OPTS => Field::bytes(field::REQUEST_OPTS, options.clone()),
                _ => entry.clone(),
            })
            .collect();
        wire::encode(&outer)
    }

    /// True of what runc wrote and CRIU must not see.
    fn replaced(&self, entry: &Field, release: &ReleaseOptions) -> bool {
        let bytes = || entry.as_bytes().unwrap_or_default();
        match entry.number {
            // Set anew by `replacements`.
            field::IMAGES_DIR_FD
            | field::WORK_DIR_FD
            | field::LOG_LEVEL
            | field::FILE_LOCKS
            | field::LINK_REMAP
            | field::GHOST_LIMIT
            | field::TCP_CLOSE
            | field::TCP_SKIP_IN_FLIGHT
            | field::NETWORK_LOCK
            | field::MNTNS_COMPAT_MODE
            | field::LAZY_PAGES
            | field::MANAGE_CGROUPS
            | field::MANAGE_CGROUPS_MODE => true,
            // runc has put CRIU into the container's cgroups already; told so once more, CRIU takes 10 ms over it.
            field::CG_ROOT => true,
            // Overrides everything said here, from a file of the node or, by annotation, of the user.
            field::CONFIG_FILE => true,
            // CRIU is in the pod's network namespace: neither is it external to it nor does it make an empty one.
            field::EXTERNAL | field::EMPTY_NS => true,
            field::INHERIT_FD => InheritFd::decode(bytes()).is_ok_and(|inherit| inherit.key == NETWORK_KEY),
            field::JOIN_NS => JoinNamespace::decode(bytes()).is_ok_and(|joined| entered(&joined.ns).is_some()),
            field::EXT_MNT => {
                ExternalMount::decode(bytes()).is_ok_and(|mount| release.external_mounts.contains_key(&mount.key))
            }
            _ => false,
        }
    }

    fn last(&self, number: u32) -> Option<&Field> {
        self.options.iter().rev().find(|entry| entry.number == number)
    }

    fn messages<M: Message + Default>(&self, number: u32) -> impl Iterator<Item = M> + '_ {
        self.options
            .iter()
            .filter(move |entry| entry.number == number)
            .filter_map(|entry| M::decode(entry.as_bytes()?).ok())
    }
}

fn replacements(directories: Directories, release: &ReleaseOptions) -> Vec<Field> {
    let on = |number: u32, value: bool| Field::varint(number, u64::from(value));
    let mut fields = vec![
        Field::varint(field::IMAGES_DIR_FD, directories.images as u64),
        Field::varint(field::LOG_LEVEL, release.log_level.clamp(0, 4) as u64),
        on(field::FILE_LOCKS, release.file_locks),
        on(field::LINK_REMAP, release.link_remap),
        on(field::TCP_CLOSE, true),
        on(field::TCP_SKIP_IN_FLIGHT, true),
        Field::varint(field::NETWORK_LOCK, i32::from(NetworkLock::Skip) as u64),
        on(field::MANAGE_CGROUPS, true),
        Field::varint(field::MANAGE_CGROUPS_MODE, i32::from(CgroupMode::Ignore) as u64),
        on(field::LAZY_PAGES, release.pages.is_some()),
        on(field::MNTNS_COMPAT_MODE, release.older_mounts),
    ];
    fields.extend(directories.work.map(|work| Field::varint(field::WORK_DIR_FD, work as u64)));
    if release.ghost_limit > 0 {
        fields.push(Field::varint(field::GHOST_LIMIT, release.ghost_limit.into()));
    }
    fields.extend(release.external_mounts.iter().map(|(key, path)| {
        let mount = ExternalMount { key: key.clone(), val: path.to_string_lossy().into_owned() };
        Field::bytes(field::EXT_MNT, mount.encode_to_vec())
    }));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNKNOWN: u32 = 131;

    fn runc_request() -> Vec<u8> {
        let mount = |key: &str, val: &str| {
            Field::bytes(field::EXT_MNT, ExternalMount { key: key.into(), val: val.into() }.encode_to_vec())
        };
        let inherit =
            |key: &str, fd: i32| Field::bytes(field::INHERIT_FD, InheritFd { key: key.into(), fd }.encode_to_vec());
        let join = |ns: &str, path: &str| {
            Field::bytes(field::JOIN_NS, JoinNamespace { ns: ns.into(), ns_file: path.into() }.encode_to_vec())
        };
        let options = [
            Field::varint(field::IMAGES_DIR_FD, 7),
            Field::varint(field::LOG_LEVEL, 4),
            Field::bytes(field::LOG_FILE, b"restore.log".to_vec()),
            Field::varint(field::WORK_DIR_FD, 9),
            mount("/data", "/vol"),
            mount("/dev/null", "/dev/null"),
            Field::varint(field::MANAGE_CGROUPS, 1),
            Field::bytes(field::CG_ROOT, b"\x12\x01/".to_vec()),
            Field::varint(26, 1),
            inherit("extRootNetNS", 4),
            inherit("pipe:[1]", 1),
            Field::varint(field::MANAGE_CGROUPS_MODE, 3),
            Field::varint(field::EMPTY_NS, 0),
            join("uts", "/proc/5/ns/uts"),
            join("ipc", "/proc/5/ns/ipc"),
            join("time", "/proc/5/ns/time"),
            Field::bytes(field::CONFIG_FILE, b"/etc/criu/runc.conf".to_vec()),
            Field::bytes(UNKNOWN, b"kept".to_vec()),
        ];
        wire::encode(&[Field::varint(1, 2), Field::bytes(field::REQUEST_OPTS, wire::encode(&options))])
    }

    fn edited(release: &ReleaseOptions) -> RestoreRequest {
        let request = RestoreRequest::decode(&runc_request()).unwrap();
        RestoreRequest::decode(&request.edit(Directories { images: 70, work: Some(71) }, release)).unwrap()
    }

    fn values(request: &RestoreRequest, number: u32) -> Vec<u64> {
        request.options.iter().filter(|entry| entry.number == number).filter_map(Field::as_varint).collect()
    }

    #[test]
    fn a_restore_is_told_from_the_rest() {
        assert!(is_restore(&runc_request()));
        assert!(!is_restore(&Request { r#type: RequestType::Version.into(), ..Default::default() }.encode_to_vec()));
        assert!(!is_restore(b"garbage"));
    }

    #[test]
    fn what_the_relay_needs_is_read() {
        let request = RestoreRequest::decode(&runc_request()).unwrap();
        assert_eq!(request.directories(), Some(Directories { images: 7, work: Some(9) }));
        assert_eq!(request.network_namespace(), Some(4));
        let joined = request.joined_namespaces();
        assert_eq!(joined[0], (CloneFlags::CLONE_NEWUTS, "/proc/5/ns/uts".into()));
        assert_eq!(joined[1], (CloneFlags::CLONE_NEWIPC, "/proc/5/ns/ipc".into()));
        assert_eq!(joined.len(), 2);
        assert_eq!(request.log_file().as_deref(), Some("restore.log"));
    }

    #[test]
    fn directories_and_fixed_options_are_set_once() {
        let release = ReleaseOptions {
            log_level: 2,
            ghost_limit: 1 << 26,
            file_locks: true,
            older_mounts: true,
            ..Default::default()
        };
        let request = edited(&release);
        for (number, value) in [
            (field::IMAGES_DIR_FD, 70),
            (field::WORK_DIR_FD, 71),
            (field::LOG_LEVEL, 2),
            (field::FILE_LOCKS, 1),
            (field::LINK_REMAP, 0),
            (field::GHOST_LIMIT, 1 << 26),
            (field::TCP_CLOSE, 1),
            (field::TCP_SKIP_IN_FLIGHT, 1),
            (field::NETWORK_LOCK, 3),
            (field::MANAGE_CGROUPS, 1),
            (field::MANAGE_CGROUPS_MODE, 0),
            (field::LAZY_PAGES, 0),
            (field::MNTNS_COMPAT_MODE, 1),
            (26, 1),
        ] {
            assert_eq!(values(&request, number), [value], "field {number}");
        }
    }

    #[test]
    fn what_criu_must_not_see_is_dropped_and_the_rest_is_kept() {
        let request = edited(&ReleaseOptions::default());
        for number in [field::CG_ROOT, field::EXTERNAL, field::EMPTY_NS, field::CONFIG_FILE] {
            assert!(request.last(number).is_none(), "field {number}");
        }
        assert_eq!(request.network_namespace(), None);
        assert!(request.joined_namespaces().is_empty());
        let inherited: Vec<InheritFd> = request.messages(field::INHERIT_FD).collect();
        assert_eq!(inherited, [InheritFd { key: "pipe:[1]".into(), fd: 1 }]);
        let joined: Vec<JoinNamespace> = request.messages(field::JOIN_NS).collect();
        assert_eq!(joined.len(), 1);
        assert_eq!(request.last(UNKNOWN).and_then(Field::as_bytes), Some(&b"kept"[..]));
    }

    #[test]
    fn an_external_mount_of_the_agents_replaces_runcs() {
        let mut release = ReleaseOptions::default();
        release.external_mounts.insert("/data".into(), "/staged".into());
        let mounts: Vec<ExternalMount> = edited(&release).messages(field::EXT_MNT).collect();
        let mounts: Vec<_> = mounts.iter().map(|mount| (mount.key.as_str(), mount.val.as_str())).collect();
        assert_eq!(mounts, [("/dev/null", "/dev/null"), ("/data", "/staged")]);
    }

    #[test]
    fn a_request_without_options_is_refused() {
        let bytes = wire::encode(&[Field::varint(1, 2)]);
        assert!(matches!(RestoreRequest::decode(&bytes), Err(RequestError::NoOptions)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_relay_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = RestoreRequest::decode(&bytes) {
                request.edit(Directories { images: 1, work: None }, &ReleaseOptions::default());
                let _ = (request.directories(), request.network_namespace());
                let _ = (request.joined_namespaces(), request.cgroup_mounts(), request.log_file());
            }
        }

        #[test]
        fn what_is_not_known_here_is_never_lost(
            number in 72u32..1 << 29,
            value in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut request = RestoreRequest::decode(&runc_request()).unwrap();
            request.options.push(Field::bytes(number, value.clone()));
            let edited = request.edit(Directories { images: 1, work: None }, &ReleaseOptions::default());
            let edited = RestoreRequest::decode(&edited).unwrap();
            prop_assert_eq!(edited.last(number).and_then(Field::as_bytes), Some(value.as_slice()));
        }
    }
}
