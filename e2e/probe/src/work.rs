//! Work that can be counted: a thread that reads and writes the ticker's memory.
//!
//! One operation reads a page of all of it and writes to a page of the hot hundredth.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::pace::Pace;
use crate::ticker::WORDS_PER_PAGE;

/// Operations between two looks at the count, where there are to be as many as can be.
const BATCH: u64 = 256;

/// Starts the thread, which tries for `per_second` operations a second; 0 means as many as it can. Returns the count of
/// those that are done.
pub(crate) fn start(memory: &'static [AtomicU64], per_second: u64) -> io::Result<Arc<AtomicU64>> {
    let pages = memory.len() / WORDS_PER_PAGE;
    if pages == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no memory to work on"));
    }
    let done = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&done);
    std::thread::Builder::new().name("work".to_owned()).spawn(move || work(memory, pages, per_second, &count))?;
    Ok(done)
}

fn work(memory: &[AtomicU64], pages: usize, per_second: u64, done: &AtomicU64) {
    let mut pace = (per_second > 0).then(|| Pace::new(per_second));
    let (mut last, mut number) = (Instant::now(), 0);
    loop {
        let due = match &mut pace {
            None => BATCH,
            Some(pace) => {
                std::thread::sleep(Duration::from_millis(1));
                let now = Instant::now();
                pace.due(now - std::mem::replace(&mut last, now))
            }
        };
        for _ in 0..due {
            operate(memory, pages, number);
            number += 1;
        }
        done.fetch_add(due, Ordering::Relaxed);
    }
}

fn operate(memory: &[AtomicU64], pages: usize, number: usize) {
    let page = number.wrapping_mul(7919) % pages;
    let words = &memory[page * WORDS_PER_PAGE..(page + 1) * WORDS_PER_PAGE];
    let sum = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(word.load(Ordering::Relaxed)));
    let hot = number % (pages / 100).max(1);
    memory[hot * WORDS_PER_PAGE].store(sum, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_writes_the_first_word_of_a_hot_page_and_nothing_else() {
        let memory: Vec<AtomicU64> = (0..200 * WORDS_PER_PAGE).map(|_| AtomicU64::new(1)).collect();
        (0..1_000).for_each(|number| operate(&memory, 200, number));
        let changed: Vec<_> = (0..memory.len()).filter(|index| memory[*index].load(Ordering::Relaxed) != 1).collect();
        assert_eq!(changed, [0, WORDS_PER_PAGE]);
    }
}
