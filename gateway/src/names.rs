//! Names of tools and prompts on the aggregate endpoint.

use mcp_hub_dataplane_api::gateway::{Naming, NamingMode, ToolRules};
use sha2::{Digest, Sha256};

/// Characters of the hash that ends a cut name: 40 bits, enough that no hub sees a collision by chance.
const HASH: usize = 8;

/// The name under which a server's tool is offered. Deterministic; at most `max_length` characters; different tools of
/// different servers get different names as long as 40 bits of a hash differ.
pub(crate) fn exposed(naming: &Naming, server: &str, name: &str) -> String {
    let whole = match naming.mode {
        NamingMode::Bare => name.to_owned(),
        NamingMode::Prefix => format!("{server}{}{name}", naming.separator),
    };
    let most = naming.max_length as usize;
    if whole.chars().count() <= most {
        return whole;
    }
    // Over server and name apart, so that moving the border between them changes the hash.
    let hash = hex::encode(Sha256::digest(format!("{server}\0{name}")));
    let kept: String = whole.chars().take(most.saturating_sub(HASH + 1)).collect();
    format!("{kept}_{}", &hash[..HASH])
}

/// The name that the rules give a tool of a server; `None` if they do not offer it. Allow and deny speak of the server's
/// own names.
pub(crate) fn offered<'a>(rules: &'a ToolRules, name: &'a str) -> Option<&'a str> {
    let any = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, name));
    if (!rules.allow.is_empty() && !any(&rules.allow)) || any(&rules.deny) {
        return None;
    }
    Some(rules.rename.get(name).map_or(name, String::as_str))
}

/// Whether the rules offer every tool under its own name.
pub(crate) fn are_open(rules: &ToolRules) -> bool {
    rules.allow.is_empty() && rules.deny.is_empty() && rules.rename.is_empty()
}

/// The server's own name for a tool that the rules offer under this one; `None` if they offer none.
pub(crate) fn own<'a>(rules: &'a ToolRules, offered_name: &'a str) -> Option<&'a str> {
    let renamed = rules.rename.iter().find(|(_, to)| *to == offered_name).map(|(from, _)| from.as_str());
    let own = renamed.unwrap_or(offered_name);
    (offered(rules, own)? == offered_name).then_some(own)
}

/// `*` is any run of characters, `?` any one.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            // The last star takes one character more.
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naming(mode: NamingMode, max_length: u32) -> Naming {
        Naming { mode, separator: "_".to_owned(), max_length }
    }

    #[test]
    fn a_name_that_fits_is_prefixed_and_a_longer_one_ends_in_a_hash() {
        let naming = naming(NamingMode::Prefix, 24);
        assert_eq!(exposed(&naming, "github", "get_issue"), "github_get_issue");
        assert_eq!(exposed(&naming, "github", "create_pull_request_review"), "github_create_p_a0bba155");
    }

    #[test]
    fn globs_match_whole_names() {
        for (pattern, text, fits) in [
            ("get_*", "get_issue", true),
            ("get_*", "forget_it", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*b*c", "abbxc", true),
            ("", "a", false),
            ("**", "x", true),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_denied_stays_denied_however_it_is_allowed_or_renamed() {
        let rules = ToolRules {
            allow: vec!["get_*".to_owned()],
            deny: vec!["get_secret".to_owned()],
            rename: [("get_a".to_owned(), "a".to_owned()), ("get_secret".to_owned(), "b".to_owned())].into(),
        };
        assert_eq!(offered(&rules, "get_a"), Some("a"));
        assert_eq!(offered(&rules, "get_b"), Some("get_b"));
        assert_eq!(offered(&rules, "get_secret"), None);
        assert_eq!(offered(&rules, "set_a"), None);
        assert_eq!(own(&rules, "a"), Some("get_a"));
        assert_eq!(own(&rules, "get_b"), Some("get_b"));
        for hidden in ["get_a", "b", "get_secret", "set_a"] {
            assert_eq!(own(&rules, hidden), None, "{hidden}");
        }
    }

    proptest! {
        #[test]
        fn names_are_bounded_stable_and_different(
            a in ("[a-z-]{1,40}", "[a-zA-Z_]{1,80}"), b in ("[a-z-]{1,40}", "[a-zA-Z_]{1,80}"), most in 24..64_u32,
        ) {
            let naming = naming(NamingMode::Prefix, most);
            let (one, other) = (exposed(&naming, &a.0, &a.1), exposed(&naming, &b.0, &b.1));
            prop_assert!(one.chars().count() <= most as usize);
            prop_assert_eq!(&one, &exposed(&naming, &a.0, &a.1));
            let cut = |x: &(String, String)| x.0.len() + 1 + x.1.len() > most as usize;
            if a != b && (cut(&a) || cut(&b)) {
                prop_assert_ne!(one, other);
            }
        }
    }
}
