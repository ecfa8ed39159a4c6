//! Quantities as the API server writes them back.

/// The canonical form of a quantity: the largest suffix of its own family that leaves a whole number.
pub(crate) fn canonical(text: &str) -> Option<String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let mut scale = -i32::try_from(fraction.len()).ok()?;
    let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].iter().position(|name| *name == suffix);
    let exponent = suffix.strip_prefix(['e', 'E']).and_then(|power| power.parse::<i32>().ok());
    if let Some(power) = binary {
        digits = digits.checked_mul(1024_u128.checked_pow(u32::try_from(power).ok()? + 1)?)?;
    } else if let Some(exponent) = exponent {
        scale += exponent;
    } else {
        scale += match suffix {
            "n" => -9,
            "u" => -6,
            "m" => -3,
            "" => 0,
            "k" => 3,
            "M" => 6,
            "G" => 9,
            "T" => 12,
            "P" => 15,
            "E" => 18,
            _ => return None,
        };
    }
    // In billionths, rounded up, which is as fine as it gets.
    let shift = scale + 9;
    let power = 10_u128.checked_pow(shift.unsigned_abs())?;
    let nano = if shift >= 0 { digits.checked_mul(power)? } else { digits.div_ceil(power) };
    let sign = if negative && nano > 0 { "-" } else { "" };
    if nano == 0 {
        return Some("0".to_owned());
    }
    let unit = 1_000_000_000;
    if binary.is_some() && nano.is_multiple_of(unit) && nano / unit >= 1024 {
        let mut number = nano / unit;
        let mut suffix = "";
        for name in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
            if !number.is_multiple_of(1024) {
                break;
            }
            number /= 1024;
            suffix = name;
        }
        return Some(format!("{sign}{number}{suffix}"));
    }
    let mut number = nano;
    let mut power = -9;
    while number.is_multiple_of(1000) && power < 18 {
        number /= 1000;
        power += 3;
    }
    if exponent.is_some() {
        return Some(if power == 0 { format!("{sign}{number}") } else { format!("{sign}{number}e{power}") });
    }
    let suffix = match power {
        -9 => "n",
        -6 => "u",
        -3 => "m",
        0 => "",
        3 => "k",
        6 => "M",
        9 => "G",
        12 => "T",
        15 => "P",
        _ => "E",
    };
    Some(format!("{sign}{number}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn one_amount_has_one_form_in_each_family() {
        for (given, canonical_form) in [
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1", "1"),
            ("2000", "2k"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("128974848", "128974848"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("0", "0"),
            ("0Mi", "0"),
            ("-500m", "-500m"),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(canonical_form), "{given}");
        }
        for wrong in ["", "m", "1.2.3", "1 Gi", "5x", "Mi"] {
            assert_eq!(canonical(wrong), None, "{wrong}");
        }
    }
}
