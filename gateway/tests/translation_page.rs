//! `docs/src/translation.md` promises nothing that has no test.
#![expect(clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

const FEATURES: [&str; 12] = [
    "Sampling",
    "Elicitation",
    "Roots",
    "Logging",
    "Resource subscriptions",
    "Completion",
    "Progress",
    "Cancellation",
    "Tasks",
    "Extensions",
    "Caching",
    "Errors",
];

/// Rows of the table: a feature and a cell for each direction.
fn rows(page: &str) -> Vec<[&str; 3]> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let cells = lines.skip(1).map(|line| line.split(" | ").collect::<Vec<_>>());
    cells.map(|cells| cells.try_into().unwrap_or_else(|cells| panic!("a row has three cells: {cells:?}"))).collect()
}

#[test]
fn every_cell_of_the_translation_table_says_how_and_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../docs/src/translation.md")).unwrap();
    let rows = rows(&page);
    for feature in FEATURES {
        assert!(rows.iter().any(|[name, _, _]| name.starts_with(feature)), "no row for {feature}");
    }
    let mut named = BTreeSet::new();
    for [feature, there, back] in rows {
        for cell in [there, back] {
            let (how, test) = cell.split_once(" — ").unwrap_or_else(|| panic!("{feature}: `{cell}` names no test"));
            let word = how.split([':', ' ']).next().unwrap();
            assert!(["exact", "approximate", "impossible"].contains(&word), "{feature}: `{how}`");
            assert!(word != "approximate" || how.contains(':'), "{feature}: `{how}` does not say how it differs");
            named.insert(test.trim_matches('`').to_owned());
        }
    }
    for test in named {
        let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("`{test}` is no FILE::TEST"));
        let source = std::fs::read_to_string(root.join(format!("tests/{file}.rs"))).unwrap_or_default();
        let declared = format!("#[tokio::test]\nasync fn {name}() {{");
        assert!(source.contains(&declared), "gateway/tests/{file}.rs has no test {name}");
    }
}
