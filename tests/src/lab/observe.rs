//! What can be seen of the pool from outside, without asking the daemons.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, anyhow, ensure};
use serde_json::Value;

use super::network::INTERFACE;
use super::spec::VIP;
use super::{Account, Host, Lab};

impl Lab {
    /// The front end that has the VIP at this moment, in the client's eyes: it answered the client's ARP request.
    ///
    /// # Errors
    /// If the client knows of none, or of a stranger.
    pub fn vip_owner(&self) -> anyhow::Result<u8> {
        let entries = self.json("client", &["ip", "-json", "neigh", "show", &VIP.to_string()])?;
        let owner = entries[0]["lladdr"].as_str().context("the client has not resolved the VIP")?.to_owned();
        for host in self.spec().frontend_hosts() {
            let links = self.json(&host.to_string(), &["ip", "-json", "link", "show", "dev", INTERFACE])?;
            if links[0]["address"].as_str() == Some(&owner) {
                return Ok(host.number);
            }
        }
        anyhow::bail!("{VIP} is at {owner}, which is no front end")
    }

    /// The hardware address of a host's interface `eth0`.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn mac(&self, host: &str) -> anyhow::Result<[u8; 6]> {
        let links = self.json(host, &["ip", "-json", "link", "show", "dev", INTERFACE])?;
        let text = links[0]["address"].as_str().with_context(|| format!("{host} has no hardware address"))?;
        let octets: Vec<u8> = text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>()?;
        octets.try_into().map_err(|_wrong| anyhow!("{text} is no hardware address"))
    }

    /// One counter of the XDP program of front end `number`.
    ///
    /// # Errors
    /// If the daemon does not answer or has no such counter.
    pub fn counter(&self, number: u8, name: &str) -> anyhow::Result<u64> {
        let stats = self.cli_json(number, &["steer", "stats"])?;
        let counters = stats["counters"].as_array().with_context(|| format!("no counters: {stats}"))?;
        let counter = counters.iter().find(|counter| counter["name"] == name);
        let total = counter.and_then(|counter| counter["total"].as_u64());
        total.with_context(|| format!("no counter {name}: {stats}"))
    }

    /// One counter of all front ends that were started.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn counter_of_all(&self, name: &str) -> anyhow::Result<u64> {
        self.started().into_iter().map(|number| self.counter(number, name)).sum()
    }

    /// Frames that the lab's cables have lost: a veth's queue holds 256, and who is kept from the CPU does not empty it.
    /// What a program drops is not in it.
    ///
    /// # Errors
    /// If ip(8) or ethtool(8) fails.
    pub fn lost_by_cables(&self) -> anyhow::Result<u64> {
        let mut lost = 0;
        for host in std::iter::once(Host::NET).chain(self.spec().hosts()) {
            let host = host.to_string();
            for link in self.json(&host, &["ip", "-json", "-s", "link"])?.as_array().into_iter().flatten() {
                lost += link["stats64"]["tx"]["dropped"].as_u64().context("no counter of dropped frames")?;
            }
        }
        let front_ends = self.spec().frontend_hosts();
        let sent_back = front_ends.map(|host| self.lost_when_sent_back(&host.to_string()));
        Ok(lost + sent_back.sum::<anyhow::Result<u64>>()?)
    }

    /// Frames that an XDP program sent back into the cable, and for which there was no place in it.
    fn lost_when_sent_back(&self, host: &str) -> anyhow::Result<u64> {
        let output = self.exec(host, &["ethtool", "-S", INTERFACE])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let counters = text.lines().filter_map(|line| line.split_once("_xdp_tx_errors: "));
        let counts: Vec<u64> = counters.map(|(_, count)| count.trim().parse()).collect::<Result<_, _>>()?;
        ensure!(!counts.is_empty(), "{host}: ethtool counts no xdp_tx_errors: {text}");
        Ok(counts.into_iter().sum())
    }

    /// Ports of clients whose connections to a port of front end `number` are established there.
    ///
    /// # Errors
    /// If ss(8) fails.
    pub fn client_ports(&self, number: u8, port: u16) -> anyhow::Result<Vec<u64>> {
        let filter = format!("sport = :{port}");
        let host = Host::frontend(number).to_string();
        let output = self.exec(&host, &["ss", "-Htn", "state", "established", &filter])?;
        ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
        let peer_port = |line: &str| line.split_whitespace().next_back()?.rsplit(':').next()?.parse().ok();
        Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(peer_port).collect())
    }

    /// The files of a mailbox's inbox, on the back end that has it.
    ///
    /// # Errors
    /// If the mailbox's directory cannot be read.
    pub fn mailbox_files(&self, account: &Account) -> anyhow::Result<Vec<PathBuf>> {
        let (local, domain) = account.address.split_once('@').context("no address")?;
        let mailbox = self.layout().host_dir(Host::backend(account.backend)).join("mail").join(domain).join(local);
        let mut files = Vec::new();
        for part in ["new", "cur"] {
            let dir = mailbox.join(part);
            let entries = fs::read_dir(&dir).with_context(|| format!("failed to read {}", dir.display()))?;
            for entry in entries {
                files.push(entry?.path());
            }
        }
        Ok(files)
    }

    fn json(&self, host: &str, argv: &[&str]) -> anyhow::Result<Value> {
        let output = self.exec(host, argv)?;
        ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).with_context(|| format!("{argv:?} on {host} printed no JSON"))
    }
}
