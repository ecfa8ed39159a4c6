//! Quantities as the API server stores them.

use mcp_hub_crds::Quantity;

const BINARY: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
const DECIMAL: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// The canonical form: the largest suffix of the family it was written in that leaves a whole number. An observed value can
/// then be compared as text.
pub(super) fn canonical(quantity: &Quantity) -> String {
    let millis = quantity.millis();
    if !millis.is_multiple_of(1_000) {
        return format!("{millis}m");
    }
    let (base, suffixes) = if quantity.to_string().ends_with('i') { (1_024, BINARY) } else { (1_000, DECIMAL) };
    let (mut number, mut step) = (millis / 1_000, 0);
    while number != 0 && number % base == 0 && step + 1 < suffixes.len() {
        number /= base;
        step += 1;
    }
    format!("{number}{}", suffixes[step])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_as_the_api_server_stores_them() {
        let canonical = |text: &str| canonical(&Quantity::new(text).unwrap());
        for (written, stored) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("250m", "250m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("256Mi", "256Mi"),
            ("2000", "2k"),
            ("1000000000", "1G"),
            ("1.5", "1500m"),
            ("128974848", "128974848"),
            ("0", "0"),
        ] {
            assert_eq!(canonical(written), stored, "{written}");
        }
    }
}
