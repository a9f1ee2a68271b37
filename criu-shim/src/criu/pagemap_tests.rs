use super::super::ranges::tests::{lists, pages};
use super::*;
use proptest::prelude::*;

fn entry(range: Range<u64>, flags: u32) -> Vec<u8> {
    PagemapEntry::new(&range, flags).encode_to_vec()
}

fn page(number: u64) -> Range<u64> {
    number * PAGE..(number + 1) * PAGE
}

fn image_of(entries: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    image_with(3, entries)
}

fn image_with(pages_id: u32, entries: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    image::assemble(PAGEMAP_MAGIC, std::iter::once(PagemapHead { pages_id }.encode_to_vec()).chain(entries))
}

fn stored(range: Range<u64>) -> Vec<u8> {
    PagemapEntry { stored: Some(true), ..PagemapEntry::new(&range, PRESENT) }.encode_to_vec()
}

/// What a target has: pages 0 to 63, each of them filled with its number.
fn store(range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let numbers = (range.start / PAGE..range.end / PAGE).map(|number| u8::try_from(number).ok().filter(|n| *n < 64));
    let pages = numbers.map(|number| Some([number?; PAGE as usize]));
    pages.collect::<Option<Vec<_>>>().map(|pages| pages.concat()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

/// A directory of images of process 1.
struct Dumped {
    images: tempfile::TempDir,
}

impl Dumped {
    fn new(pagemap: &[u8], pages: Option<&[u8]>, anonymous: &[Range<u64>]) -> Self {
        let images = tempfile::tempdir().unwrap();
        std::fs::write(images.path().join("pagemap-1.img"), pagemap).unwrap();
        std::fs::write(images.path().join("mm-1.img"), lazy::tests::anonymous(anonymous)).unwrap();
        if let Some(pages) = pages {
            std::fs::write(images.path().join("pages-3.img"), pages).unwrap();
        }
        Self { images }
    }

    fn settle(&self, left_out: &[Range<u64>]) -> Result<Settled, PagemapError> {
        settle(self.images.path(), 1, left_out)
    }

    fn assemble(&self) -> Result<Assembled, PagemapError> {
        assemble(self.images.path(), 1, store)
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.images.path().join(name)).unwrap()
    }

    /// The first byte of each page of the pages file that is put together.
    fn pages(&self) -> Vec<u8> {
        let expected = assembled(self.images.path(), 1).unwrap();
        let assembled = self.assemble().unwrap();
        assert_eq!(expected, Some(assembled.bytes));
        assert_eq!(assembled.name, format!("pages-{}.img", 3 | ASSEMBLED));
        let pages = self.file(&assembled.name);
        assert_eq!((assembled.bytes, assembled.digest), (pages.len() as u64, blake3::hash(&pages)));
        assert!(
            pages.chunks(PAGE as usize).all(|page| page.len() == PAGE as usize && page.iter().all(|b| *b == page[0]))
        );
        pages.iter().step_by(PAGE as usize).copied().collect()
    }
}

#[test]
fn what_was_left_out_becomes_lazy_and_the_pages_are_not_touched() {
    let pagemap = image_of([entry(page(1), PRESENT), entry(page(9), PRESENT)]);
    let dumped = Dumped::new(&pagemap, Some(b"whatever"), &[0..8 * PAGE]);
    let before = std::fs::metadata(dumped.images.path().join("pages-3.img")).unwrap();
    let settled = dumped.settle(&[2 * PAGE..6 * PAGE]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![2 * PAGE..6 * PAGE], stored: vec![] });
    let expected = image_of([entry(page(1), PRESENT), entry(2 * PAGE..6 * PAGE, LAZY), entry(page(9), PRESENT)]);
    assert_eq!(dumped.file("pagemap-1.img"), expected);
    let after = std::fs::metadata(dumped.images.path().join("pages-3.img")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&before), std::os::unix::fs::MetadataExt::ino(&after));
    assert_eq!(std::fs::read_dir(dumped.images.path()).unwrap().count(), 3);
    assert_eq!(lazy(dumped.images.path(), 1).unwrap(), [2 * PAGE..6 * PAGE]);
    assert_eq!(assembled(dumped.images.path(), 1).unwrap(), None);
}

#[test]
fn what_can_not_come_later_is_put_in_its_place_by_who_has_it() {
    let pagemap = image_of([entry(page(1), PRESENT), entry(page(9), PRESENT)]);
    let old = [[101; PAGE as usize], [109; PAGE as usize]].concat();
    let dumped = Dumped::new(&pagemap, Some(&old), &[3 * PAGE..5 * PAGE]);
    let settled = dumped.settle(&[2 * PAGE..6 * PAGE, page(12)]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![3 * PAGE..5 * PAGE], stored: vec![page(2), page(5), page(12)] });
    let expected = image_with(
        3 | ASSEMBLED,
        [
            entry(page(1), PRESENT),
            stored(page(2)),
            entry(3 * PAGE..5 * PAGE, LAZY),
            stored(page(5)),
            entry(page(9), PRESENT),
            stored(page(12)),
        ],
    );
    assert_eq!(dumped.file("pagemap-1.img"), expected);
    assert_eq!(dumped.pages(), [101, 2, 5, 109, 12]);
    assert_eq!(dumped.file("pages-3.img"), old, "it lies there as it was sent");
}

#[test]
fn a_process_of_which_criu_made_no_pages_file_gets_one() {
    let dumped = Dumped::new(&image_of([]), None, &[page(3)]);
    let settled = dumped.settle(&[2 * PAGE..4 * PAGE]).unwrap();
    assert_eq!(settled, Settled { lazy: vec![page(3)], stored: vec![page(2)] });
    assert_eq!(dumped.pages(), [2]);
}

#[test]
fn a_process_that_was_dumped_in_full_is_left_alone() {
    let pagemap = image_of([entry(page(1), PRESENT)]);
    let dumped = Dumped::new(&pagemap, None, &[]);
    assert_eq!(dumped.settle(&[]).unwrap(), Settled::default());
    assert_eq!(dumped.file("pagemap-1.img"), pagemap);
}

#[test]
fn what_criu_wrote_is_not_lazy_for_a_restore() {
    let dumped = Dumped::new(&image_of([entry(page(1), LAZY | PRESENT)]), None, &[page(1)]);
    assert_eq!(dumped.settle(&[]).unwrap(), Settled::default());
    assert_eq!(dumped.file("pagemap-1.img"), image_of([entry(page(1), PRESENT)]));
}

#[test]
fn memory_that_was_dumped_and_left_out_is_an_error() {
    let pagemap = image_of([entry(3 * PAGE..6 * PAGE, PRESENT)]);
    let dumped = Dumped::new(&pagemap, None, &[0..8 * PAGE]);
    for both in [2 * PAGE..4 * PAGE, page(4), page(5), 2 * PAGE..9 * PAGE] {
        let error = dumped.settle(&[page(0), both]).unwrap_err();
        assert!(matches!(error, PagemapError::Twice { pid: 1, .. }), "{error}");
    }
    assert_eq!(dumped.file("pagemap-1.img"), pagemap);
    assert!(dumped.settle(&[page(2), page(6)]).is_ok());
}

#[test]
fn a_pages_file_that_is_too_short_is_an_error() {
    let pagemap = image_of([entry(page(1), PRESENT)]);
    for pages in [None, Some(&[0u8; 4095][..])] {
        let dumped = Dumped::new(&pagemap, pages, &[]);
        dumped.settle(&[page(2)]).unwrap();
        assert!(matches!(dumped.assemble(), Err(PagemapError::PagesCutOff { .. })));
        assert!(!dumped.images.path().join(format!("pages-{}.img", 3 | ASSEMBLED)).exists());
    }
}

#[test]
fn memory_that_nobody_has_is_an_error() {
    let dumped = Dumped::new(&image_of([]), None, &[]);
    dumped.settle(&[page(80)]).unwrap();
    assert!(matches!(dumped.assemble(), Err(PagemapError::Memory { pid: 1, start: 0x50000, .. })));
}

#[test]
fn entries_that_contradict_themselves_are_refused() {
    let bad = |entries: &[Vec<u8>]| parse(&image_of(entries.to_vec())).err();
    let length = |nr_pages| PagemapEntry { nr_pages: Some(nr_pages), ..PagemapEntry::new(&page(1), PRESENT) };
    assert_eq!(bad(&[entry(page(1), PARENT)]), Some(ImageError::Entry(1)), "there is no parent");
    assert_eq!(bad(&[entry(page(5), LAZY), entry(page(4), PRESENT)]), Some(ImageError::Entry(2)));
    assert_eq!(bad(&[length(0).encode_to_vec()]), Some(ImageError::Entry(1)));
    assert_eq!(bad(&[length(u64::MAX).encode_to_vec()]), Some(ImageError::Entry(1)));
    assert_eq!(bad(&[vec![0xff]]), Some(ImageError::Entry(1)));
    assert_eq!(parse(&image::assemble(PAGEMAP_MAGIC, [])).err(), Some(ImageError::Count(0)));
}

proptest! {
    #[test]
    fn what_was_left_out_is_added_and_nothing_else_changes(
        (dumped, left_out) in (lists(), lists()),
        flags in proptest::collection::vec(prop_oneof![Just(PRESENT), Just(LAZY), Just(LAZY | PRESENT)], 8),
        lazy in lists(),
    ) {
        let left_out = ranges::without(&left_out, &dumped);
        let entries: Vec<(Range<u64>, u32)> = dumped.into_iter().zip(flags).collect();
        let left_out: Vec<_> = (left_out.into_iter())
            .filter(|range| entries.iter().all(|(other, _)| other.end <= range.start || range.end <= other.start))
            .collect();
        let image = image_of(entries.iter().map(|(range, flags)| entry(range.clone(), *flags)));
        let before = parse(&image).unwrap();
        let plan = plan(&before, 1, &left_out, &ranges::intersection(&left_out, &lazy)).unwrap();
        let after = parse(&plan.image).unwrap();

        // What CRIU wrote, in its order, byte for byte, but never both lazy and present.
        let one = |(range, flags): &(Range<u64>, u32)| entry(range.clone(), if *flags == LAZY { LAZY } else { PRESENT });
        let kept: Vec<Vec<u8>> = entries.iter().map(one).collect();
        let mut rest = kept.iter().peekable();
        let mut added = Vec::new();
        for Entry { range, flags, stored, bytes } in &after.entries {
            if rest.next_if(|kept| kept.as_slice() == *bytes).is_none() {
                prop_assert_eq!(*stored, *flags == PRESENT);
                added.push((range.clone(), *flags));
            }
        }
        prop_assert!(rest.next().is_none());

        // And of what was left out every page, lazy where it may be.
        let with = |wanted: u32| -> Vec<Range<u64>> {
            added.iter().filter(|(_, flags)| *flags == wanted).map(|(range, _)| range.clone()).collect()
        };
        prop_assert_eq!(pages(&with(LAZY)), &pages(&left_out) & &pages(&lazy));
        prop_assert_eq!(pages(&with(PRESENT)), &pages(&left_out) - &pages(&lazy));
        prop_assert_eq!(with(LAZY), plan.settled.lazy);
        prop_assert_eq!(with(PRESENT), plan.settled.stored);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..6)) {
        let _ = parse(&image::assemble(PAGEMAP_MAGIC, entries));
    }
}
