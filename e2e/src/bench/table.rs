//! Figures, as a person reads them after a run.

use comfy_table::{Table, presets};

use crate::scenario::figures::Figure;

/// A line for each figure.
pub fn table(figures: &[Figure]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["case", "metric", "unit", "n", "min", "median", "max"]);
    for figure in figures {
        let numbers = [figure.min, figure.median, figure.max].map(|number| format!("{number:.3}"));
        let n = figure.n.to_string();
        table.add_row([&figure.case, &figure.metric, &figure.unit, &n, &numbers[0], &numbers[1], &numbers[2]]);
    }
    table
}
