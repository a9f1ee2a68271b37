//! What the restored process does.

use super::PAGES;
use super::application::*;
use super::machine::{is_stale, wait};
use criu_shim::pages::PAGE;
use criu_shim::pages::daemon::Status;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Environment of the process that plays CRIU: what it does, and where.
pub const ROLE: &str = "TIDEOVER_TEST_SCENARIO";
pub const WORK: &str = "TIDEOVER_TEST_WORK";

const PID: i32 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    TouchedAtRandom,
    Untouched,
    ThrownAway,
    ThrownAwayDuringTheFill,
    Moved,
    MovedDuringTheFill,
    MovedAndShrunk,
    Unmapped,
    Split,
    Forked,
    ForkedDuringTheFill,
    KeptFromTheChild,
    Several,
    Dies,
    Stale,
    Held,
    GivenUp,
    Orphaned,
    NotRegistered,
    Measured,
}

pub fn play() {
    let (Ok(role), Ok(work)) = (std::env::var(ROLE), std::env::var(WORK)) else { return };
    let work = PathBuf::from(work);
    let mut criu = Criu::connect(&work);
    let is = |scenario: Scenario| role == format!("{scenario:?}");
    if is(Scenario::Several) {
        return several(&mut criu, &work);
    }
    let count = match () {
        () if is(Scenario::Measured) => 65536,
        () if is(Scenario::Untouched) => store_pages(&work),
        () => PAGES,
    };
    // As in CRIU, the process keeps no descriptor of its own.
    criu.send(PID, &restore(count));
    match () {
        () if is(Scenario::TouchedAtRandom) => {
            is_right(PID, shuffled(count, 1).into_iter().take(100));
            criu.finish();
            is_right(PID, shuffled(count, 2));
        }
        () if is(Scenario::Untouched) => {
            let begin = Instant::now();
            criu.finish();
            complete(&work);
            println!("{} MiB filled in after {:?}", (count * PAGE) >> 20, begin.elapsed());
            if count < 65536 {
                is_right(PID, 0..count);
            }
        }
        () if is(Scenario::ThrownAway) => thrown_away(&mut criu, &work),
        () if is(Scenario::ThrownAwayDuringTheFill) => thrown_away_during_the_fill(&mut criu, &work),
        () if is(Scenario::Moved) => moved(&mut criu, &work),
        () if is(Scenario::MovedDuringTheFill) => moved_during_the_fill(&mut criu, &work),
        () if is(Scenario::MovedAndShrunk) => moved_and_shrunk(&mut criu, &work),
        () if is(Scenario::Unmapped) => unmapped(&mut criu, &work),
        () if is(Scenario::Split) => split(&mut criu, &work),
        () if is(Scenario::Forked) => forked(&mut criu, &work),
        () if is(Scenario::ForkedDuringTheFill) => forked_during_the_fill(&mut criu, &work),
        () if is(Scenario::KeptFromTheChild) => kept_from_the_child(&mut criu, &work),
        () if is(Scenario::Dies) => criu.finish(),
        () if is(Scenario::Stale) => {
            is_zero(BASE, (0..count).filter(|page| is_stale(*page)).take(10));
            criu.finish();
            complete(&work);
            is_right(PID, (0..count).filter(|page| !is_stale(*page)));
            is_zero(BASE, (0..count).filter(|page| is_stale(*page)));
        }
        () if is(Scenario::Held) => {
            // In the tests with this scenario the daemon fails, perhaps before it has heard this; nothing is looked at.
            criu.try_to_finish().ok();
            wait(|| !matches!(Status::read(&work), Ok(Some(Status::Listening))), "no status");
            look(BASE + 9 * PAGE);
            std::thread::sleep(Duration::MAX);
        }
        () if is(Scenario::Orphaned) => {
            wait(|| matches!(Status::read(&work), Ok(Some(Status::Failed(_)))), "nobody says that the daemon is dead");
            look(BASE + 9 * PAGE);
            std::thread::sleep(Duration::MAX);
        }
        () if is(Scenario::GivenUp) => is_right(PID, shuffled(count, 3).into_iter().take(1000)),
        () if is(Scenario::NotRegistered) => {
            criu.finish();
            std::thread::sleep(Duration::MAX);
        }
        () if is(Scenario::Measured) => measured(&mut criu, &work, count),
        () => panic!("no scenario {role}"),
    }
}

fn complete(work: &Path) {
    wait(|| Status::read(work).unwrap() == Some(Status::Complete), "not complete");
}

/// The only store's.
fn store_pages(work: &Path) -> u64 {
    std::fs::metadata(work.join("17.pages")).map_or(PAGES, |_| {
        let index = std::fs::read(work.join("17.index")).unwrap();
        let last = &index[index.len() - 32 - 24..];
        let number = |at: usize| u64::from_le_bytes(last[at..at + 8].try_into().unwrap());
        // The last page of a store may be one of zeros.
        ((number(0) + number(8) - BASE) / PAGE).next_multiple_of(64)
    })
}

fn thrown_away(criu: &mut Criu, work: &Path) {
    is_right(PID, 500..600);
    advise(400..1000, libc::MADV_DONTNEED);
    is_zero(BASE, 400..500);
    write(BASE + 700 * PAGE, 7);
    criu.finish();
    is_zero(BASE, 500..700);
    complete(work);
    is_right(PID, (0..400).chain(1000..PAGES));
    is_zero(BASE, (400..700).chain(701..1000));
    assert_eq!(look(BASE + 700 * PAGE), Content::Word(7));
}

fn thrown_away_during_the_fill(criu: &mut Criu, work: &Path) {
    criu.finish();
    for piece in shuffled(PAGES / 16, 4).into_iter().filter(|piece| piece % 2 == 0) {
        advise(piece * 16..piece * 16 + 16, libc::MADV_DONTNEED);
        is_zero(BASE, [piece * 16 + 3]);
    }
    complete(work);
    is_zero(BASE, (0..PAGES).filter(|page| page / 16 % 2 == 0));
    is_right(PID, (0..PAGES).filter(|page| page / 16 % 2 == 1));
}

fn moved(criu: &mut Criu, work: &Path) {
    is_right(PID, 1000..1010);
    // Moved and grown, and moved again.
    remap(BASE + 1000 * PAGE, 500, ELSEWHERE, 600, 0);
    is_right_at(PID, 1000..1100, ELSEWHERE - 1000 * PAGE);
    remap(ELSEWHERE, 600, ELSEWHERE + 5000 * PAGE, 600, 0);
    // Moved with the old place left behind.
    remap(BASE + 2000 * PAGE, 100, ELSEWHERE, 100, libc::MREMAP_DONTUNMAP);
    // Over what is there.
    remap(BASE + 3000 * PAGE, 100, BASE + 3500 * PAGE, 100, 0);
    criu.finish();
    is_right_at(PID, 2000..2010, ELSEWHERE - 2000 * PAGE);
    complete(work);
    is_right_at(PID, 1000..1500, ELSEWHERE + 4000 * PAGE);
    is_zero(ELSEWHERE + 5000 * PAGE, 500..600);
    is_right_at(PID, 2000..2100, ELSEWHERE - 2000 * PAGE);
    is_zero(BASE, 2000..2100);
    is_right_at(PID, 3000..3100, BASE + 500 * PAGE);
    is_right(PID, (0..1000).chain(1500..2000).chain(2100..3000).chain(3100..3500).chain(3600..PAGES));
}

fn moved_during_the_fill(criu: &mut Criu, work: &Path) {
    criu.finish();
    let pieces: Vec<u64> = shuffled(PAGES / 64, 5).into_iter().filter(|piece| piece % 2 == 0).collect();
    for piece in &pieces {
        remap(BASE + piece * 64 * PAGE, 64, ELSEWHERE + piece * 64 * PAGE, 64, 0);
        is_right_at(PID, [piece * 64 + 5], ELSEWHERE);
    }
    complete(work);
    is_right(PID, (0..PAGES).filter(|page| page / 64 % 2 == 1));
    is_right_at(PID, (0..PAGES).filter(|page| page / 64 % 2 == 0), ELSEWHERE);
}

fn moved_and_shrunk(criu: &mut Criu, work: &Path) {
    remap(BASE + 1000 * PAGE, 200, BASE + 2000 * PAGE, 50, 0);
    criu.finish();
    complete(work);
    is_right_at(PID, 1000..1050, BASE + 1000 * PAGE);
    is_right(PID, (0..1000).chain(1200..2000).chain(2050..PAGES));
}

fn unmapped(criu: &mut Criu, work: &Path) {
    let unmap = |first: u64, count: u64| {
        // SAFETY: nothing lives there.
        unsafe { libc::munmap(pointer(BASE + first * PAGE), (count * PAGE) as usize) };
    };
    unmap(100, 1000);
    // Another mapping in the old place is none of the daemon's business.
    map(BASE + 200 * PAGE, 300);
    is_zero(BASE, 200..250);
    criu.finish();
    unmap(3000, 500);
    complete(work);
    is_right(PID, (0..100).chain(1100..3000).chain(3500..PAGES));
    is_zero(BASE, 200..500);
}

fn split(criu: &mut Criu, work: &Path) {
    for page in (3..PAGES).step_by(37) {
        // SAFETY: the tests use memory that nothing else lives in.
        let result = unsafe { libc::mprotect(pointer(BASE + page * PAGE), PAGE as usize, libc::PROT_READ) };
        assert_eq!(result, 0);
    }
    is_right(PID, 0..200);
    criu.finish();
    complete(work);
    is_right(PID, 0..PAGES);
}

/// Forks; the child does this and ends, the parent gets its pid.
fn child(does: impl FnOnce()) -> Pid {
    // SAFETY: no other thread of this process holds a lock that the child needs.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let right = std::panic::catch_unwind(AssertUnwindSafe(does)).is_ok();
            // SAFETY: ends this process, whatever the test harness had in mind for it.
            unsafe { libc::_exit(i32::from(!right)) }
        }
    }
}

fn ended_well(child: Pid) {
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
}

fn forked(criu: &mut Criu, work: &Path) {
    is_right(PID, shuffled(PAGES, 6).into_iter().take(50));
    write(BASE + 2 * PAGE, 5);
    let first = child(|| {
        advise(300..400, libc::MADV_DONTNEED);
        let grandchild = child(|| {
            is_zero(BASE, 300..400);
            is_right(PID, (3..300).chain(400..PAGES));
        });
        assert_eq!(look(BASE + 2 * PAGE), Content::Word(5));
        is_right(PID, shuffled(PAGES, 7).into_iter().filter(|page| *page > 2 && !(300..400).contains(page)));
        ended_well(grandchild);
    });
    let second = child(|| {
        // Until the parent has everything, and beyond: to have it all is the daemon's doing, not the parent's.
        remap(BASE + 1000 * PAGE, 100, ELSEWHERE, 100, 0);
        complete(work);
        is_right_at(PID, 1000..1100, ELSEWHERE - 1000 * PAGE);
        is_right(PID, (3..1000).chain(1100..PAGES));
    });
    advise(500..600, libc::MADV_DONTNEED);
    criu.finish();
    is_right(PID, (3..500).chain(600..PAGES));
    is_zero(BASE, 500..600);
    ended_well(first);
    ended_well(second);
}

fn forked_during_the_fill(criu: &mut Criu, work: &Path) {
    criu.finish();
    let children: Vec<Pid> = (0..8)
        .map(|number| {
            child(|| {
                is_right(PID, shuffled(PAGES, number));
            })
        })
        .collect();
    is_right(PID, shuffled(PAGES, 9));
    children.into_iter().for_each(ended_well);
    complete(work);
}

fn kept_from_the_child(criu: &mut Criu, work: &Path) {
    advise(1000..1100, libc::MADV_DONTFORK);
    let child = child(|| {
        is_right(PID, (0..10).chain(995..1000));
        complete(work);
        is_right(PID, (0..1000).chain(1100..PAGES));
    });
    criu.finish();
    complete(work);
    is_right(PID, 0..PAGES);
    ended_well(child);
}

fn several(criu: &mut Criu, work: &Path) {
    let (mut ready, mut tell) = std::io::pipe().unwrap();
    let mut serve = |pid: i32, count: u64, criu: &mut Criu| {
        let child = child(|| {
            criu.send(pid, &restore(count));
            std::io::Write::write_all(&mut tell, &[0]).unwrap();
            is_right(pid, shuffled(count, pid as u64));
            complete(work);
            is_right(pid, 0..count);
        });
        // CRIU has a lock around what it sends for a process.
        std::io::Read::read_exact(&mut ready, &mut [0]).unwrap();
        child
    };
    let first = serve(17, PAGES, criu);
    criu.send_zombie(30);
    let second = serve(23, PAGES, criu);
    let third = serve(24, 0, criu);
    criu.finish();
    [first, second, third].into_iter().for_each(ended_well);
}

fn measured(criu: &mut Criu, work: &Path, count: u64) {
    let touch = |pages: &[u64]| {
        let mut times = Vec::new();
        for page in pages {
            let words: *const u64 = pointer(BASE + page * PAGE).cast();
            let begin = Instant::now();
            // SAFETY: mapped and readable.
            unsafe { words.read_volatile() };
            times.push(begin.elapsed());
        }
        // What is there already takes less than any fault.
        times.retain(|time| *time > Duration::from_micros(3));
        let sum: Duration = times.iter().sum();
        let faults = times.len().max(1);
        (times.len(), sum / faults as u32, times.into_iter().max())
    };
    let order = shuffled(count, 11);
    println!("before the fill, faults, mean, worst: {:?}", touch(&order[..2000]));
    let begin = Instant::now();
    let in_order: Vec<u64> = (count / 2..count / 2 + 4000).collect();
    println!("before the fill, in order of addresses: {:?} in {:?}", touch(&in_order), begin.elapsed());
    let begin = Instant::now();
    criu.finish();
    println!("during the fill: {:?}", touch(&order[2000..]));
    complete(work);
    println!("complete after {:?}", begin.elapsed());
}
