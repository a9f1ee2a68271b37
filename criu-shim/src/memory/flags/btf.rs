//! Where a kernel of this build keeps what in its structures: as much of its own description (BTF) as a program for it needs.
//! Pure. Source: `Documentation/bpf/btf.rst` of the kernel.

/// The description of a kernel, `/sys/kernel/btf/vmlinux`.
#[derive(Debug)]
pub(super) struct Btf<'a> {
    types: Vec<Type<'a>>,
    names: &'a [u8],
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// From the beginning of the structure, bytes.
    pub(super) offset: u16,
    /// Length of the union that it is in, or of the structure where it is in none, bytes.
    pub(super) within: u32,
}

#[derive(Clone, Copy, Debug)]
struct Type<'a> {
    name: u32,
    kind: u32,
    /// Whether offsets of members have the length of a bit field in them.
    with_lengths: bool,
    /// Its length, or the type that it stands for.
    size: u32,
    /// What follows: for structures and unions 12 bytes for each member.
    rest: &'a [u8],
}

const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNCTION: u32 = 12;
/// Structures in structures. The kernel has fewer levels than this where it is looked.
const DEPTH: usize = 8;

impl<'a> Btf<'a> {
    /// None where this is no description, of this machine's byte order.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = u32_at(bytes, 4)? as usize;
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC || header < HEADER {
            return None;
        }
        let section = |at: usize| {
            let start = header.checked_add(u32_at(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(u32_at(bytes, at + 4)? as usize)?)
        };
        let (mut left, names) = (section(8)?, section(16)?);
        let mut types = Vec::new();
        while !left.is_empty() {
            let (name, info, size) = (u32_at(left, 0)?, u32_at(left, 4)?, u32_at(left, 8)?);
            let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
            let more = match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                STRUCT | UNION | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                2 | 7..=FUNCTION | 16 | 18 => 0,
                _ => return None,
            };
            let (rest, after) = left.get(12..)?.split_at_checked(more)?;
            types.push(Type { name, kind, with_lengths: info >> 31 == 1, size, rest });
            left = after;
        }
        Some(Self { types, names })
    }

    /// The id of the function `name`.
    pub(super) fn function(&self, name: &str) -> Option<u32> {
        let at = self.types.iter().position(|one| one.kind == FUNCTION && self.is_named(one.name, name))?;
        // Ids begin with 1; 0 is void.
        u32::try_from(at + 1).ok()
    }

    /// The member `name` of the structure `structure`, or of one without a name in it.
    pub(super) fn member(&self, structure: &str, name: &str) -> Option<Member> {
        let found = self.types.iter().find(|one| one.kind == STRUCT && self.is_named(one.name, structure))?;
        self.member_of(found, name, DEPTH)
    }

    fn member_of(&self, structure: &Type<'_>, name: &str, depth: usize) -> Option<Member> {
        structure.rest.chunks_exact(12).find_map(|member| {
            let (named, kind, offset) = (u32_at(member, 0)?, u32_at(member, 4)?, u32_at(member, 8)?);
            let bits = if structure.with_lengths { offset & 0x00ff_ffff } else { offset };
            let offset = u16::try_from(bits / 8).ok()?;
            if self.is_named(named, name) {
                return Some(Member { offset, within: structure.size });
            }
            let inner = self.types.get((kind as usize).checked_sub(1)?)?;
            let nameless = self.is_named(named, "") && matches!(inner.kind, STRUCT | UNION) && depth > 0;
            let found = nameless.then(|| self.member_of(inner, name, depth - 1))??;
            Some(Member { offset: offset.checked_add(found.offset)?, ..found })
        })
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let rest = self.names.get(at as usize..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[u8] = b"\0area\0start\0flags\0walk\0long\0";

    /// struct area { long start; union { long flags; struct { long; long } } }, and a function walk.
    fn described() -> Vec<u8> {
        let (area, start, flags, walk, long) = (1, 6, 12, 18, 23);
        let info = |kind: u32, count: u32| kind << 24 | count;
        let types: Vec<u32> = [
            vec![long, info(1, 0), 8, 64],
            vec![walk, info(FUNCTION, 0), 1],
            vec![0, info(STRUCT, 2), 16, 0, 1, 0, 0, 1, 64],
            vec![0, info(UNION, 2), 16, flags, 1, 0, 0, 3, 0],
            vec![area, info(STRUCT, 2), 24, start, 1, 0, 0, 4, 64],
        ]
        .concat();
        let lengths = [0, types.len() as u32 * 4, types.len() as u32 * 4, NAMES.len() as u32];
        let header = [u32::from(MAGIC) | 1 << 16, HEADER as u32].into_iter().chain(lengths);
        header.chain(types.iter().copied()).flat_map(u32::to_ne_bytes).chain(NAMES.iter().copied()).collect()
    }

    #[test]
    fn functions_and_members_are_found_by_their_names() {
        let bytes = described();
        let btf = Btf::parse(&bytes).expect("a description");
        assert_eq!((btf.function("walk"), btf.function("area"), btf.function("wal")), (Some(2), None, None));
        assert_eq!(btf.member("area", "start"), Some(Member { offset: 0, within: 24 }));
        assert_eq!(btf.member("area", "flags"), Some(Member { offset: 8, within: 16 }), "in a union of two words");
        assert_eq!((btf.member("area", "walk"), btf.member("walk", "start")), (None, None));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_no_description() {
        let bytes = described();
        for length in 0..bytes.len() {
            assert!(Btf::parse(&bytes[..length]).is_none(), "{length}");
        }
        let mut unknown = bytes;
        unknown[HEADER + 7] = 31;
        assert!(Btf::parse(&unknown).is_none());
    }
}
