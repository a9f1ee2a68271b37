//! Tables and numbers, as a document shows them. Pure.

use crate::scenario::figures::Figure;

/// What stands where nothing was measured.
pub const NOTHING: &str = "-";

/// A table; cells have no line breaks and no bars.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rule = format!("|{}\n", "---|".repeat(header.len()));
    let row = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<&str> = cells.collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = row(&mut header.iter().copied()) + &rule;
    for cells in rows {
        text += &row(&mut cells.iter().map(String::as_str));
    }
    text
}

/// With as many digits as a reader can use: three that count.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// The median, or [`NOTHING`].
pub fn median(figure: Option<&Figure>) -> String {
    figure.map_or(NOTHING.to_owned(), |figure| number(figure.median))
}

/// Least, median and most, or [`NOTHING`].
pub fn range(figure: Option<&Figure>) -> String {
    figure.map_or(NOTHING.to_owned(), |figure| [figure.min, figure.median, figure.max].map(number).join(" / "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_count() {
        let numbers = [0.0, 0.0257, 0.95, 5.25, 48.06, 2711.4, -0.5].map(number);
        assert_eq!(numbers, ["0", "0.026", "0.950", "5.25", "48.1", "2711", "-0.500"]);
    }

    #[test]
    fn a_table_has_a_rule_below_its_header() {
        let text = table(&["a", "b"], &[vec!["1".to_owned(), "2".to_owned()]]);
        assert_eq!(text, "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!((median(None), range(None)), ("-".to_owned(), "-".to_owned()));
        let figure = Figure::of("c", "m", "ms", &[3.0, 1.0, 2.0]).expect("values");
        assert_eq!(range(Some(&figure)), "1.00 / 2.00 / 3.00");
    }
}
