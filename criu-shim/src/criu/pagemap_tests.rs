use super::super::ranges::tests::{lists, pages};
use super::*;
use proptest::prelude::*;

fn entry(range: Range<u64>, flags: u32) -> Vec<u8> {
    PagemapEntry::new(&range, flags).encode_to_vec()
}

fn page(number: u64) -> Range<u64> {
    number * PAGE..(number + 1) * PAGE
}

fn assemble(entries: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    image::assemble(PAGEMAP_MAGIC, std::iter::once(PagemapHead { pages_id: 3 }.encode_to_vec()).chain(entries))
}

/// A directory of images of process 1, and a file in the place of its memory: each page is filled with its number.
struct Dumped {
    images: tempfile::TempDir,
    memory: File,
}

impl Dumped {
    fn new(pagemap: &[u8], pages: Option<&[u8]>, anonymous: &[Range<u64>]) -> Self {
        let images = tempfile::tempdir().unwrap();
        std::fs::write(images.path().join("pagemap-1.img"), pagemap).unwrap();
        std::fs::write(images.path().join("mm-1.img"), lazy::tests::anonymous(anonymous)).unwrap();
        if let Some(pages) = pages {
            std::fs::write(images.path().join("pages-3.img"), pages).unwrap();
        }
        let mut memory = tempfile::tempfile().unwrap();
        (0..64u8).for_each(|number| memory.write_all(&[number; PAGE as usize]).unwrap());
        Self { images, memory }
    }

    fn settle(&self, copied: &[Range<u64>]) -> Result<Settled, PagemapError> {
        settle(self.images.path(), &Claim::everything(1), copied, &self.memory)
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.images.path().join(name)).unwrap()
    }

    /// The first byte of each page of the pages file.
    fn pages(&self) -> Vec<u8> {
        let pages = self.file("pages-3.img");
        assert!(
            pages.chunks(PAGE as usize).all(|page| page.len() == PAGE as usize && page.iter().all(|b| *b == page[0]))
        );
        pages.iter().step_by(PAGE as usize).copied().collect()
    }
}

#[test]
fn what_was_copied_becomes_lazy_and_the_pages_are_not_touched() {
    let pagemap = assemble([entry(page(1), PRESENT), entry(2 * PAGE..6 * PAGE, PARENT), entry(page(9), PRESENT)]);
    let dumped = Dumped::new(&pagemap, Some(b"whatever"), &[0..8 * PAGE]);
    let before = std::fs::metadata(dumped.images.path().join("pages-3.img")).unwrap();
    assert_eq!(in_parent(dumped.images.path(), 1).unwrap(), [2 * PAGE..6 * PAGE]);
    let settled = dumped.settle(&[0..8 * PAGE]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![2 * PAGE..6 * PAGE], filled: vec![] });
    let expected = assemble([entry(page(1), PRESENT), entry(2 * PAGE..6 * PAGE, LAZY), entry(page(9), PRESENT)]);
    assert_eq!(dumped.file("pagemap-1.img"), expected);
    let after = std::fs::metadata(dumped.images.path().join("pages-3.img")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
    assert_eq!(std::fs::read_dir(dumped.images.path()).unwrap().count(), 3);
    assert!(in_parent(dumped.images.path(), 1).unwrap().is_empty());
}

#[test]
fn what_was_not_copied_is_read_from_the_process_and_put_in_its_place() {
    let pagemap = assemble([entry(page(1), PRESENT), entry(2 * PAGE..6 * PAGE, PARENT), entry(page(9), PRESENT)]);
    let old = [[101; PAGE as usize], [109; PAGE as usize]].concat();
    let dumped = Dumped::new(&pagemap, Some(&old), &[0..8 * PAGE]);
    let settled = dumped.settle(&[3 * PAGE..5 * PAGE]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![3 * PAGE..5 * PAGE], filled: vec![page(2), page(5)] });
    let expected = assemble([
        entry(page(1), PRESENT),
        entry(page(2), PRESENT),
        entry(3 * PAGE..5 * PAGE, LAZY),
        entry(page(5), PRESENT),
        entry(page(9), PRESENT),
    ]);
    assert_eq!(dumped.file("pagemap-1.img"), expected);
    assert_eq!(dumped.pages(), [101, 2, 5, 109]);
}

#[test]
fn what_was_copied_of_a_mapping_that_can_not_come_later_is_in_the_images() {
    let dumped = Dumped::new(&assemble([entry(2 * PAGE..4 * PAGE, PARENT)]), None, &[page(3)]);
    let settled = dumped.settle(&[0..8 * PAGE]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![page(3)], filled: vec![page(2)] });
    assert_eq!(dumped.pages(), [2]);
}

#[test]
fn a_process_that_was_dumped_in_full_is_left_alone() {
    let pagemap = assemble([entry(page(1), PRESENT)]);
    let dumped = Dumped::new(&pagemap, None, &[]);
    assert_eq!(dumped.settle(&[page(1)]).unwrap(), Settled::default());
    assert_eq!(dumped.file("pagemap-1.img"), pagemap);
}

#[test]
fn what_criu_wrote_is_not_lazy_for_a_restore() {
    let dumped = Dumped::new(&assemble([entry(page(1), LAZY | PRESENT)]), None, &[page(1)]);
    let claim = Claim { pid: 1, ranges: vec![] };
    assert_eq!(settle(dumped.images.path(), &claim, &[], &dumped.memory).unwrap(), Settled::default());
    assert_eq!(dumped.file("pagemap-1.img"), assemble([entry(page(1), PRESENT)]));
}

#[test]
fn memory_left_out_without_a_claim_is_an_error() {
    let dumped = Dumped::new(&assemble([entry(2 * PAGE..4 * PAGE, PARENT)]), None, &[0..8 * PAGE]);
    let claim = Claim { pid: 1, ranges: vec![page(2), page(8)] };
    let error = settle(dumped.images.path(), &claim, &[0..8 * PAGE], &dumped.memory).unwrap_err();
    assert_eq!(error.to_string(), "the dump left out 0x3000..0x4000 of process 1, which was not claimed");
}

#[test]
fn a_pages_file_that_is_too_short_is_an_error() {
    let pagemap = assemble([entry(page(1), PRESENT), entry(page(2), PARENT)]);
    for pages in [None, Some(&[0u8; 4095][..])] {
        let dumped = Dumped::new(&pagemap, pages, &[]);
        assert!(matches!(dumped.settle(&[]), Err(PagemapError::PagesCutOff { .. })));
        assert_eq!(dumped.file("pagemap-1.img"), pagemap);
    }
}

#[test]
fn memory_that_can_not_be_read_is_an_error() {
    let dumped = Dumped::new(&assemble([entry(page(80), PARENT)]), None, &[]);
    assert!(matches!(dumped.settle(&[]), Err(PagemapError::Memory { pid: 1, start: 0x50000, .. })));
}

#[test]
fn entries_that_contradict_themselves_are_refused() {
    let bad = |entries: &[Vec<u8>]| parse(&assemble(entries.to_vec())).err();
    let length = |nr_pages| PagemapEntry { nr_pages: Some(nr_pages), ..PagemapEntry::new(&page(1), PRESENT) };
    assert_eq!(bad(&[entry(page(1), PARENT | PRESENT)]), Some(ImageError::Entry(1)));
    assert_eq!(bad(&[entry(page(5), PARENT), entry(page(4), PARENT)]), Some(ImageError::Entry(2)));
    assert_eq!(bad(&[length(0).encode_to_vec()]), Some(ImageError::Entry(1)));
    assert_eq!(bad(&[length(u64::MAX).encode_to_vec()]), Some(ImageError::Entry(1)));
    assert_eq!(bad(&[vec![0xff]]), Some(ImageError::Entry(1)));
    assert_eq!(parse(&image::assemble(PAGEMAP_MAGIC, [])).err(), Some(ImageError::Count(0)));
}

proptest! {
    #[test]
    fn only_what_was_left_to_the_parent_changes(
        list in lists(),
        flags in proptest::collection::vec(prop_oneof![Just(PARENT), Just(PRESENT), Just(LAZY), Just(LAZY | PRESENT)], 8),
        lazy in lists(),
    ) {
        let entries: Vec<(Range<u64>, u32)> = list.into_iter().zip(flags).collect();
        let image = assemble(entries.iter().map(|(range, flags)| entry(range.clone(), *flags)));
        let before = parse(&image).unwrap();
        let plan = plan(&before, &Claim::everything(1), &lazy).unwrap();
        let after = parse(&plan.image).unwrap();

        // The others, in their order, byte for byte, but never both lazy and present.
        let one = |(range, flags): &(Range<u64>, u32)| entry(range.clone(), if *flags == LAZY { LAZY } else { PRESENT });
        let kept: Vec<Vec<u8>> = entries.iter().filter(|(_, flags)| *flags != PARENT).map(one).collect();
        let mut rest = kept.iter().peekable();
        let mut added = Vec::new();
        for (range, flags, bytes) in &after.entries {
            if rest.next_if(|kept| kept.as_slice() == *bytes).is_none() {
                added.push((range.clone(), *flags));
            }
        }
        prop_assert!(rest.next().is_none());

        // And of what was left out every page, lazy where it may be.
        let parent: Vec<_> = entries.iter().filter(|(_, flags)| *flags == PARENT).map(|(range, _)| range.clone()).collect();
        let with = |wanted: u32| -> Vec<Range<u64>> {
            added.iter().filter(|(_, flags)| *flags == wanted).map(|(range, _)| range.clone()).collect()
        };
        prop_assert_eq!(pages(&with(LAZY)), &pages(&parent) & &pages(&lazy));
        prop_assert_eq!(pages(&with(PRESENT)), &pages(&parent) - &pages(&lazy));
        prop_assert_eq!(with(LAZY), plan.settled.lazy);
        prop_assert_eq!(with(PRESENT), plan.settled.filled);

        // The pages file has as many bytes as the entries say.
        let length = |range: &Range<u64>| range.end - range.start;
        let said: u64 = after.entries.iter().filter(|(_, f, _)| f & PRESENT != 0).map(|(r, ..)| length(r)).sum();
        let planned: u64 = plan.pages.iter().map(|piece| match piece {
            Piece::Kept(length) => *length,
            Piece::Filled(range) => length(range),
        }).sum();
        prop_assert_eq!(said, planned);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..6)) {
        let _ = parse(&image::assemble(PAGEMAP_MAGIC, entries));
    }
}
