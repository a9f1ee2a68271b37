//! A round crosses whole or not at all.

use super::*;
use crate::agent::room::Room;
use crate::agent::transfer::frame::{Frame, MAX_DATA, Packed};
use crate::agent::transfer::hashing::Hashing;
use crate::agent::transfer::link::{self, LinkError, LinkSender};
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::packed::Packer;
use crate::agent::transfer::send;
use bytes::Bytes;
use std::io::{Cursor, Read};

struct Wire {
    directory: tempfile::TempDir,
    source: LinkSender<FromSource>,
    target: LinkReceiver<FromSource>,
    landing: Landing,
    // Dropping them would close the connection.
    _ends: (LinkReceiver<FromTarget>, LinkSender<FromTarget>),
}

fn wire(limit: u64) -> Wire {
    let directory = tempfile::tempdir().expect("dir");
    let (near, far) = tokio::io::duplex(64 << 10);
    let (source, from_target) = link::open::<_, FromSource, FromTarget>(near);
    let (to_source, target) = link::open::<_, FromTarget, FromSource>(far);
    let landing = Landing::create(&directory.path().join("1"), Room::new(move || limit).promise(0).expect("room"))
        .expect("landing");
    Wire { directory, source, target, landing, _ends: (from_target, to_source) }
}

fn image(name: &str) -> Part {
    Part::Image { name: name.into() }
}

#[tokio::test]
async fn what_is_sent_lands_with_the_same_digest() {
    let mut wire = wire(u64::MAX);
    let big: Vec<u8> = (0..3_500_000_u32).map(|n| (n % 251) as u8).collect();
    let sending = async {
        let mut round = send::begin(&wire.source, 1, true).await.expect("begin");
        round.part(image("pages-1.img"), Cursor::new(big.clone())).await.expect("part");
        round.part(image("empty.img"), Cursor::new(Vec::new())).await.expect("part");
        round.part(Part::Volume { name: "data".into(), round: 1 }, Cursor::new(b"tar".to_vec())).await.expect("part");
        let small = |number: u8| (image(&format!("core-{number}.img")), vec![number; number.into()].into());
        round.together((0..=250).map(small).collect()).await.expect("parts");
        round.end().await.expect("end")
    };
    let (sent, landed) = tokio::join!(sending, wire.landing.round(&mut wire.target));
    let landed = landed.expect("landed");
    assert_eq!((landed.number, landed.kind), (1, RoundKind::Last));
    assert_eq!(landed.manifest, sent);
    let at = |name: &str| std::fs::read(wire.directory.path().join("1").join(name)).expect("read");
    assert_eq!(at("images/pages-1.img"), big);
    assert_eq!(at("images/empty.img"), b"");
    assert_eq!(at("files/0000000001-volume-data"), b"tar");
    (0..=250).for_each(|number| assert_eq!(at(&format!("images/core-{number}.img")), vec![number; number.into()]));
    stored::verify(&wire.directory.path().join("1")).expect("all of it");
}

#[tokio::test]
async fn who_follows_hears_of_the_archives_of_the_last_round_before_it_has_landed_and_of_nothing_else() {
    let mut wire = wire(u64::MAX);
    let (follower, mut followed) = mpsc::channel(8);
    wire.landing = wire.landing.followed_by(follower);
    for (number, last) in [(1, false), (2, true)] {
        let sending = async {
            let mut round = send::begin(&wire.source, number, last).await.expect("begin");
            round.part(image(&format!("{number}.img")), Cursor::new(b"image")).await.expect("part");
            round.part(Part::Layer { round: number }, Cursor::new(b"archive")).await.expect("part");
            if !last {
                round.end().await.expect("end");
                return;
            }
            // It is heard of while its round is still open.
            let heard = tokio::time::timeout(Duration::from_secs(10), followed.recv()).await;
            let growing = heard.expect("in time").expect("an archive");
            assert!(growing.path().ends_with("files/0000000002-layer"), "{growing:?}");
            let mut bytes = Vec::new();
            let read = tokio::task::spawn_blocking(move || growing.open()?.read_to_end(&mut bytes).map(|_| bytes));
            assert_eq!(read.await.expect("no panic").expect("read"), b"archive");
            round.end().await.expect("end");
        };
        let ((), landed) = tokio::join!(sending, wire.landing.round(&mut wire.target));
        landed.expect("landed");
    }
    assert!(followed.try_recv().is_err(), "there was one");
}

/// Sends rounds of one archive each, and takes them. Returns the attempt's directory.
async fn rounds(wire: &mut Wire, archives: &[(Part, Vec<u8>)], last: bool) -> PathBuf {
    for (part, content) in archives {
        let sending = async {
            let mut round = send::begin(&wire.source, 1, last).await.expect("begin");
            round.part(part.clone(), Cursor::new(content.clone())).await.expect("part");
            round.end().await.expect("end");
        };
        let ((), landed) = tokio::join!(sending, wire.landing.round(&mut wire.target));
        landed.expect("landed");
    }
    wire.directory.path().join("1")
}

/// One whose last round is followed.
fn followed() -> (Wire, mpsc::Receiver<Growing>) {
    let (follower, followed) = mpsc::channel(8);
    let wire = wire(u64::MAX);
    (Wire { landing: wire.landing.followed_by(follower), ..wire }, followed)
}

fn layer(round: u32, bytes: usize) -> (Part, Vec<u8>) {
    (Part::Layer { round }, vec![round as u8 + 1; bytes])
}

fn lengths(directory: &Path) -> Vec<(String, u64)> {
    let entries = directory.read_dir().into_iter().flatten().map(|entry| entry.expect("entry"));
    let length = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().expect("a name"), entry.metadata().expect("metadata").len())
    };
    entries.map(length).collect()
}

#[tokio::test]
async fn an_archive_of_the_last_round_lands_in_a_file_that_was_made_before_and_has_its_own_length() {
    // What comes first is all of the tree, and says nothing of how much changes.
    let before = [layer(0, 900_000), layer(1, 300_000), layer(2, 400_000), layer(3, 1)];
    for bytes in [0, 5, 399_999, 400_000, 400_001, 3_000_000] {
        let (mut wire, _followed) = followed();
        let directory = rounds(&mut wire, &before, false).await;
        assert_eq!(lengths(&directory.join("ready")), [("layer".to_owned(), 400_000)]);
        let inode = |path| directory.join(path).metadata().map(|found| std::os::unix::fs::MetadataExt::ino(&found));
        let made = inode("ready/layer").expect("made");
        let (part, content) = layer(4, bytes);
        rounds(&mut wire, &[(part, content.clone())], true).await;
        assert_eq!(inode("files/0000000004-layer").expect("landed"), made);
        assert_eq!(std::fs::read(directory.join("files/0000000004-layer")).expect("read"), content);
        assert_eq!(lengths(&directory.join("ready")), []);
        stored::verify(&directory).expect("all of it");
    }
}

#[tokio::test]
async fn a_file_that_was_made_for_one_tree_is_of_no_use_to_another() {
    let volume = |name: &str, round| (Part::Volume { name: name.into(), round }, vec![7; 5000]);
    let (mut wire, _followed) = followed();
    rounds(&mut wire, &[volume("a", 0), volume("a", 1)], false).await;
    let directory = rounds(&mut wire, &[volume("b", 2)], true).await;
    assert_eq!(lengths(&directory.join("ready")), [("volume-a".to_owned(), 5000)]);
    stored::verify(&directory).expect("all of it");
}

#[tokio::test]
async fn nothing_is_made_before_where_nobody_waits_for_the_last_round() {
    let mut wire = wire(u64::MAX);
    let directory = rounds(&mut wire, &[layer(0, 9), layer(1, 9000), layer(2, 9000)], false).await;
    assert!(!directory.join("ready").exists());
}

#[tokio::test]
async fn what_is_made_before_has_a_bound_and_comes_out_of_the_same_room() {
    let directory = tempfile::tempdir().expect("dir");
    let mut share = Room::new(|| 20 << 20).promise(0).expect("room");
    let mut ready = ready::Ready::new(directory.path().join("ready"));
    let (part, _) = layer(0, 0);
    (0..2).for_each(|_| ready.landed(&part, 1 << 40, &mut share));
    assert_eq!(lengths(&directory.path().join("ready")), [("layer".to_owned(), 16 << 20)]);
    let mut none = Room::new(|| 99).promise(0).expect("room");
    let (volume, path) = (Part::SharedMemory { round: 1 }, directory.path().join("archive"));
    (0..2).for_each(|_| ready.landed(&volume, 100, &mut none));
    assert!(ready.take(&volume, &path).is_none() && !path.exists());
    std::fs::write(&path, b"something").expect("write");
    assert!(ready.take(&part, &path).is_none(), "it would be gone");
    assert_eq!(std::fs::read(&path).expect("read"), b"something");
}

async fn say(wire: &Wire, message: FromSource) {
    wire.source.say(&message).await.expect("say");
}

async fn refusal(mut wire: Wire) -> ReceiveError {
    wire.landing.round(&mut wire.target).await.expect_err("must be refused")
}

/// Sends round `round` with one part, as a source would that says of it what is given.
async fn one_part(wire: &Wire, round: u32, part: Part, bytes: u64, digest: impl Into<Digest>) {
    let digest = digest.into();
    let mut manifest = Manifest::default();
    assert!(manifest.add(part.clone(), Landed { bytes, digest }));
    say(wire, FromSource::RoundBegin { round, last: true }).await;
    say(wire, FromSource::FileBegin { part }).await;
    wire.source.data(Bytes::from_static(b"content")).await.expect("data");
    say(wire, FromSource::FileEnd { bytes, digest: digest.to_string() }).await;
    say(wire, FromSource::RoundEnd { digest: manifest.digest() }).await;
}

#[tokio::test]
async fn what_landed_with_other_bytes_than_were_sent_is_never_used() {
    let mut wire = wire(u64::MAX);
    one_part(&wire, 0, image("a"), 7, blake3::hash(b"contenu")).await;
    wire.landing.round(&mut wire.target).await.expect("landed");
    let error = stored::verify(&wire.directory.path().join("1")).expect_err("other bytes");
    assert!(matches!(error, stored::StoredError::Digest { .. }), "{error}");
}

#[tokio::test]
async fn pages_that_are_not_those_that_were_sent_are_refused_as_they_land() {
    let wire = wire(u64::MAX);
    let mut hashing = Hashing::pages();
    hashing.update(&page(0x1000, 1));
    let (part, digest) = (Part::Memory { pid: 1, round: 0 }, hashing.finish().to_string());
    say(&wire, FromSource::RoundBegin { round: 0, last: false }).await;
    say(&wire, FromSource::FileBegin { part }).await;
    wire.source.data(page(0x1000, 2).into()).await.expect("data");
    say(&wire, FromSource::FileEnd { bytes: 4112, digest }).await;
    let error = refusal(wire).await;
    assert!(error.is_corruption(), "{error}");
}

/// Sends a message of `parts`, and a frame for them.
async fn small_parts(wire: &Wire, parts: &[(Part, u64)], content: &'static [u8]) {
    let digest = blake3::hash(b"x").to_string();
    let small = |(part, bytes): &(Part, u64)| Small { part: part.clone(), bytes: *bytes, digest: digest.clone() };
    say(wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(wire, FromSource::Together { parts: parts.iter().map(small).collect() }).await;
    wire.source.data(Bytes::from_static(content)).await.expect("data");
}

#[tokio::test]
async fn a_frame_that_is_not_as_long_as_its_parts_is_refused() {
    for parts in [
        [(image("a"), 1), (image("b"), 2)],
        [(image("a"), 1), (image("b"), 4)],
        [(image("a"), u64::MAX), (image("b"), 3)],
    ] {
        let wire = wire(u64::MAX);
        small_parts(&wire, &parts, b"four").await;
        let error = refusal(wire).await;
        assert!(error.is_corruption(), "{error}");
    }
}

#[tokio::test]
async fn what_shares_a_frame_and_is_no_file_or_leaves_the_directory_is_refused() {
    for part in [Part::Memory { pid: 1, round: 0 }, image("../x")] {
        let wire = wire(u64::MAX);
        small_parts(&wire, &[(part, 4)], b"four").await;
        assert!(matches!(refusal(wire).await, ReceiveError::Unexpected { .. } | ReceiveError::Name(_)));
    }
}

#[tokio::test]
async fn pages_that_cross_compressed_land_as_they_were() {
    let mut wire = wire(u64::MAX);
    let stream: Vec<u8> = (0..200).flat_map(|number: u8| page(0x1000 * u64::from(number), number)).collect();
    let mut hashing = Hashing::pages();
    hashing.update(&stream);
    let (part, digest) = (Part::Memory { pid: 1, round: 0 }, hashing.finish().to_string());
    say(&wire, FromSource::RoundBegin { round: 0, last: false }).await;
    say(&wire, FromSource::FileBegin { part: part.clone() }).await;
    let (source, bytes) = (wire.source.clone(), stream.len() as u64);
    let sending = async move {
        let mut packer = Packer::new();
        for (number, piece) in stream.chunks(200_000).enumerate() {
            let packed = packer.pack(piece, source.buffer()).expect("it is in short");
            let frame = if number % 2 == 0 { Frame::Packed(packed) } else { Frame::Data(piece.to_vec().into()) };
            source.frame(frame).await.expect("data");
        }
        source.say(&FromSource::FileEnd { bytes, digest: digest.clone() }).await.expect("say");
        let mut manifest = Manifest::default();
        let digest = Digest::parse(&part, &digest).expect("a digest");
        assert!(manifest.add(part, Landed { bytes, digest }));
        source.say(&FromSource::RoundEnd { digest: manifest.digest() }).await.expect("say");
    };
    let (landed, ()) = tokio::join!(wire.landing.round(&mut wire.target), sending);
    assert_eq!(landed.expect("landed").manifest.bytes(), bytes);
    for number in 0..200_u8 {
        let landed = wire.landing.memory.page(1, 0x1000 * u64::from(number));
        assert!(landed == [number; 4096], "page {number}");
    }
}

#[tokio::test]
async fn compressed_pages_that_are_none_are_refused_by_name() {
    let block = Packer::new().block(&page(0x1000, 1)).to_vec();
    let mut changed = block.clone();
    changed.truncate(20);
    for (length, block) in [(4113, block.clone()), (4111, block), (4112, changed), (MAX_DATA, vec![0xff; 100])] {
        let wire = wire(u64::MAX);
        say(&wire, FromSource::RoundBegin { round: 0, last: false }).await;
        say(&wire, FromSource::FileBegin { part: Part::Memory { pid: 1, round: 0 } }).await;
        wire.source.frame(Frame::Packed(Packed { length, block: block.into() })).await.expect("data");
        let error = refusal(wire).await;
        assert!(matches!(error, ReceiveError::Packed { .. }) && error.is_corruption(), "{error}");
    }
}

#[tokio::test]
async fn compressed_pages_take_the_room_of_what_they_stand_for() {
    let wire = wire(4096);
    say(&wire, FromSource::RoundBegin { round: 0, last: false }).await;
    say(&wire, FromSource::FileBegin { part: Part::Memory { pid: 1, round: 0 } }).await;
    let packed = Packer::new().pack(&page(0x1000, 1), wire.source.buffer()).expect("it is in short");
    assert!(packed.block.len() < 100);
    wire.source.frame(Frame::Packed(packed)).await.expect("data");
    assert!(matches!(refusal(wire).await, ReceiveError::TooMuch(_)));
}

#[tokio::test]
async fn a_part_of_another_length_is_refused() {
    let wire = wire(u64::MAX);
    one_part(&wire, 0, image("a"), 8, blake3::hash(b"content")).await;
    let error = refusal(wire).await;
    assert!(error.is_corruption(), "{error}");
}

#[tokio::test]
async fn the_manifest_has_the_parts_of_every_round() {
    let mut wire = wire(u64::MAX);
    let directory = wire.directory.path().join("1");
    for (round, name) in ["a", "b"].into_iter().enumerate() {
        one_part(&wire, u32::try_from(round).expect("round"), image(name), 7, blake3::hash(b"content")).await;
        wire.landing.round(&mut wire.target).await.expect("landed");
        stored::verify(&directory).expect("all that has landed so far");
    }
    std::fs::remove_file(directory.join("images/a")).expect("remove");
    assert!(matches!(stored::verify(&directory), Err(stored::StoredError::Missing { .. })));
}

#[tokio::test]
async fn a_part_that_another_round_has_brought_is_refused() {
    let mut wire = wire(u64::MAX);
    one_part(&wire, 0, image("a"), 7, blake3::hash(b"content")).await;
    wire.landing.round(&mut wire.target).await.expect("landed");
    one_part(&wire, 1, image("a"), 7, blake3::hash(b"content")).await;
    wire.landing.round(&mut wire.target).await.expect_err("there already");
}

#[tokio::test]
async fn a_part_that_is_missing_from_a_round_is_noticed() {
    let wire = wire(u64::MAX);
    say(&wire, FromSource::RoundBegin { round: 3, last: true }).await;
    let mut manifest = Manifest::default();
    assert!(manifest.add(image("a"), Landed { bytes: 0, digest: blake3::hash(b"").into() }));
    say(&wire, FromSource::RoundEnd { digest: manifest.digest() }).await;
    assert!(matches!(refusal(wire).await, ReceiveError::RoundCorrupted { round: 3 }));
}

#[tokio::test]
async fn a_name_that_leaves_the_directory_is_refused() {
    let wire = wire(u64::MAX);
    say(&wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(&wire, FromSource::FileBegin { part: image("../../etc/passwd") }).await;
    assert!(matches!(refusal(wire).await, ReceiveError::Name(_)));
}

#[tokio::test]
async fn no_more_is_taken_than_there_is_room_for() {
    let wire = wire(10);
    say(&wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(&wire, FromSource::FileBegin { part: image("a") }).await;
    wire.source.data(Bytes::from_static(b"123456789012")).await.expect("data");
    assert!(matches!(refusal(wire).await, ReceiveError::TooMuch(NoRoom { wanted: 12, left: 10 })));
}

#[tokio::test]
async fn a_source_that_gives_up_is_believed() {
    let wire = wire(10);
    say(&wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(&wire, FromSource::Abort { message: "dump failed".into() }).await;
    assert!(matches!(refusal(wire).await, ReceiveError::Aborted(message) if message == "dump failed"));
}

#[tokio::test]
async fn a_connection_that_ends_in_the_middle_is_an_error() {
    let wire = wire(u64::MAX);
    say(&wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(&wire, FromSource::FileBegin { part: image("a") }).await;
    wire.source.data(Bytes::from_static(b"123")).await.expect("data");
    let Wire { source, mut target, mut landing, directory: _directory, .. } = wire;
    drop(source);
    assert!(matches!(landing.round(&mut target).await, Err(ReceiveError::Link(LinkError::Closed))));
}

#[tokio::test(start_paused = true)]
async fn silence_is_noticed() {
    // A peer that holds the connection and says nothing, not even that it is there.
    let (near, _far) = tokio::io::duplex(64);
    let (_sender, mut receiver) = link::open::<_, FromTarget, FromSource>(near);
    assert!(matches!(receiver.next().await, Err(LinkError::Silent)));
}

#[tokio::test(start_paused = true)]
async fn a_peer_with_nothing_to_say_is_not_taken_for_lost() {
    let (near, far) = tokio::io::duplex(1 << 10);
    let (sender, mut receiver) = link::open::<_, FromTarget, FromSource>(near);
    let (peer, _from) = link::open::<_, FromSource, FromTarget>(far);
    tokio::spawn(async move {
        tokio::time::sleep(link::SILENCE + link::HEARTBEAT).await;
        peer.say(&FromSource::Abort { message: String::new() }).await.expect("say");
        std::future::pending::<()>().await;
    });
    assert!(matches!(receiver.next().await, Ok(Incoming::Message(FromSource::Abort { .. }))));
    drop(sender);
}

#[tokio::test]
async fn a_cut_lands_apart_from_what_counts() {
    let mut wire = wire(3);
    let send = async |source: &LinkSender<FromSource>, rehearsal: bool| {
        let begun = if rehearsal { send::begin_rehearsal(source, 1).await } else { send::begin(source, 2, true).await };
        let mut round = begun.expect("begin");
        let bytes = if rehearsal { b"cut" } else { b"all" };
        round.part(image("pages-1.img"), Cursor::new(bytes.to_vec())).await.expect("part");
        round.end().await.expect("end")
    };
    let (_, cut) = tokio::join!(send(&wire.source, true), wire.landing.round(&mut wire.target));
    assert_eq!(cut.expect("landed").kind, RoundKind::Rehearsal, "so that nothing is staged by it");
    let (_, last) = tokio::join!(send(&wire.source, false), wire.landing.round(&mut wire.target));
    assert_eq!(last.expect("landed").kind, RoundKind::Last);
    let at = |name: &str| std::fs::read(wire.directory.path().join("1").join(name)).expect("read");
    assert_eq!(at("rehearsal/images/pages-1.img"), b"cut");
    assert_eq!(at("images/pages-1.img"), b"all");
    let attempt = wire.directory.path().join("1");
    for directory in [attempt.join("rehearsal"), attempt] {
        stored::verify(&directory).expect("each has a manifest of its own");
    }
}

/// A record of one page, as `pages` has it.
fn page(offset: u64, byte: u8) -> Vec<u8> {
    let header = [&offset.to_be_bytes()[..], &1_u32.to_be_bytes(), &[0; 4]].concat();
    [header, vec![byte; 4096]].concat()
}

#[tokio::test]
async fn shared_memory_of_all_rounds_is_where_criu_reads_it_when_the_last_has_landed() {
    let mut wire = wire(u64::MAX);
    let directory = wire.directory.path().join("1");
    let part = |round| Part::Shared { inode: 5, round };
    // `pagemap_head` with `pages_id` 1; then `vaddr`, `compat_nr_pages`, `flags` 4 and `nr_pages` of the pages at 0x2000 and 0.
    let entries =
        [vec![0x08, 1], vec![0x08, 0x80, 0x40, 0x10, 0, 0x20, 4, 0x28, 1], vec![0x08, 0, 0x10, 0, 0x20, 4, 0x28, 1]];
    let image_of_it = crate::criu::image::assemble(0x5608_4025, entries);
    let sending = async {
        let mut round = send::begin(&wire.source, 1, false).await.expect("begin");
        round.part(part(1), Cursor::new([page(0x2000, 1), page(0, 2)].concat())).await.expect("part");
        let first = round.end().await.expect("end");
        let mut round = send::begin(&wire.source, 2, true).await.expect("begin");
        round.part(part(2), Cursor::new(page(0x2000, 3))).await.expect("part");
        round.part(image("pagemap-shmem-5.img"), Cursor::new(image_of_it)).await.expect("part");
        [first, round.end().await.expect("end")]
    };
    let landing = async {
        let first = wire.landing.round(&mut wire.target).await.expect("landed");
        [first.manifest, wire.landing.round(&mut wire.target).await.expect("landed").manifest]
    };
    let (sent, landed) = tokio::join!(sending, landing);
    assert_eq!(landed, sent);
    let pages = std::fs::read(directory.join("images/pages-1.img")).expect("its pages");
    assert_eq!(pages, [[3_u8; 4096], [2; 4096]].concat());
    stored::verify(&directory).expect("nothing is there that does not belong there");
}

/// CRIU's image of the memory of process 1, in which the page at 0x1000 is lazy.
fn image_of_memory() -> Vec<u8> {
    // `pages_id` 1; then `vaddr`, `compat_nr_pages`, `flags` 2 and `nr_pages`.
    let entries = [vec![0x08, 1], vec![0x08, 0x80, 0x20, 0x10, 0, 0x20, 2, 0x28, 1]];
    crate::criu::image::assemble(0x5608_4025, entries)
}

#[tokio::test]
async fn memory_that_crossed_before_a_cut_is_what_it_is_rehearsed_with_and_what_counts_after_it() {
    let mut wire = wire(u64::MAX);
    wire.landing = wire.landing.lasting();
    let attempt = wire.directory.path().join("1");
    let memory = |round| Part::Memory { pid: 1, round };
    let sent = async {
        let mut round = send::begin(&wire.source, 1, false).await.expect("begin");
        round.part(memory(1), Cursor::new([page(0x1000, 1), page(0x2000, 2)].concat())).await.expect("part");
        round.end().await.expect("end");
        let mut cut = send::begin_rehearsal(&wire.source, 2).await.expect("begin");
        cut.part(memory(2), Cursor::new(page(0x1000, 3))).await.expect("part");
        cut.part(Part::Layer { round: 2 }, Cursor::new(b"files".to_vec())).await.expect("part");
        cut.part(image("pagemap-1.img"), Cursor::new(image_of_memory())).await.expect("part");
        cut.end().await.expect("end");
    };
    let landed = async {
        wire.landing.round(&mut wire.target).await.expect("landed");
        wire.landing.round(&mut wire.target).await.expect("landed")
    };
    let ((), cut) = tokio::join!(sent, landed);
    stored::verify_round(&attempt, &cut.manifest).expect("its files are those of any round");
    assert_eq!(stored::archives(&attempt).expect("archives").len(), 1);
    let rehearsed = attempt.join("rehearsal");
    stored::verify(&rehearsed).expect("its images lie apart");
    let read = |directory: &std::path::Path| {
        let store = crate::pages::store::Store::open(&directory.join("memory"), 1).expect("a store");
        let [extent] = store.extents() else { panic!("{:?}", store.extents()) };
        let mut bytes = [0; 1];
        let data = std::fs::File::open(directory.join("memory/1.pages")).expect("its data");
        std::os::unix::fs::FileExt::read_exact_at(&data, &mut bytes, extent.offset).expect("a page");
        bytes[0]
    };
    assert_eq!(read(&rehearsed), 3);

    let sent = async {
        let mut last = send::begin(&wire.source, 3, true).await.expect("begin");
        last.part(memory(3), Cursor::new(page(0x1000, 4))).await.expect("part");
        last.part(image("pagemap-1.img"), Cursor::new(image_of_memory())).await.expect("part");
        last.end().await.expect("end");
    };
    let ((), last) = tokio::join!(sent, wire.landing.round(&mut wire.target));
    let last = last.expect("landed");
    stored::verify_round(&attempt, &last.manifest).expect("as sent");
    Landing::sync(&attempt).expect("synced");
    assert_eq!(read(&attempt), 4);
    for pages in [stored::Pages::OfImages, stored::Pages::All] {
        stored::verify_for_restore(&attempt, pages).expect("as it came");
    }
    let data = attempt.join("memory/1.pages");
    let mut bytes = std::fs::read(&data).expect("read");
    bytes[7] ^= 1;
    std::fs::write(&data, bytes).expect("write");
    stored::verify_for_restore(&attempt, stored::Pages::All).expect_err("a page is another one");
    std::fs::remove_file(attempt.join("memory/1.sums")).expect("remove");
    stored::verify_for_restore(&attempt, stored::Pages::OfImages).expect_err("nothing could be compared any more");
}
