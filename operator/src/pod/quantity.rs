//! Comparing and adding resource quantities (`250m`, `64Mi`, `1e3`). A quantity that is only compared is kept as it was written.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousand-millionths of the unit; none of a text that is no quantity.
fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let scale: i128 = match suffix {
        "n" => 1,
        "u" => 1_000,
        "m" => 1_000_000,
        "" => 1_000_000_000,
        "k" => 1_000_000_000_000,
        "M" => 1_000_000_000_000_000,
        "G" => 1_000_000_000_000_000_000,
        "T" => 1_000_000_000_000_000_000_000,
        "P" => 1_000_000_000_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000_000_000_000,
        "Ki" => 1_000_000_000 << 10,
        "Mi" => 1_000_000_000 << 20,
        "Gi" => 1_000_000_000 << 30,
        "Ti" => 1_000_000_000 << 40,
        "Pi" => 1_000_000_000 << 50,
        "Ei" => 1_000_000_000 << 60,
        exponent => {
            let power: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            1_000_000_000i128.checked_mul(10i128.checked_pow(power)?)?
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut value = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()?.checked_mul(scale)? };
    let mut place = scale;
    for digit in fraction.chars() {
        place /= 10;
        value = value.checked_add(i128::from(digit.to_digit(10)?).checked_mul(place)?)?;
    }
    Some(value)
}

/// The larger of two quantities, as it was written. One that can't be read loses.
pub fn larger(a: Quantity, b: Quantity) -> Quantity {
    if nanos(&b) > nanos(&a) { b } else { a }
}

/// Both quantities together. One that can't be read counts nothing.
pub fn sum(a: Quantity, b: Quantity) -> Quantity {
    match (nanos(&a), nanos(&b)) {
        (Some(left), Some(right)) => left.checked_add(right).map_or(a, written),
        (None, Some(_)) => b,
        (_, None) => a,
    }
}

/// How much more `a` is than `b`, if it is. One that can't be read is not.
pub fn beyond(a: &Quantity, b: &Quantity) -> Option<Quantity> {
    let more = nanos(a)?.checked_sub(nanos(b)?)?;
    (more > 0).then(|| written(more))
}

/// In the largest decimal unit, of one, a thousandth and a thousand-millionth, in which it is whole.
fn written(nanos: i128) -> Quantity {
    const UNITS: [(i128, &str); 2] = [(1_000_000_000, ""), (1_000_000, "m")];
    let unit = UNITS.into_iter().find(|(unit, _)| nanos % unit == 0);
    Quantity(unit.map_or_else(|| format!("{nanos}n"), |(unit, suffix)| format!("{}{suffix}", nanos / unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn units_are_compared_by_value() {
        for (small, large) in [("250m", "1"), ("1000M", "1Gi"), ("0.5", "501m"), ("1e3", "1.1k"), ("0", "1n")] {
            assert_eq!(larger(q(small), q(large)), q(large));
            assert_eq!(larger(q(large), q(small)), q(large));
        }
    }

    #[test]
    fn quantities_of_any_unit_are_added() {
        for (a, b, both) in [
            ("250m", "1", "1250m"),
            ("750m", "250m", "1"),
            ("64Mi", "1Ki", "67109888"),
            ("1n", "1", "1000000001n"),
            ("lots", "1", "1"),
            ("1", "lots", "1"),
        ] {
            assert_eq!(sum(q(a), q(b)), q(both), "{a} and {b}");
        }
    }

    #[test]
    fn what_is_more_is_known_and_nothing_of_what_is_not() {
        for (a, b, more) in [
            ("1", "250m", Some("750m")),
            ("1Gi", "1Mi", Some("1072693248")),
            ("1", "1000m", None),
            ("1", "2", None),
            ("1", "lots", None),
        ] {
            assert_eq!(beyond(&q(a), &q(b)), more.map(q), "{a} and {b}");
        }
    }

    #[test]
    fn what_is_no_quantity_loses() {
        assert_eq!(larger(q("lots"), q("1")), q("1"));
        assert_eq!(larger(q("1"), q("9e99")), q("1"));
    }
}
