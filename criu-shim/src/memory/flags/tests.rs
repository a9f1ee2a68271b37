use super::*;
use crate::memory::tests::child::{Child, MIB, PAGE};
use crate::memory::{Injector, Tracker};

/// None on a kernel that takes no such program: it says why.
fn of_this_kernel() -> Option<Flags> {
    let described = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    match Flags::load() {
        Ok(flags) => Some(flags),
        Err(error) => {
            assert!(!described, "{}", chain(&error));
            None
        }
    }
}

fn as_smaps_has_it(pid: i32) -> String {
    let smaps = std::fs::read(format!("/proc/{pid}/smaps")).expect("smaps");
    let lines: Vec<u8> = entries(&smaps).flat_map(|(header, flags)| [header, flags].concat()).collect();
    String::from_utf8(lines).expect("text")
}

#[test]
fn flags_are_written_as_smaps_has_them() {
    let Some(flags) = of_this_kernel() else { return };
    let mut child = Child::new();
    let text = |child: &Child| {
        let text = flags.of_frozen(child.pid).expect("a process that waits")?;
        Some(String::from_utf8(text).expect("text"))
    };
    for advice in [
        libc::MADV_DONTFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_WIPEONFORK,
        libc::MADV_SEQUENTIAL,
        libc::MADV_RANDOM,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_MERGEABLE,
    ] {
        let range = child.island(MIB);
        // Not every kernel is built with all of them.
        child.call(libc::SYS_madvise, &[range.start, MIB, advice as u64]);
    }
    let locked = child.island(PAGE);
    child.good(libc::SYS_mlock, &[locked.start, PAGE]);
    let shared = [0, MIB, 3, (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64, u64::MAX, 0];
    child.good(libc::SYS_mmap, &shared);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).expect("a process that can be followed");
    tracker.take_written().expect("a round");
    let expected = as_smaps_has_it(child.pid);
    assert!(
        [" lo ", " dc ", " dd ", " wf ", " sr ", " rr ", " uw "].iter().all(|name| expected.contains(name)),
        "{expected}"
    );
    assert_eq!(text(&child).as_deref(), Some(expected.as_str()));
}

#[test]
fn a_bit_that_was_never_seen_is_left_to_smaps() {
    let Some(mut flags) = of_this_kernel() else { return };
    let child = Child::new();
    assert!(flags.of_frozen(child.pid).expect("a process that waits").is_some());
    flags.letters.0.retain(|_, name| name != b"ex");
    assert_eq!(flags.of_frozen(child.pid).expect("a process that waits"), None);
    assert!(flags.of_frozen(i32::MAX).is_err(), "there is no such process");
}

#[test]
fn letters_belong_to_bits_in_ascending_order() {
    let mut letters = Letters::default();
    letters.learn(0b1_0000_0101, b"VmFlags: rd ex de \n").expect("learned");
    assert_eq!(letters.line(0b101).as_deref(), Some(&b"VmFlags: rd ex \n"[..]));
    assert_eq!(letters.line(0b111), None, "the second bit was not seen");
    letters.learn(0b111, b"VmFlags: rd ex \n").expect("one of them has no letters");
    assert_eq!(letters.line(0b111), None);
    assert!(letters.learn(0b1, b"VmFlags: wr \n").is_err(), "it was rd");
    assert!(letters.learn(0b1, b"VmFlags: read \n").is_err());
}

#[test]
fn what_does_not_fit_together_is_left_to_smaps() {
    let Some(flags) = of_this_kernel() else { return };
    let own = flags.program.mappings(std::process::id().cast_signed()).expect("mappings");
    let word = own.iter().find(|word| flags.letters.line(word.flags).is_some()).expect("one");
    let line = format!("{:08x}-{:08x} r-xp 00000000 00:00 0\n", word.start, word.end);
    let both = format!("{line}ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n");
    assert!(flags.text(line.as_bytes(), &[*word]).is_some());
    assert!(flags.text(both.as_bytes(), &[*word]).is_some());
    assert_eq!(flags.text(line.as_bytes(), &[*word, *word]), None, "one more");
    assert_eq!(flags.text(line.as_bytes(), &[]), None, "one less");
    let moved = Mapping { start: word.start + PAGE, ..*word };
    assert_eq!(flags.text(line.as_bytes(), &[moved]), None, "another");
}

#[test]
fn a_process_of_many_mappings_is_read_in_several_steps() {
    let Some(flags) = of_this_kernel() else { return };
    let mut child = Child::new();
    let many = child.map(0, 10_000 * PAGE);
    for page in (many.start..many.end).step_by(2 * PAGE as usize) {
        child.good(libc::SYS_mprotect, &[page, PAGE, libc::PROT_READ as u64]);
    }
    let text = flags.of_frozen(child.pid).expect("a process that waits").expect("known flags");
    assert_eq!(String::from_utf8(text).expect("text"), as_smaps_has_it(child.pid));
}
