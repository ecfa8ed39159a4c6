//! Quantities as Kubernetes writes them: `500m`, `1`, `256Mi`, `1.5Gi`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

/// An amount of a resource, kept as written. `1000m` and `1` are different texts and equal amounts: compare
/// [`millis`](Self::millis).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

/// The text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no quantity (expected for example `500m`, `2` or `256Mi`)")]
pub struct InvalidQuantity(String);

pub(crate) const PATTERN: &str = "^[0-9]{1,15}(\\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";

impl Quantity {
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidQuantity> {
        let quantity = Self(text.into());
        match quantity.amount() {
            Some(_) => Ok(quantity),
            None => Err(InvalidQuantity(quantity.0)),
        }
    }

    /// The amount in thousandths, rounded up as Kubernetes does; saturates.
    pub fn millis(&self) -> u64 {
        self.amount().unwrap_or(u64::MAX)
    }

    /// The amount in whole units (bytes, for memory), rounded up.
    pub fn units(&self) -> u64 {
        self.millis().div_ceil(1_000)
    }

    fn amount(&self) -> Option<u64> {
        let end = self.0.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.0.len());
        let (number, suffix) = self.0.split_at(end);
        let scale: u128 = match suffix {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "P" => 1_000_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            "Pi" => 1_000 << 50,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most| {
            let fits = !text.is_empty() && text.len() <= most && text.bytes().all(|b| b.is_ascii_digit());
            fits.then(|| text.parse::<u128>().ok()).flatten()
        };
        let (whole, numerator) = (digits(whole, 15)?, digits(fraction, 9)?);
        let denominator = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        let amount = whole * scale + (numerator * scale).div_ceil(denominator);
        Some(u64::try_from(amount).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        // `cpu: 1` is a number in YAML and a quantity in Kubernetes.
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as `500m` or `256Mi`")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Quantity, E> {
                Quantity::new(value.to_string()).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Quantity, E> {
                Quantity::new(value.to_string()).map_err(E::custom)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Quantity, E> {
                Quantity::new(value.to_string()).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Quantity, E> {
                Quantity::new(value).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The range holds for numbers, the pattern for text; both say what `Deserialize` accepts.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": PATTERN,
            "minimum": 0,
            "maximum": 999_999_999_999_999_i64,
        })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_amounts_are_equal_however_they_are_written() {
        for (a, b) in [("1000m", "1"), ("1Ki", "1024"), ("1.5Gi", "1536Mi"), ("0.5", "500m"), ("1k", "1000")] {
            assert_eq!(Quantity::new(a).unwrap().millis(), Quantity::new(b).unwrap().millis(), "{a} {b}");
        }
        assert_eq!(Quantity::new("256Mi").unwrap().units(), 268_435_456);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", "1 Gi", "-1", "1e3", "1.2.3", "1KiB", ".5", "1."] {
            assert!(Quantity::new(text).is_err(), "{text}");
        }
    }
}
