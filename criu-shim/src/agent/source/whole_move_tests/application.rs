//! What runs in the container: it counts, and writes its memory in a way that it can check itself.

use crate::criu::ranges::PAGE;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// Set for the process that is the application.
pub(super) const VARIABLE: &str = "TIDEOVER_TEST_APPLICATION";
/// Where it is told from outside, and tells: a directory of the container.
pub(super) const SHARED: &str = "/x";
/// How far it has counted, 8 bytes.
pub(super) const COUNT: &str = "count";
/// Made once it has seen, long after its start, that its memory is what it wrote.
pub(super) const CHECKED: &str = "checked";
/// Made by the test: it is to check itself.
pub(super) const CHECK: &str = "check";

/// Bytes of the memory that stays where it is.
const AREA: usize = 8 << 20;
/// Bytes of the memory that it gives back and takes anew.
const CHANGING: usize = 2 << 20;
const WORDS: usize = PAGE as usize / 8;

#[test]
#[ignore = "a part of the others: what runs in the container"]
fn application() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    let shared = Path::new(SHARED);
    let count = File::options().write(true).create(true).truncate(false).open(shared.join(COUNT)).expect("count");
    let pages = AREA / PAGE as usize;
    let mut area: Vec<u64> = (0..AREA as u64 / 8).map(first).collect();
    // What was written last to each page, by which the others are known.
    let mut last = vec![0_u64; pages];
    let mut changing = Vec::new();
    for counted in 1_u64.. {
        let page = (counted.wrapping_mul(7919) % pages as u64) as usize;
        area[page * WORDS + 3] = counted;
        last[page] = counted;
        if counted % 16 == 1 {
            changing = vec![counted; CHANGING / 8];
        }
        count.write_all_at(&counted.to_ne_bytes(), 0).expect("count");
        if shared.join(CHECK).exists() && !shared.join(CHECKED).exists() {
            let is_right = |(index, word): (usize, &u64)| match last[index / WORDS] {
                written if written > 0 && index % WORDS == 3 => *word == written,
                _ => *word == first(index as u64),
            };
            assert!(area.iter().enumerate().all(is_right), "the area");
            assert!(changing.iter().all(|word| *word == changing[0]) && changing[0] % 16 == 1, "what changes");
            File::create(shared.join(CHECKED)).expect("checked");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What is at a place of the area first. Never zero.
fn first(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// The pages of a process that does not run which are its own and have content, by address.
pub(super) struct Snapshot(BTreeMap<u64, Vec<u8>>);

impl Snapshot {
    pub(super) fn of(pid: i32) -> Self {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
        let open = |file: &str| File::open(format!("/proc/{pid}/{file}")).expect("a file of the process");
        let (memory, pagemap) = (open("mem"), open("pagemap"));
        let mut pages = BTreeMap::new();
        for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-')).expect("a range");
            for address in (number(range.0)..number(range.1)).step_by(PAGE as usize) {
                let (mut entry, mut page) = ([0; 8], vec![0; PAGE as usize]);
                pagemap.read_exact_at(&mut entry, address / PAGE * 8).expect("an entry");
                // Asked for what is not there, the kernel would put a page of zeroes there. Source: pagemap.rst, present or swapped. A
                // guard page counts as swapped, and can't be read.
                let has_content = u64::from_ne_bytes(entry) >> 62 != 0;
                if has_content && memory.read_exact_at(&mut page, address).is_ok() {
                    pages.insert(address, page);
                }
            }
        }
        assert!(pages.len() > (AREA + CHANGING) / PAGE as usize);
        Self(pages)
    }

    /// Every page of process `pid`, which is held after its restore, is what it was: but for those at which CRIU itself writes, where
    /// each thread stands (its registers, on the stack) and where the kernel keeps what it says of its processor.
    ///
    /// The page daemon brings what is not there yet, because this read waits for it. One of `/proc/PID/mem` does not: it fails.
    pub(super) fn compare(&self, pid: i32) {
        let mut page = vec![0; PAGE as usize];
        let differing: Vec<u64> = self
            .0
            .iter()
            .filter_map(|(address, expected)| {
                let from = RemoteIoVec { base: *address as usize, len: page.len() };
                let read = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut page)], &[from]);
                assert_eq!(read, Ok(PAGE as usize), "the page at {address:x}");
                (page != *expected).then_some(*address)
            })
            .collect();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads").count();
        assert!(differing.len() <= 2 * threads, "{} of {} pages differ: {differing:x?}", differing.len(), self.0.len());
        println!("{} pages compared, {} differ where CRIU or the kernel writes", self.0.len(), differing.len());
    }
}
