//! A dump without memory, by a real CRIU, of a real process in a container made for it.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod container;

use container::{ARGUMENT, Container, LIMIT, criu, dump, preload};
use criu_shim::criu::{Bundle, DumpOptions, DumpRequest, Memory, Place, WarmCriu, image, pagemap, wire};
use criu_shim::freezer::Freezer;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

const PAGE: usize = 4096;
const LAZY: u64 = 2;
const PRESENT: u64 = 4;

#[test]
#[ignore = "needs root, CRIU at the path in TIDEOVER_CRIU and libdump_preload.so at the one in TIDEOVER_DUMP_PRELOAD: make test-vm"]
fn a_dump_leaves_out_what_was_copied_and_nothing_else() {
    check(16);
}

#[test]
#[ignore = "as the other one, and 4 GiB of memory and disk"]
fn a_dump_of_a_gibibyte_leaves_out_what_was_copied_and_nothing_else() {
    check(1024);
}

fn check(mebibytes: usize) {
    let criu = criu();
    let root = tempfile::tempdir().unwrap();
    let container = Container::start(root.path(), "hold_memory", &mebibytes.to_string());
    let held = parse(&container.ready).unwrap();
    let place = Place { namespaces_of: container.pid, outside_ipc: false, node_root: "/".into() };
    let freezer = Freezer::of_process(container.pid, Path::new("/")).unwrap();
    assert_eq!(freezer.path_in_node(), container.cgroup);

    WarmCriu::examine(&criu, Path::new("/")).unwrap();
    let plain = WarmCriu::start(&criu, &place).unwrap();
    let withholding = WarmCriu::start(&criu.clone().preloading(&preload()), &place).unwrap();

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
    let (full, less) = (request("full", Memory::All), request("left-out", Memory::ButWithheld));
    let (plain, withholding) = (plain.begin(full.clone()).unwrap(), withholding.begin(less.clone()).unwrap());
    freezer.freeze(LIMIT).unwrap();
    let full_millis = dump(plain, &[]);

    let (images, list, mappings) = (less.images_dir.clone(), withholding.withheld(), withholding.mappings());
    let (pid, left_out) = (container.pid, held.clone());
    // The list comes while CRIU is at work.
    list.expect_memory().unwrap();
    let telling = std::thread::spawn(move || list.tell().process(pid, vec![left_out]));
    mappings.expect().unwrap();
    let reading = std::thread::spawn(move || mappings.read(&[pid]));
    let less_millis = dump(withholding, &[]);
    reading.join().unwrap().unwrap();
    telling.join().unwrap().unwrap();
    assert!(pages(&images).keys().all(|address| !held.contains(address)), "CRIU dumped what it was to leave out");

    let begin = Instant::now();
    let settled = pagemap::settle(&images, 1, std::slice::from_ref(&held)).unwrap();
    let settle_millis = begin.elapsed().as_secs_f64() * 1e3;
    assert_eq!(settled.lazy, std::slice::from_ref(&held));

    let (all, now) = (pages(&full.images_dir), pages(&images));
    assert_eq!(all.keys().collect::<Vec<_>>(), now.keys().collect::<Vec<_>>());
    let mut left = 0;
    for (address, bytes) in &all {
        let bytes = bytes.as_ref().unwrap();
        if held.contains(address) {
            assert!(now[address].is_none(), "{address:#x} is in the images");
            assert!(bytes.iter().all(|byte| *byte == content(*address)));
            left += 1;
        } else {
            assert!(now[address].as_ref() == Some(bytes), "{address:#x} differs");
        }
    }
    assert_eq!(left, mebibytes << 20 >> 12);
    let (whole, rest) = (size(&full.images_dir), size(&images));
    assert_eq!(whole - rest, (mebibytes << 20) as u64);
    println!(
        "{mebibytes} MiB: full dump {full_millis:.1} ms ({whole} bytes of pages), without memory {less_millis:.1} ms"
    );
    println!("  settled in {settle_millis:.1} ms: {} bytes of pages in the images in the end", rest);
}

/// Every page of the process by the images: its address, and its bytes, where they are there. Only images that CRIU left as
/// they are call lazy what they hold.
fn pages(images: &Path) -> BTreeMap<u64, Option<Vec<u8>>> {
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
                flags if flags & PRESENT != 0 => Some(chunks.next().unwrap().to_vec()),
                LAZY => None,
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
