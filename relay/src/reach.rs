//! What kind of place an address is. Whoever owns a name decides where it leads, so this and not the name is judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mcp_hub_dataplane_api::egress::Network;

/// From what anybody may lead to, to what nobody may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// A place of the internet.
    Public,
    /// A place of some network of its own, such as the cluster's: private, shared and reserved addresses, and those that
    /// look public and are not here.
    Local,
    /// The relay's own machine and what a cloud puts beside it (metadata), and what is no place at all.
    Never,
}

/// IPv4 networks that are not [`Reach::Public`], as first address and bits. The first that fits counts.
const V4: [(Ipv4Addr, u8, Reach); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, Reach::Never),          // this machine
    (Ipv4Addr::new(127, 0, 0, 0), 8, Reach::Never),        // loopback
    (Ipv4Addr::new(169, 254, 0, 0), 16, Reach::Never),     // link-local, the metadata of most clouds
    (Ipv4Addr::new(224, 0, 0, 0), 4, Reach::Never),        // multicast
    (Ipv4Addr::new(255, 255, 255, 255), 32, Reach::Never), // broadcast
    (Ipv4Addr::new(10, 0, 0, 0), 8, Reach::Local),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Reach::Local),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Reach::Local),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Reach::Local), // shared by a carrier's customers, and Alibaba's metadata
    (Ipv4Addr::new(192, 0, 0, 0), 24, Reach::Local),  // protocols, and Oracle's metadata
    (Ipv4Addr::new(168, 63, 129, 16), 32, Reach::Local), // looks public and is Azure's own
    (Ipv4Addr::new(192, 0, 2, 0), 24, Reach::Local),  // documentation
    (Ipv4Addr::new(198, 51, 100, 0), 24, Reach::Local), // documentation
    (Ipv4Addr::new(203, 0, 113, 0), 24, Reach::Local), // documentation
    (Ipv4Addr::new(198, 18, 0, 0), 15, Reach::Local), // benchmarks
    (Ipv4Addr::new(240, 0, 0, 0), 4, Reach::Local),   // reserved
];

impl Reach {
    /// `local`: networks that are [`Reach::Local`] here, whatever they look like.
    pub fn of(address: IpAddr, local: &[Network]) -> Self {
        let address = address.to_canonical();
        let own = match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address, local),
        };
        if local.iter().any(|network| network.contains(address)) { own.max(Self::Local) } else { own }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let shares =
            |first: Ipv4Addr, bits: u8| (address.to_bits() ^ first.to_bits()).leading_zeros() >= u32::from(bits);
        V4.iter().find(|(first, bits, _)| shares(*first, *bits)).map_or(Self::Public, |(_, _, reach)| *reach)
    }

    fn of_v6(address: Ipv6Addr, local: &[Network]) -> Self {
        let segments = address.segments();
        let embedded =
            |high: u16, low: u16| Self::of(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into(), local);
        match segments {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Never,
            // Link-local, and multicast.
            [0xfe80..=0xfebf | 0xff00.., ..] => Self::Never,
            // IPv4 behind a translator, or in a tunnel: as that address, and never better than a guess of our own.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
            [0x2002, high, low, ..] => embedded(high, low),
            // An old way to write IPv4, and a translator's own network: whatever is behind it is local.
            [0, 0, 0, 0, 0, 0, high, low] => embedded(high, low).max(Self::Local),
            // Teredo, benchmarks, ORCHID and documentation.
            [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Local,
            [0x2000..=0x3fff, ..] => Self::Public,
            // Unique local, site-local and what is not given out.
            _ => Self::Local,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_of_the_internet_of_some_network_or_nobodys() {
        for (address, reach) in [
            ("140.82.121.6", Reach::Public),
            ("172.32.0.1", Reach::Public),
            ("100.128.0.1", Reach::Public),
            ("2606:50c0:8000::153", Reach::Public),
            ("64:ff9b::8c52:7906", Reach::Public),
            ("2002:8c52:7906::1", Reach::Public),
            ("10.96.0.1", Reach::Local),
            ("172.31.255.255", Reach::Local),
            ("192.168.1.1", Reach::Local),
            ("100.100.100.200", Reach::Local),
            ("192.0.0.192", Reach::Local),
            ("168.63.129.16", Reach::Local),
            ("203.0.113.7", Reach::Local),
            ("255.255.255.254", Reach::Local),
            ("fd00:ec2::254", Reach::Local),
            ("fec0::1", Reach::Local),
            ("2001:db8::1", Reach::Local),
            ("2001::1", Reach::Local),
            ("64:ff9b:1::a00:1", Reach::Local),
            ("64:ff9b::a00:1", Reach::Local),
            ("::808:808", Reach::Local),
            ("4000::1", Reach::Local),
            ("0.0.0.0", Reach::Never),
            ("0.1.2.3", Reach::Never),
            ("127.0.0.1", Reach::Never),
            ("127.255.255.254", Reach::Never),
            ("169.254.169.254", Reach::Never),
            ("224.0.0.1", Reach::Never),
            ("255.255.255.255", Reach::Never),
            ("::", Reach::Never),
            ("::1", Reach::Never),
            ("fe80::1", Reach::Never),
            ("febf::1", Reach::Never),
            ("ff02::1", Reach::Never),
            ("::ffff:127.0.0.1", Reach::Never),
            ("::ffff:169.254.169.254", Reach::Never),
            ("::ffff:10.0.0.1", Reach::Local),
            ("::ffff:140.82.121.6", Reach::Public),
            ("::7f00:1", Reach::Never),
            ("64:ff9b::a9fe:a9fe", Reach::Never),
            ("2002:7f00:1::", Reach::Never),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap(), &[]), reach, "{address}");
        }
    }

    #[test]
    fn a_network_that_is_declared_local_is_so_however_it_is_written_and_opens_nothing_else() {
        let local = ["8.8.0.0/16", "[2606:50c0::]/32", "127.0.0.0/8"].map(|network| network.parse().unwrap());
        for (address, reach) in [
            ("8.8.8.8", Reach::Local),
            ("8.9.0.0", Reach::Public),
            ("::ffff:8.8.8.8", Reach::Local),
            ("64:ff9b::808:808", Reach::Local),
            ("2002:808:808::1", Reach::Local),
            ("2606:50c0:8000::153", Reach::Local),
            ("2606:50c1::1", Reach::Public),
            ("127.0.0.1", Reach::Never),
            ("10.0.0.1", Reach::Local),
        ] {
            assert_eq!(Reach::of(address.parse().unwrap(), &local), reach, "{address}");
        }
    }

    proptest! {
        #[test]
        fn no_way_to_write_an_ipv4_address_makes_more_of_it(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let reach = Reach::of(v4.into(), &[]);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            prop_assert_eq!(Reach::of(v4.to_ipv6_mapped().into(), &[]), reach);
            prop_assert_eq!(Reach::of(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low).into(), &[]), reach);
            prop_assert_eq!(Reach::of(Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1).into(), &[]), reach);
            prop_assert!(Reach::of(Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low).into(), &[]) >= reach);
        }

        #[test]
        fn what_the_standard_library_knows_to_be_special_is_not_public(bits: u32) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
                || v4.is_documentation() || v4.is_unspecified() || v4.is_multicast();
            prop_assert!(!special || Reach::of(v4.into(), &[]) != Reach::Public);
        }
    }
}
