//! Where a server may connect to: the entries of `spec.permissions.network.egress`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// One entry: `HOST:PORT`, `*.SUFFIX:PORT`, `ADDRESS:PORT` or `NETWORK/BITS:PORT`; an IPv6 address stands in brackets.
///
/// `Display` gives the canonical form, which parses to the same entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EgressTarget {
    pub destination: Destination,
    /// Never 0.
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// This host.
    Name(HostName),
    /// Every host below this name, at any depth, and not the name itself.
    Below(HostName),
    /// These addresses, however they are found.
    Network(Network),
}

/// A host's whole name, in lower case and without the dot at its end: labels of letters, digits, `-` and `_`. What could
/// be read as an IPv4 address in any of its notations (`127.1`, `0x7f000001`) is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(String);

/// Addresses with the same first bits. Never IPv4 addresses written as IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// With nothing but zeros behind its bits.
    first: IpAddr,
    bits: u8,
}

/// Text that is no entry of an egress list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotATarget {
    #[error("`{0}` has no port: write HOST:PORT")]
    NoPort(String),
    #[error("`{0}` is no port: it is a number from 1 to 65535")]
    Port(String),
    #[error(transparent)]
    Host(#[from] NotAHost),
    #[error("`{0}` is no network: write ADDRESS/BITS, such as 10.0.0.0/8 or [2001:db8::]/32")]
    Network(String),
    #[error("`{0}` is an IPv6 address: put it in brackets, so that its port can be told from it")]
    Brackets(String),
    #[error("`{0}` is an IPv4 address written as IPv6: write the IPv4 address")]
    Mapped(String),
}

/// Text that is no host's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAHost {
    #[error("`{0}` is no host's name: it has at most 253 letters, digits, `-`, `_` and dots")]
    Name(String),
    #[error("`{0}` is not ASCII: write it as DNS has it (xn--…)")]
    Unicode(String),
    #[error("`{0}` ends in a number and is no address")]
    Number(String),
}

impl EgressTarget {
    /// Whether a connection to this name and port is meant.
    pub fn names(&self, host: &HostName, port: u16) -> bool {
        self.port == port
            && match &self.destination {
                Destination::Name(name) => name == host,
                Destination::Below(suffix) => {
                    host.0.strip_suffix(&suffix.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
                }
                Destination::Network(_) => false,
            }
    }

    /// Whether this address and port is named itself.
    pub fn holds(&self, address: IpAddr, port: u16) -> bool {
        self.port == port
            && match &self.destination {
                Destination::Network(network) => network.contains(address),
                Destination::Name(_) | Destination::Below(_) => false,
            }
    }
}

impl FromStr for EgressTarget {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(NotATarget::Brackets(text.to_owned()));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| NotATarget::NoPort(text.to_owned()))?;
        // `+443` would parse.
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let number = port.parse().ok().filter(|number| digits && *number != 0);
        let port = number.ok_or_else(|| NotATarget::Port(port.to_owned()))?;
        let destination = if host.starts_with('[') || host.contains(['/', ':']) || host.parse::<Ipv4Addr>().is_ok() {
            Destination::Network(host.parse()?)
        } else if let Some(suffix) = host.strip_prefix("*.") {
            Destination::Below(suffix.parse()?)
        } else {
            Destination::Name(host.parse()?)
        };
        Ok(Self { destination, port })
    }
}

impl fmt::Display for EgressTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.destination {
            Destination::Name(name) => write!(f, "{name}:{port}"),
            Destination::Below(suffix) => write!(f, "*.{suffix}:{port}"),
            Destination::Network(Network { first, bits }) => {
                match first {
                    IpAddr::V4(first) => write!(f, "{first}")?,
                    IpAddr::V6(first) => write!(f, "[{first}]")?,
                }
                if *bits == most(*first) { write!(f, ":{port}") } else { write!(f, "/{bits}:{port}") }
            }
        }
    }
}

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        // Of a text without end, no more than is told of it.
        let shown = || text.chars().take(300).collect::<String>();
        if !text.is_ascii() {
            return Err(NotAHost::Unicode(shown()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(NotAHost::Name(shown()));
        }
        let name = name.to_ascii_lowercase();
        // What resolvers take for a number, decimal, octal or hexadecimal.
        let last = name.rsplit('.').next().unwrap_or_default();
        let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAHost::Number(shown()));
        }
        Ok(Self(name))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Network {
    /// Whether this address, or the IPv4 address that it stands for, is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.bits) == self.first
    }

    /// A single address's text, or `FIRST/BITS`, as `NO_PROXY` has it.
    pub fn plain(&self) -> String {
        if self.bits == most(self.first) { self.first.to_string() } else { self.to_string() }
    }
}

/// `ADDRESS`, `ADDRESS/BITS`, `[ADDRESS]` or `[ADDRESS]/BITS`.
impl FromStr for Network {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        let no = || NotATarget::Network(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let inner = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let address = match inner {
            Some(inner) => IpAddr::V6(inner.parse().map_err(|_| no())?),
            None => address.parse().map_err(|_| no())?,
        };
        if inner.is_none() && address.is_ipv6() {
            return Err(NotATarget::Brackets(text.to_owned()));
        }
        if address.to_canonical() != address {
            return Err(NotATarget::Mapped(text.to_owned()));
        }
        let bits = match bits {
            None => most(address),
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most(address)).ok_or_else(no)?,
        };
        Ok(Self { first: masked(address, bits), bits })
    }
}

/// As a NetworkPolicy's `cidr`.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

fn most(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(text: &str) -> EgressTarget {
        text.parse().unwrap()
    }

    #[test]
    fn each_form_is_read_and_shown_in_its_canonical_way() {
        for (text, shown) in [
            ("API.GitHub.com:443", "api.github.com:443"),
            ("api.github.com.:443", "api.github.com:443"),
            ("*.Example.com:8443", "*.example.com:8443"),
            ("_srv.example.com:1", "_srv.example.com:1"),
            ("10.1.2.3:443", "10.1.2.3:443"),
            ("10.1.2.3/8:5432", "10.0.0.0/8:5432"),
            ("0.0.0.0/0:443", "0.0.0.0/0:443"),
            ("[2001:DB8::1]:443", "[2001:db8::1]:443"),
            ("[2001:db8::1]/32:443", "[2001:db8::]/32:443"),
        ] {
            assert_eq!(target(text).to_string(), shown);
            assert_eq!(target(shown), target(text));
        }
    }

    #[test]
    fn what_is_no_target_says_why() {
        for (text, why) in [
            ("api.github.com", "`api.github.com` has no port: write HOST:PORT"),
            ("api.github.com:", "`` is no port: it is a number from 1 to 65535"),
            ("a:0", "`0` is no port: it is a number from 1 to 65535"),
            ("a:+1", "`+1` is no port: it is a number from 1 to 65535"),
            ("a:99999", "`99999` is no port: it is a number from 1 to 65535"),
            ("*:443", "`*` is no host's name: it has at most 253 letters, digits, `-`, `_` and dots"),
            ("a.*.b:443", "`a.*.b` is no host's name: it has at most 253 letters, digits, `-`, `_` and dots"),
            ("http://a:443", "`http://a` is no network: write ADDRESS/BITS, such as 10.0.0.0/8 or [2001:db8::]/32"),
            ("a..b:443", "`a..b` is no host's name: it has at most 253 letters, digits, `-`, `_` and dots"),
            ("münchen.de:443", "`münchen.de` is not ASCII: write it as DNS has it (xn--…)"),
            ("127.1:443", "`127.1` ends in a number and is no address"),
            ("0x7F000001:443", "`0x7F000001` ends in a number and is no address"),
            ("10.0.0.0/33:1", "`10.0.0.0/33` is no network: write ADDRESS/BITS, such as 10.0.0.0/8 or [2001:db8::]/32"),
            ("[10.0.0.1]:1", "`[10.0.0.1]` is no network: write ADDRESS/BITS, such as 10.0.0.0/8 or [2001:db8::]/32"),
            (
                "2001:db8::1:443",
                "`2001:db8::1:443` is an IPv6 address: put it in brackets, so that its port can be told from it",
            ),
            ("[::ffff:10.0.0.1]:1", "`[::ffff:10.0.0.1]` is an IPv4 address written as IPv6: write the IPv4 address"),
        ] {
            assert_eq!(text.parse::<EgressTarget>().unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn a_star_stands_for_names_below_and_for_nothing_else() {
        let below = target("*.example.com:443");
        for (host, port, is) in [
            ("a.example.com", 443, true),
            ("a.b.example.com", 443, true),
            ("A.EXAMPLE.COM.", 443, true),
            ("example.com", 443, false),
            ("badexample.com", 443, false),
            ("example.com.evil.net", 443, false),
            ("a.example.com", 80, false),
        ] {
            assert_eq!(below.names(&host.parse().unwrap(), port), is, "{host}:{port}");
        }
        let one = target("example.com:443");
        assert!(one.names(&"example.com".parse().unwrap(), 443));
        assert!(!one.names(&"a.example.com".parse().unwrap(), 443));
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let network = target("10.0.0.0/8:5432");
        for (address, port, is) in [
            ("10.255.0.1", 5432, true),
            ("::ffff:10.1.1.1", 5432, true),
            ("11.0.0.1", 5432, false),
            ("10.0.0.1", 80, false),
            ("a00::1", 5432, false),
        ] {
            assert_eq!(network.holds(address.parse().unwrap(), port), is, "{address}:{port}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_shown_as_the_same(text in "[a-z0-9A-Z:.*/_\\[\\]-]{0,40}") {
            if let Ok(target) = text.parse::<EgressTarget>() {
                prop_assert_eq!(target.to_string().parse(), Ok(target));
            }
        }

        #[test]
        fn a_network_holds_its_first_and_what_shares_its_bits(address: u32, bits in 0u8..=32, other: u32) {
            let network: Network = format!("{}/{bits}", Ipv4Addr::from_bits(address)).parse().unwrap();
            prop_assert!(network.contains(network.first));
            let alike = u32::from(bits) <= (address ^ other).leading_zeros();
            prop_assert_eq!(network.contains(Ipv4Addr::from_bits(other).into()), alike);
        }
    }
}
