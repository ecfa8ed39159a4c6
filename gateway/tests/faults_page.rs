//! `docs/src/faults.md` promises nothing of calls that has no test.

use std::path::Path;

#[test]
fn every_test_that_the_page_of_faults_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = std::fs::read_to_string(root.join("docs/src/faults.md")).unwrap_or_default();
    let cells = page.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once('`').map(|(_, test)| test));
    let named: Vec<(&str, &str)> = cells.filter_map(|test| test.split_once("::")).collect();
    assert!(named.len() > 20, "{named:?}");
    for (file, name) in named {
        let folders = ["gateway/tests", "bridge/tests"].map(|folder| root.join(folder).join(format!("{file}.rs")));
        let declared = format!("\nasync fn {name}() {{");
        let exists =
            folders.iter().any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(&declared)));
        assert!(exists, "there is no test {file}::{name}");
    }
}
