//! A dump without memory, by a real CRIU, of a real process in a container made for it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod container;

use container::{ARGUMENT, Container, LIMIT, criu, dump, uptime};
use criu_shim::criu::{
    Bundle, Claim, ClaimedParent, CriuProgram, DumpOptions, DumpRequest, Memory, Place, PrivateKdat, WarmCriu, image,
    pagemap, version, wire,
};
use criu_shim::freezer::Freezer;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const PAGE: usize = 4096;
const KDAT: &str = "/run/criu.kdat";
const PARENT: u64 = 1;
const LAZY: u64 = 2;
const PRESENT: u64 = 4;

#[test]
#[ignore = "needs root, a kernel without soft-dirty, and CRIU 4.2.1 at the path in TIDEOVER_CRIU"]
fn a_dump_leaves_out_what_was_copied_and_nothing_else() {
    check(64);
}

#[test]
#[ignore = "as the other one, and 4 GiB of memory and disk"]
fn a_dump_of_a_gibibyte_leaves_out_what_was_copied_and_nothing_else() {
    check(1024);
}

fn check(mebibytes: usize) {
    let criu = criu();
    let version = version::version(&criu).unwrap();
    let root = tempfile::tempdir().unwrap();
    let container = Container::start(root.path(), "hold_memory", &mebibytes.to_string());
    let held = parse(&container.ready).unwrap();
    let place = Place { namespaces_of: container.pid, node_root: "/".into(), private_kdat: None };
    let freezer = Freezer::of_process(container.pid, Path::new("/")).unwrap();
    assert_eq!(freezer.path_in_node(), container.cgroup);

    let kdat = PrivateKdat::make(&criu, &place, version, root.path()).unwrap();
    let before = fs::read(KDAT).unwrap();
    let plain = WarmCriu::start(&criu, &place).unwrap();
    let believing = WarmCriu::start(&criu, &Place { private_kdat: Some(kdat), ..place.clone() }).unwrap();
    only_our_own_sees_the_edit(&criu, &before, &plain, &believing);
    freezer.freeze(LIMIT).unwrap();

    let request = |name: &str, memory: Memory| {
        let images_dir = root.path().join(name);
        fs::create_dir_all(&images_dir).unwrap();
        DumpRequest {
            pid: container.pid,
            images_dir,
            work_dir: root.path().to_owned(),
            freeze_cgroup: freezer.path_in_node().to_owned(),
            bundle: Bundle { rootfs: container.rootfs.clone(), spec: Default::default() },
            options: DumpOptions { memory, ..DumpOptions::default() },
        }
    };
    let full = request("full", Memory::All);
    let full_millis = dump(plain, &full);

    let images = root.path().join("left-out");
    let claim = Claim::everything(1);
    let parent = ClaimedParent::write(&images, vec![claim.clone()], uptime()).unwrap();
    let less = request("left-out", Memory::Except(parent.clone()));
    let less_millis = dump(believing, &less);

    let left_out = pagemap::in_parent(&images, 1).unwrap();
    let claimed = [held.clone()];
    let everywhere = |range: &Range<u64>| left_out.iter().any(|at| at.start <= range.start && range.end <= at.end);
    assert!(everywhere(&held), "{left_out:x?}");
    let by_criu = pages(&images, PARENT);

    let begin = Instant::now();
    let memory = File::open(format!("/proc/{}/mem", container.pid)).unwrap();
    let settled = pagemap::settle(&images, &claim, &claimed, &memory).unwrap();
    let settle_millis = begin.elapsed().as_secs_f64() * 1e3;
    parent.remove(&images).unwrap();
    assert_eq!(settled.lazy, claimed);

    let all = pages(&full.images_dir, PARENT);
    let now = pages(&images, LAZY);
    assert_eq!(all.keys().collect::<Vec<_>>(), by_criu.keys().collect::<Vec<_>>());
    assert_eq!(all.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
    let mut left = 0;
    for (address, bytes) in &all {
        let bytes = bytes.as_ref().unwrap();
        if held.contains(address) {
            assert!(by_criu[address].is_none() && now[address].is_none(), "{address:#x} is in the images");
            assert!(bytes.iter().all(|byte| *byte == content(*address)));
            left += 1;
        } else {
            assert!(now[address].as_ref() == Some(bytes), "{address:#x} differs");
        }
    }
    assert_eq!(left, mebibytes << 20 >> 12);
    let (whole, rest) = (size(&full.images_dir), size(&images));
    assert_eq!(whole - rest, (mebibytes << 20) as u64);
    assert_eq!(fs::read(KDAT).unwrap(), before, "the node's kernel facts were changed");
    println!(
        "{mebibytes} MiB: full dump {full_millis:.1} ms ({whole} bytes of pages), without memory {less_millis:.1} ms"
    );
    println!("  left to the parent by CRIU: {} pages", by_criu.values().filter(|page| page.is_none()).count());
    println!("  settled in {settle_millis:.1} ms: {} bytes of pages in the images in the end", rest);
}

/// While one CRIU has kernel facts of its own, no other process sees them.
fn only_our_own_sees_the_edit(criu: &CriuProgram, before: &[u8], plain: &WarmCriu, believing: &WarmCriu) {
    let seen_by = |pid: i32| fs::read(format!("/proc/{pid}/root{KDAT}")).unwrap();
    let edited = seen_by(believing.process().pid);
    let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != edited[*at]).collect();
    assert_eq!((edited.len(), changed), (before.len(), vec![32]));
    assert_eq!(fs::read(KDAT).unwrap(), before);
    assert_eq!(seen_by(plain.process().pid), before);

    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let seen = seen_by(bystander.id() as i32);
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    assert_eq!(seen, before);

    let (program, arguments) = criu.command();
    let check = Command::new(program).args(arguments).args(["check", "--feature", "mem_dirty_track"]).output().unwrap();
    assert!(!check.status.success(), "another CRIU believes in soft-dirty");
}

/// Every page of the process by the images: its address, and its bytes unless its entry has the flags `absent`. Only
/// images that CRIU left as they are call lazy what they hold.
fn pages(images: &Path, absent: u64) -> BTreeMap<u64, Option<Vec<u8>>> {
    let pagemap = fs::read(images.join("pagemap-1.img")).unwrap();
    let entries = image::entries(&pagemap, 0x5608_4025).unwrap();
    let field = |entry: &[u8], number: u32| {
        wire::decode(entry).unwrap().iter().find(|field| field.number == number).and_then(wire::Field::as_varint)
    };
    let pages_id = field(entries[0], 1).unwrap();
    let bytes = fs::read(images.join(format!("pages-{pages_id}.img"))).unwrap_or_default();
    let mut chunks = bytes.chunks(PAGE);
    let mut pages = BTreeMap::new();
    for entry in &entries[1..] {
        let (start, count, flags) = (field(entry, 1), field(entry, 5), field(entry, 4));
        for page in 0..count.unwrap() {
            let bytes = match flags.unwrap() {
                flags if flags & PRESENT != 0 && (flags == PRESENT || absent == PARENT) => {
                    Some(chunks.next().unwrap().to_vec())
                }
                flags if flags == absent => None,
                flags => panic!("flags {flags}"),
            };
            assert!(pages.insert(start.unwrap() + page * PAGE as u64, bytes).is_none());
        }
    }
    assert!(chunks.next().is_none());
    pages
}

fn size(images: &Path) -> u64 {
    let entries = fs::read_dir(images).unwrap().map(|entry| entry.unwrap());
    let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    pages.map(|entry| entry.metadata().unwrap().len()).sum()
}

/// What the page at an address is filled with. Never zero, which CRIU would leave out.
fn content(address: u64) -> u8 {
    (address / PAGE as u64 % 251) as u8 + 1
}

fn parse(ready: &str) -> Option<Range<u64>> {
    let (start, end) = ready.trim_end().split_once(' ')?;
    Some(start.parse().ok()?..end.parse().ok()?)
}

#[test]
#[ignore = "a part of the others: the process that is dumped"]
fn hold_memory() {
    let Some(mebibytes) = std::env::var(ARGUMENT).ok() else { return };
    let length = mebibytes.parse::<usize>().unwrap() << 20;
    let mut memory = vec![0u8; length + PAGE];
    let begin = memory.as_ptr() as usize;
    let skip = begin.next_multiple_of(PAGE) - begin;
    let memory = &mut memory[skip..skip + length];
    let start = memory.as_ptr() as u64;
    for (page, at) in memory.chunks_mut(PAGE).zip((start..).step_by(PAGE)) {
        page.fill(content(at));
    }
    let mut ready = File::create("/ready").unwrap();
    ready.write_all(format!("{start} {};", start + length as u64).as_bytes()).unwrap();
    drop(ready);
    loop {
        std::thread::park();
    }
}
