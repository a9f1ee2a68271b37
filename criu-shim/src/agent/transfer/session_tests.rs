//! Over real sockets that are cut: nothing is missing, nothing comes twice.

use super::*;
use crate::agent::room::Room;
use crate::agent::transfer::frame::{read_frame, write_frame};
use crate::agent::transfer::hello::{self, Answer, GoOn, Hello};
use crate::agent::transfer::message::{FromSource, FromTarget, Part, Preamble, VERSION};
use crate::agent::transfer::pages::{Crossing, PAGE, encode};
use crate::agent::transfer::receive::Landing;
use crate::agent::transfer::send;
use crate::agent::transfer::session::{Awaited, Renewed};
use crate::agent::transfer::wire;
use proptest::prelude::*;
use std::io::Cursor;
use std::net::SocketAddr;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Sent = (LinkSender<FromSource>, LinkReceiver<FromTarget>);
type Heard = (LinkSender<FromTarget>, LinkReceiver<FromSource>);

/// Pages of the process that crosses, 6 MiB, and those of them that a second round sends again.
const PAGES: u64 = 1536;
const AGAIN: u64 = 300;

fn go_on(taken: u64) -> GoOn {
    GoOn { version: VERSION, migration: "uid".into(), attempt: 1, session: "session".into(), taken }
}

/// A source that connects again as often as it takes.
struct Redial(SocketAddr);

impl Redial {
    async fn once(&self, taken: u64) -> Option<Renewed<TcpStream>> {
        let mut stream = TcpStream::connect(self.0).await.ok()?;
        wire::prepare(&stream).ok()?;
        match hello::go_on(&mut stream, go_on(taken)).await.ok()?? {
            Answer::GoesOn { taken } => Some(Renewed { stream, peer_has: taken, unanswered: false }),
            Answer::Refused { .. } => None,
        }
    }
}

impl Renewal for Redial {
    type Stream = TcpStream;

    async fn renew(&mut self, taken: u64) -> Option<Renewed<TcpStream>> {
        for _ in 0..1000 {
            match self.once(taken).await {
                Some(renewed) => return Some(renewed),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        None
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("the address");
    (listener, address)
}

/// Takes the first connection for a link, and all others for what it goes on with.
async fn accept(listener: TcpListener, opened: tokio::sync::oneshot::Sender<Heard>) {
    let (again, connections) = mpsc::channel(4);
    let mut first = Some((opened, Awaited { connections, limit: SILENCE }));
    while let Ok((mut stream, _)) = listener.accept().await {
        wire::prepare(&stream).expect("options");
        match (hello::hear(&mut stream).await, &mut first) {
            (Ok(Some(Hello::Begin(_))), opening) => {
                let (opened, renewal) = opening.take().expect("one link");
                opened.send(open_lasting(stream, renewal)).expect("a test");
            }
            (Ok(Some(Hello::GoOn(link))), None) => {
                assert_eq!(link, go_on(link.taken));
                again.send(Renewed { stream, peer_has: link.taken, unanswered: true }).await.ok();
            }
            // Cut before it could say anything.
            _ => {}
        }
    }
}

/// Passes on what comes, and cuts the first connections after so many bytes in both directions together. The first bytes of
/// the first connection are not counted: without them there is no link.
async fn cutting(listener: TcpListener, to: SocketAddr, mut cuts: Vec<usize>) {
    while let Ok((near, _)) = listener.accept().await {
        let far = TcpStream::connect(to).await.expect("the target");
        let mut left = if cuts.is_empty() { usize::MAX } else { cuts.remove(0) };
        tokio::spawn(async move {
            let (mut near_in, mut near_out) = near.into_split();
            let (mut far_in, mut far_out) = far.into_split();
            let (mut one, mut other) = (vec![0; 16 << 10], vec![0; 16 << 10]);
            while left > 0 {
                let (passed, written) = tokio::select! {
                    count = near_in.read(&mut one) => match count {
                        Ok(count) if count > 0 => (count.min(left), far_out.write_all(&one[..count.min(left)]).await),
                        _ => return,
                    },
                    count = far_in.read(&mut other) => match count {
                        Ok(count) if count > 0 => (count.min(left), near_out.write_all(&other[..count.min(left)]).await),
                        _ => return,
                    },
                };
                left -= passed;
                if written.is_err() {
                    return;
                }
            }
        });
    }
}

/// A source and a target with a line between them that is cut like this.
async fn over(cuts: Vec<usize>) -> (Sent, Heard) {
    let (at_target, target) = listener().await;
    let (at_line, line) = listener().await;
    let (opened, opening) = tokio::sync::oneshot::channel();
    tokio::spawn(accept(at_target, opened));
    tokio::spawn(cutting(at_line, target, cuts));
    let mut stream = TcpStream::connect(line).await.expect("the line");
    wire::prepare(&stream).expect("options");
    let GoOn { version, migration, attempt, session, .. } = go_on(0);
    let (container, source_node, codecs) = ("app".into(), "a".into(), Vec::new());
    let preamble =
        Preamble { version, migration, attempt, container, session, source_node, bytes: 0, codecs, mapped: Vec::new() };
    hello::say(&mut stream, &Hello::Begin(preamble)).await.expect("said");
    (open_lasting(stream, Redial(line)), opening.await.expect("a link"))
}

/// Bytes of the preamble and its frame, with some to spare: what is cut comes after them.
const INTRODUCTION: usize = 256;

/// What page `page` holds in round `round`.
fn page(page: u64, round: u32) -> Vec<u8> {
    (0..PAGE as u64).map(|at| (page * 31 + at * 7 + u64::from(round) * 101) as u8 | 1).collect()
}

fn stream(pages: std::ops::Range<u64>, round: u32) -> Vec<u8> {
    let mut stream = Vec::new();
    for number in pages {
        let mut buffer = [vec![0; crate::agent::transfer::pages::HEADER], page(number, round)].concat();
        let length = encode(&mut buffer, number * PAGE as u64, &[Crossing::Content]);
        stream.extend_from_slice(&buffer[..length]);
    }
    stream
}

async fn source((sender, mut receiver): Sent, image: Vec<u8>) {
    for (round, pages) in [(1, 0..PAGES), (2, 0..AGAIN)] {
        let mut sending = send::begin(&sender, round, false).await.expect("begun");
        let part = Part::Memory { pid: 1, round };
        sending.part(part, Cursor::new(stream(pages, round))).await.expect("memory");
        sending.part(Part::Layer { round }, Cursor::new(image.clone())).await.expect("a layer");
        let digest = sending.end().await.expect("ended").digest();
        match receiver.next().await.expect("an answer") {
            Incoming::Message(FromTarget::Verified { round: theirs, digest: landed }) => {
                assert_eq!((theirs, landed), (round, digest));
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn target((sender, mut receiver): Heard, directory: &Path) {
    let room = Room::new(|| u64::MAX).promise(0).expect("room");
    let mut landing = Landing::create(directory, room).expect("a directory");
    for _ in 0..2 {
        let round = landing.round(&mut receiver).await.expect("a round");
        let digest = round.manifest.digest();
        sender.say(&FromTarget::Verified { round: round.number, digest }).await.expect("said");
    }
    assert!(matches!(receiver.next().await, Err(LinkError::Closed)), "the source hangs up");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn wherever_the_line_is_cut_the_target_gets_what_the_source_has(
        cuts in prop::collection::vec(prop_oneof![0..400_usize, 0..3_000_000_usize], 0..8),
    ) {
        let cuts = cuts.iter().enumerate().map(|(index, cut)| if index == 0 { cut + INTRODUCTION } else { *cut }).collect();
        let directory = tempfile::tempdir().expect("a directory");
        let image: Vec<u8> = (0..700_000_u32).map(|n| (n % 251) as u8).collect();
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime").block_on(async {
            let (near, far) = over(cuts).await;
            tokio::join!(source(near, image.clone()), target(far, directory.path()));
        });
        let stored = std::fs::read(directory.path().join("memory/1.pages")).expect("memory");
        let expected: Vec<u8> = (0..PAGES).flat_map(|number| page(number, if number < AGAIN { 2 } else { 1 })).collect();
        prop_assert!(stored == expected, "the memory is another");
        for round in 1..=2 {
            let layer = std::fs::read(directory.path().join(format!("files/000000000{round}-layer"))).expect("a layer");
            prop_assert!(layer == image, "the layer of round {round} is another");
        }
    }
}

#[tokio::test]
async fn what_may_not_go_on_ends_where_it_is_cut() {
    let ((sender, mut receiver), (_from, mut heard)) = over(vec![INTRODUCTION + 300_000]).await;
    receiver.renew_no_more();
    heard.renew_no_more();
    let filling = tokio::spawn(async move { while sender.data(vec![7; 100_000].into()).await.is_ok() {} });
    assert!(receiver.next().await.is_err());
    while heard.next().await.is_ok() {}
    filling.await.expect("it is told");
}

#[tokio::test]
async fn a_source_that_comes_again_is_heard_before_the_target_has_noticed_that_it_was_lost() {
    let (again, connections) = mpsc::channel(1);
    let (mut first, far) = tokio::io::duplex(1 << 10);
    let renewal = Awaited { connections, limit: SILENCE };
    let (_sender, mut receiver) = open_lasting::<_, FromTarget, FromSource>(far, renewal);
    let data = |byte: u8| Frame::Data(vec![byte].into());
    for byte in 1..=2 {
        write_frame(&mut first, &data(byte)).await.expect("written");
        assert!(matches!(receiver.next().await, Ok(Incoming::Data(taken)) if taken[..] == [byte]));
    }
    let (mut second, far) = tokio::io::duplex(1 << 10);
    again.send(Renewed { stream: far, peer_has: 0, unanswered: true }).await.expect("a link");
    let answer = read_frame(&mut second, &Buffers::default()).await.expect("an answer").expect("one");
    assert_eq!(answer, Frame::Control(serde_json::to_vec(&Answer::GoesOn { taken: 2 }).expect("json").into()));
    write_frame(&mut second, &data(3)).await.expect("written");
    assert!(matches!(receiver.next().await, Ok(Incoming::Data(taken)) if taken[..] == [3]));
}

#[tokio::test]
async fn a_peer_that_has_taken_more_than_was_sent_is_not_believed() {
    let (again, connections) = mpsc::channel(1);
    let (first, far) = tokio::io::duplex(1 << 10);
    let renewal = Awaited { connections, limit: SILENCE };
    let (_sender, mut receiver) = open_lasting::<_, FromTarget, FromSource>(far, renewal);
    drop(first);
    let (_second, far) = tokio::io::duplex(1 << 10);
    again.send(Renewed { stream: far, peer_has: 1, unanswered: true }).await.expect("a link");
    assert!(matches!(receiver.next().await, Err(LinkError::Count { said: 1, sent: 0, confirmed: 0 })));
}
