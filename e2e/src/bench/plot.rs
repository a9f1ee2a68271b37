//! The freeze against the size, as a picture.

use anyhow::{Result, anyhow, ensure};
use plotters::prelude::*;

use super::case::{Probe, Program};
use super::matrix::{PERCENTS, SIZES};
use crate::scenario::figures::Figure;

/// Pixels.
const SIZE: (u32, u32) = (900, 560);
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
const BLACK_ON_WHITE: (&str, u32) = ("sans-serif", 15);

/// One line of the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What it is called.
    pub label: String,
    /// Place of its dirty rate in [`PERCENTS`].
    pub rate: usize,
    /// Whether it is bare runc's.
    pub bare: bool,
    /// MiB and the median in milliseconds, in order of size.
    pub points: Vec<(f64, f64)>,
}

/// What `figures` have for the picture; a line without points is left out.
pub fn series(figures: &[Figure]) -> Vec<Series> {
    let mut all = Vec::new();
    for (bare, metric, who) in [(false, "freeze", "Tideover"), (true, "freeze_bare", "bare runc")] {
        for (rate, percent) in PERCENTS.into_iter().enumerate() {
            let point = |mib: &usize| {
                let case = Program::Probe(Probe::plain(*mib, percent)).name();
                let figure = figures.iter().find(|figure| figure.case == case && figure.metric == metric)?;
                // A logarithm has no place for nothing.
                (figure.median > 0.0).then_some((*mib as f64, figure.median))
            };
            let points: Vec<_> = SIZES.iter().filter_map(point).collect();
            if !points.is_empty() {
                all.push(Series { label: format!("{who}, {percent} %/s"), rate, bare, points });
            }
        }
    }
    all
}

/// The picture, as SVG.
///
/// # Errors
/// When there is nothing to draw, or it can't be drawn.
pub fn svg(series: &[Series]) -> Result<String> {
    ensure!(!series.is_empty(), "no freeze was measured that could be drawn");
    let mut text = String::new();
    draw(series, SVGBackend::with_string(&mut text, SIZE)).map_err(|error| anyhow!("draw the freezes: {error}"))?;
    Ok(text)
}

fn draw(series: &[Series], backend: SVGBackend<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    let millis = series.iter().flat_map(|one| &one.points).map(|(_, millis)| *millis);
    let (least, most) = millis.fold((f64::MAX, f64::MIN), |(least, most), one| (least.min(one), most.max(one)));
    // The sizes are powers of four, and so are the marks of the axis.
    let sizes = (SIZES[0] as f64 * 0.8..SIZES[SIZES.len() - 1] as f64 * 1.3).log_scale().base(4.0);
    let mut chart = ChartBuilder::on(&area)
        .caption("Longest gap that the application sees, median", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(sizes, (least * 0.7..most * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("resident memory, MiB")
        .y_desc("milliseconds")
        .x_label_formatter(&|mib| format!("{mib:.0}"))
        .y_label_formatter(&|millis| format!("{millis:.0}"))
        .label_style(BLACK_ON_WHITE)
        .light_line_style(WHITE)
        .draw()?;
    for Series { label, rate, bare, points } in series {
        let colour = COLOURS[rate % COLOURS.len()];
        let line = colour.stroke_width(2);
        let drawn = if *bare {
            chart.draw_series(DashedLineSeries::new(points.iter().copied(), 6, 4, line))?
        } else {
            chart.draw_series(LineSeries::new(points.iter().copied(), line))?
        };
        // Bare runc's marks are hollow.
        let mark = if *bare { colour.stroke_width(2) } else { colour.filled() };
        drawn.label(label).legend(move |(x, y)| Circle::new((x + 10, y), 4, mark));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, mark)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(BLACK_ON_WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Vec<Figure> {
        let figure = |case: &str, metric, median| Figure::of(case, metric, "ms", &[median]).expect("values");
        vec![
            figure("1024 MiB, 1 %/s", "freeze", 50.0),
            figure("64 MiB, 1 %/s", "freeze", 25.0),
            figure("64 MiB, 1 %/s", "freeze_bare", 330.0),
            figure("64 MiB, 1 %/s", "resident", 64.0),
            figure("50 processes", "freeze", 70.0),
        ]
    }

    #[test]
    fn points_are_in_order_of_size_and_crowds_are_not_among_them() {
        let series = series(&figures());
        assert_eq!(series.len(), 2);
        assert_eq!(series[0].points, [(64.0, 25.0), (1024.0, 50.0)]);
        assert_eq!((series[1].label.as_str(), series[1].bare), ("bare runc, 1 %/s", true));
    }

    #[test]
    fn a_picture_names_its_lines_and_axes() {
        let svg = svg(&series(&figures())).expect("a picture");
        assert!(svg.starts_with("<svg"));
        for text in ["Tideover, 1 %/s", "bare runc, 1 %/s", "resident memory, MiB", "milliseconds"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn nothing_measured_is_no_picture() {
        svg(&series(&[])).expect_err("nothing to draw");
    }
}
