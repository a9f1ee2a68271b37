//! A store, a work directory, and the processes at work on them.

use super::application::{BASE, Content};
use super::scenarios::{ROLE, Scenario, WORK};
use criu_shim::pages::daemon::Status;
use criu_shim::pages::store::StoreWriter;
use criu_shim::pages::{PAGE, PageRange};
use std::fs::File;
use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Pages that come in one piece.
const PIECE: u64 = 64;

/// A process that does not outlive its test.
pub struct Process(Child);

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing where the test has waited for its end.
        self.kill().ok();
        self.wait().ok();
    }
}

pub struct Machine {
    directory: TempDir,
}

impl Machine {
    pub fn on_tmpfs() -> Self {
        Self { directory: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    pub fn on_disk() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A store of `count` pages from [`BASE`] on. They come out of order and some come twice, so that the order in the
    /// file is not that of the addresses.
    pub fn with_store(self, pid: i32, count: u64) -> Self {
        let mut writer = StoreWriter::create(self.directory.path(), pid).unwrap();
        let pieces: Vec<u64> = (0..count).step_by(PIECE as usize).collect();
        let odd = pieces.iter().skip(1).step_by(2);
        for first in pieces.iter().skip(2).step_by(2).chain(odd).chain(pieces.iter().step_by(2)) {
            write(&mut writer, pid, *first, PIECE.min(count - first));
        }
        let all = PageRange::new(BASE, count * PAGE);
        writer.finish(&all.into_iter().collect::<Vec<_>>()).unwrap();
        self
    }

    /// A store of `count` pages in one piece, of any content.
    pub fn with_plain_store(self, pid: i32, count: u64) -> Self {
        let mut writer = StoreWriter::create(self.directory.path(), pid).unwrap();
        for first in (0..count).step_by(PIECE as usize) {
            writer.write(BASE + first * PAGE, &[first as u8 | 1; (PIECE * PAGE) as usize]).unwrap();
        }
        writer.finish(&[PageRange::new(BASE, count * PAGE).unwrap()]).unwrap();
        self
    }

    /// As [`Machine::with_plain_store`], of a store that is needed until the processes have run.
    pub fn with_lasting_store(self, pid: i32, count: u64) -> Self {
        let mut writer = StoreWriter::lasting(self.directory.path(), pid).unwrap();
        for first in (0..count).step_by(PIECE as usize) {
            write(&mut writer, pid, first, PIECE.min(count - first));
        }
        writer.finish(&[PageRange::new(BASE, count * PAGE).unwrap()]).unwrap();
        self
    }

    /// The shim says that the processes have run.
    pub fn mark_ran(&self) {
        criu_shim::local::mark_ran(self.directory.path()).unwrap();
    }

    /// Changes a byte of the page at this place in the data file.
    pub fn damage(&self, pid: i32, place: u64) {
        let path = self.directory.path().join(format!("{pid}.pages"));
        let data = File::options().write(true).open(path).unwrap();
        data.write_all_at(&[0xa5], place * PAGE + 3).unwrap();
    }

    /// As [`Machine::with_store`], but every third piece is not lazy in the image any more.
    pub fn with_stale_store(self, pid: i32, count: u64) -> Self {
        let mut writer = StoreWriter::create(self.directory.path(), pid).unwrap();
        let mut present = Vec::new();
        for first in (0..count).step_by(PIECE as usize) {
            write(&mut writer, pid, first, PIECE);
            if !is_stale(first) {
                present.push(PageRange::new(BASE + first * PAGE, PIECE * PAGE).unwrap());
            }
        }
        writer.finish(&present).unwrap();
        self
    }

    /// A daemon that listens for as long as its standard input is open, and knows whom it serves.
    pub fn daemon(&self, pids: &[i32]) -> Process {
        // What a former daemon said must not be taken for this one's word.
        Status::forget(self.directory.path()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_criu-pages"));
        command.arg("--store").arg(self.directory.path()).arg("--work").arg(self.directory.path());
        let mut child = Process(command.stdin(Stdio::piped()).spawn().unwrap());
        self.wait_for(&Status::Listening);
        let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
        writeln!(child.stdin.as_mut().unwrap(), "{}", pids.join(" ")).unwrap();
        child
    }

    /// This program again, as the process that plays CRIU.
    pub fn application(&self, scenario: Scenario) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "plays_criu", "--ignored", "--nocapture", "--quiet"]);
        command.env(ROLE, format!("{scenario:?}")).env(WORK, self.directory.path());
        Process(command.spawn().unwrap())
    }

    /// Serves `scenario`: everything is right, complete, given back and removed.
    pub fn serve_to_the_end(&self, pids: &[i32], scenario: Scenario) {
        let data: Vec<File> = pids.iter().map(|pid| self.data_file(*pid)).collect();
        let mut daemon = self.daemon(pids);
        let mut application = self.application(scenario);
        self.let_it_fill(&mut daemon);
        assert!(application.wait().unwrap().success(), "{:?}", self.status());
        assert!(daemon.wait().unwrap().success());
        assert_eq!(self.status(), Some(Status::Complete));
        for file in data {
            assert_eq!(blocks(&file), 0, "the store was not given back");
        }
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.ends_with(".pages") && !name.ends_with(".index"), "{name} is left");
        }
    }

    /// The relay has gone: what nobody waits for comes as soon as CRIU has finished.
    pub fn let_it_fill(&self, daemon: &mut Child) {
        wait(|| !matches!(self.status(), Some(Status::Listening)), "not every process has come");
        drop(daemon.stdin.take());
    }

    pub fn data_file(&self, pid: i32) -> File {
        File::open(self.directory.path().join(format!("{pid}.pages"))).unwrap()
    }

    pub fn blocks(&self, pid: i32) -> u64 {
        blocks(&self.data_file(pid))
    }

    pub fn status(&self) -> Option<Status> {
        Status::read(self.directory.path()).unwrap()
    }

    pub fn wait_for(&self, status: &Status) {
        wait(|| self.status().as_ref() == Some(status), &format!("no {status}"));
    }

    pub fn wait_for_failure(&self, part: &str) {
        wait(|| matches!(self.status(), Some(Status::Failed(why)) if why.contains(part)), part);
    }

    /// Waits until neither a daemon nor its guard is left.
    pub fn wait_until_nobody_serves(&self) {
        let work = self.directory.path().to_str().unwrap();
        let serves = |process: std::fs::DirEntry| {
            std::fs::read_to_string(process.path().join("cmdline")).is_ok_and(|line| line.contains(work))
        };
        wait(|| !std::fs::read_dir("/proc").unwrap().flatten().any(serves), "somebody still serves");
    }

    /// Waits until a thread of `child` stands still in a page fault.
    pub fn wait_until_it_sleeps(&self, child: &Child) {
        let waits = || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
            threads
                .filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("stack")).ok())
                .any(|stack| stack.contains("handle_userfault"))
        };
        wait(waits, "no thread waits for a page");
    }
}

/// Of the file system, 512 bytes each.
pub fn blocks(file: &File) -> u64 {
    file.metadata().unwrap().blocks()
}

pub fn is_stale(page: u64) -> bool {
    page / PIECE % 3 == 2
}

pub fn wait(mut until: impl FnMut() -> bool, what: &str) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write(writer: &mut StoreWriter, pid: i32, first: u64, count: u64) {
    for page in first..first + count {
        let address = BASE + page * PAGE;
        match Content::of(pid, address) {
            Content::Zero => writer.zero(address, PAGE).unwrap(),
            Content::Word(word) => {
                // Something older first, for some.
                if page % 5 == 0 {
                    writer.write(address, &[0xee; PAGE as usize]).unwrap();
                }
                writer.write(address, &word.to_ne_bytes().repeat(PAGE as usize / 8)).unwrap();
            }
        }
    }
}
