//! Which pages a store has, and where they lie in its data file. No I/O.

use super::super::{PAGE, PageRange};
use super::index::Extent;
use std::collections::BTreeMap;
use std::ops::Range;

/// After the last page that a range can name.
const END: u64 = u64::MAX / PAGE * PAGE;

/// Where the content of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// In the data file, from this offset on, bytes.
    Data(u64),
    /// Nowhere: all zero.
    Zero,
}

impl Content {
    /// The content of the page `distance` bytes further on.
    fn after(self, distance: u64) -> Self {
        match self {
            Self::Data(offset) => Self::Data(offset + distance),
            Self::Zero => Self::Zero,
        }
    }
}

/// A part of a range of addresses, and what the store has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) content: Option<Content>,
}

/// Pages by address. Extents never overlap, and those that could be one are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Extents {
    by_start: BTreeMap<u64, (u64, Content)>,
}

impl Extents {
    /// `range` from its start to its end, cut where the content changes.
    pub(super) fn parts(&self, range: PageRange) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start();
        let before = self.by_start.range(..at).next_back();
        for (&start, &(end, content)) in before.into_iter().chain(self.by_start.range(at..range.end())) {
            if end <= at {
                continue;
            }
            if start > at {
                parts.push(Part { start: at, end: start, content: None });
                at = start;
            }
            let stop = end.min(range.end());
            parts.push(Part { start: at, end: stop, content: Some(content.after(at - start)) });
            at = stop;
        }
        if at < range.end() {
            parts.push(Part { start: at, end: range.end(), content: None });
        }
        parts
    }

    /// Says what these pages are from now on. Returns what that leaves without an owner in the data file.
    pub(super) fn put(&mut self, range: PageRange, content: Content) -> Vec<Range<u64>> {
        let orphans = self.cut(range);
        let (mut start, mut end, mut content) = (range.start(), range.end(), content);
        if let Some((&left, &(left_end, left_content))) = self.by_start.range(..start).next_back()
            && left_end == start
            && left_content.after(start - left) == content
        {
            (start, content) = (left, left_content);
        }
        if let Some(&(right_end, right_content)) = self.by_start.get(&end)
            && content.after(end - start) == right_content
        {
            self.by_start.remove(&end);
            end = right_end;
        }
        self.by_start.insert(start, (end, content));
        orphans
    }

    /// Forgets these pages. Returns what that leaves without an owner in the data file.
    pub(super) fn cut(&mut self, range: PageRange) -> Vec<Range<u64>> {
        let mut orphans = Vec::new();
        let from = match self.by_start.range(..range.start()).next_back() {
            Some((&start, &(end, _))) if end > range.start() => start,
            _ => range.start(),
        };
        let touched: Vec<u64> = self.by_start.range(from..range.end()).map(|(&start, _)| start).collect();
        for start in touched {
            let Some((end, content)) = self.by_start.remove(&start) else { continue };
            if start < range.start() {
                self.by_start.insert(start, (range.start(), content));
            }
            if end > range.end() {
                self.by_start.insert(range.end(), (end, content.after(range.end() - start)));
            }
            let (first, last) = (start.max(range.start()), end.min(range.end()));
            if let Content::Data(offset) = content.after(first - start) {
                orphans.push(offset..offset + (last - first));
            }
        }
        orphans
    }

    /// Forgets what is outside of `ranges`, which ascend and do not overlap. Returns what that leaves without an owner.
    pub(super) fn keep_only(&mut self, ranges: &[PageRange]) -> Vec<Range<u64>> {
        let mut orphans = Vec::new();
        let mut at = 0;
        let gaps = ranges.iter().map(|range| (range.start(), range.end())).chain([(END, END)]);
        for (until, next) in gaps {
            // No range where one begins at address 0, or where neighbours touch.
            if let Ok(gap) = PageRange::new(at, until - at) {
                orphans.extend(self.cut(gap));
            }
            at = next;
        }
        orphans
    }

    /// Address of the first page of `range` that is neither data nor known to be zero.
    pub(super) fn first_gap(&self, range: PageRange) -> Option<u64> {
        self.parts(range).into_iter().find(|part| part.content.is_none()).map(|part| part.start)
    }

    /// What lies in the data file, by ascending address.
    pub(super) fn data(&self) -> Vec<Extent> {
        let extents = self.by_start.iter().filter_map(|(&address, &(end, content))| match content {
            Content::Data(offset) => Some(Extent { address, length: end - address, offset }),
            Content::Zero => None,
        });
        extents.collect()
    }

    /// Bytes that are known to be zero.
    pub(super) fn zero_bytes(&self) -> u64 {
        let zero = self.by_start.iter().filter(|(_, (_, content))| *content == Content::Zero);
        zero.map(|(start, (end, _))| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages(first: u64, count: u64) -> PageRange {
        PageRange::new(first * PAGE, count * PAGE).unwrap()
    }

    #[test]
    fn neighbours_that_lie_one_after_the_other_become_one_extent() {
        let mut extents = Extents::default();
        extents.put(pages(4, 2), Content::Data(0));
        extents.put(pages(8, 1), Content::Data(4 * PAGE));
        extents.put(pages(6, 2), Content::Data(2 * PAGE));
        assert_eq!(extents.data(), [Extent { address: 4 * PAGE, length: 5 * PAGE, offset: 0 }]);
        extents.put(pages(9, 1), Content::Data(9 * PAGE));
        assert_eq!(extents.data().len(), 2, "what lies elsewhere stays an extent of its own");
    }

    #[test]
    fn zero_in_the_middle_leaves_both_ends_where_they_were() {
        let mut extents = Extents::default();
        extents.put(pages(0, 10), Content::Data(0));
        let orphans = extents.put(pages(3, 2), Content::Zero);
        assert!(orphans.len() == 1 && orphans[0] == (3 * PAGE..5 * PAGE));
        let end = Extent { address: 5 * PAGE, length: 5 * PAGE, offset: 5 * PAGE };
        assert_eq!(extents.data(), [Extent { address: 0, length: 3 * PAGE, offset: 0 }, end]);
        assert_eq!(extents.zero_bytes(), 2 * PAGE);
    }

    #[test]
    fn a_gap_is_found_by_its_first_page() {
        let mut extents = Extents::default();
        extents.put(pages(1, 2), Content::Zero);
        extents.put(pages(4, 2), Content::Data(0));
        assert_eq!(extents.first_gap(pages(1, 5)), Some(3 * PAGE));
        assert_eq!(extents.first_gap(pages(0, 2)), Some(0));
        assert_eq!(extents.first_gap(pages(4, 3)), Some(6 * PAGE));
        assert_eq!(extents.first_gap(pages(4, 2)), None);
    }

    const PAGES: u64 = 24;

    #[derive(Clone, Debug)]
    enum Step {
        Data(u64, u64),
        Zero(u64, u64),
        Cut(u64, u64),
        Keep(Vec<(u64, u64)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = || (0..PAGES, 1..PAGES / 2);
        prop_oneof![
            range().prop_map(|(first, count)| Step::Data(first, count)),
            range().prop_map(|(first, count)| Step::Zero(first, count)),
            range().prop_map(|(first, count)| Step::Cut(first, count)),
            proptest::collection::vec(range(), 0..4).prop_map(Step::Keep),
        ]
    }

    proptest! {
        #[test]
        fn a_map_of_single_pages_says_the_same(steps in proptest::collection::vec(step(), 0..30)) {
            let mut extents = Extents::default();
            let mut model: Vec<Option<Content>> = vec![None; 2 * PAGES as usize];
            let mut next = 0;
            for step in steps {
                let before: BTreeSet<u64> = owned(&model);
                let mut fresh = BTreeSet::new();
                let orphans = match step {
                    Step::Data(first, count) => {
                        for page in 0..count {
                            model[(first + page) as usize] = Some(Content::Data(next + page * PAGE));
                            fresh.insert(next + page * PAGE);
                        }
                        next += count * PAGE;
                        extents.put(pages(first, count), Content::Data(next - count * PAGE))
                    }
                    Step::Zero(first, count) => {
                        model[first as usize..(first + count) as usize].fill(Some(Content::Zero));
                        extents.put(pages(first, count), Content::Zero)
                    }
                    Step::Cut(first, count) => {
                        model[first as usize..(first + count) as usize].fill(None);
                        extents.cut(pages(first, count))
                    }
                    Step::Keep(ranges) => {
                        let ranges: Vec<PageRange> = ranges.into_iter().map(|(first, count)| pages(first, count)).collect();
                        for (page, content) in model.iter_mut().enumerate() {
                            let address = page as u64 * PAGE;
                            if !ranges.iter().any(|range| (range.start()..range.end()).contains(&address)) {
                                *content = None;
                            }
                        }
                        extents.keep_only(&PageRange::merged(&ranges))
                    }
                };
                let left: BTreeSet<u64> = orphans.into_iter().flat_map(|range| range.step_by(PAGE as usize)).collect();
                let lost: BTreeSet<u64> = before.difference(&owned(&model)).copied().collect();
                prop_assert_eq!(left, lost);
                for (page, content) in model.iter().enumerate() {
                    let part = extents.parts(pages(page as u64, 1))[0];
                    prop_assert_eq!(part.content, *content);
                }
            }
            let runs = 1 + model.windows(2).filter(|pair| match (pair[0], pair[1]) {
                (Some(left), right) => Some(left.after(PAGE)) != right,
                (None, right) => right.is_some(),
            }).count();
            prop_assert_eq!(extents.parts(pages(0, 2 * PAGES)).len(), runs, "as few extents as there can be");
        }
    }

    fn owned(model: &[Option<Content>]) -> BTreeSet<u64> {
        let offsets = model.iter().filter_map(|content| match content {
            Some(Content::Data(offset)) => Some(*offset),
            _ => None,
        });
        offsets.collect()
    }
}
