//! Finding an instruction in a process that enters the kernel.

use crate::memory::{AttachError, Range, Vma, vma};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// `syscall` of x86-64.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// As much of each mapping is searched, bytes.
const SEARCHED: usize = 4 << 20;

/// Address of a `syscall` instruction that process `pid` may execute, outside of `but`; none if it has none.
///
/// `next` is where a stopped thread goes on: after a system call, the instruction is right before. Else the vdso holds
/// one, which is mapped into every process that did not unmap it, and else whatever else is executable.
pub fn find(pid: i32, next: u64, but: &[Range]) -> Result<Option<u64>, AttachError> {
    let path = PathBuf::from(format!("/proc/{pid}/mem"));
    let memory = File::open(&path).map_err(|source| AttachError::Read { path, source })?;
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let text = std::fs::read(&path).map_err(|source| AttachError::Read { path: path.clone(), source })?;
    let text = String::from_utf8_lossy(&text);
    let mut vmas = vma::parse(&text).map_err(|line| AttachError::Unexpected { path, content: line.to_owned() })?;
    vmas.retain(|vma| vma.executable && !but.iter().any(|range| range.contains(&vma.range)));
    let before = next.wrapping_sub(SYSCALL.len() as u64);
    let instruction = Range { start: before, end: next };
    if vmas.iter().any(|vma| vma.range.contains(&instruction)) && search(&memory, instruction).is_some() {
        return Ok(Some(before));
    }
    vmas.sort_by_key(|vma: &Vma| vma.name != "[vdso]");
    Ok(vmas.iter().find_map(|vma| search(&memory, vma.range)))
}

fn search(memory: &File, range: Range) -> Option<u64> {
    let length = usize::try_from(range.len()).unwrap_or(SEARCHED).min(SEARCHED);
    let mut code = vec![0; length];
    // What can't be read has none to offer.
    let count = memory.read_at(&mut code, range.start).ok()?;
    let offset = code.get(..count)?.windows(SYSCALL.len()).position(|bytes| bytes == SYSCALL)?;
    Some(range.start + offset as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_one() {
        let pid = std::process::id() as i32;
        let site = find(pid, 0, &[]).unwrap().unwrap();
        let mut bytes = [0; 2];
        File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, site).unwrap();
        assert_eq!(bytes, SYSCALL);
        assert_eq!(find(pid, site + 2, &[]).unwrap(), Some(site));
    }
}
