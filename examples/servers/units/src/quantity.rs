//! Units and what one is worth in another.

use schemars::JsonSchema;
use serde::Serialize;

/// What a unit measures. Only units of one dimension convert into each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dimension {
    Length,
    Mass,
    Temperature,
}

/// A unit: `base = value * scale + offset`, where the base units are metre, kilogram and kelvin.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) symbol: &'static str,
    pub(crate) name: &'static str,
    pub(crate) dimension: Dimension,
    scale: f64,
    offset: f64,
}

const fn unit(symbol: &'static str, name: &'static str, dimension: Dimension, scale: f64) -> Unit {
    Unit { symbol, name, dimension, scale, offset: 0.0 }
}

/// All units, in the order in which they are listed. Scales of the imperial ones are exact by definition.
pub(crate) const UNITS: &[Unit] = &[
    unit("mm", "millimetre", Dimension::Length, 0.001),
    unit("cm", "centimetre", Dimension::Length, 0.01),
    unit("m", "metre", Dimension::Length, 1.0),
    unit("km", "kilometre", Dimension::Length, 1000.0),
    unit("in", "inch", Dimension::Length, 0.0254),
    unit("ft", "foot", Dimension::Length, 0.3048),
    unit("yd", "yard", Dimension::Length, 0.9144),
    unit("mi", "mile", Dimension::Length, 1609.344),
    unit("nmi", "nautical mile", Dimension::Length, 1852.0),
    unit("mg", "milligram", Dimension::Mass, 0.000_001),
    unit("g", "gram", Dimension::Mass, 0.001),
    unit("kg", "kilogram", Dimension::Mass, 1.0),
    unit("t", "tonne", Dimension::Mass, 1000.0),
    unit("oz", "ounce", Dimension::Mass, 0.028_349_523_125),
    unit("lb", "pound", Dimension::Mass, 0.453_592_37),
    unit("K", "kelvin", Dimension::Temperature, 1.0),
    Unit { symbol: "C", name: "degree Celsius", dimension: Dimension::Temperature, scale: 1.0, offset: 273.15 },
    Unit {
        symbol: "F",
        name: "degree Fahrenheit",
        dimension: Dimension::Temperature,
        scale: 5.0 / 9.0,
        offset: 459.67 * 5.0 / 9.0,
    },
];

/// Why a value cannot be converted; the text tells a model what to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Impossible {
    UnknownUnit { given: String },
    OtherDimension { from: &'static str, to: &'static str },
    BelowAbsoluteZero,
    Negative { dimension: &'static str },
}

impl std::fmt::Display for Impossible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UnknownUnit { given } => write!(f, "there is no unit \"{given}\"; list_units names all of them"),
            Self::OtherDimension { from, to } => write!(f, "{from} and {to} do not measure the same thing"),
            Self::BelowAbsoluteZero => f.write_str("the temperature is below absolute zero"),
            Self::Negative { dimension } => write!(f, "a {dimension} cannot be negative"),
        }
    }
}

/// A unit by its symbol, or by its name in singular or plural.
pub(crate) fn find(given: &str) -> Result<&'static Unit, Impossible> {
    let wanted = given.trim().trim_start_matches('°');
    // Symbols first and as they are written: `m` is a metre and `M` is nothing.
    let by_symbol = UNITS.iter().find(|unit| unit.symbol == wanted);
    let by_name = || {
        let wanted = wanted.to_lowercase();
        UNITS.iter().find(|unit| {
            let name = unit.name.to_lowercase();
            let short = name.strip_prefix("degree ").unwrap_or(&name);
            wanted == name || wanted == short || wanted == format!("{name}s") || wanted == plural(short)
        })
    };
    by_symbol.or_else(by_name).ok_or_else(|| Impossible::UnknownUnit { given: given.to_owned() })
}

fn plural(name: &str) -> String {
    match name {
        "foot" => "feet".to_owned(),
        "inch" => "inches".to_owned(),
        other => format!("{other}s"),
    }
}

/// The value in the other unit.
pub(crate) fn convert(value: f64, from: &Unit, to: &Unit) -> Result<f64, Impossible> {
    if from.dimension != to.dimension {
        return Err(Impossible::OtherDimension { from: from.name, to: to.name });
    }
    let base = value * from.scale + from.offset;
    match from.dimension {
        // Rounding must not make absolute zero itself impossible.
        Dimension::Temperature if base < -1e-9 => return Err(Impossible::BelowAbsoluteZero),
        Dimension::Mass if value < 0.0 => return Err(Impossible::Negative { dimension: "mass" }),
        Dimension::Length | Dimension::Mass | Dimension::Temperature => {}
    }
    Ok((base - to.offset) / to.scale)
}

/// Ten significant digits: more would show the rounding of binary fractions.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.9e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(value: f64, from: &str, to: &str) -> Result<f64, Impossible> {
        convert(value, find(from)?, find(to)?).map(rounded)
    }

    #[test]
    fn values_convert_within_their_dimension() {
        for (value, from, to, wanted) in [
            (1.0, "mi", "km", 1.609344),
            (12.0, "inches", "foot", 1.0),
            (16.0, "oz", "lb", 1.0),
            (100.0, "C", "F", 212.0),
            (-40.0, "°F", "celsius", -40.0),
            (0.0, "K", "C", -273.15),
        ] {
            assert_eq!(converted(value, from, to), Ok(wanted), "{value} {from} in {to}");
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (value, from, to, wanted) in [
            (1.0, "parsec", "m", "there is no unit \"parsec\"; list_units names all of them"),
            (1.0, "kg", "m", "kilogram and metre do not measure the same thing"),
            (-300.0, "C", "K", "the temperature is below absolute zero"),
            (-1.0, "g", "kg", "a mass cannot be negative"),
        ] {
            assert_eq!(converted(value, from, to).unwrap_err().to_string(), wanted);
        }
    }
}
