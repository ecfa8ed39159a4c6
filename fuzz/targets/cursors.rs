//! Any text is a place in a list, and is given back; no other text, list or client opens it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcp_hub_gateway::testing;

const KEY: [u8; 32] = [7; 32];
const ALICE: [u8; 32] = [1; 32];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // Nobody makes one without the key.
    assert_eq!(testing::open_cursor(KEY, ALICE, "tools/list", &text), None);
    let cursor = testing::cursor(KEY, ALICE, "tools/list", &text).expect("there are random numbers");
    assert_eq!(testing::open_cursor(KEY, ALICE, "tools/list", &cursor).as_deref(), Some(&*text));
    assert_eq!(testing::open_cursor(KEY, [2; 32], "tools/list", &cursor), None);
    assert_eq!(testing::open_cursor(KEY, ALICE, "prompts/list", &cursor), None);
    assert_eq!(testing::open_cursor([8; 32], ALICE, "tools/list", &cursor), None);
    assert_eq!(testing::open_session(KEY, ALICE, "tools/list", &cursor), None);
});
