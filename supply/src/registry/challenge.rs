//! What a registry wants to be told of who asks (RFC 9110, 11.6.1; distribution's "Token Authentication").

use std::collections::BTreeMap;

/// A `WWW-Authenticate` header's challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The challenge that we can answer, tokens before passwords.
    pub(super) fn of<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                let mut parameters = parameters(rest);
                if let Some(realm) = parameters.remove("realm") {
                    let (service, scope) = (parameters.remove("service"), parameters.remove("scope"));
                    return Some(Self::Bearer { realm, service, scope });
                }
            } else if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Self::Basic);
            }
        }
        basic
    }
}

/// `name="value"` pairs; a value may hold commas and escaped quotes.
fn parameters(mut text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = rest.find([',', ' ']).unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        found.insert(name, value);
        text = after;
    }
    found
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_challenge_is_read_in_every_form_that_registries_write() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let text = |text: &str| text.to_owned();
            Some(Challenge::Bearer { realm: text(realm), service: service.map(text), scope: scope.map(text) })
        };
        for (headers, wanted) in [
            (
                vec![
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                ],
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push")),
            ),
            (vec![r#"bearer Realm="https://a.io/t" , service=a.io"#], bearer("https://a.io/t", Some("a.io"), None)),
            (vec![r#"Bearer realm="https://a.io/\"t""#], bearer(r#"https://a.io/"t"#, None, None)),
            (vec![r#"Basic realm="x""#, r#"Bearer realm="https://a.io/t""#], bearer("https://a.io/t", None, None)),
            (vec!["Basic"], Some(Challenge::Basic)),
            (vec![r#"Bearer service="a""#], None),
            (vec!["Negotiate"], None),
            (vec![], None),
        ] {
            assert_eq!(Challenge::of(headers.iter().copied()), wanted, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_is_too_odd(text in "(Bearer )?[a-z=\", \\\\]{0,60}") {
            Challenge::of([&*text].into_iter());
        }
    }
}
