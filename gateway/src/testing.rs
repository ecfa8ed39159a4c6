//! The pure parts that fuzz targets reach: what clients keep for the gateway, sealed.

use http::HeaderValue;

use crate::cursors;
use crate::guard::Principal;
use crate::seal::Seal;
use crate::session::{LastSession, SessionKeys};

/// A cursor of a merged list; `None` if there are no random numbers.
pub fn cursor(key: [u8; 32], principal: [u8; 32], list: &str, last: &str) -> Option<String> {
    cursors::close(&Seal::new(key), Principal(principal), list, last)
}

/// The last definition shown, if the cursor was made for this.
pub fn open_cursor(key: [u8; 32], principal: [u8; 32], list: &str, cursor: &str) -> Option<String> {
    cursors::open(&Seal::new(key), Principal(principal), list, cursor)
}

/// A session id; `None` if there are no random numbers.
pub fn session(key: [u8; 32], principal: [u8; 32], scope: &str, version: &str, capabilities: &str) -> Option<String> {
    SessionKeys::new(Seal::new(key), None).open(Principal(principal), scope, version, Some(capabilities))
}

/// Version and capabilities of a session, if the id was made for this.
pub fn open_session(key: [u8; 32], principal: [u8; 32], scope: &str, id: &str) -> Option<(String, Option<String>)> {
    // No header has what is no header's text.
    let id = HeaderValue::from_str(id).ok()?;
    let opened =
        SessionKeys::new(Seal::new(key), None).verify(Principal(principal), scope, &id, &LastSession::default())?;
    Some((opened.version.clone(), opened.capabilities.clone()))
}
