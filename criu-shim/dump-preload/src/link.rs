//! What a mapping's link in `/proc/PID/map_files` is, by the line of the mapping in smaps.
//!
//! CRIU asks for the link of each mapping, and the kernel makes one for the answer: half of a millisecond and more for a process with a
//! hundred. What CRIU wants is whether there is one, and whether its file was opened for reading or for writing too.

/// The link of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// There is none: no file is mapped.
    None,
    /// It is there. A private mapping needs its file to be readable, and nothing that is done to it depends on more.
    Readable,
}

/// The link `name`, which is `START-END` in hexadecimal, and where in `smaps` its mapping is; none where that does not say.
///
/// `from` is where the last one was: CRIU asks in ascending order, so the search begins there.
///
/// What is shared is the kernel's to answer: there it matters how the file was opened. So is what has no name any more, and what the
/// kernel calls a file and nobody has opened.
pub(crate) fn find(smaps: &[u8], name: &[u8], from: usize) -> Option<(Link, usize)> {
    let (before, behind) = smaps.split_at_checked(from).unwrap_or((&[], smaps));
    let found = line(behind, name).map(|(at, line)| (before.len() + at, line));
    let (at, line) = found.or_else(|| line(before, name))?;
    Some((link(line)?, at))
}

/// Whether `name` could be that of a link: two addresses.
pub(crate) fn is_range(name: &[u8]) -> bool {
    name.first().is_some_and(u8::is_ascii_hexdigit)
        && name.contains(&b'-')
        && name.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-')
}

/// Whether two ranges are the same: the kernel writes no address with less than eight digits, and CRIU none with a zero in front.
fn are_same(a: &[u8], b: &[u8]) -> bool {
    let addresses = |range| {
        let mut parts = <[u8]>::split(range, |byte| *byte == b'-').map(without_zeroes);
        (parts.next(), parts.next(), parts.next())
    };
    addresses(a) == addresses(b)
}

fn without_zeroes(number: &[u8]) -> &[u8] {
    let zeroes = number.iter().take_while(|byte| **byte == b'0').count();
    &number[zeroes..]
}

/// The line of `text` that begins with `range` and a space, and where it is.
fn line<'a>(text: &'a [u8], range: &[u8]) -> Option<(usize, &'a [u8])> {
    let mut at = 0;
    text.split_inclusive(|byte| *byte == b'\n').find_map(|line| {
        let here = at;
        at += line.len();
        let addresses = line.split(|byte| *byte == b' ').next()?;
        are_same(addresses, range).then_some((here, line))
    })
}

fn link(line: &[u8]) -> Option<Link> {
    let mut parts = line.splitn(6, |byte| *byte == b' ').skip(1);
    let (permissions, _offset, device, inode) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let file = parts.next().unwrap_or_default().trim_ascii();
    match (device, inode) {
        (b"00:00", b"0") => Some(Link::None),
        _ if permissions.last() != Some(&b'p') => None,
        _ if !file.starts_with(b"/") || file.starts_with(b"/anon_hugepage") || file.ends_with(b" (deleted)") => None,
        _ => Some(Link::Readable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &[u8] = b"\
00400000-00452000 r-xp 00000000 00:ab 6                          /usr/bin/fixed
556648049000-55664812e000 r--p 00000000 00:ab 7                          /usr/bin/a program
VmFlags: rd mr mw me sd
55664812e000-55664812f000 rw-p 00000000 00:00 0                          [heap]
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000001000 rw-s 00000000 00:01 9                          /memfd:x (deleted)
7f0000001000-7f0000002000 r--s 00000000 00:ab 8                          /data
7f0000002000-7f0000003000 rw-p 00000000 00:ab 8                          /data (deleted)
7f0000003000-7f0000004000 rw-p 00000000 00:0f 3                          /anon_hugepage (deleted)
7f0000004000-7f0000005000 rw-p 00000000 00:00 0 
";

    #[test]
    fn what_smaps_says_of_a_link_is_known_and_the_rest_is_not() {
        let of = |name: &str| find(SMAPS, name.as_bytes(), 0).map(|(link, _)| link);
        assert_eq!(of("400000-452000"), Some(Link::Readable), "as CRIU writes it");
        assert_eq!((of("400000-45200"), of("4000000-452000")), (None, None));
        assert_eq!(of("556648049000-55664812e000"), Some(Link::Readable));
        assert_eq!(of("55664812e000-55664812f000"), Some(Link::None));
        assert_eq!(of("7f0000004000-7f0000005000"), Some(Link::None));
        for unknown in [
            "7f0000000000-7f0000001000",
            "7f0000001000-7f0000002000",
            "7f0000002000-7f0000003000",
            "7f0000003000-7f0000004000",
        ] {
            assert_eq!(of(unknown), None, "{unknown}");
        }
        for no_mapping in ["556648049000-55664812e00", "556648049000-55664812e0001"] {
            assert_eq!(of(no_mapping), None, "{no_mapping}");
        }
        assert!(is_range(b"556648049000-55664812e000"));
        for other in ["VmFlags:", "", "-", "smaps", "a-file", "12"] {
            assert!(!is_range(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn the_search_begins_where_the_last_one_ended() {
        let (first, last) = (b"556648049000-55664812e000", b"7f0000004000-7f0000005000");
        let at = find(SMAPS, last, 0).unwrap().1;
        assert!(SMAPS[at..].starts_with(last));
        assert_eq!(find(SMAPS, last, at), Some((Link::None, at)));
        for from in [at, SMAPS.len(), usize::MAX] {
            let (link, at) = find(SMAPS, first, from).unwrap();
            assert!(link == Link::Readable && SMAPS[at..].starts_with(first), "another process' place says nothing");
        }
    }
}
