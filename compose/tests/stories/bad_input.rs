//! Files that nobody should have to fear.

use std::path::Path;

use mcp_hub_compose::import::{self, NotImported, Relative};
use proptest::prelude::*;

fn read(name: &str, text: &str) -> Result<import::Imported, NotImported> {
    import::read(Path::new(name), text, Relative::Kept)
}

#[test]
fn what_is_no_such_file_says_so() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(", ")));
    }
    bomb.push_str("services: {x: {image: y}}\n");
    for (name, text, wanted) in [
        ("compose.yaml", "", "compose.yaml is neither a Compose file"),
        ("compose.yaml", "services: {}", "is neither a Compose file"),
        ("compose.yaml", "services: [a]", "is neither a Compose file"),
        ("compose.yaml", "just text", "is neither a Compose file"),
        ("compose.yaml", "services: {a: {image: x}, a: {image: y}}", "compose.yaml:1:27: services.a: duplicate key"),
        ("compose.yaml", "services: {a: {image: x}}\n---\nservices: {}", "holds 2 documents"),
        ("compose.yaml", "services: {a: &a {image: x, x-self: *a}}", "not valid YAML"),
        ("compose.yaml", "services: {a: {image: *none}}", "not valid YAML"),
        ("compose.yaml", "services: {a: [", "not valid YAML"),
        ("compose.yaml", &"[".repeat(10_000), "not valid YAML"),
        ("compose.yaml", &bomb, "not valid YAML"),
        ("a.yaml", "apiVersion: mcphub.io/v1alpha1\nkind: MCPServer", "is a manifest already"),
        ("config.toml", "a = [", "not valid TOML"),
        ("config.toml", &format!("a = {}", "[".repeat(10_000)), "not valid TOML"),
        ("config.toml", "[other]\na = 1", "is neither a Compose file"),
        ("x.json", "{", "not valid YAML"),
    ] {
        let problem = read(name, text).unwrap_err().to_string();
        assert!(problem.contains(wanted), "{text:.60}: {problem}");
    }
}

#[test]
fn a_service_that_is_nothing_is_named_and_the_others_are_taken() {
    let imported = read(
        "c.yaml",
        "services: {a: {image: x}, b: null, c: {image: [x]}, d: {image: x, environment: 7, volumes: {}, ports: 80}, '---': {image: x}}",
    )
    .unwrap();
    let names: Vec<_> = imported.servers.iter().filter_map(|server| server.metadata.name.clone()).collect();
    assert_eq!(names, ["a", "d"]);
    let said: Vec<String> = imported.remarks.iter().map(|remark| remark.path.to_string()).collect();
    assert_eq!(
        said,
        [
            "services.b",
            "services.c.image",
            "services.d.environment",
            "services.d.volumes",
            "services.d.ports",
            "services.---"
        ]
    );
}

proptest! {
    #[test]
    fn nothing_that_is_read_makes_it_panic(text in r"(?s).{0,300}", toml in any::<bool>()) {
        crate::keep_rules();
        read(if toml { "a.toml" } else { "a.yaml" }, &text).ok();
    }

    #[test]
    fn no_service_makes_it_panic(
        key in r"[a-z_]{1,12}|ports|volumes|environment|command|deploy|labels|user|image|tmpfs|depends_on",
        value in r#"[a-z0-9:/.$\{\}\[\], '"-]{0,40}"#,
    ) {
        crate::keep_rules();
        read("a.yaml", &format!("services: {{a: {{image: x, {key}: {value}}}}}")).ok();
        read("a.yaml", &format!("services: {{a: {{image: x, {key}: ['{}']}}}}", value.replace('\'', ""))).ok();
    }
}
