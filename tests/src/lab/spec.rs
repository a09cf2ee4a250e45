//! How large a lab is, and the names and addresses that follow from it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The pool's address for mail clients and other mail servers.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The same over IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// A front end's greeting, its name in front: `fe1.pool.test`.
pub(super) const POOL_DOMAIN: &str = "pool.test";
/// Front ends have the host numbers 11 to 20.
pub const MAX_FRONTENDS: u8 = 10;
/// Back ends have the host numbers 21 to 99.
pub const MAX_BACKENDS: u8 = 79;
/// Accounts per domain: a passwd-file is written once per back end.
const MAX_USERS: u32 = 1_000_000;
/// Namespace names are file names, and interface names are derived from host names, not from this.
const MAX_NAME: usize = 20;

const CLIENT_NUMBER: u8 = 2;
const FIRST_FRONTEND: u8 = 11;
const FIRST_BACKEND: u8 = 21;
const ROUTER_NUMBER: u8 = 254;

/// What `up` makes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Distinguishes labs that exist at the same time: lower-case letters and digits.
    pub name: String,
    /// Front ends `fe1..`.
    pub frontends: u8,
    /// Back ends `be1..`, one real Dovecot and one real Postfix each.
    pub backends: u8,
    /// Accounts `user1..` in each back end's own domain, and as many in `shared.test`.
    pub users: u32,
    /// Leave out our own daemons: network, Dovecot, Postfix and clamd only.
    pub bare: bool,
    /// So many of the front ends, the last ones, stand on a second segment behind a router.
    pub far: u8,
    /// So many of the front ends, the last ones, are not started by `up`.
    pub late: u8,
    /// Front ends take more than ten thousand sessions, and bear with silent ones for an hour.
    pub crowd: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "lab".to_owned(),
            frontends: 3,
            backends: 2,
            users: 100,
            bare: false,
            far: 0,
            late: 0,
            crowd: false,
        }
    }
}

impl Spec {
    /// Checks the ranges.
    ///
    /// # Errors
    /// Names the first value that cannot be.
    pub fn validate(&self) -> anyhow::Result<()> {
        let name_ok = !self.name.is_empty()
            && self.name.len() <= MAX_NAME
            && self.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        ensure!(name_ok, "lab name {:?}: lower-case letters and digits, at most {MAX_NAME}", self.name);
        ensure!((1..=MAX_FRONTENDS).contains(&self.frontends), "front ends: 1 to {MAX_FRONTENDS}");
        ensure!((1..=MAX_BACKENDS).contains(&self.backends), "back ends: 1 to {MAX_BACKENDS}");
        ensure!((1..=MAX_USERS).contains(&self.users), "users: 1 to {MAX_USERS}");
        ensure!(self.far < self.frontends, "the first front end is on the client's segment");
        ensure!(self.late < self.frontends, "the first front end is started");
        Ok(())
    }

    /// Every host that has an address, the client first.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let mut hosts = vec![Host::CLIENT];
        hosts.extend((self.far > 0).then_some(Host::ROUTER));
        hosts.extend(self.frontend_hosts());
        hosts.extend(self.backend_hosts());
        hosts
    }

    /// `fe1..`
    pub fn frontend_hosts(&self) -> impl Iterator<Item = Host> {
        (1..=self.frontends).map(Host::frontend)
    }

    /// The front ends that `up` starts.
    pub(super) fn early_hosts(&self) -> impl Iterator<Item = Host> {
        (1..=self.frontends - self.late).map(Host::frontend)
    }

    /// Whether a host stands on the second segment.
    #[must_use]
    pub fn is_far(&self, host: Host) -> bool {
        host.kind == HostKind::FrontEnd && host.number > self.frontends - self.far
    }

    /// A host's IPv4 address: in 10.77.0.0/24, or in 10.78.0.0/24 on the second segment.
    #[must_use]
    pub fn v4(&self, host: Host) -> Ipv4Addr {
        if self.is_far(host) { host.far_v4() } else { host.v4() }
    }

    /// Its IPv6 address: in `fd77::/64` or `fd78::/64`.
    #[must_use]
    pub fn v6(&self, host: Host) -> Ipv6Addr {
        if self.is_far(host) { host.far_v6() } else { host.v6() }
    }

    /// `be1..`
    pub fn backend_hosts(&self) -> impl Iterator<Item = Host> {
        (1..=self.backends).map(Host::backend)
    }
}

/// The part that a host plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    Client,
    FrontEnd,
    BackEnd,
    /// Between the two segments.
    Router,
    /// The switch: has no address and runs nothing.
    Net,
}

/// One host of a lab; written `client`, `fe1`, `be2`, `router`, `net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    pub kind: HostKind,
    /// Counts from 1; 0 where there is only one.
    pub number: u8,
}

impl Host {
    pub const CLIENT: Self = Self { kind: HostKind::Client, number: 0 };
    pub const NET: Self = Self { kind: HostKind::Net, number: 0 };
    pub const ROUTER: Self = Self { kind: HostKind::Router, number: 0 };

    /// `feN`
    #[must_use]
    pub const fn frontend(number: u8) -> Self {
        Self { kind: HostKind::FrontEnd, number }
    }

    /// `beN`
    #[must_use]
    pub const fn backend(number: u8) -> Self {
        Self { kind: HostKind::BackEnd, number }
    }

    /// The host's last octet.
    const fn octet(self) -> u8 {
        match self.kind {
            HostKind::Client => CLIENT_NUMBER,
            HostKind::FrontEnd => FIRST_FRONTEND + self.number - 1,
            HostKind::BackEnd => FIRST_BACKEND + self.number - 1,
            HostKind::Router => ROUTER_NUMBER,
            HostKind::Net => 1,
        }
    }

    /// Its IPv4 address on the first segment, 10.77.0.0/24.
    #[must_use]
    pub(super) const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.octet())
    }

    /// Its IPv4 address on the second segment, 10.78.0.0/24.
    pub(super) const fn far_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.octet())
    }

    /// Its IPv6 address on the second segment, `fd78::/64`.
    pub(super) fn far_v6(self) -> Ipv6Addr {
        format!("fd78::{}", self.octet()).parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// Its IPv6 address on the first segment, `fd77::/64`: the same digits as the IPv4 address' last octet.
    #[must_use]
    pub(super) fn v6(self) -> Ipv6Addr {
        // `fd77::11` is easier to read beside 10.77.0.11 than `fd77::b`.
        format!("fd77::{}", self.octet()).parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            HostKind::Client => f.write_str("client"),
            HostKind::FrontEnd => write!(f, "fe{}", self.number),
            HostKind::BackEnd => write!(f, "be{}", self.number),
            HostKind::Router => f.write_str("router"),
            HostKind::Net => f.write_str("net"),
        }
    }
}

impl FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let number = |digits: &str| -> anyhow::Result<u8> {
            let n: u8 = digits.parse().with_context(|| format!("{text}: no such host"))?;
            ensure!(n > 0, "{text}: hosts count from 1");
            Ok(n)
        };
        match text {
            "client" => Ok(Self::CLIENT),
            "net" => Ok(Self::NET),
            "router" => Ok(Self::ROUTER),
            _ if text.starts_with("fe") => Ok(Self::frontend(number(&text[2..])?)),
            _ if text.starts_with("be") => Ok(Self::backend(number(&text[2..])?)),
            _ => anyhow::bail!("{text}: no such host (client, fe1.., be1.., router, net)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_read_back_as_written() {
        for host in (Spec { far: 1, ..Spec::default() }).hosts() {
            assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
        }
        for bad in ["", "fe", "fe0", "fe256", "be-1", "router1"] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_are_where_the_manual_says() {
        assert_eq!(Host::CLIENT.v4().to_string(), "10.77.0.2");
        assert_eq!(Host::frontend(1).v4().to_string(), "10.77.0.11");
        assert_eq!(Host::frontend(1).v6().to_string(), "fd77::11");
        assert_eq!(Host::backend(2).v6().to_string(), "fd77::22");
        assert_eq!(VIP6.to_string(), "fd77::100");
        let two_segments = Spec { far: 1, ..Spec::default() };
        assert_eq!(two_segments.v4(Host::frontend(2)).to_string(), "10.77.0.12");
        assert_eq!(two_segments.v4(Host::frontend(3)).to_string(), "10.78.0.13");
        assert_eq!(two_segments.v6(Host::frontend(3)).to_string(), "fd78::13");
    }

    #[test]
    fn ranges_are_checked() {
        assert!(Spec::default().validate().is_ok());
        assert!(Spec { name: "a-b".to_owned(), ..Spec::default() }.validate().is_err());
        assert!(Spec { frontends: 11, ..Spec::default() }.validate().is_err());
        assert!(Spec { backends: 0, ..Spec::default() }.validate().is_err());
        assert!(Spec { far: 3, ..Spec::default() }.validate().is_err());
        assert!(Spec { late: 3, ..Spec::default() }.validate().is_err());
    }
}
