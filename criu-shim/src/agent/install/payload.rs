//! The programs on the node: one directory per content, and one link that says which is current.
//!
//! `versions/<hash>` holds a whole payload; `current` is a link to one of them, replaced by a rename; `bin`, `relay`,
//! `criu` and `lib` are links through it. So an upgrade is one step, and what runs from an older version keeps its files.
//!
//! `init/<hash>` is one `tideover-init`, by its own content, so that a version in which it has not changed brings no other:
//! containers have it mapped, and can only be moved to where there is the same.

use crate::agent::transfer::message::IMAGES;
use crate::supervised::program::CURRENT as CURRENT_PROGRAM;
use crate::supervised::{Place, PlaceError, Program};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use thiserror::Error;

const VERSIONS: &str = "versions";
const CURRENT: &str = "current";
/// Characters of the content's hash in a version's name.
const HASH_LENGTH: usize = 16;

/// Why the payload could not be put in place or removed.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// The image's part can't be read.
    #[error("read the payload {path:?}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node's part can't be written.
    #[error("write {path:?}")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program that was sent is not the one that it was said to be.
    #[error("{path:?} is not the tideover-init {hash}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Hash of the one that was meant.
        hash: String,
    },
}

fn read_failed(path: &Path) -> impl FnOnce(std::io::Error) -> PayloadError + use<> {
    let path = path.to_owned();
    move |source| PayloadError::Read { path, source }
}

fn write_failed(path: &Path) -> impl FnOnce(std::io::Error) -> PayloadError + use<> {
    let path = path.to_owned();
    move |source| PayloadError::Write { path, source }
}

/// Makes the payload in `source` the current one below `root`. Returns the name of its version. Doing it again with the
/// same content changes nothing.
///
/// # Errors
/// Where something can't be read or written; the version that was current still is.
pub fn put(source: &Path, root: &Path) -> Result<String, PayloadError> {
    let files = list(source)?;
    let version = hash(source, &files)?;
    let versions = root.join(VERSIONS);
    let home = versions.join(&version);
    if !home.exists() {
        let temporary = versions.join(format!(".{version}.new"));
        remove_tree(&temporary)?;
        for relative in &files {
            copy(&source.join(relative), &temporary.join(relative))?;
        }
        std::fs::rename(&temporary, &home).map_err(write_failed(&home))?;
    }
    link(&Path::new(VERSIONS).join(&version), &root.join(CURRENT))?;
    for name in top_names(&files) {
        link(&Path::new(CURRENT).join(&name), &root.join(&name))?;
    }
    Ok(version)
}

/// Removes versions other than `current` that no process runs from.
///
/// # Errors
/// Where one can't be removed.
pub fn remove_unused(root: &Path, current: &str, programs: &BTreeSet<PathBuf>) -> Result<(), PayloadError> {
    let versions = root.join(VERSIONS);
    for entry in versions.read_dir().map_err(read_failed(&versions))? {
        let entry = entry.map_err(read_failed(&versions))?;
        let in_use =
            programs.iter().any(|program| program.components().any(|part| part.as_os_str() == entry.file_name()));
        if entry.file_name() != current && !in_use {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// The programs that run on the node, as `/proc/<pid>/exe` names them.
pub fn running_programs() -> BTreeSet<PathBuf> {
    let processes = Path::new("/proc").read_dir().into_iter().flatten().flatten();
    processes.filter_map(|process| process.path().join("exe").read_link().ok()).collect()
}

/// Makes the program `source` the one that new supervised containers get, among those in the directory `programs`. Doing it
/// again with the same content changes nothing.
///
/// # Errors
/// Where something can't be read or written; the one that was current still is.
pub fn put_program(source: &Path, programs: &Path) -> Result<Program, PayloadError> {
    let program = program_in(source)?;
    store(source, programs, &program)?;
    link(Path::new(program.hash()), &programs.join(CURRENT_PROGRAM))?;
    Ok(program)
}

/// Adds `program`, which another node has sent as the file `source`, for a container that runs it already. New containers never
/// get it.
///
/// # Errors
/// [`PayloadError::Content`] where that is not what was sent.
pub fn add_program(source: &Path, programs: &Path, program: &Program) -> Result<(), PayloadError> {
    if program_in(source)? != *program {
        return Err(PayloadError::Content { path: source.to_owned(), hash: program.hash().to_owned() });
    }
    store(source, programs, program)
}

fn program_in(source: &Path) -> Result<Program, PayloadError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(source).map_err(read_failed(source))?).map_err(read_failed(source))?;
    Ok(Program::of_content(&hasher.finalize()))
}

fn store(source: &Path, programs: &Path, program: &Program) -> Result<(), PayloadError> {
    let home = programs.join(program.hash());
    if home.exists() {
        return Ok(());
    }
    let temporary = programs.join(format!(".{}.new", program.hash()));
    remove_tree(&temporary)?;
    copy(source, &temporary)?;
    // Whoever a container runs as executes it.
    std::fs::set_permissions(&temporary, Permissions::from_mode(0o755)).map_err(write_failed(&temporary))?;
    std::fs::rename(&temporary, &home).map_err(write_failed(&home))
}

/// Which programs of containers must stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramsInUse {
    /// Hashes of those that containers of this node were created with or are to be restored with, whether they run yet or not.
    pub given: BTreeSet<String>,
    /// Device and inode of every program that runs. A container's processes don't name it by the node's path.
    pub running: BTreeSet<(u64, u64)>,
}

impl ProgramsInUse {
    /// Those of this node, whose places are in the directory `places`, and the images of moves in `images`.
    ///
    /// # Errors
    /// Where the places can't be listed.
    pub fn of_node(places: &Path, images: &Path) -> Result<Self, PlaceError> {
        let identities = Place::all(places)?.into_iter().filter_map(|(_, place)| place.identity().ok());
        let below = |path: PathBuf| path.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
        let attempts = below(images.to_owned()).flat_map(below);
        let expected = attempts.filter_map(|attempt| Program::read(&attempt.join(IMAGES)).ok().flatten());
        let processes = Path::new("/proc").read_dir().into_iter().flatten().flatten();
        let programs = processes.filter_map(|process| process.path().join("exe").metadata().ok());
        Ok(Self {
            given: identities
                .map(|identity| identity.program)
                .chain(expected.map(|program| program.hash().to_owned()))
                .collect(),
            running: programs.map(|program| (program.dev(), program.ino())).collect(),
        })
    }
}

/// Removes programs other than `current` that no container uses, and what a copy that was cut short has left.
///
/// # Errors
/// Where one can't be removed.
pub fn remove_unused_programs(programs: &Path, current: &Program, used: &ProgramsInUse) -> Result<(), PayloadError> {
    for entry in programs.read_dir().map_err(read_failed(programs))? {
        let path = entry.map_err(read_failed(programs))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let metadata = path.symlink_metadata().map_err(read_failed(&path))?;
        let runs = used.running.contains(&(metadata.dev(), metadata.ino()));
        if ![current.hash(), CURRENT_PROGRAM].contains(&name) && !used.given.contains(name) && !runs {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Files and links below `source`, relative to it, sorted.
fn list(source: &Path) -> Result<BTreeSet<PathBuf>, PayloadError> {
    let mut files = BTreeSet::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(directory) = stack.pop() {
        let path = source.join(&directory);
        for entry in path.read_dir().map_err(read_failed(&path))? {
            let entry = entry.map_err(read_failed(&path))?;
            let relative = directory.join(entry.file_name());
            if entry.file_type().map_err(read_failed(&path))?.is_dir() {
                stack.push(relative);
            } else {
                files.insert(relative);
            }
        }
    }
    Ok(files)
}

fn hash(source: &Path, files: &BTreeSet<PathBuf>) -> Result<String, PayloadError> {
    let mut hasher = blake3::Hasher::new();
    for relative in files {
        let path = source.join(relative);
        let metadata = path.symlink_metadata().map_err(read_failed(&path))?;
        let name = relative.as_os_str().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_be_bytes()).update(name);
        if metadata.is_symlink() {
            let target = path.read_link().map_err(read_failed(&path))?;
            hasher.update(b"l").update(target.as_os_str().as_encoded_bytes());
        } else {
            hasher.update(b"f").update(&metadata.permissions().mode().to_be_bytes());
            hasher.update(&metadata.len().to_be_bytes());
            hasher.update_reader(File::open(&path).map_err(read_failed(&path))?).map_err(read_failed(&path))?;
        }
    }
    Ok(hasher.finalize().to_hex()[..HASH_LENGTH].to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<(), PayloadError> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(write_failed(parent))?;
    }
    if from.symlink_metadata().map_err(read_failed(from))?.is_symlink() {
        let target = from.read_link().map_err(read_failed(from))?;
        return symlink(target, to).map_err(write_failed(to));
    }
    std::fs::copy(from, to).map_err(write_failed(to))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(write_failed(to))
}

fn top_names(files: &BTreeSet<PathBuf>) -> BTreeSet<OsString> {
    files.iter().filter_map(|file| Some(file.components().next()?.as_os_str().to_owned())).collect()
}

/// Points the link `path` to `target`, in one step.
fn link(target: &Path, path: &Path) -> Result<(), PayloadError> {
    if path.read_link().is_ok_and(|now| now == target) {
        return Ok(());
    }
    let temporary = path.with_extension("new");
    remove_tree(&temporary)?;
    symlink(target, &temporary).map_err(write_failed(&temporary))?;
    if path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        remove_tree(path)?;
    }
    std::fs::rename(&temporary, path).map_err(write_failed(path))
}

/// Removes a file, link or directory; what is not there is removed already.
///
/// # Errors
/// [`PayloadError::Write`].
pub fn remove_tree(path: &Path) -> Result<(), PayloadError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(write_failed(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(content: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("dir");
        for name in ["bin/criu-shim", "criu/lib/libc.so.6"] {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
            std::fs::write(&path, content).expect("file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        }
        symlink("libc.so.6", directory.path().join("criu/lib/libc.so")).expect("link");
        directory
    }

    #[test]
    fn a_program_stays_for_as_long_as_a_container_has_it() {
        let root = tempfile::tempdir().expect("dir");
        let programs = root.path().join("init");
        let source = root.path().join("tideover-init");
        let put = |content: &str| {
            std::fs::write(&source, content).expect("file");
            std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755)).expect("mode");
            put_program(&source, &programs).expect("put")
        };
        let (given, running, idle) = (put("given"), put("running"), put("idle"));
        assert_eq!(put("idle"), idle);
        assert_eq!(Program::current(&programs).expect("current"), idle);
        let current = put("current");
        let at = |program: &Program| programs.join(program.hash());
        assert_eq!(at(&current).metadata().expect("metadata").permissions().mode() & 0o777, 0o755);
        std::fs::write(programs.join(".cut.new"), "short").expect("file");
        let metadata = at(&running).metadata().expect("metadata");
        let used = ProgramsInUse {
            given: BTreeSet::from([given.hash().to_owned()]),
            running: BTreeSet::from([(metadata.dev(), metadata.ino())]),
        };
        remove_unused_programs(&programs, &current, &used).expect("remove");
        let left = [&given, &running, &idle, &current].map(|program| at(program).exists());
        assert_eq!(left, [true, true, false, true]);
        assert!(!programs.join(".cut.new").exists());
        assert_eq!(Program::current(&programs).expect("current"), current);
        remove_unused_programs(&programs, &current, &ProgramsInUse::default()).expect("remove");
        assert!(!at(&given).exists() && at(&current).exists());
    }

    #[test]
    fn what_a_process_runs_is_known_whatever_its_name_is() {
        let mut sleeper = std::process::Command::new("/bin/sleep").arg("60").spawn().expect("spawn");
        // It runs another program before it has executed this one.
        let exe = PathBuf::from(format!("/proc/{}/exe", sleeper.id()));
        let wanted = Path::new("/bin/sleep").metadata().expect("metadata");
        while exe.metadata().map_or(true, |now| now.ino() != wanted.ino()) {
            std::thread::yield_now();
        }
        let used = ProgramsInUse::of_node(Path::new("/nowhere"), Path::new("/nowhere"));
        sleeper.kill().and_then(|()| sleeper.wait()).expect("end");
        assert!(used.expect("used").running.contains(&(wanted.dev(), wanted.ino())));
    }

    #[test]
    fn a_program_stays_while_a_state_that_needs_it_waits_to_be_restored() {
        let state = tempfile::tempdir().expect("dir");
        let images = state.path().join("uid/1").join(IMAGES);
        std::fs::create_dir_all(&images).expect("dir");
        let program = Program::of_content(&blake3::hash(b"x"));
        program.write(&images).expect("write");
        let used = ProgramsInUse::of_node(Path::new("/nowhere"), state.path()).expect("used");
        assert_eq!(used.given, BTreeSet::from([program.hash().to_owned()]));
    }

    #[test]
    fn a_program_that_was_sent_is_taken_for_what_it_is_and_never_for_new_containers() {
        let root = tempfile::tempdir().expect("dir");
        let (programs, sent) = (root.path().join("init"), root.path().join("sent"));
        std::fs::write(&sent, "theirs").expect("file");
        let theirs = Program::of_content(&blake3::hash(b"theirs"));
        let other = Program::of_content(&blake3::hash(b"other"));
        assert!(matches!(add_program(&sent, &programs, &other), Err(PayloadError::Content { .. })));
        assert!(!programs.join(other.hash()).exists());
        add_program(&sent, &programs, &theirs).expect("add");
        let mode = programs.join(theirs.hash()).metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(Program::current(&programs).is_err());
    }

    #[test]
    fn an_upgrade_is_one_step_and_the_old_version_stays_while_it_runs() {
        let root = tempfile::tempdir().expect("dir");
        let at = |name: &str| std::fs::read_to_string(root.path().join(name)).expect("read");
        let (one, two) = (payload("one"), payload("two"));
        let first = put(one.path(), root.path()).expect("put");
        assert_eq!(put(one.path(), root.path()).expect("again"), first);
        assert_eq!(at("bin/criu-shim"), "one");
        assert_eq!(at("criu/lib/libc.so"), "one");
        let mode = root.path().join("bin/criu-shim").metadata().expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);

        let second = put(two.path(), root.path()).expect("put");
        assert_ne!(first, second);
        assert_eq!(at("bin/criu-shim"), "two");
        let running = BTreeSet::from([PathBuf::from(format!("/opt/tideover/versions/{first}/bin/criu-shim"))]);
        remove_unused(root.path(), &second, &running).expect("remove");
        assert!(root.path().join(VERSIONS).join(&first).exists());
        remove_unused(root.path(), &second, &BTreeSet::new()).expect("remove");
        assert!(!root.path().join(VERSIONS).join(&first).exists());
        assert_eq!(at("bin/criu-shim"), "two");
    }
}
