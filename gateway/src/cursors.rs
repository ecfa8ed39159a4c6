//! Where a client is in a merged list of several pages: the last definition that it was shown, sealed for it and the list.

use crate::guard::Principal;
use crate::seal::Seal;

/// `None` if there are no random numbers.
pub(crate) fn close(seal: &Seal, principal: Principal, list: &str, last: &str) -> Option<String> {
    seal.close(last, &bound_to(principal, list))
}

/// The last definition shown; `None` for a cursor that is not of this client and list.
pub(crate) fn open(seal: &Seal, principal: Principal, list: &str, cursor: &str) -> Option<String> {
    seal.open(cursor, &bound_to(principal, list)).map(|opened| opened.text)
}

fn bound_to(principal: Principal, list: &str) -> Vec<u8> {
    [b"mcp-hub cursor\0", &principal.0[..], list.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_of_use_to_its_client_and_for_its_list_only() {
        let (seal, alice, bob) = (Seal::new([7; 32]), Principal([1; 32]), Principal([2; 32]));
        let cursor = close(&seal, alice, "tools/list", "a_tool").unwrap();
        assert_eq!(open(&seal, alice, "tools/list", &cursor).as_deref(), Some("a_tool"));
        assert_eq!(open(&seal, bob, "tools/list", &cursor), None);
        assert_eq!(open(&seal, alice, "prompts/list", &cursor), None);
        assert_eq!(open(&seal, alice, "tools/list", &cursor[1..]), None);
    }
}
