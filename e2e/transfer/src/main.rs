//! What a transfer moves beside what the same TLS connection moves without it: `make bench-transfer`.
//!
//! Two runtimes, as of two agents: one sends 256 MiB that can't be compressed, and the time runs until the other has all of it
//! and has said so. They are connected over loopback, or, as `make bench` wants it, each is in the network namespace of a node.
//! All variants have the same certificates, library, cipher, socket options and sizes of TLS writes and socket reads ([`wire`]),
//! and the same threads to run on. The variants take turns. What each does beside that:
//!
//! | | on the source | on the target |
//! |---|---|---|
//! | `dropped` | nothing: what is written is in memory | nothing: what is read is dropped |
//! | `plain` | nothing: what is written is in memory | writes to a file |
//! | `memory` | reads the pages from the process, looks for zeros and for pages that others share, XXH3, frames | takes the frames, XXH3, the pages' places, writes to the page store |
//! | `image` | reads the file, BLAKE3, frames | takes the frames, writes to a file |
//!
//! Beside these, the files of a dump of 50 processes, 350 of 6.4 MiB, go the way of those that a freeze sends: `files`. Each time they land
//! in a directory of a move of its own, which is removed before the next.
//!
//! Ratios are those to `plain`, which leaves the same bytes in the same place and does nothing else; `dropped` says what of it is the
//! connection's. So a ratio of 1 would mean that all the rest is free, and what is not is paid for with the same processors that encrypt:
//! the less of them there are, the lower it is.

use bytes::Bytes;
use clap::Parser;
use criu_shim::agent::identity::Tls;
use criu_shim::agent::images;
use criu_shim::agent::room::Room;
use criu_shim::agent::source::precopy::{Alike, Written, send_pages};
use criu_shim::agent::transfer::link;
use criu_shim::agent::transfer::message::{FromSource, FromTarget, IMAGES, Part};
use criu_shim::agent::transfer::receive::Landing;
use criu_shim::agent::transfer::send::{self, RoundSender};
use criu_shim::agent::transfer::wire;
use criu_shim::memory::Range;
use nix::sched::{CloneFlags, setns};
use nix::time::{ClockId, clock_gettime};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use serde::Serialize;
use std::collections::HashSet;
use std::error::Error;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Bytes that one measurement moves.
const BYTES: usize = 256 << 20;
/// Bytes that the plain stream is given and asked for at once.
const PIECE: usize = 256 << 10;
/// Pieces of the plain connection that may wait to be written.
const AHEAD: usize = 8;
const PAGE: usize = 4096;
const ATTEMPT: &str = "attempt";
/// Processes of which the files of a dump are sent.
const PROCESSES: usize = 50;
/// Files of each of them, as CRIU calls them, and bytes: as of small ones.
const FILES: [(&str, usize); 7] =
    [("core", 1500), ("fdinfo", 300), ("fs", 60), ("ids", 60), ("mm", 3000), ("pagemap", 300), ("pages", 128 << 10)];
const SOURCE: &str = "a.agent.tideover.dev";
const TARGET: &str = "b.agent.tideover.dev";

/// Measure what a transfer between two agents moves beside the same TLS connection without it.
#[derive(Parser)]
struct Cli {
    /// Directory that things land in.
    #[arg(long)]
    landing: PathBuf,
    /// How often each variant has its turn.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// File in which the figures are kept as JSON.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Network namespace of the source, as a file of the kernel's.
    #[arg(long)]
    from: Option<PathBuf>,
    /// Network namespace of the target.
    #[arg(long)]
    to: Option<PathBuf>,
    /// Address of the target.
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
    address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Dropped,
    Plain,
    Memory,
    Image,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Plain, Self::Memory, Self::Image, Self::Dropped];

    fn name(self) -> &'static str {
        match self {
            Self::Dropped => "dropped",
            Self::Plain => "plain",
            Self::Memory => "memory",
            Self::Image => "image",
        }
    }
}

/// The same fields as `make bench` keeps.
#[derive(Debug, Serialize)]
struct Figure {
    case: String,
    metric: &'static str,
    unit: &'static str,
    n: usize,
    min: f64,
    median: f64,
    max: f64,
}

impl Figure {
    fn of(case: String, metric: &'static str, unit: &'static str, values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
        Self { case, metric, unit, n, min: sorted[0], median, max: sorted[n - 1] }
    }
}

/// What is moved, and between whom.
struct Bench {
    source: Runtime,
    target: Runtime,
    source_tls: Tls,
    target_tls: Tls,
    content: Arc<Vec<u8>>,
    directory: PathBuf,
    /// Where the target listens.
    address: IpAddr,
}

fn main() -> Outcome<()> {
    let Cli { landing, runs, keep, from, to, address } = Cli::parse();
    let scratch = tempfile::tempdir_in(landing)?;
    let (source_tls, target_tls) = identities()?;
    let bench = Bench {
        source: runtime("source", from)?,
        target: runtime("target", to)?,
        source_tls,
        target_tls,
        content: Arc::new(incompressible(BYTES)),
        directory: scratch.path().to_owned(),
        address,
    };
    std::fs::write(bench.directory.join("image"), &*bench.content)?;
    images::remove_unknown(&bench.directory.join(IMAGES), &HashSet::new())?;
    let mut rates: [Vec<f64>; Variant::ALL.len()] = Default::default();
    let mut ratios: [Vec<f64>; Variant::ALL.len()] = Default::default();
    let mut processor: [Vec<f64>; Variant::ALL.len()] = Default::default();
    let mut files = Vec::new();
    // The first time around, memory and caches are cold.
    for repetition in 0..=runs {
        let mut plain = 0.0;
        for (index, variant) in Variant::ALL.into_iter().enumerate() {
            let before = processor_seconds()?;
            let took = bench.run(variant)?;
            let used = processor_seconds()? - before;
            bench.clear()?;
            let rate = BYTES as f64 / (1 << 20) as f64 / took.as_secs_f64();
            if variant == Variant::Plain {
                plain = rate;
            }
            if repetition > 0 {
                rates[index].push(rate);
                ratios[index].push(rate / plain);
                processor[index].push(used * 1000.0);
            }
        }
        let took = bench.files(repetition)?;
        if repetition > 0 {
            files.push(took.as_secs_f64() * 1000.0);
        }
    }
    let mut figures = Vec::new();
    for (index, variant) in Variant::ALL.into_iter().enumerate() {
        let case = || format!("{}-{}", BYTES >> 20, variant.name());
        figures.push(Figure::of(case(), "transfer_rate", "MiB/s", &rates[index]));
        figures.push(Figure::of(case(), "transfer_processor", "ms", &processor[index]));
        if matches!(variant, Variant::Memory | Variant::Image) {
            figures.push(Figure::of(case(), "transfer_ratio", "1", &ratios[index]));
        }
    }
    figures.push(Figure::of(format!("{}-files", PROCESSES * FILES.len()), "transfer_time", "ms", &files));
    for Figure { case, metric, unit, n, min, median, max } in &figures {
        println!("{case:12} {metric:20} n={n:<3} min {min:8.2}  median {median:8.2}  max {max:8.2} {unit}");
    }
    if let Some(path) = keep {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

impl Bench {
    /// A connection.
    fn connect(&self) -> Outcome<(wire::SourceStream, wire::TargetStream)> {
        // By the runtimes' own threads, which are where the sockets belong.
        let listener = self.target.block_on(self.target.spawn(TcpListener::bind((self.address, 0))))??;
        let address = listener.local_addr()?;
        let tls = self.target_tls.clone();
        let accepting = self.target.spawn(async move {
            let (stream, _) = listener.accept().await?;
            wire::accept(stream, &tls).await
        });
        let tls = self.source_tls.clone();
        let source = self.source.block_on(self.source.spawn(async move {
            let stream = TcpStream::connect(address).await?;
            wire::connect(stream, &tls, ServerName::try_from(TARGET).map_err(std::io::Error::other)?).await
        }))??;
        Ok((source, self.target.block_on(accepting)??))
    }

    /// How long `variant` takes, from its first byte until the target has the last.
    fn run(&self, variant: Variant) -> Outcome<Duration> {
        let (source, target) = self.connect()?;
        match variant {
            Variant::Dropped => self.plain(source, target, None),
            Variant::Plain => {
                let directory = self.directory.join(ATTEMPT);
                std::fs::create_dir(&directory)?;
                self.plain(source, target, Some(File::create_new(directory.join("plain"))?))
            }
            Variant::Memory | Variant::Image => self.ours(variant, source, target),
        }
    }

    /// Removes what has landed.
    fn clear(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.directory.join(ATTEMPT)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What is read goes into a file, or nowhere. Another thread writes it, as it does for us: reading and writing go on side by side.
    fn plain(
        &self,
        mut source: wire::SourceStream,
        mut target: wire::TargetStream,
        landing: Option<File>,
    ) -> Outcome<Duration> {
        let (pieces, mut to_write) = tokio::sync::mpsc::channel::<Vec<u8>>(AHEAD);
        let writing = self.target.spawn_blocking(move || {
            let mut landing = landing;
            while let Some(piece) = to_write.blocking_recv() {
                landing.as_mut().map_or(Ok(()), |file| file.write_all(&piece))?;
            }
            Ok::<_, std::io::Error>(())
        });
        let taking = self.target.spawn(async move {
            let mut left = BYTES;
            while left > 0 {
                let mut piece = vec![0; PIECE.min(left)];
                target.read_exact(&mut piece).await?;
                left -= piece.len();
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            drop(pieces);
            writing.await.map_err(std::io::Error::other)??;
            target.write_all(&[1]).await?;
            target.shutdown().await
        });
        let content = self.content.clone();
        let sending = self.source.spawn(async move {
            let begun = Instant::now();
            for piece in content.chunks(PIECE) {
                source.write_all(piece).await?;
            }
            source.flush().await?;
            source.read_u8().await?;
            Ok::<_, std::io::Error>(begun.elapsed())
        });
        let took = self.source.block_on(sending)??;
        self.target.block_on(taking)??;
        Ok(took)
    }

    /// How long the files of a dump take.
    fn files(&self, repetition: u16) -> Outcome<Duration> {
        let (source, target) = self.connect()?;
        let directory = self.directory.join(IMAGES).join(format!("{repetition}-{}", std::process::id()));
        let content = self.content.clone();
        let took = self.land(&directory, source, target, async move |sending| {
            let part = |(number, (kind, bytes)): (usize, &(&str, usize))| {
                let part = Part::Image { name: format!("{kind}-{}.img", number / FILES.len() + 1) };
                (part, Bytes::copy_from_slice(&content[number..number + bytes]))
            };
            let files = FILES.iter().cycle().take(PROCESSES * FILES.len()).enumerate();
            Ok(sending.together(files.map(part).collect()).await?)
        })?;
        std::fs::remove_dir_all(&directory)?;
        Ok(took)
    }

    fn ours(&self, variant: Variant, source: wire::SourceStream, target: wire::TargetStream) -> Outcome<Duration> {
        let (content, image) = (self.content.clone(), self.directory.join("image"));
        self.land(&self.directory.join(ATTEMPT), source, target, async move |sending| {
            if variant == Variant::Memory {
                send_pages(sending, 1, vec![own(&content)?], false).await?;
            } else {
                sending.part(Part::Image { name: "pages-1.img".into() }, File::open(image)?).await?;
            }
            Ok(())
        })
    }

    /// How long a round takes whose parts are sent by `send`, until the target has said that it has landed in `directory`.
    fn land<S>(
        &self,
        directory: &Path,
        source: wire::SourceStream,
        target: wire::TargetStream,
        send: S,
    ) -> Outcome<Duration>
    where
        S: AsyncFnOnce(&mut RoundSender) -> Outcome<()>,
    {
        let room = Room::new(|| 8 << 30).promise(BYTES as u64)?;
        let mut landing = Landing::create(directory, room)?;
        let runtime = self.target.handle().clone();
        let taking = self.target.spawn_blocking(move || {
            runtime.block_on(async move {
                let (sender, mut receiver) = link::open::<_, FromTarget, FromSource>(target);
                let round = landing.round(&mut receiver).await?;
                let digest = round.manifest.digest();
                sender.say(&FromTarget::Verified { round: round.number, digest }).await?;
                // Until the source hangs up.
                receiver.next().await.err();
                Outcome::Ok(())
            })
        });
        let took = self.source.block_on(async move {
            let (sender, mut receiver) = link::open::<_, FromSource, FromTarget>(source);
            let begun = Instant::now();
            let mut sending = send::begin(&sender, 1, false).await?;
            send(&mut sending).await?;
            sending.end().await?;
            receiver.next().await?;
            Outcome::Ok(begun.elapsed())
        })?;
        self.target.block_on(taking)??;
        Ok(took)
    }
}

/// A runtime whose threads are in the network namespace of this file: a thread begins in that of the one that makes it.
fn runtime(name: &'static str, network: Option<PathBuf>) -> Outcome<Runtime> {
    let made = std::thread::spawn(move || -> Outcome<Runtime> {
        if let Some(path) = network {
            setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
        }
        Ok(tokio::runtime::Builder::new_multi_thread().thread_name(name).enable_all().build()?)
    });
    made.join().map_err(|_| "the thread that makes a runtime panicked")?
}

/// The pages of `content`, as those of a process that is to be moved.
fn own(content: &[u8]) -> Outcome<Written> {
    let pid = std::process::id().cast_signed();
    let start = (content.as_ptr() as u64).next_multiple_of(PAGE as u64);
    let end = (content.as_ptr() as u64 + content.len() as u64) / PAGE as u64 * PAGE as u64;
    let sent = Alike::new()?.process();
    Ok(Written { pid, image_pid: 1, ranges: vec![Range { start, end }], noted: None, sent })
}

fn incompressible(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(bytes);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_ne_bytes());
    }
    content
}

/// Two agents of one CA.
fn identities() -> Outcome<(Tls, Tls)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let of = |name: &str| -> Outcome<Tls> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &issuer)?;
        Ok(Tls::new(ca.as_bytes(), certificate.pem().as_bytes(), key.serialize_der())?)
    };
    Ok((of(SOURCE)?, of(TARGET)?))
}

/// Time on a processor that this process has used, seconds.
fn processor_seconds() -> Outcome<f64> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?).as_secs_f64())
}
