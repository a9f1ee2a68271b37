//! A round crosses whole or not at all.

use super::*;
use crate::agent::transfer::link::{self, LinkSender};
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::send;
use std::io::Cursor;

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
    let landing = Landing::create(&directory.path().join("1"), limit).expect("landing");
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
        round.part(Part::Volume { name: "data".into() }, Cursor::new(b"tar".to_vec())).await.expect("part");
        round.end().await.expect("end")
    };
    let (sent, landed) = tokio::join!(sending, wire.landing.round(&mut wire.target));
    let landed = landed.expect("landed");
    assert_eq!((landed.number, landed.last), (1, true));
    assert_eq!(landed.manifest, sent);
    let at = |name: &str| std::fs::read(wire.directory.path().join("1").join(name)).expect("read");
    assert_eq!(at("images/pages-1.img"), big);
    assert_eq!(at("images/empty.img"), b"");
    assert_eq!(at("files/volume-data.tar"), b"tar");
}

async fn say(wire: &Wire, message: FromSource) {
    wire.source.say(&message).await.expect("say");
}

async fn refusal(mut wire: Wire) -> ReceiveError {
    wire.landing.round(&mut wire.target).await.expect_err("must be refused")
}

#[tokio::test]
async fn one_flipped_bit_is_refused() {
    let wire = wire(u64::MAX);
    say(&wire, FromSource::RoundBegin { round: 0, last: true }).await;
    say(&wire, FromSource::FileBegin { part: image("a") }).await;
    wire.source.data(Bytes::from_static(b"contenu")).await.expect("data");
    let digest = blake3::hash(b"content").to_hex().to_string();
    say(&wire, FromSource::FileEnd { bytes: 7, digest }).await;
    let error = refusal(wire).await;
    assert!(error.is_corruption(), "{error}");
}

#[tokio::test]
async fn a_part_that_is_missing_from_a_round_is_noticed() {
    let wire = wire(u64::MAX);
    say(&wire, FromSource::RoundBegin { round: 3, last: true }).await;
    let mut manifest = Manifest::default();
    assert!(manifest.add(image("a"), Landed { bytes: 0, digest: blake3::hash(b"") }));
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
    wire.source.data(Bytes::from_static(b"12345678")).await.expect("data");
    wire.source.data(Bytes::from_static(b"12345678")).await.expect("data");
    assert!(matches!(refusal(wire).await, ReceiveError::TooMuch(10)));
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
    let Wire { source, mut target, mut landing, .. } = {
        wire.source.data(Bytes::from_static(b"123")).await.expect("data");
        wire
    };
    drop(source);
    assert!(matches!(landing.round(&mut target).await, Err(ReceiveError::Link(LinkError::Closed))));
}

#[tokio::test]
async fn silence_is_noticed() {
    // A peer that holds the connection and says nothing, not even that it is there.
    let (near, _far) = tokio::io::duplex(64);
    let (_sender, mut receiver) = link::open::<_, FromTarget, FromSource>(near);
    assert!(matches!(receiver.next().await, Err(LinkError::Silent)));
}

#[tokio::test]
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
