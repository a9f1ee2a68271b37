//! System V objects through a dump and a restore by a real CRIU, into an IPC namespace that exists already.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod container;

use container::{Container, LIMIT, criu, dump, preload};
use criu_shim::criu::system_v::removed_segments;
use criu_shim::criu::{Bundle, DumpOptions, DumpRequest, ObjectId, Place, WarmCriu, preflight, shared};
use criu_shim::freezer::Freezer;
use criu_shim::memory::shared::{SharedObject, device, find};
use criu_shim::pages::PageRange;
use criu_shim::pages::store::SharedWriter;
use criu_shim::system_v::{Kind, Object, list, remove};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// Bytes of the segment that crosses before the freeze, and of each that does not.
const LARGE: usize = 2 << 20;
const SMALL: usize = 56;

/// What the process holds: in order of their making, and so of their ids.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    objects: Vec<Object>,
    keys: Vec<String>,
    values: Vec<u16>,
    messages: Vec<(i64, Vec<u8>)>,
    /// What is in the segment that nobody has mapped.
    unmapped: Vec<u8>,
}

#[test]
#[ignore = "needs root, CRIU, libdump_preload.so and libipc_preload.so at the paths in TIDEOVER_CRIU, TIDEOVER_DUMP_PRELOAD and \
            TIDEOVER_IPC_PRELOAD"]
fn objects_are_the_same_in_the_namespace_that_the_processes_are_restored_in() {
    let root = tempfile::tempdir().unwrap();
    let container = Container::start(root.path(), "hold_system_v", "");
    let freezer = Freezer::of_process(container.pid, Path::new("/")).unwrap();
    let findings = preflight::inspect(container.pid, &[container.pid]).unwrap();
    assert_eq!(preflight::refusal(&findings), None);
    assert!(preflight::holds_system_v(container.pid).unwrap());
    let place = Place { namespaces_of: container.pid, outside_ipc: true, node_root: "/".into() };
    WarmCriu::examine(&criu(), Path::new("/")).unwrap();
    let warm = WarmCriu::start(&criu().preloading(&preload()), &place).unwrap();

    // The large segment crosses while the process runs, as other shared memory does.
    let device = device().unwrap();
    let mut found = find(&[container.pid], device, &BTreeSet::new()).new;
    let (id, file) = found.pop_first().unwrap();
    assert!(found.is_empty(), "the small ones are CRIU's");
    let mut object = SharedObject::new(file.try_clone().unwrap()).unwrap();
    let mut writer = SharedWriter::create(root.path(), id).unwrap();
    cross(&mut object, &mut writer);
    let mapping = fs::OpenOptions::new().write(true).open(mapping_of(container.pid, id)).unwrap();
    mapping.write_all_at(b"written between the rounds", 77).unwrap();
    freezer.freeze(LIMIT).unwrap();
    cross(&mut object, &mut writer);

    let images = root.path().join("images");
    fs::create_dir(&images).unwrap();
    let request = DumpRequest {
        pid: container.pid,
        images_dir: images.clone(),
        work_dir: root.path().to_owned(),
        freeze_cgroup: freezer.path_in_node().to_owned(),
        bundle: Bundle { rootfs: container.rootfs.clone(), spec: Default::default() },
        options: DumpOptions::default(),
    };
    let millis = dump(warm.begin(request).unwrap(), &[ObjectId { device, inode: id }]);
    println!("dump from outside of the IPC namespace: {millis:.1} ms");
    let findings = preflight::inspect_frozen(container.pid, true).unwrap();
    assert_eq!(preflight::refusal(&findings), None);
    assert!(preflight::refusal(&preflight::inspect_frozen(container.pid, false).unwrap()).is_some());
    let before = inside(container.pid);
    let content = content(&file);
    let removed: Vec<i32> =
        before.objects.iter().filter(|object| object.is_removed()).map(|object| object.id).collect();
    assert_eq!(removed_segments(&images).unwrap(), Some(removed.clone()));
    assert_eq!(removed.len(), 1);

    let pages: Vec<_> = object.order().iter().map(|range| range.start..range.end).collect();
    assert!(shared::fill_in(&images, id, &pages, LARGE as u64).unwrap(), "it was left out of the dump");
    let image = shared::read(&images, id).unwrap().unwrap();
    let asked: Vec<_> =
        image.pages.iter().map(|range| PageRange::new(range.start, range.end - range.start).unwrap()).collect();
    writer.finish(&asked, &images.join(shared::pages_file(image.pages_id))).unwrap();
    drop((file, object, mapping, freezer, container));

    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWIPC).unwrap();
            let namespace = fs::read_link("/proc/thread-self/ns/ipc").unwrap();
            let pid = restore(&root.path().join("rootfs"), &images);
            assert_eq!(fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap(), namespace, "no other one was made");
            let restored = find(&[pid], device, &BTreeSet::new()).new.pop_first().unwrap();
            assert!(restored.0 == id && self::content(&restored.1) == content);
            // CRIU does not know that a segment was removed. The relay does that once it is mapped.
            remove(Kind::Segment, removed[0]).unwrap();
            let mut after = inside(pid);
            // Who made them is not restored, and need not be where it is who owns them.
            for (object, before) in after.objects.iter_mut().zip(&before.objects) {
                object.creator = before.creator;
            }
            assert_eq!(after, before);
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let gone = || !list().unwrap().iter().any(|object| object.id == removed[0] && object.kind == Kind::Segment);
            let deadline = Instant::now() + LIMIT;
            while !gone() {
                assert!(Instant::now() < deadline, "a removed segment goes with its last mapping");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    });
}

/// A round of the object, straight into the target's file.
fn cross(object: &mut SharedObject, writer: &mut SharedWriter) {
    let mut page = vec![0; PAGE];
    for range in object.changed(1).unwrap() {
        for start in (range.start..range.end).step_by(PAGE) {
            object.take(start, &mut page).unwrap();
            writer.write(start, &page).unwrap();
        }
    }
}

/// The mapping of segment `id` in a process.
fn mapping_of(pid: i32, id: u32) -> PathBuf {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let is_its = |line: &&str| line.contains("/SYSV") && line.split_ascii_whitespace().nth(4) == Some(&id.to_string());
    let range = maps.lines().find(is_its).and_then(|line| line.split(' ').next()).unwrap();
    format!("/proc/{pid}/map_files/{range}").into()
}

fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; LARGE];
    file.read_exact_at(&mut content, 0).unwrap();
    content
}

/// Restores the process in the calling thread's IPC namespace.
fn restore(rootfs: &Path, images: &Path) -> i32 {
    let library = PathBuf::from(std::env::var_os("TIDEOVER_IPC_PRELOAD").expect("TIDEOVER_IPC_PRELOAD is not set"));
    let program = criu().preloading_first(&library);
    let (executable, arguments) = program.command();
    let pidfile = images.join("pid");
    let mounted = Command::new("mount").arg("--bind").arg(rootfs).arg(rootfs).status().unwrap();
    assert!(mounted.success());
    let options = ["--no-default-config", "restore", "--restore-detached", "--manage-cgroups=ignore", "--tcp-close"];
    let mut restore = Command::new(executable);
    restore.args(arguments).args(options).envs(program.environment());
    restore.arg("--root").arg(rootfs).arg("--images-dir").arg(images).arg("--pidfile").arg(&pidfile);
    let outcome = restore.output().unwrap();
    let unmounted = Command::new("umount").arg("--lazy").arg(rootfs).status().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(unmounted.success());
    fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap()
}

/// All that is in the IPC namespace of a process, messages left where they are.
fn inside(pid: i32) -> Held {
    let look = || {
        setns(File::open(format!("/proc/{pid}/ns/ipc")).unwrap(), CloneFlags::CLONE_NEWIPC).unwrap();
        let objects = list().unwrap();
        let of = |kind| objects.iter().find(|object| object.kind == kind).map(|object| object.id).unwrap();
        let unmapped = objects.iter().find(|object| object.mode == 0o640).unwrap().id;
        let keys = ["shm", "sem", "msg"].map(|name| fs::read_to_string(format!("/proc/sysvipc/{name}")).unwrap());
        let keys = keys.iter().flat_map(|text| text.lines().skip(1));
        let keys = keys.filter_map(|line| line.split_ascii_whitespace().next().map(str::to_owned)).collect();
        let mut values = vec![0; VALUES.len()];
        let mut messages = Vec::new();
        // SAFETY: as many values as the set has; messages of no more bytes than there is room for; a mapping of a segment of at
        // least as many bytes as are read.
        let unmapped = unsafe {
            assert_eq!(libc::semctl(of(Kind::Semaphores), 0, libc::GETALL, values.as_mut_ptr()), 0);
            for number in 0.. {
                let mut message = [0_i64; 16];
                let flags = libc::IPC_NOWAIT | libc::MSG_COPY;
                let length = libc::msgrcv(of(Kind::Queue), message.as_mut_ptr().cast(), 120, number, flags);
                let Ok(length) = usize::try_from(length) else { break };
                let text = message[1..].iter().flat_map(|word| word.to_ne_bytes()).take(length).collect();
                messages.push((message[0], text));
            }
            let memory = libc::shmat(unmapped, std::ptr::null(), libc::SHM_RDONLY).cast::<u8>();
            let content = std::slice::from_raw_parts(memory, SMALL).to_vec();
            libc::shmdt(memory.cast());
            content
        };
        Held { objects, keys, values, messages, unmapped }
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap())
}

const VALUES: [u16; 3] = [3, 0, 32_767];

#[test]
#[ignore = "a part of the other: the process that is dumped"]
fn hold_system_v() {
    if std::env::var_os(container::ARGUMENT).is_none() {
        return;
    }
    let made = |id: i32| {
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        id
    };
    let create = libc::IPC_CREAT | libc::IPC_EXCL;
    // SAFETY: segments of so many bytes are mapped and written within their bounds; as many values as the set has; messages of as many
    // bytes as each call says.
    unsafe {
        // Ids that a fresh namespace would not give: what was made first is gone.
        remove(Kind::Segment, made(libc::shmget(libc::IPC_PRIVATE, SMALL, 0o600))).unwrap();
        let fill = |id: i32, length: usize, seed: usize| {
            let memory = libc::shmat(id, std::ptr::null(), 0).cast::<u8>();
            for at in (0..length).step_by(7) {
                memory.add(at).write((at / 7 + seed) as u8);
            }
            memory
        };
        fill(made(libc::shmget(0x52_e2_c1, LARGE, create | 0o600)), LARGE, 1);
        let removed = made(libc::shmget(0x17, SMALL, create | 0o600));
        fill(removed, SMALL, 2);
        remove(Kind::Segment, removed).unwrap();
        let memory = fill(made(libc::shmget(libc::IPC_PRIVATE, SMALL, create | 0o640)), SMALL, 3);
        libc::shmdt(memory.cast());
        let set = made(libc::semget(0x18, VALUES.len() as i32, create | 0o666));
        assert_eq!(libc::semctl(set, 0, libc::SETALL, VALUES.as_ptr()), 0);
        let queue = made(libc::msgget(0x19, create | 0o622));
        for (kind, length) in [(5_i64, 100), (2, 0), (5, 9)] {
            let mut message = [0x0706_0504_0302_0100; 16];
            message[0] = kind;
            assert_eq!(libc::msgsnd(queue, message.as_ptr().cast(), length, 0), 0);
        }
    }
    fs::write("/ready", ";").unwrap();
    loop {
        std::thread::park();
    }
}
