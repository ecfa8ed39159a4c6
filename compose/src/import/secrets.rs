//! What is not copied, because it looks like a secret: by its name, or by itself.

use std::collections::BTreeSet;

use mcp_hub_crds::manifest::secretive;

/// Values that are tokens by their look, whatever they are called (the prefixes that their issuers document).
const TOKEN_PREFIXES: [&str; 14] = [
    "ghp_",
    "gho_",
    "ghs_",
    "ghu_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "xoxb-",
    "xoxp-",
    "AKIA",
    "AIza",
    "npm_",
];

/// What is said of an argument that is left out.
pub(super) const ARGUMENT: &str =
    "it looks like a secret, and arguments are seen by everybody on the machine; it is left out, with its option";
pub(super) const ARGUMENT_HINT: &str = "give the server a variable with a secretRef, if it reads one";

/// Whether a value should not be copied.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    (secretive(name) && !is_plain(value)) || is_token(value) || bare_url(value).is_some()
}

/// `MAX_TOKENS=4096`, `USE_KEYRING=true`.
fn is_plain(value: &str) -> bool {
    matches!(value, "" | "true" | "false") || (value.len() <= 6 && value.parse::<f64>().is_ok())
}

fn is_token(value: &str) -> bool {
    TOKEN_PREFIXES.iter().any(|prefix| value.starts_with(prefix)) && value.len() >= 16
}

/// A URL without its login and without parameters that look like secrets; `None` if it has none.
pub(super) fn bare_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (rest, fragment) = split_at(rest, '#');
    let (rest, query) = split_at(rest, '?');
    let (authority, path) = split_at(rest, '/');
    let host = match authority.rsplit_once('@') {
        Some((login, host)) if is_login(scheme, login) => host,
        _ => authority,
    };
    let parameters = query.strip_prefix('?').unwrap_or_default().split('&');
    let kept: Vec<&str> = parameters
        .filter(|parameter| !parameter.split_once('=').is_some_and(|(name, value)| is_secret(name, value)))
        .collect();
    let query = if kept.concat().is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    let bare = format!("{scheme}://{host}{path}{query}{fragment}");
    (bare.len() < url.trim_end_matches('?').len()).then_some(bare)
}

/// Text before and from a sign on.
fn split_at(text: &str, sign: char) -> (&str, &str) {
    text.split_at(text.find(sign).unwrap_or(text.len()))
}

/// A database's user is no secret; whoever has a login in a URL of the web has a token.
fn is_login(scheme: &str, login: &str) -> bool {
    let has_password = login.split_once(':').is_some_and(|(_, password)| !password.is_empty());
    has_password || is_token(login) || (!login.is_empty() && ["http", "https"].iter().any(|web| scheme.ends_with(web)))
}

/// Arguments without secrets and their options, and the places of the secrets: `--token X`, `--token=X`,
/// `--header 'Cookie: X'`, a URL with a login, or a command line with any of these.
pub(super) fn without(arguments: Vec<String>) -> (Vec<String>, Vec<usize>) {
    let secrets = places(&arguments);
    let left_out: BTreeSet<usize> =
        secrets.iter().flat_map(|place| [Some(*place), option_of(&arguments, *place)]).flatten().collect();
    let kept = arguments.into_iter().enumerate().filter(|(place, _)| !left_out.contains(place));
    (kept.map(|(_, argument)| argument).collect(), secrets)
}

fn places(arguments: &[String]) -> Vec<usize> {
    let is_one = |place: &usize| {
        let option = option_of(arguments, *place).map_or("", |option| arguments[option].as_str());
        is_secret(option, &arguments[*place]) || holds_secret(&arguments[*place])
    };
    (0..arguments.len()).filter(is_one).collect()
}

/// The option that an argument may be the value of.
fn option_of(arguments: &[String], place: usize) -> Option<usize> {
    let before = place.checked_sub(1)?;
    let is_option = |argument: &str| argument.starts_with('-') && !argument.contains('=');
    (is_option(&arguments[before]) && !arguments[place].starts_with('-')).then_some(before)
}

fn holds_secret(argument: &str) -> bool {
    let is_secret = |(name, value): (&str, &str)| is_secret(name, value.trim());
    let value = named(argument, '=');
    value.is_some_and(is_secret)
        || value.and_then(|(_, value)| named(value, ':')).is_some_and(is_secret)
        || named(argument, ':').is_some_and(is_secret)
        || shlex::split(argument).is_some_and(|words| words.len() > 1 && !places(&words).is_empty())
}

/// A name and its value.
fn named(text: &str, sign: char) -> Option<(&str, &str)> {
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    text.split_once(sign).filter(|(name, _)| is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_known_by_its_name_or_by_its_value() {
        for (name, value) in [
            ("GITHUB_TOKEN", "x"),
            ("API_KEY", "0123456789"),
            ("DB_PASS", "x"),
            ("DB_PWD", "x"),
            ("SSH_PASSPHRASE", "x"),
            ("GITHUB_PAT", "x"),
            ("CREDENTIALS", "x"),
            ("Cookie", "session=x"),
            ("Proxy-Authorization", "Basic x"),
            ("PLAIN", "ghp_0123456789abcdef"),
            ("DATABASE_URL", "postgres://me:pass@db:5432/x"),
            ("URL", "https://x.example.com/?api_key=x"),
            ("authorization", "Bearer x"),
        ] {
            assert!(is_secret(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("MAX_TOKENS", "4096"),
            ("USE_KEYRING", "true"),
            ("TOKEN", ""),
            ("PATH", "/bin"),
            ("COMPASS", "north"),
            ("PWD", "/work"),
            ("URL", "https://example.com/@me"),
            ("URL", "postgres://me@db/x"),
            ("URL", "https://example.com/?"),
            ("NOTE", "sk-ip"),
        ] {
            assert!(!is_secret(name, value), "{name}={value}");
        }
    }

    #[test]
    fn of_a_url_everything_stays_but_its_secrets() {
        for (url, wanted) in [
            ("https://me:pass@x.example.com/mcp", "https://x.example.com/mcp"),
            ("https://0123456789abcdef@x.example.com", "https://x.example.com"),
            ("https://x.example.com/mcp?api_key=a&page=2#b", "https://x.example.com/mcp?page=2#b"),
            ("https://x.example.com:8080?access_token=a", "https://x.example.com:8080"),
            ("redis://:pass@cache/0", "redis://cache/0"),
        ] {
            assert_eq!(bare_url(url).as_deref(), Some(wanted), "{url}");
        }
        for url in ["https://x.example.com/a?b=c&d#e", "https://x.example.com?", "a?token=b", "https://x/%3F@y?@z#?"] {
            assert_eq!(bare_url(url), None, "{url}");
        }
    }

    #[test]
    fn of_arguments_everything_stays_but_secrets_and_their_options() {
        for (line, wanted) in [
            ("--api-key abc stdio", "stdio"),
            ("--api-key=abc --port 80", "--port 80"),
            ("-v --token=ghp_x", "-v"),
            ("a ghp_0123456789abcdef", "a"),
            ("--max-tokens 4096 --key --verbose", "--max-tokens 4096 --key --verbose"),
            ("-e DB_PASS=x -e LEVEL=info", "-e LEVEL=info"),
            ("x --header 'Authorization: Bearer x'", "x"),
            ("x --header=Cookie:x", "x"),
            ("mcp-remote https://x.example.com/?token=a --debug", "mcp-remote --debug"),
            ("--db postgres://me:pass@db/x postgres://me@db/x", "postgres://me@db/x"),
            ("sh 'serve --token abc'", "sh"),
            ("sh 'serve \"--say hello --password=x\"'", "sh"),
            ("sh 'serve --level info'", "sh 'serve --level info'"),
            ("https://tokens.example.com/?a=b C:/keys", "https://tokens.example.com/?a=b C:/keys"),
        ] {
            let (kept, _) = without(shlex::split(line).unwrap());
            assert_eq!(kept, shlex::split(wanted).unwrap(), "{line}");
        }
        // However long it is.
        let long = ["=".repeat(100_000), "a='".repeat(100_000), "\"'".repeat(100_000)].to_vec();
        assert_eq!(without(long.clone()), (long, vec![]));
        let arguments = ["a", "--token", "x", "--password=y"].map(str::to_owned).to_vec();
        assert_eq!(without(arguments), (vec!["a".to_owned()], vec![2, 3]));
    }
}
