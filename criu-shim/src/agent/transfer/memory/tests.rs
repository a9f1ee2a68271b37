//! Tests of receiving memory.

use super::*;
use crate::agent::room::Room;
use crate::agent::transfer::manifest::Landed;
use crate::agent::transfer::message::Part;
use crate::agent::transfer::pages::{Crossing, HEADER, PAGE, Place, Sink, encode};
use crate::criu::{pagemap, shared};
use crate::pages::store::pids;

impl Memory {
    /// The page of process `pid` that has landed for `address`.
    pub(crate) fn page(&self, pid: i32, address: u64) -> Vec<u8> {
        self.stores[&pid].read(address, PAGE).expect("a page")
    }
}

/// A target, and what it has of the processes.
pub(crate) struct Target {
    directory: tempfile::TempDir,
    memory: Memory,
    room: Share,
}

impl Target {
    /// One with room for so many bytes.
    pub(crate) fn with_room(bytes: u64) -> Self {
        let room = Room::new(move || bytes).promise(0).expect("room");
        let directory = tempfile::tempdir().expect("a directory");
        Self { directory, memory: Memory::default(), room }
    }

    /// Takes a stream of pages of process `pid`.
    pub(crate) fn take(&mut self, pid: i32, stream: &[u8]) -> Result<u64, MemoryError> {
        let mut arriving = self.memory.begin(pid, self.directory.path())?;
        self.memory.take(&mut arriving, stream, &mut self.room)?;
        self.memory.end(arriving).map(|(length, _)| length)
    }

    /// The page that it has at `place`.
    pub(crate) fn page(&self, place: Place) -> Vec<u8> {
        self.memory.page(place.pid, place.address)
    }
}

/// A record of one page full of `byte`.
fn page(address: u64, byte: u8, crossing: Crossing) -> Vec<u8> {
    let mut buffer = [vec![0; HEADER], vec![byte; PAGE]].concat();
    let length = encode(&mut buffer, address, &[crossing]);
    buffer.truncate(length);
    buffer
}

const PLACE: Place = Place { pid: 1, address: 0x5000 };

#[test]
fn a_copy_is_what_its_place_holds_when_it_is_named_and_stays_so() {
    let mut target = Target::with_room(1 << 20);
    target.take(1, &page(PLACE.address, 7, Crossing::Content)).expect("taken");
    target.take(2, &page(0x9000, 0, Crossing::Copy(PLACE))).expect("taken");
    target.take(1, &page(PLACE.address, 8, Crossing::Content)).expect("taken");
    target.take(1, &page(0x6000, 0, Crossing::Copy(PLACE))).expect("taken");
    assert_eq!(target.page(Place { pid: 2, address: 0x9000 }), [7; PAGE]);
    assert_eq!(target.page(Place { pid: 1, address: 0x6000 }), [8; PAGE]);
}

#[test]
fn a_copy_of_what_never_came_is_refused_by_its_place() {
    for from in [PLACE, Place { pid: 1, address: 0x7000 }, Place { pid: 9, ..PLACE }] {
        let mut target = Target::with_room(1 << 20);
        target.take(1, &page(0x8000, 7, Crossing::Content)).expect("taken");
        let refused = target.take(1, &page(0x9000, 0, Crossing::Copy(from)));
        let Err(MemoryError::Store { source: StoreError::NeverCame { pid, address }, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(Place { pid, address }, from);
    }
}

#[test]
fn copies_take_room_although_they_cross_in_a_few_bytes() {
    let mut target = Target::with_room(PAGE as u64 - 1);
    target.take(1, &page(PLACE.address, 7, Crossing::Content)).expect("taken");
    let refused = target.take(2, &page(0x9000, 0, Crossing::Copy(PLACE)));
    assert!(matches!(refused, Err(MemoryError::TooMuch { pid: 2, .. })), "{refused:?}");
}

#[test]
fn shared_memory_takes_no_copies() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = SharedWriter::create(directory.path(), 5).expect("a file");
    assert!(matches!(writer.copies(0, 1, PLACE), Err(StoreError::NotAlike { inode: 5 })));
}

#[test]
fn a_process_that_has_ended_since_its_pages_were_sent_is_waited_for_by_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    // Images that know process 1, of which nothing is lazy.
    let images = directory.path().join("images");
    std::fs::create_dir(&images).expect("a directory");
    // `pagemap_head` alone.
    let image = crate::criu::image::assemble(0x5608_4025, [vec![0x08, 1]]);
    std::fs::write(images.join("pagemap-1.img"), image).expect("an image");
    let mut memory = Memory::default();
    let mut ended = StoreWriter::create(directory.path(), 17).expect("a store");
    ended.write(0x1000, &[1; PAGE]).expect("a page");
    memory.stores.insert(17, ended);

    memory.finish(directory.path(), &images).expect("all that is asked for");
    assert_eq!(pids(directory.path()).expect("a directory"), [1], "CRIU hands over 1 and never 17");
    assert!(!directory.path().join("17.pages").exists());
}

#[test]
fn what_no_daemon_may_bring_is_put_into_the_pages_file_and_taken_out_of_the_store() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = directory.path().join("images");
    std::fs::create_dir(&images).expect("a directory");
    // `pagemap_head`, and an `mm` image without any mapping: what is left out can't come later.
    let image = |magic: u32, entry: Vec<u8>| crate::criu::image::assemble(magic, [entry]);
    std::fs::write(images.join("pagemap-1.img"), image(0x5608_4025, vec![0x08, 4])).expect("an image");
    std::fs::write(images.join("mm-1.img"), image(0x5749_2820, Vec::new())).expect("an image");
    let settled = pagemap::settle(&images, 1, &[0x1000..0x3000, 0x5000..0x6000]).expect("settled");
    assert_eq!(settled.stored, [0x1000..0x3000, 0x5000..0x6000]);

    let mut room = Room::new(|| u64::MAX).promise(0).expect("room");
    let mut memory = Memory::default();
    let refused = memory.assemble(&images, &mut room).expect_err("it has nothing of that process");
    assert!(matches!(refused, FinishError::Assemble { pid: 1, .. }));
    let mut store = StoreWriter::create(directory.path(), 1).expect("a store");
    store.write(0x5000, &[5; PAGE]).expect("a page");
    store.write(0x1000, &[1; PAGE]).expect("a page");
    memory.stores.insert(1, store);
    memory.assemble(&images, &mut room).expect_err("a page never came");
    memory.stores.get_mut(&1).expect("a store").zero(0x2000, PAGE as u64).expect("a page");

    let mut little = Room::new(|| 2 * PAGE as u64).promise(0).expect("room");
    let refused = memory.assemble(&images, &mut little).expect_err("it is three pages");
    assert!(matches!(refused, FinishError::NoRoom { pid: 1, .. }));
    let assembled = memory.assemble(&images, &mut room).expect("all is there");
    let name = format!("pages-{}.img", 4_u32 | 1 << 31);
    let expected = [[1; PAGE], [0; PAGE], [5; PAGE]].concat();
    assert_eq!(std::fs::read(images.join(&name)).expect("pages"), expected);
    let landed = Landed { bytes: expected.len() as u64, digest: Digest::from(blake3::hash(&expected)) };
    assert_eq!(assembled, [(Part::Image { name }, landed)]);
    memory.finish(directory.path(), &images).expect("nothing is to come");
    let store = crate::pages::store::Store::open(directory.path(), 1).expect("a store");
    assert!(store.extents().is_empty(), "no daemon may bring it");
}

#[test]
fn shared_memory_lies_where_criu_reads_it_unless_the_dump_has_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (memory, images) = (directory.path().join("memory"), directory.path().join("images"));
    std::fs::create_dir(&memory).expect("a directory");
    std::fs::create_dir(&images).expect("a directory");
    let mut landed = Memory::default();
    for (inode, pages_id) in [(5_u32, 1_u32), (6, 2), (7, 3)] {
        // `pagemap_head`; the page at offset 0x2000 will be filled in.
        let image = crate::criu::image::assemble(0x5608_4025, [vec![0x08, pages_id as u8]]);
        std::fs::write(images.join(format!("pagemap-shmem-{inode}.img")), image).expect("an image");
        let mut writer = SharedWriter::create(&memory, inode).expect("a file");
        writer.write(0x2000, &[inode as u8; PAGE]).expect("a page");
        landed.shared.insert(inode, writer);
    }
    for inode in [5, 6] {
        let page = 0x2000..0x3000;
        assert!(shared::fill_in(&images, inode, std::slice::from_ref(&page), 0x3000).expect("filled in"));
    }
    std::fs::write(images.join("pages-2.img"), [9; PAGE]).expect("what the dump has");

    landed.finish(&memory, &images).expect("all that is asked for");
    assert_eq!(std::fs::read(images.join("pages-1.img")).expect("5"), [5; PAGE]);
    assert_eq!(std::fs::read(images.join("pages-2.img")).expect("6"), [9; PAGE]);
    assert!(!images.join("pages-3.img").exists() && !memory.join("shared-7.pages").exists());
    assert_eq!(shared::incomplete(&images).expect("images"), None);
    std::fs::remove_file(images.join("pages-1.img")).expect("5");
    assert_eq!(shared::incomplete(&images).expect("images"), Some(5), "a restore would fail, or worse");
}
