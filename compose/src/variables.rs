//! Names of the environment variables that stand for secrets, and the spelling of Compose.

use mcp_hub_crds::source::SecretKeyRef;

/// `MCP_NAME_KEY`, and `MCP_NAME` for the key `value`: as the daemon's environment backend looks for it.
pub fn variable(secret: &SecretKeyRef) -> String {
    let upper = |text: &str| text.to_ascii_uppercase().replace(['-', '.'], "_");
    match secret.key.as_str() {
        "value" => format!("MCP_{}", upper(&secret.name)),
        key => format!("MCP_{}_{}", upper(&secret.name), upper(key)),
    }
}

/// Text that Compose does not interpolate.
pub(crate) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// A value as a Compose file has it, before anybody interpolates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    Literal(String),
    /// One placeholder and nothing else.
    Variable {
        name: String,
        /// What is taken where the variable is not set.
        default: Option<String>,
    },
    /// `${SECRET:NAME}`, which only MCP Hub's predecessor understood.
    Secret(String),
    /// A placeholder with something around it, or one that cannot be read; only the placeholder is kept, since what stands
    /// around may be part of a secret.
    Mixed(String),
}

/// Reads `$$`, `$NAME` and `${NAME…}` (Compose specification, "Interpolation").
pub(crate) fn read(text: &str) -> Written {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some(tail) = tail.strip_prefix('$') {
            plain.push('$');
            rest = tail;
            continue;
        }
        let (placeholder, inner, after) = match tail.strip_prefix('{') {
            Some(braced) => match closing(braced) {
                Some(end) => (&rest[before.len()..before.len() + end + 3], &braced[..end], &braced[end + 1..]),
                None => return Written::Mixed(shortened(&rest[before.len()..])),
            },
            None => {
                let end = tail.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(tail.len());
                if end == 0 || tail.starts_with(|c: char| c.is_ascii_digit()) {
                    // Compose refuses it; nothing else can be meant than the sign itself.
                    plain.push('$');
                    rest = tail;
                    continue;
                }
                (&rest[before.len()..before.len() + end + 1], &tail[..end], &tail[end..])
            }
        };
        if !plain.is_empty() || !after.is_empty() {
            return Written::Mixed(shortened(placeholder));
        }
        return whole(inner).unwrap_or_else(|| Written::Mixed(shortened(placeholder)));
    }
    plain.push_str(rest);
    Written::Literal(plain)
}

/// Where the brace closes that was opened before this text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

/// The inside of a placeholder.
fn whole(inner: &str) -> Option<Written> {
    if let Some(name) = inner.strip_prefix("SECRET:") {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        return plain.then(|| Written::Secret(name.to_owned()));
    }
    let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
    let (name, rest) = inner.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let default = match rest.strip_prefix(':').unwrap_or(rest) {
        "" if rest.is_empty() => None,
        text => match (text.strip_prefix('-'), text.starts_with('?')) {
            // A default with placeholders of its own is nobody's plain text.
            (Some(default), _) if !default.contains('$') => Some(default.to_owned()),
            (None, true) => None,
            _ => return None,
        },
    };
    Some(Written::Variable { name: name.to_owned(), default })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, key: &str) -> SecretKeyRef {
        SecretKeyRef { name: name.to_owned(), key: key.to_owned() }
    }

    #[test]
    fn a_secret_is_looked_for_where_the_daemon_looks() {
        assert_eq!(variable(&secret("git-hub", "api.token")), "MCP_GIT_HUB_API_TOKEN");
        assert_eq!(variable(&secret("plain", "value")), "MCP_PLAIN");
    }

    #[test]
    fn values_are_read_as_compose_reads_them() {
        let variable = |name: &str, default: Option<&str>| Written::Variable {
            name: name.to_owned(),
            default: default.map(str::to_owned),
        };
        for (text, wanted) in [
            ("plain", Written::Literal("plain".to_owned())),
            ("$$5 and $${A}", Written::Literal("$5 and ${A}".to_owned())),
            ("ends in $", Written::Literal("ends in $".to_owned())),
            ("$A", variable("A", None)),
            ("${A}", variable("A", None)),
            ("${A:?set it: {now}}", variable("A", None)),
            ("${A?}", variable("A", None)),
            ("${A:-b c}", variable("A", Some("b c"))),
            ("${A-}", variable("A", Some(""))),
            ("${SECRET:api-key}", Written::Secret("api-key".to_owned())),
            ("x${A}", Written::Mixed("${A}".to_owned())),
            ("${A}x", Written::Mixed("${A}".to_owned())),
            ("$A$B", Written::Mixed("$A".to_owned())),
            ("${A:+b}", Written::Mixed("${A:+b}".to_owned())),
            ("${A:-${B}}", Written::Mixed("${A:-${B}}".to_owned())),
            ("${A", Written::Mixed("${A".to_owned())),
            ("${}", Written::Mixed("${}".to_owned())),
            ("ä${ö}", Written::Mixed("${ö}".to_owned())),
        ] {
            assert_eq!(read(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_written_as_literal_is_read_as_it_was() {
        for text in ["", "$", "$$", "${A}", "a$b", "$(x)", "100% $HOME"] {
            assert_eq!(read(&literal(text)), Written::Literal(text.to_owned()));
        }
    }
}
