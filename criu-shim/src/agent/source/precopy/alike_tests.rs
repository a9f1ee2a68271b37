use super::*;
use crate::agent::transfer::memory::tests::Target;
use crate::agent::transfer::pages::{Crossing, HEADER, MAX_PAGES, encode, is_zero};
use proptest::prelude::*;

fn place(pid: i32, page: u64) -> Place {
    Place { pid, address: page * PAGE as u64 }
}

fn digest(alike: &Alike, byte: u8) -> Option<Digest> {
    Some(alike.digest(&[byte; PAGE]))
}

#[test]
fn the_same_content_crosses_once_and_from_then_on_as_its_place() {
    let alike = Alike::new().expect("a key");
    let send = |place, byte| alike.listed().send(place, digest(&alike, byte));
    assert_eq!(send(place(1, 7), 1), None);
    assert_eq!(send(place(2, 7), 1), Some(place(1, 7)));
    assert_eq!(send(place(2, 8), 1), Some(place(1, 7)), "at whatever address");
    assert_eq!(send(place(2, 9), 2), None, "another content");
}

#[test]
fn a_place_that_was_sent_again_is_never_referred_to_again() {
    let alike = Alike::new().expect("a key");
    let send = |place, byte| alike.listed().send(place, digest(&alike, byte));
    send(place(1, 7), 1);
    // As zeros, say, of which no digest is made.
    assert_eq!(alike.listed().send(place(1, 7), None), None);
    assert_eq!(send(place(2, 7), 1), None, "the target has something else at 7 of 1");
    assert_eq!(send(place(3, 7), 1), Some(place(2, 7)));
    // Its second content is not listed either.
    assert_eq!(send(place(1, 7), 5), None);
    assert_eq!(send(place(2, 8), 5), None);
    assert_eq!(send(place(1, 8), 5), Some(place(2, 8)));
}

#[test]
fn what_is_sent_to_its_own_place_again_is_no_copy_of_itself() {
    let alike = Alike::new().expect("a key");
    let send = |place, byte| alike.listed().send(place, digest(&alike, byte));
    send(place(1, 7), 1);
    assert_eq!(send(place(1, 7), 1), None);
}

#[test]
fn what_is_remembered_is_bounded_over_all_processes_and_given_back() {
    let alike = Alike::new().expect("a key");
    let (one, other) = (alike.process(), alike.process());
    let many: Vec<Digest> = (0..MOST_REMEMBERED as u64).map(|number| u128::from(number).to_ne_bytes()).collect();
    assert_eq!(one.known(0, &many), 0);
    assert_eq!((other.known(0, &many[..1]), other.known(0, &many[..1])), (0, 0), "there is no room for it");
    drop(one);
    assert_eq!((other.known(0, &many[..1]), other.known(0, &many[..1])), (0, 1));
}

#[test]
fn the_list_is_bounded() {
    let mut listed = Listed::default();
    for number in 0..MOST as u64 + 1000 {
        listed.send(place(1, number), Some(u128::from(number).to_ne_bytes()));
    }
    assert_eq!(listed.send(place(2, 5), Some(5_u128.to_ne_bytes())), Some(place(1, 5)));
    listed.send(place(1, 5), None);
    assert_eq!(listed.send(place(2, 5), Some(5_u128.to_ne_bytes())), None, "takes the place of what has gone stale");
    assert_eq!(listed.by_digest.len(), MOST);
    assert!(listed.by_digest.capacity() < 1 << 20, "the table is no larger than it was said to be");
}

#[test]
fn every_move_has_a_key_of_its_own() {
    let [one, other] = [0; 2].map(|_| Alike::new().expect("a key").digest(&[1; PAGE]));
    assert_ne!(one, other);
}

/// Pages of one process from `first` on, each full of one byte, and whether it is looked at what they hold.
#[derive(Clone, Debug)]
struct Sending {
    pid: i32,
    first: u64,
    letters: Vec<u8>,
    looked_at: bool,
}

fn sending() -> impl Strategy<Value = Sending> {
    let letters = prop::collection::vec(0..4_u8, 1..8);
    (1..4, 0..12_u64, letters, prop::bool::weighted(0.8)).prop_map(|(pid, first, letters, looked_at)| Sending {
        pid,
        first,
        letters,
        looked_at,
    })
}

impl Sending {
    /// What crosses of it.
    fn stream(&self, alike: &Alike) -> Vec<u8> {
        let pages: Vec<u8> = self.letters.iter().flat_map(|letter| [*letter; PAGE]).collect();
        let mut listed = alike.listed();
        let crossing = |(page, number): (&[u8], u64)| {
            let digest = (self.looked_at && !is_zero(page)).then(|| alike.digest(page));
            listed.send(place(self.pid, number), digest).map_or(Crossing::Content, Crossing::Copy)
        };
        let crossings: Vec<_> = pages.chunks(PAGE).zip(self.first..).map(crossing).collect();
        let mut buffer = [vec![0; HEADER], pages].concat();
        let length = encode(&mut buffer, self.first * PAGE as u64, &crossings);
        buffer.truncate(length);
        buffer
    }
}

proptest! {
    #[test]
    fn whatever_is_sent_to_where_the_target_has_what_was_sent_last(
        sendings in prop::collection::vec(sending(), 1..40),
    ) {
        let (alike, mut target) = (Alike::new().expect("a key"), Target::with_room(1 << 30));
        let mut model = BTreeMap::new();
        for sending in sendings {
            target.take(sending.pid, &sending.stream(&alike)).expect("all of it can be taken");
            let pages = sending.letters.iter().zip(sending.first..);
            model.extend(pages.map(|(letter, number)| (place(sending.pid, number), *letter)));
        }
        for (place, letter) in model {
            prop_assert!(target.page(place) == [letter; PAGE], "{:?} is not {}", place, letter);
        }
    }
}

/// Forked processes, of which the kernel says what they share.
#[cfg(target_arch = "x86_64")]
mod crowd {
    use super::*;
    use crate::agent::source::precopy::Written;
    use crate::agent::source::precopy::reader::PageReader;
    use crate::memory::Range;
    use crate::memory::tests::child::Child;

    const PAGES: usize = 32 * MAX_PAGES;
    const CHILDREN: i32 = 8;

    /// A round of `child`: what crosses of `range`, which the target has then. Returns its bytes.
    fn cross(child: &Child, image_pid: i32, range: Range, sent: &SentPages, target: &mut Target) -> usize {
        let written = Written { pid: child.pid, image_pid, ranges: vec![range], noted: None, sent: sent.clone() };
        let mut stream = Vec::new();
        PageReader::open(written, true).expect("a child").read_to_end(&mut stream).expect("its memory");
        target.take(image_pid, &stream).expect("all of it can be taken");
        stream.len()
    }

    #[test]
    fn what_forked_processes_share_crosses_once() {
        let mut area = vec![0_u8; (PAGES + 1) * PAGE];
        let start = (area.as_ptr() as u64).next_multiple_of(PAGE as u64);
        let first = (start - area.as_ptr() as u64) as usize;
        for page in 0..PAGES {
            area[first + page * PAGE..][..8].copy_from_slice(&(page as u64 + 1).to_ne_bytes());
        }
        let range = Range { start, end: start + (PAGES * PAGE) as u64 };
        let mut children: Vec<Child> = (0..CHILDREN).map(|_| Child::new()).collect();
        // What each writes is its own from then on.
        for (child, byte) in children.iter_mut().zip(1..) {
            for page in 0..16 {
                child.store(start + u64::from(byte) * 40 * PAGE as u64 + page * PAGE as u64 + 9, byte);
            }
        }
        let (alike, mut target) = (Alike::new().expect("a key"), Target::with_room(1 << 30));
        let all: Vec<_> = children.iter().zip(1..).map(|(child, pid)| (child, pid, alike.process())).collect();
        let bytes: usize = all.iter().map(|(child, pid, sent)| cross(child, *pid, range, sent, &mut target)).sum();
        let unique = (PAGES + 16 * children.len()) * PAGE;
        let ratio = bytes as f64 / unique as f64;
        assert!((0.9..=1.15).contains(&ratio), "{bytes} bytes crossed for {unique} of unique memory: {ratio:.3}");

        // Another round of everything changes nothing about what the target has.
        children[3].store(start, 77);
        for (child, pid, sent) in children.iter().zip(1..).map(|(child, pid)| (child, pid, alike.process())) {
            cross(child, pid, range, &sent, &mut target);
        }
        for (child, pid) in children.iter().zip(1..) {
            for address in (range.start..range.end).step_by(PAGE) {
                assert!(target.page(Place { pid, address }) == child.peek(address, PAGE), "{address:#x} of {pid}");
            }
        }
    }

    #[test]
    fn what_only_one_process_has_is_not_looked_at() {
        let mut child = Child::new();
        let range = child.island(64 * PAGE as u64);
        child.fill(range, 5);
        let (alike, mut target) = (Alike::new().expect("a key"), Target::with_room(1 << 30));
        cross(&child, 1, range, &alike.process(), &mut target);
        assert!(alike.listed().by_digest.is_empty());
    }
}
