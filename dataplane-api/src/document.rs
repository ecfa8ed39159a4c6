//! A gateway's configuration as a file: JSON, or gzip of it, which is what fits into a Secret.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::gateway::GatewayConfig;

/// Largest configuration in bytes of JSON. A hub of a thousand servers has a hundredth of it.
pub const DOCUMENT_MAX: usize = 64 << 20;

/// The first bytes of gzip; no JSON begins with them.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Bytes that are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum NotAConfig {
    #[error("it cannot be decompressed")]
    Gzip(#[source] std::io::Error),
    #[error("it is over {DOCUMENT_MAX} bytes of JSON")]
    TooLarge,
    #[error("it is no gateway configuration")]
    Json(#[source] serde_json::Error),
}

/// A configuration from JSON or from gzip of JSON.
pub fn read(bytes: &[u8]) -> Result<GatewayConfig, NotAConfig> {
    if bytes.starts_with(&GZIP) {
        return parse(&unzip(bytes)?);
    }
    if bytes.len() > DOCUMENT_MAX {
        return Err(NotAConfig::TooLarge);
    }
    parse(bytes)
}

/// gzip of the configuration's JSON: the same bytes for the same configuration.
pub fn write(config: &GatewayConfig) -> Result<Vec<u8>, NotAConfig> {
    zip(&serde_json::to_vec(config).map_err(NotAConfig::Json)?)
}

fn parse(json: &[u8]) -> Result<GatewayConfig, NotAConfig> {
    serde_json::from_slice(json).map_err(NotAConfig::Json)
}

/// gzip of these bytes: the same for the same.
pub fn zip(bytes: &[u8]) -> Result<Vec<u8>, NotAConfig> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).map_err(NotAConfig::Gzip)
}

pub(crate) fn unzip(bytes: &[u8]) -> Result<Vec<u8>, NotAConfig> {
    let mut json = Vec::new();
    // One byte more than is allowed tells that it is too large.
    let mut bounded = GzDecoder::new(bytes).take(DOCUMENT_MAX as u64 + 1);
    bounded.read_to_end(&mut json).map_err(NotAConfig::Gzip)?;
    if json.len() > DOCUMENT_MAX { Err(NotAConfig::TooLarge) } else { Ok(json) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::tests::config;

    #[test]
    fn a_configuration_is_read_as_json_and_as_gzip() {
        let wanted = config();
        let zipped = write(&wanted).unwrap();
        assert_eq!(zipped, write(&wanted).unwrap(), "no time of writing in it");
        assert_eq!(read(&zipped).unwrap(), wanted);
        assert_eq!(read(&serde_json::to_vec(&wanted).unwrap()).unwrap(), wanted);
    }

    #[test]
    fn what_unpacks_to_more_than_is_allowed_is_refused_before_it_fills_the_memory() {
        let bomb = zip(&vec![b' '; DOCUMENT_MAX + 1]).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(matches!(read(&bomb), Err(NotAConfig::TooLarge)));
        let most = zip(&vec![b' '; DOCUMENT_MAX]).unwrap();
        assert!(matches!(read(&most), Err(NotAConfig::Json(_))));
    }

    #[test]
    fn what_is_cut_off_or_something_else_is_refused() {
        let zipped = write(&config()).unwrap();
        assert!(matches!(read(&zipped[..zipped.len() / 2]), Err(NotAConfig::Gzip(_))));
        assert!(matches!(read(b""), Err(NotAConfig::Json(_))));
        assert!(matches!(read(b"{\"version\":\"1\"}"), Err(NotAConfig::Json(_))));
    }
}
