//! Quantities of Kubernetes: `500m`, `1.5`, `64Mi`, `1e3` (k8s.io/apimachinery, `resource.Quantity`).

/// A quantity, in billionths. It is not negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Quantity(u128);

const UNIT: u128 = 1_000_000_000;

impl Quantity {
    /// In whole units, rounded up; no more than fits.
    pub(crate) fn value(self) -> i64 {
        i64::try_from(self.0.div_ceil(UNIT)).unwrap_or(i64::MAX)
    }

    /// In thousandths, rounded up; no more than fits.
    pub(crate) fn milli(self) -> i64 {
        i64::try_from(self.0.div_ceil(UNIT / 1000)).unwrap_or(i64::MAX)
    }
}

impl std::str::FromStr for Quantity {
    type Err = String;

    /// An error says what it must be.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "must be a quantity: a number that is not negative, and a unit, as 500m or 64Mi".to_owned();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(wrong());
        }
        if whole.len() + fraction.len() > 18 {
            return Err("must be a quantity of at most 18 digits".to_owned());
        }
        let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
        let (numerator, denominator) = factor(unit).ok_or_else(wrong)?;
        let denominator = denominator * 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| wrong())?);
        let value = digits * UNIT;
        let value = value
            .checked_mul(numerator)
            .ok_or("is too much")?
            .div_ceil(denominator);
        Ok(Self(value))
    }
}

/// A unit as a fraction.
fn factor(unit: &str) -> Option<(u128, u128)> {
    Some(match unit {
        "" => (1, 1),
        "n" => (1, UNIT),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (UNIT, 1),
        "T" => (1000 * UNIT, 1),
        "P" => (1_000_000 * UNIT, 1),
        "E" => (UNIT * UNIT, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128.pow(exponent.unsigned_abs().min(18));
            if exponent.abs() > 18 {
                return None;
            }
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_read_as_kubernetes_does() {
        for (text, value, milli) in [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("500m", 1, 500),
            ("0.5", 1, 500),
            (".5", 1, 500),
            ("1.5", 2, 1500),
            ("64Mi", 64 << 20, 64_000 << 20),
            ("1.5Gi", 3 << 29, 3000 << 29),
            ("1e3", 1000, 1_000_000),
            ("1E-3", 1, 1),
            ("2k", 2000, 2_000_000),
            ("1n", 1, 1),
            ("8E", 8_000_000_000_000_000_000, i64::MAX),
        ] {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            ".",
            "1.2.3",
            "-1",
            "1 Gi",
            "1gb",
            "Gi",
            "1e99",
            "0x10",
            "1234567890123456789",
        ] {
            let error = text.parse::<Quantity>().unwrap_err();
            assert!(error.starts_with("must be a quantity"), "{text}: {error}");
        }
    }
}
