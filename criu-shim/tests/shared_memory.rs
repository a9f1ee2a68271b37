//! A dump without shared memory, by a real CRIU, of a real process in a container made for it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod container;

use container::{Container, LIMIT, criu, dump, preload};
use criu_shim::criu::{Bundle, DumpOptions, DumpRequest, ObjectId, Place, WarmCriu, shared};
use criu_shim::freezer::Freezer;
use criu_shim::memory::shared::{SharedObject, device, find};
use criu_shim::pages::PageRange;
use criu_shim::pages::store::SharedWriter;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs root, CRIU at the path in TIDEOVER_CRIU and libdump_preload.so at the one in TIDEOVER_DUMP_PRELOAD: make test-vm"]
fn a_dump_leaves_shared_memory_out_and_every_page_of_it_has_crossed() {
    let root = tempfile::tempdir().unwrap();
    let container = Container::start(root.path(), "hold_shared_memory", "16");
    let place = Place { namespaces_of: container.pid, outside_ipc: false, node_root: "/".into() };
    let freezer = Freezer::of_process(container.pid, Path::new("/")).unwrap();
    WarmCriu::examine(&criu(), Path::new("/")).unwrap();
    let plain = WarmCriu::start(&criu(), &place).unwrap();
    let withholding = WarmCriu::start(&criu().preloading(&preload()), &place).unwrap();

    // Rounds, while it runs.
    let device = device().unwrap();
    let found = find(&[container.pid], device, &BTreeSet::new());
    let mut objects: BTreeMap<u32, (SharedObject, SharedWriter)> = BTreeMap::new();
    for (inode, file) in found.new {
        let writer = SharedWriter::create(root.path(), inode).unwrap();
        objects.insert(inode, (SharedObject::new(file).unwrap(), writer));
    }
    assert_eq!(objects.len(), 4, "anonymous, two memfds, and one that nobody has mapped");
    objects.values_mut().for_each(cross);
    for (write, offset) in [(MIB, 7), (3 * MIB, 0)] {
        write_to_mapping(container.pid, write, offset);
        objects.values_mut().for_each(cross);
    }
    write_to_mapping(container.pid, 2 * MIB, 9);
    freezer.freeze(LIMIT).unwrap();
    let begun = Instant::now();
    objects.values_mut().for_each(cross);
    let compare_millis = begun.elapsed().as_secs_f64() * 1e3;

    let request = |name: &str| {
        let images_dir = root.path().join(name);
        fs::create_dir_all(&images_dir).unwrap();
        DumpRequest {
            pid: container.pid,
            images_dir,
            work_dir: root.path().to_owned(),
            freeze_cgroup: freezer.path_in_node().to_owned(),
            bundle: Bundle { rootfs: container.rootfs.clone(), spec: Default::default() },
            options: DumpOptions::default(),
        }
    };
    let full = request("full");
    let full_millis = dump(plain.begin(full.clone()).unwrap(), &[]);
    // One is left to CRIU.
    let left = *objects.keys().next().unwrap();
    let withheld = objects.keys().filter(|inode| **inode != left).map(|inode| ObjectId { device, inode: *inode });
    let (less, withheld) = (request("left-out"), withheld.collect::<Vec<_>>());
    let less_millis = dump(withholding.begin(less.clone()).unwrap(), &withheld);

    let images = &less.images_dir;
    assert_eq!(shared::objects(images).unwrap(), shared::objects(&full.images_dir).unwrap());
    for (inode, (object, writer)) in objects {
        let pages: Vec<_> = object.order().iter().map(|range| range.start..range.end).collect();
        let left_out = shared::fill_in(images, inode, &pages, object.size().unwrap()).unwrap();
        assert_eq!(left_out, inode != left);
        if left_out {
            let image = shared::read(images, inode).unwrap().unwrap();
            let asked: Vec<_> =
                image.pages.iter().map(|range| PageRange::new(range.start, range.end - range.start).unwrap()).collect();
            writer.finish(&asked, &images.join(shared::pages_file(image.pages_id))).unwrap();
        }
        let (theirs, ours) = (content(&full.images_dir, inode), content(images, inode));
        let theirs: BTreeMap<_, _> =
            theirs.into_iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)).collect();
        let ours: BTreeMap<_, _> = ours.into_iter().filter(|(_, page)| page.iter().any(|byte| *byte != 0)).collect();
        assert!(theirs == ours, "the pages of {inode} differ");
        assert!(theirs.len() > 100);
    }
    assert_eq!(shared::incomplete(images).unwrap(), None);
    println!("4 objects of 16 MiB: full dump {full_millis:.1} ms, with one of them {less_millis:.1} ms");
    println!("  compared by one thread in {compare_millis:.1} ms");

    // The same process again, from these images.
    drop(freezer);
    drop(container);
    restored_from(&root.path().join("rootfs"), images);
}

/// A round of one object, straight into the target's file.
fn cross((object, writer): &mut (SharedObject, SharedWriter)) {
    let mut page = vec![0; PAGE as usize];
    for range in object.changed(1).unwrap() {
        for start in (range.start..range.end).step_by(PAGE as usize) {
            object.take(start, &mut page).unwrap();
            if page.iter().all(|byte| *byte == 0) {
                writer.zero(start, PAGE).unwrap();
            } else {
                writer.write(start, &page).unwrap();
            }
        }
    }
}

/// Writes to every shared mapping of the process, as another process that has it mapped would.
fn write_to_mapping(pid: i32, offset: u64, byte: u8) {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for line in maps.lines().filter(|line| line.contains("rw-s")) {
        let range = line.split(' ').next().unwrap();
        let file = OpenOptions::new().write(true).open(format!("/proc/{pid}/map_files/{range}")).unwrap();
        file.write_all_at(&[byte; 3 * PAGE as usize], offset).unwrap();
    }
}

/// Every page of an object by the images.
fn content(images: &Path, inode: u32) -> BTreeMap<u64, Vec<u8>> {
    let image = shared::read(images, inode).unwrap().unwrap();
    let mut file = File::open(images.join(shared::pages_file(image.pages_id))).unwrap();
    let mut pages = BTreeMap::new();
    for range in image.pages {
        for start in (range.start..range.end).step_by(PAGE as usize) {
            let mut page = vec![0; PAGE as usize];
            file.read_exact(&mut page).unwrap();
            assert!(pages.insert(start, page).is_none());
        }
    }
    pages
}

/// Restores the process, has it check all of its memory, and ends it.
fn restored_from(rootfs: &Path, images: &Path) {
    let (program, arguments) = criu().command();
    let pidfile = images.join("pid");
    let mut restore = Command::new(program);
    restore.args(arguments).args([
        "--no-default-config",
        "restore",
        "--restore-detached",
        "--manage-cgroups=ignore",
        "--tcp-close",
    ]);
    restore.arg("--root").arg(rootfs).arg("--images-dir").arg(images).arg("--pidfile").arg(&pidfile);
    let mounted = Command::new("mount").arg("--bind").arg(rootfs).arg(rootfs).status().unwrap();
    assert!(mounted.success());
    let outcome = restore.output().unwrap();
    let unmounted = Command::new("umount").arg("--lazy").arg(rootfs).status().unwrap();
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(unmounted.success());
    let pid: i32 = fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    let seen = find(&[pid], device().unwrap(), &BTreeSet::new());
    let mut sums: Vec<u64> = seen.new.values().map(sum).collect();
    sums.sort_unstable();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut expected: Vec<u64> =
        shared::objects(images).unwrap().iter().map(|inode| sum_of(&content(images, *inode))).collect();
    expected.sort_unstable();
    assert_eq!(sums, expected, "what was restored is not what the images hold");
}

fn sum(file: &File) -> u64 {
    let mut whole = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut whole, 0).unwrap();
    sum_of(&whole.chunks(PAGE as usize).zip(0..).map(|(page, number)| (number * PAGE, page.to_vec())).collect())
}

/// A sum to which pages of zeros add nothing, and in which every other byte counts by its place.
fn sum_of(pages: &BTreeMap<u64, Vec<u8>>) -> u64 {
    let words = pages.iter().flat_map(|(start, page)| {
        page.chunks(8)
            .zip(0..)
            .map(move |(word, index)| (start + index * 8, u64::from_ne_bytes(word.try_into().unwrap())))
    });
    words.fold(0, |sum: u64, (place, word)| {
        sum.wrapping_add(word.wrapping_mul((place | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    })
}

#[test]
#[ignore = "a part of the other: the process that is dumped"]
fn hold_shared_memory() {
    let Some(mebibytes) = std::env::var(container::ARGUMENT).ok() else { return };
    let length = mebibytes.parse::<usize>().unwrap() << 20;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let fill = |memory: *mut std::ffi::c_void, from: usize, to: usize, seed: usize| {
        // SAFETY: a new shared mapping of `length` bytes; only pages within it are written.
        let memory = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u64>(), length / 8) };
        for page in from..to {
            memory[page * 512..(page + 1) * 512].fill((page * 8 + seed) as u64 + 1);
        }
    };
    let pages = length / PAGE as usize;
    let memfd = |name: &str| {
        let file = File::from(memfd_create(name, MemfdFlags::ALLOW_SEALING).unwrap());
        file.set_len(length as u64).unwrap();
        file
    };
    let (sealed, mapped, open) = (memfd("sealed"), memfd("mapped"), memfd("open"));
    // SAFETY: new mappings at addresses that the kernel chooses, never unmapped.
    unsafe {
        let at = std::ptr::null_mut();
        fill(mmap_anonymous(at, length, protection, MapFlags::SHARED).unwrap(), 0, pages, 1);
        // Written from its middle on, so that pages of the first half come later.
        fill(mmap(at, length, protection, MapFlags::SHARED, &mapped, 0).unwrap(), pages / 2, pages - 1, 2);
        fill(mmap(at, length, protection, MapFlags::SHARED, &sealed, 0).unwrap(), 0, pages / 4, 3);
    }
    open.write_all_at(&vec![5; length / 2], 12 * PAGE).unwrap();
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)).unwrap();
    drop(mapped);
    fs::write("/ready", ";").unwrap();
    let _held = (sealed, open);
    loop {
        std::thread::park();
    }
}
