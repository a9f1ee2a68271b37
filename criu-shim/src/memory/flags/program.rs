//! A program for the kernel that hands out of each mapping of one process where it is and its flags, as they are: reading it walks
//! through no page table. It holds the `unsafe` of bpf(2) and nothing else.
//!
//! These few instructions are offered under the GNU GPL 2.0 too, because the kernel gives its structures to no program that is not.

use super::btf::Btf;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use thiserror::Error;

/// Why there is no such program on this kernel.
#[derive(Debug, Error)]
pub(super) enum LoadError {
    /// It does not describe itself.
    #[error("read what the kernel says of itself")]
    Described(#[source] io::Error),
    /// It is built otherwise than is known here.
    #[error("the kernel says nothing of {0}")]
    Unknown(&'static str),
    /// It refuses.
    #[error("give the kernel a program that reads mappings")]
    Refused(#[source] io::Error),
    /// What the program reads is not what the kernel itself says.
    #[error("the kernel's mappings are not as it describes them")]
    Wrong,
}

impl LoadError {
    /// Whether it would be the same at another time.
    pub(super) fn stays(&self) -> bool {
        let refusals = [libc::EPERM, libc::EACCES, libc::EINVAL, libc::ENOSYS, libc::ENOTSUP, libc::ENOENT];
        match self {
            Self::Unknown(_) => true,
            Self::Described(error) | Self::Refused(error) => {
                error.raw_os_error().is_some_and(|errno| refusals.contains(&errno))
            }
            Self::Wrong => false,
        }
    }
}

/// A mapping as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// Address of the first byte.
    pub(super) start: u64,
    /// Address behind the last one.
    pub(super) end: u64,
    /// Bits of which nobody outside of the kernel knows the meaning.
    pub(super) flags: u64,
}

impl Mapping {
    /// As the program writes one, three words.
    fn of(words: &[u8]) -> Self {
        let word =
            |at: usize| words.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
        Self { start: word(0), end: word(8), flags: word(16) }
    }
}

/// The program, in the kernel.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

const DESCRIPTION: &str = "/sys/kernel/btf/vmlinux";

// Source: linux/bpf.h.
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const ITER_CREATE: libc::c_long = 33;
const TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const SEQ_WRITE: i32 = 127;

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_to: u32,
    attach_program: u32,
    /// Up to a whole number of longest members: the kernel wants zeroes there.
    rest: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    what: u64,
    what_length: u32,
    rest: u32,
}

// No padding, of which the kernel would see what was there before.
const _: () = assert!(size_of::<Load>() == 120 && size_of::<Link>() == 32 && size_of::<Task>() == 16);

/// Which tasks: the first thread of a process, and none by the other two ways.
#[repr(C)]
struct Task {
    tid: u32,
    pid: u32,
    descriptor: u32,
    rest: u32,
}

impl Program {
    /// Puts it into the kernel.
    ///
    /// # Errors
    /// [`LoadError`]: before Linux 6.1, without a description, or where it may not be done.
    pub(super) fn load() -> Result<Self, LoadError> {
        let described = std::fs::read(DESCRIPTION).map_err(LoadError::Described)?;
        let btf = Btf::parse(&described).ok_or(LoadError::Unknown("itself"))?;
        // Before Linux 6.1 it takes the choice of a process for none, and goes through all of them.
        btf.member("bpf_iter_seq_task_common", "pid").ok_or(LoadError::Unknown("the mappings of one process"))?;
        let instructions = instructions(&btf)?;
        let load = Load {
            kind: TRACING,
            count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL and additional rights".as_ptr() as u64,
            name: *b"tideover_flags\0\0",
            attach_type: TRACE_ITER,
            attach_to: btf.function("bpf_iter_task_vma").ok_or(LoadError::Unknown("bpf_iter_task_vma"))?,
            ..Load::default()
        };
        // SAFETY: the layout that the kernel expects, with addresses of what is borrowed until it returns.
        unsafe { bpf(PROG_LOAD, &load) }.map(Self).map_err(LoadError::Refused)
    }

    /// The mappings of process `pid`, as the caller's `/proc` names it, in ascending order.
    ///
    /// None where there is no such process. What is to be relied on must be compared with what else tells where mappings are.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub(super) fn mappings(&self, pid: i32) -> io::Result<Vec<Mapping>> {
        let task = Task { tid: pid.unsigned_abs(), pid: 0, descriptor: 0, rest: 0 };
        let number = |descriptor: RawFd| descriptor.unsigned_abs();
        let link = Link {
            program: number(self.0.as_raw_fd()),
            target: 0,
            attach_type: TRACE_ITER,
            flags: 0,
            what: (&raw const task) as u64,
            what_length: size_of::<Task>() as u32,
            rest: 0,
        };
        // SAFETY: as above.
        let link = unsafe { bpf(LINK_CREATE, &link) }?;
        // SAFETY: as above.
        let iterator = unsafe { bpf(ITER_CREATE, &[number(link.as_raw_fd()), 0]) }?;
        let (mut iterator, mut buffer) = (File::from(iterator), vec![0; 64 << 10]);
        let mut mappings: Vec<Mapping> = Vec::new();
        loop {
            let count = iterator.read(&mut buffer)?;
            let step: Vec<Mapping> = buffer[..count].chunks_exact(24).map(Mapping::of).collect();
            // One process in several steps has no end: the last step comes again and again (Linux 6.18).
            let comes_again = step.first().zip(mappings.last()).is_some_and(|(now, last)| now.start < last.end);
            if count == 0 || comes_again {
                return Ok(mappings);
            }
            mappings.extend(step);
        }
    }
}

/// Writes start, end and flags of the mapping that it is called with, three words. It is called with none at the end.
fn instructions(btf: &Btf<'_>) -> Result<Vec<[u8; 8]>, LoadError> {
    let offset = |structure, name| {
        let member = btf.member(structure, name).ok_or(LoadError::Unknown(name))?;
        i16::try_from(member.offset).map(|offset| (offset, member.within)).map_err(|_| LoadError::Unknown(name))
    };
    let of_mapping = |name| offset("vm_area_struct", name);
    let ((start, _), (end, _), (flags, within)) =
        (of_mapping("vm_start")?, of_mapping("vm_end")?, of_mapping("vm_flags")?);
    // A member of no union of those. In one with something longer, there would be flags that a word does not show.
    let (_, whole) = of_mapping("vm_mm")?;
    if within != 8 && within != whole {
        return Err(LoadError::Unknown("vm_flags"));
    }
    let of_context = |name| offset("bpf_iter__task_vma", name).map(|(offset, _)| offset);
    let (meta, vma, (file, _)) = (of_context("meta")?, of_context("vma")?, offset("bpf_iter_meta", "seq")?);
    Ok(vec![
        load(6, 1, meta),
        load(7, 1, vma),
        // No mapping: to the end.
        instruction(0x15, 7, 0, 11, 0),
        load(1, 7, start),
        store(1, -24),
        load(1, 7, end),
        store(1, -16),
        load(1, 7, flags),
        store(1, -8),
        load(1, 6, file),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -24),
        instruction(0xb7, 3, 0, 0, 24),
        instruction(0x85, 0, 0, 0, SEQ_WRITE),
        instruction(0xb7, 0, 0, 0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ])
}

/// A word at `offset` behind register `from`, into register `to`.
fn load(to: u8, from: u8, offset: i16) -> [u8; 8] {
    instruction(0x79, to, from, offset, 0)
}

/// Register `from` onto the stack.
fn store(from: u8, offset: i16) -> [u8; 8] {
    instruction(0x7b, 10, from, offset, 0)
}

/// Source: `Documentation/bpf/standardization/instruction-set.rst` of the kernel; registers as on a little-endian machine.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let ([low, high], [a, b, c, d]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, from << 4 | to, low, high, a, b, c, d]
}

/// # Safety
/// `attributes` are what the kernel expects for `command`, which gives a descriptor, with nothing but addresses of what lives.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: as the caller has it; the length is that of what is borrowed.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    match RawFd::try_from(descriptor) {
        // SAFETY: new, and nobody else's.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
