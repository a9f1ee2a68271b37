//! Over real sockets: what overtakes what.

use super::*;
use crate::agent::transfer::frame::{MAX_DATA, read_frame, write_frame};
use crate::agent::transfer::message::{FromSource, FromTarget, Part};
use crate::agent::transfer::wire;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::{TcpListener, TcpStream};

/// Frames of data that are sent to a slow peer, 64 MiB.
const FRAMES: usize = 256;

/// Two ends of a connection, set up as those of agents are, without TLS.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
    let address = listener.local_addr().expect("the address");
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, (far, _)) = (near.expect("connect"), far.expect("accept"));
    wire::prepare(&near).expect("options");
    wire::prepare(&far).expect("options");
    (near, far)
}

fn abort() -> FromSource {
    FromSource::Abort { message: "given up".into() }
}

fn beginning() -> FromSource {
    FromSource::FileBegin { part: Part::Layer { round: 0 } }
}

#[tokio::test]
async fn the_images_of_a_freeze_do_not_wait_for_the_peer_to_say_that_it_has_them() {
    let (near, mut far) = sockets().await;
    let (sender, _receiver) = open::<_, FromSource, FromTarget>(near);
    tokio::spawn(async move {
        for _ in 0..100 {
            sender.say(&beginning()).await.expect("say");
        }
    });
    let buffers = Buffers::default();
    let all = async {
        let mut heard = 0;
        while heard < 100 {
            let frame = read_frame(&mut far, &buffers).await.expect("frames");
            heard += usize::from(matches!(frame, Some(Frame::Control(_))));
            // A peer that has confirmed nothing yet is not silent.
            write_frame(&mut far, &Frame::Taken(0)).await.expect("said");
        }
    };
    tokio::time::timeout(2 * SILENCE, all).await.expect("it does not wait");
}

#[tokio::test]
async fn an_abort_goes_ahead_of_the_data_that_is_queued_for_a_slow_peer() {
    let (near, mut far) = sockets().await;
    let (sender, _receiver) = open::<_, FromSource, FromTarget>(near);
    sender.say(&beginning()).await.expect("say");
    let (filling, queued) = (sender.clone(), Arc::new(AtomicUsize::new(0)));
    let count = queued.clone();
    tokio::spawn(async move {
        for _ in 0..FRAMES {
            filling.data(vec![7; MAX_DATA].into()).await.expect("data");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    while sender.stream.capacity() > 0 {
        // A peer that is slow is not silent.
        write_frame(&mut far, &Frame::Taken(0)).await.expect("said");
        tokio::task::yield_now().await;
    }
    let said = tokio::time::timeout(SILENCE, sender.say(&abort())).await;
    said.expect("it waits for no data").expect("say");
    let queued = queued.load(Ordering::Relaxed);
    drop(sender);

    let buffers = Buffers::default();
    let mut heard = Vec::new();
    let mut before = 0;
    let mut data = 0;
    while let Some(frame) = read_frame(&mut far, &buffers).await.expect("frames") {
        match frame {
            Frame::Data(_) => {
                data += 1;
                // The message before it was taken too.
                write_frame(&mut far, &Frame::Taken(data as u64 + 1)).await.expect("said");
            }
            Frame::Control(json) => {
                before = data;
                heard.push(serde_json::from_slice::<FromSource>(&json).expect("a message"));
            }
            Frame::Packed(_) | Frame::Taken(_) | Frame::End => {}
        }
    }
    assert_eq!(heard, [beginning(), abort()]);
    assert_eq!(data, FRAMES, "of the stream nothing is lost");
    assert!(before + BACKLOG / 2 < queued, "{before} of {queued} frames of data came before the abort");
}

#[tokio::test]
async fn an_abort_that_has_arrived_is_heard_before_the_data_that_wait_to_be_taken() {
    let (near, far) = sockets().await;
    let (sender, _receiver) = open::<_, FromSource, FromTarget>(near);
    let (_sender, mut receiver) = open::<_, FromTarget, FromSource>(far);
    sender.say(&beginning()).await.expect("say");
    for _ in 0..BACKLOG - 2 {
        sender.data(Bytes::from_static(b"data")).await.expect("data");
    }
    sender.say(&abort()).await.expect("say");
    let arrived = async {
        while receiver.ahead.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SILENCE, arrived).await.expect("the abort arrives");
    assert!(matches!(receiver.next().await, Ok(Incoming::Message(FromSource::Abort { .. }))));
    assert!(matches!(receiver.next().await, Ok(Incoming::Message(FromSource::FileBegin { .. }))));
    for _ in 0..BACKLOG - 2 {
        assert!(matches!(receiver.next().await, Ok(Incoming::Data(_))));
    }
}

#[tokio::test]
async fn the_stream_keeps_its_order() {
    let (near, far) = sockets().await;
    let (sender, _receiver) = open::<_, FromSource, FromTarget>(near);
    let (_sender, mut receiver) = open::<_, FromTarget, FromSource>(far);
    let end = |bytes| FromSource::FileEnd { bytes, digest: String::new() };
    tokio::spawn(async move {
        for number in 0..100_u64 {
            sender.say(&beginning()).await.expect("say");
            sender.data(number.to_be_bytes().to_vec().into()).await.expect("data");
            sender.say(&end(number)).await.expect("say");
        }
    });
    for number in 0..100_u64 {
        assert!(matches!(receiver.next().await, Ok(Incoming::Message(message)) if message == beginning()));
        assert!(matches!(receiver.next().await, Ok(Incoming::Data(data)) if data == number.to_be_bytes()[..]));
        assert!(matches!(receiver.next().await, Ok(Incoming::Message(message)) if message == end(number)));
    }
    assert!(matches!(receiver.next().await, Err(LinkError::Closed)));
}

#[tokio::test]
async fn what_was_said_last_is_heard_before_the_end() {
    let (near, far) = sockets().await;
    let (sender, receiver) = open::<_, FromTarget, FromSource>(near);
    let (_sender, mut heard) = open::<_, FromSource, FromTarget>(far);
    for _ in 0..3 {
        sender.say(&FromTarget::Held).await.expect("say");
    }
    drop((sender, receiver));
    for _ in 0..3 {
        assert!(matches!(heard.next().await, Ok(Incoming::Message(FromTarget::Held))));
    }
    assert!(matches!(heard.next().await, Err(LinkError::Closed)));
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_data_back_until_it_is_lifted_and_messages_never() {
    let (near, far) = tokio::io::duplex(64 << 10);
    let (sender, _receiver) = open::<_, FromSource, FromTarget>(near);
    let (_sender, mut receiver) = open::<_, FromTarget, FromSource>(far);
    sender.set_limit(NonZeroU64::new(1000));
    let begun = tokio::time::Instant::now();
    for _ in 0..4 {
        sender.data(vec![0; 10_000].into()).await.expect("data");
    }
    assert!(matches!(receiver.next().await, Ok(Incoming::Data(_))));
    assert!(begun.elapsed() < Duration::from_secs(1), "the first is not held back");
    assert!(matches!(receiver.next().await, Ok(Incoming::Data(_))));
    assert!(begun.elapsed() >= Duration::from_secs(10));
    assert!(sender.held_back() >= Duration::from_secs(9), "{:?}", sender.held_back());
    sender.say(&abort()).await.expect("say");
    assert!(matches!(receiver.next().await, Ok(Incoming::Message(FromSource::Abort { .. }))));
    sender.set_limit(None);
    for _ in 0..2 {
        assert!(matches!(receiver.next().await, Ok(Incoming::Data(_))));
    }
    assert!(begun.elapsed() < Duration::from_secs(11), "for the last round there is no limit");
}
