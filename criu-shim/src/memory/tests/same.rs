//! The whole of it: what was sent over all rounds is the memory at the end.

use super::child::{Child, MIB, PAGE};
use super::kinds::library;
use super::{Kind, kinds};
use crate::memory::{LastLook, MemoryReader, Piece, Range, ReadError, is_private_file, parse_mappings};
use proptest::prelude::*;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What the target has: pages by address.
type Store = HashMap<u64, Vec<u8>>;

fn send(reader: &MemoryReader, ranges: &[Range], store: &mut Store) {
    let mut buffer = vec![0; crate::memory::read::CHUNK];
    for range in ranges {
        let mut rest = *range;
        while let Some(piece) = reader.read_next(&mut rest, &mut buffer).unwrap() {
            if let Piece::Read(done) = piece {
                for address in (done.start..done.end).step_by(PAGE as usize) {
                    let at = (address - done.start) as usize;
                    store.insert(address, buffer[at..at + PAGE as usize].to_vec());
                }
            }
        }
    }
}

/// How many covered pages there are; each is what a target would have.
fn compare(child: &Child, look: &LastLook, store: &Store) -> usize {
    let present = |start| crate::memory::range::covers(&look.present, &Range { start, end: start + PAGE });
    let mut count = 0;
    for range in &look.covered {
        let memory = child.peek(range.start, range.len() as usize);
        let untouched = untouched(child, *range);
        for (index, page) in memory.chunks(PAGE as usize).enumerate() {
            let address = range.start + index as u64 * PAGE;
            let offset = index * PAGE as usize;
            let sent = if present(address) { &store[&address] } else { &untouched[offset..offset + PAGE as usize] };
            assert!(page == sent, "page {address:#x} of {range:x?} differs");
            count += 1;
        }
    }
    count
}

/// What is in a mapping of which the process has touched nothing: what the file has, for the data of a program, or else zeroes.
fn untouched(child: &Child, range: Range) -> Vec<u8> {
    let mut bytes = vec![0; range.len() as usize];
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid)).unwrap();
    let vma = parse_mappings(&maps).unwrap().into_iter().find(|vma| vma.range == range).unwrap();
    if is_private_file(&vma) {
        let (file, mut read) = (File::open(&vma.name).unwrap(), 0);
        while let count @ 1.. = file.read_at(&mut bytes[read..], vma.offset + read as u64).unwrap() {
            read += count;
        }
    }
    bytes
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store { slot: usize, page: u64, byte: u8 },
    Map { slot: usize },
    Unmap { slot: usize },
    Move { from: usize, to: usize },
    Forget { slot: usize, page: u64 },
    Protect { slot: usize, page: u64, none: bool },
    Read { slot: usize, page: u64 },
    Round,
}

const SLOTS: usize = 4;
const LENGTH: u64 = 2 * MIB;

fn step() -> impl Strategy<Value = Step> {
    let (slot, page) = (0..SLOTS, 0..LENGTH / PAGE);
    prop_oneof![
        12 => (slot.clone(), page.clone(), any::<u8>()).prop_map(|(slot, page, byte)| Step::Store { slot, page, byte }),
        1 => slot.clone().prop_map(|slot| Step::Map { slot }),
        1 => slot.clone().prop_map(|slot| Step::Unmap { slot }),
        2 => (slot.clone(), slot.clone()).prop_map(|(from, to)| Step::Move { from, to }),
        2 => (slot.clone(), page.clone()).prop_map(|(slot, page)| Step::Forget { slot, page }),
        2 => (slot.clone(), page.clone(), any::<bool>())
            .prop_map(|(slot, page, none)| Step::Protect { slot, page, none }),
        2 => (slot, page).prop_map(|(slot, page)| Step::Read { slot, page }),
        4 => Just(Step::Round),
    ]
}

/// Runs the steps; slots lie next to each other, so that mappings merge where the kernel lets them.
fn run(steps: &[Step], kind: Kind) -> usize {
    let mut child = Child::new();
    let room = child.island(SLOTS as u64 * LENGTH);
    let mut tracker = kind.attach(child.pid);
    let reader = MemoryReader::open(child.pid).unwrap().noting(tracker.sent());
    let mut store = Store::new();
    let at = |slot: usize| room.start + slot as u64 * LENGTH;
    // What a store would fault on is left out by asking the kernel.
    let writable = |child: &Child, address: u64| {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid)).unwrap();
        maps.lines().any(|line| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            hex(start) <= address && address < hex(end) && rest.starts_with("rw")
        })
    };
    for step in steps {
        match *step {
            Step::Store { slot, page, byte } => {
                let address = at(slot) + page * PAGE + u64::from(byte);
                if writable(&child, address) {
                    child.store(address, byte);
                }
            }
            Step::Map { slot } => {
                child.map(at(slot), LENGTH);
            }
            Step::Unmap { slot } => {
                child.good(libc::SYS_munmap, &[at(slot), LENGTH]);
            }
            Step::Move { from, to } => {
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                child.call(libc::SYS_mremap, &[at(from), LENGTH, LENGTH, flags, at(to)]);
            }
            Step::Forget { slot, page } => {
                child.call(libc::SYS_madvise, &[at(slot) + page * PAGE, PAGE, libc::MADV_DONTNEED as u64]);
            }
            Step::Protect { slot, page, none } => {
                let protection = if none { libc::PROT_NONE } else { libc::PROT_READ | libc::PROT_WRITE };
                child.call(libc::SYS_mprotect, &[at(slot) + page * PAGE, PAGE, protection as u64]);
            }
            Step::Read { slot, page } => {
                // A call that reads there, of whatever name that is.
                child.call(libc::SYS_access, &[at(slot) + page * PAGE, 0]);
            }
            Step::Round => {
                tracker.wake();
                send(&reader, &tracker.take_written().unwrap().unwrap_or_default(), &mut store);
            }
        }
    }
    child.wait_idle();
    let look = tracker.last_look().unwrap();
    send(&reader, &look.written, &mut store);
    compare(&child, &look, &store)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_between_rounds_the_target_has_the_same_memory(
        steps in prop::collection::vec(step(), 0..120),
        kind in prop::sample::select(kinds()),
    ) {
        run(&steps, kind);
    }
}

#[test]
fn a_process_that_writes_all_the_time_arrives_whole() {
    for kind in kinds() {
        writes_all_the_time(kind);
    }
}

fn writes_all_the_time(kind: Kind) {
    let mut child = Child::new();
    let area = child.island(8 * MIB);
    let mut tracker = kind.attach(child.pid);
    let reader = MemoryReader::open(child.pid).unwrap().noting(tracker.sent());
    let mut store = Store::new();
    for round in 0..20u64 {
        // The kernel fills the memory in the process' name while the round goes on.
        let part = area.len() / (1 + round % 4);
        child.tell(libc::SYS_getrandom, &[area.start + area.len() - part, part, 0]);
        tracker.wake();
        send(&reader, &tracker.take_written().unwrap().unwrap_or_default(), &mut store);
        assert_eq!(child.answer(), part.cast_signed());
    }
    child.wait_idle();
    let look = tracker.last_look().unwrap();
    assert!(look.covered.iter().any(|range| range.contains(&area)));
    send(&reader, &look.written, &mut store);
    assert!(compare(&child, &look, &store) >= 2048);
}

#[test]
fn what_was_never_written_of_a_library_is_what_the_file_has() {
    for kind in kinds() {
        let mut child = Child::new();
        let (_file, area) = library(&mut child, &[3]);
        let mut tracker = kind.attach(child.pid);
        let reader = MemoryReader::open(child.pid).unwrap().noting(tracker.sent());
        let mut store = Store::new();
        tracker.wake();
        send(&reader, &tracker.take_written().unwrap().unwrap_or_default(), &mut store);
        child.store(area.start + 5 * PAGE, 1);
        let look = tracker.last_look().unwrap();
        send(&reader, &look.written, &mut store);
        compare(&child, &look, &store);
    }
}

#[test]
fn what_was_unmapped_meanwhile_is_skipped_and_said_so() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 7);
    let hole = Range { start: area.start + 3 * PAGE, end: area.start + 5 * PAGE };
    child.good(libc::SYS_munmap, &[hole.start, hole.len()]);
    let reader = MemoryReader::open(child.pid).unwrap();
    let (mut rest, mut buffer, mut pieces) = (area, vec![0; 1 << 20], Vec::new());
    while let Some(piece) = reader.read_next(&mut rest, &mut buffer).unwrap() {
        pieces.push(piece);
    }
    let missing: Vec<Piece> = pieces.iter().copied().filter(|piece| matches!(piece, Piece::Unreadable(_))).collect();
    let page = |number: u64| Range { start: area.start + number * PAGE, end: area.start + (number + 1) * PAGE };
    assert_eq!(missing, [Piece::Unreadable(page(3)), Piece::Unreadable(page(4))]);
    let read: u64 = pieces.iter().map(|piece| if let Piece::Read(done) = piece { done.len() } else { 0 }).sum();
    assert_eq!(read, area.len() - hole.len());
    child.end();
    assert!(reader.read_next(&mut area.clone(), &mut buffer).is_err());
}

#[test]
fn pages_that_the_process_itself_may_not_read_are_read() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 7);
    let hidden = Range { start: area.start + MIB, end: area.start + MIB + 3 * PAGE };
    child.good(libc::SYS_mprotect, &[hidden.start, hidden.len(), libc::PROT_NONE as u64]);
    let reader = MemoryReader::open(child.pid).unwrap();
    let (mut rest, mut buffer, mut read) = (area, vec![0; 1 << 20], 0);
    while let Some(piece) = reader.read_next(&mut rest, &mut buffer).unwrap() {
        let Piece::Read(done) = piece else { panic!("{piece:?}") };
        assert!(buffer[..done.len() as usize].iter().step_by(PAGE as usize).all(|byte| *byte == 7));
        read += done.len();
    }
    assert_eq!(read, area.len());
}

#[test]
fn nothing_is_read_of_a_program_that_was_executed_since() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    let reader = MemoryReader::open(child.pid).unwrap();
    child.execute_another();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid)).unwrap();
    let new = maps.lines().filter(|line| !line.ends_with("[vsyscall]")).filter_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Range { start: number(start)?, end: number(end)? })
    });
    let mut buffer = vec![0; 1 << 20];
    for range in new.chain([area]) {
        assert!(matches!(reader.read_next(&mut range.clone(), &mut buffer), Err(ReadError::Gone { .. })), "{range:x?}");
    }
}
