use super::*;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicU64;

const PAGE: usize = 4096;

fn memfd() -> std::fs::File {
    // SAFETY: a new descriptor that nobody else owns.
    let descriptor = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
    descriptor.into()
}

fn put(list: &std::fs::File, word: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().copied().flat_map(u64::to_ne_bytes).collect();
    list.write_all_at(&bytes, word * 8).unwrap();
}

/// Which of `pages` pages at `address` this process has, as CRIU asks for them.
fn scanned(pagemap: &std::fs::File, address: u64, pages: u64, room: u64) -> (Vec<u64>, u64) {
    let mut regions = vec![[0_u64; 3]; room as usize];
    let (start, end) = (address, address + pages * PAGE as u64);
    let present = 1 << 3 | 1 << 4;
    let vec = regions.as_mut_ptr() as u64;
    let (any, told) = (present, present);
    let size = size_of::<pagemap::Scan>() as u64;
    let mut scan = pagemap::Scan {
        size,
        start,
        end,
        vec,
        vec_len: room,
        category_anyof_mask: any,
        return_mask: told,
        ..Default::default()
    };
    // SAFETY: the argument that this request takes.
    let found = unsafe { ioctl(pagemap.as_raw_fd(), pagemap::SCAN, std::ptr::from_mut(&mut scan).cast()) };
    let found = usize::try_from(found).expect("regions");
    let pages = regions[..found].iter().flat_map(|[start, end, _]| (*start..*end).step_by(PAGE));
    (pages.map(|page| (page - address) / PAGE as u64).collect(), (scan.walk_end - address) / PAGE as u64)
}

fn read(pagemap: &std::fs::File, address: u64, pages: u64) -> Vec<u64> {
    let mut words = vec![0_u64; pages as usize];
    let (length, offset) = (pages as usize * 8, (address / PAGE as u64 * 8) as i64);
    // SAFETY: room for as many bytes.
    let read = unsafe { pread64(pagemap.as_raw_fd(), words.as_mut_ptr().cast(), length, offset) };
    assert_eq!(read, length as isize);
    (0..pages).filter(|page| words[*page as usize] != 0).collect()
}

/// One test, because the library has one list.
#[test]
fn what_is_on_the_list_is_not_there_and_everything_else_is() {
    let (list, listed, other) = (memfd(), memfd(), memfd());
    list.set_len(1 << 20).unwrap();
    listed.write_all_at(&[1; PAGE], 8192).unwrap();
    other.write_all_at(&[1; PAGE], 8192).unwrap();
    let variable = CString::new(format!("TEST_LIST_{}", std::process::id())).unwrap();
    // SAFETY: no other thread of this test program reads or writes the environment.
    unsafe { std::env::set_var(variable.to_str().unwrap(), list.as_raw_fd().to_string()) };
    let duplicate = list.try_clone().unwrap();
    LIST.get_or_init(|| inherited(&variable).and_then(List::mapped));
    std::mem::forget(list);
    let data = |file: &std::fs::File, whence| {
        // SAFETY: a descriptor of this test's own.
        unsafe { lseek(file.as_raw_fd(), 0, whence) }
    };
    assert_eq!((data(&listed, libc::SEEK_DATA), data(&other, libc::SEEK_DATA)), (8192, 8192), "nothing is listed");

    let metadata = listed.metadata().unwrap();
    put(&duplicate, 4, &[metadata.dev(), metadata.ino()]);
    put(&duplicate, 1, &[1]);
    assert_eq!(data(&listed, libc::SEEK_DATA), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENXIO));
    assert_eq!((data(&listed, libc::SEEK_END), data(&other, libc::SEEK_DATA)), (12288, 8192));

    // Sixteen pages, all of them there, and none of a page larger than any.
    let mut memory = vec![1_u8; 17 * PAGE];
    // SAFETY: it is inside.
    let memory = unsafe { memory.as_mut_ptr().add(memory.as_ptr().align_offset(PAGE)) };
    let at = memory as u64;
    let page = |number: u64| at + number * PAGE as u64;
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let all: Vec<u64> = (0..16).collect();
    assert_eq!(scanned(&pagemap, at, 16, 16), (all.clone(), 16), "nothing is withheld");
    let own = u64::from(std::process::id());
    let ranges =
        [[own - 1, page(0), page(16)], [own, page(2), page(5)], [own, page(6), page(7)], [own, page(12), page(99)]];
    put(&duplicate, 4 + 2 * 4095, &ranges.concat());
    put(&duplicate, 2, &[ranges.len() as u64]);
    assert_eq!(scanned(&pagemap, at, 16, 16), (all, 16), "they are not here yet");

    // Somebody who asks before they are here waits for them; others' may still be to come then.
    put(&duplicate, 0, &[1]);
    put(&duplicate, 3, &[own - 1]);
    let left = vec![0, 1, 5, 7, 8, 9, 10, 11];
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| scanned(&pagemap, at, 16, 16));
        put(&duplicate, 3, &[own]);
        assert_eq!(asked.join().unwrap(), (left.clone(), 16));
    });
    assert_eq!(read(&pagemap, at, 16), left);
    assert_eq!(scanned(&pagemap, page(3), 1, 16), (vec![], 1));
    // Two regions have room: the rest is asked for from there on.
    let (first, end) = scanned(&pagemap, at, 16, 2);
    let (rest, _) = scanned(&pagemap, page(end), 16 - end, 16);
    assert_eq!([first, rest.iter().map(|page| page + end).collect()].concat(), left);
    OWN.set(own).unwrap();
    let all: Vec<u64> = (0..16).collect();
    assert_eq!((scanned(&pagemap, at, 16, 16), read(&pagemap, at, 16)), ((all.clone(), 16), all), "CRIU itself");
    let (whole, blank) = (std::fs::File::open("/proc/self/maps").unwrap(), AtomicU64::new(0));
    assert_eq!(PAGEMAP.with(|last| last.process(whole.as_raw_fd())), None);
    assert!(list::Ranges::of(Box::leak(Box::new([blank, AtomicU64::new(4), AtomicU64::new(8)]))).after(8).is_none());
}

/// What kind of file `name` in `directory` is, and its permissions.
fn linked(directory: &std::fs::File, name: &CStr) -> Option<u32> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    let (directory, flags) = (directory.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: a C string, and room for the answer, which is read only where there is one.
    unsafe { (fstatat64(directory, name.as_ptr(), stat.as_mut_ptr(), flags) == 0).then(|| stat.assume_init().st_mode) }
}

#[test]
fn a_descriptor_is_asked_about_again_once_it_is_another_file() {
    let (last, own) = (Last::of(b"pagemap"), u64::from(std::process::id()));
    let (pagemap, maps) =
        (std::fs::File::open("/proc/self/pagemap").unwrap(), std::fs::File::open("/proc/self/maps").unwrap());
    let above = u64::from(std::os::unix::process::parent_id());
    let first = std::fs::File::open(format!("/proc/{above}/pagemap")).unwrap();
    for _ in 0..2 {
        assert_eq!(last.process(pagemap.as_raw_fd()), Some(own));
        assert_eq!(last.process(maps.as_raw_fd()), None);
        assert_eq!(last.process(first.as_raw_fd()), Some(above));
    }
}

/// What is read from `name` in `directory`.
fn opened(directory: &std::fs::File, name: &CStr) -> String {
    use std::io::Read;
    // SAFETY: a C string.
    let descriptor = unsafe { openat64(directory.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    assert!(descriptor >= 0, "{}", std::io::Error::last_os_error());
    let mut text = String::new();
    // SAFETY: it was opened just now, and nobody else has it.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn what_was_read_of_a_process_is_given_for_its_mappings_alone() {
    let texts = memfd();
    texts.set_len(64 << 20).unwrap();
    let directory = std::fs::File::open("/proc/self/map_files").unwrap();
    let links = || std::fs::read_dir("/proc/self/map_files").unwrap().map(|link| link.unwrap().file_name());
    let name = CString::new(links().next().unwrap().into_encoded_bytes()).unwrap();
    assert_eq!(linked(&directory, &name).map(|mode| mode & libc::S_IFMT), Some(libc::S_IFLNK), "the kernel's answer");
    // Not what the kernel would say.
    let (none, file) = (c"10000000-10001000", c"10001000-10002000");
    assert_eq!((linked(&directory, none), linked(&directory, file)), (None, None));
    let (own, at) = (u64::from(std::process::id()), 1 << 20);
    let text =
        "as it was read\n10000000-10001000 rw-p 00000000 00:00 0 \n10001000-10002000 r--p 00000000 00:ab 7   /file\n";
    texts.write_all_at(text.as_bytes(), at).unwrap();
    put(&texts, 2, &[own, at, text.len() as u64]);
    put(&texts, 0, &[2, 1]);
    TEXTS.get_or_init(|| Mappings::mapped(std::os::fd::IntoRawFd::into_raw_fd(texts)));

    assert_eq!(linked(&directory, file), Some(libc::S_IFLNK | libc::S_IRUSR));
    assert_eq!(linked(&directory, none), None);
    assert_eq!(linked(&directory, &name).map(|mode| mode & libc::S_IFMT), Some(libc::S_IFLNK), "it is not in the text");
    let other = std::fs::File::open("/proc/self").unwrap();
    assert_eq!(linked(&other, file), None, "no directory of links");
    let process = std::fs::File::open(format!("/proc/{own}")).unwrap();
    assert_eq!(linked(&process, c"exe").map(|mode| mode & libc::S_IFMT), Some(libc::S_IFLNK));

    let directory = process;
    assert_eq!(opened(&directory, c"smaps"), text);
    assert!(opened(&directory, c"maps").contains("[stack]"));
    let above = std::fs::File::open(format!("/proc/{}", std::os::unix::process::parent_id())).unwrap();
    assert!(opened(&above, c"smaps").contains("VmFlags:"), "of another process nothing was read");
    let elsewhere = tempfile(own);
    assert_eq!(opened(&elsewhere.1, c"smaps"), "a file", "no process' directory");
    std::fs::remove_dir_all(elsewhere.0).unwrap();
}

/// A directory whose name is a number, with a file `smaps` in it.
fn tempfile(number: u64) -> (std::path::PathBuf, std::fs::File) {
    let above = std::env::temp_dir().join(format!("dump-preload-{number}"));
    let directory = above.join(number.to_string());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("smaps"), "a file").unwrap();
    let opened = std::fs::File::open(&directory).unwrap();
    (above, opened)
}
