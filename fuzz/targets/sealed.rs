//! A session id says what was sealed in it, and no id that differs from it in anything opens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_hub_gateway::testing;

const KEY: [u8; 32] = [7; 32];
const ALICE: [u8; 32] = [1; 32];

fuzz_target!(|data: &[u8]| {
    let Some(([at, with, length], rest)) = data.split_first_chunk::<3>() else { return };
    let capabilities = String::from_utf8_lossy(rest);
    assert_eq!(testing::open_session(KEY, ALICE, "/mcp", &capabilities), None);
    let id = testing::session(KEY, ALICE, "/mcp", "2025-11-25", &capabilities).expect("there are random numbers");
    let opened = Some(("2025-11-25".to_owned(), Some(capabilities.into_owned()).filter(|text| !text.is_empty())));
    assert_eq!(testing::open_session(KEY, ALICE, "/mcp", &id), opened);
    assert_eq!(testing::open_session(KEY, [2; 32], "/mcp", &id), None);
    assert_eq!(testing::open_session(KEY, ALICE, "/servers/a/mcp", &id), None);
    assert_eq!(testing::open_cursor(KEY, ALICE, "/mcp", &id), None);
    // Changed in one place, cut, or with something added.
    let mut changed = id.clone().into_bytes();
    let place = usize::from(*at) % changed.len();
    changed[place] = *with;
    changed.truncate(changed.len().saturating_sub(usize::from(*length) % 4));
    for other in [String::from_utf8_lossy(&changed).into_owned(), id.clone() + "A", id.clone() + "="] {
        if other != id {
            assert_eq!(testing::open_session(KEY, ALICE, "/mcp", &other), None, "{other}");
        }
    }
});
