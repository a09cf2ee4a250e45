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
}

impl Default for Spec {
    fn default() -> Self {
        Self { name: "lab".to_owned(), frontends: 3, backends: 2, users: 100, bare: false }
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
        Ok(())
    }

    /// Every host that has an address, the client first.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let mut hosts = vec![Host { kind: HostKind::Client, number: 0 }];
        hosts.extend(self.frontend_hosts());
        hosts.extend(self.backend_hosts());
        hosts
    }

    /// `fe1..`
    pub fn frontend_hosts(&self) -> impl Iterator<Item = Host> {
        (1..=self.frontends).map(Host::frontend)
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
    /// The switch: has no address and runs nothing.
    Net,
}

/// One host of a lab; written `client`, `fe1`, `be2`, `net`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    pub kind: HostKind,
    /// Counts from 1; 0 for the client and the switch.
    pub number: u8,
}

impl Host {
    pub const CLIENT: Self = Self { kind: HostKind::Client, number: 0 };
    pub const NET: Self = Self { kind: HostKind::Net, number: 0 };

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
            HostKind::Net => 1,
        }
    }

    /// Its IPv4 address, in 10.77.0.0/24.
    #[must_use]
    pub const fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.octet())
    }

    /// Its IPv6 address, in `fd77::/64`: the same digits as the IPv4 address' last octet.
    #[must_use]
    pub fn v6(self) -> Ipv6Addr {
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
            _ if text.starts_with("fe") => Ok(Self::frontend(number(&text[2..])?)),
            _ if text.starts_with("be") => Ok(Self::backend(number(&text[2..])?)),
            _ => anyhow::bail!("{text}: no such host (client, fe1.., be1.., net)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_read_back_as_written() {
        for host in Spec::default().hosts() {
            assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
        }
        for bad in ["", "fe", "fe0", "fe256", "be-1", "router"] {
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
    }

    #[test]
    fn ranges_are_checked() {
        assert!(Spec::default().validate().is_ok());
        assert!(Spec { name: "a-b".to_owned(), ..Spec::default() }.validate().is_err());
        assert!(Spec { frontends: 11, ..Spec::default() }.validate().is_err());
        assert!(Spec { backends: 0, ..Spec::default() }.validate().is_err());
    }
}
