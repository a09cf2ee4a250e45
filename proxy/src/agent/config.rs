//! The agent's configuration: read, then validated whole.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use proxy_core::address::Address;
use proxy_core::directory::{BackendRecord, Endpoint, EndpointTls, Services, SourceName};

use crate::config::{self, IdentityFiles, Log, Problems, Reader, Table};

/// Everything `autocluster agent` needs to know.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The name in the certificate, too.
    pub name: SourceName,
    /// Front ends to begin with; they tell of the others.
    pub frontends: Vec<SocketAddr>,
    pub identity: IdentityFiles,
    pub source: PasswdFileSource,
    /// What front ends are told of this back end.
    pub record: BackendRecord,
    pub log: Log,
}

/// A Dovecot passwd-file.
#[derive(Debug, Clone)]
pub struct PasswdFileSource {
    pub path: PathBuf,
    /// The domain of users without one; None: such users are passed over.
    pub default_domain: Option<String>,
}

/// Reads and checks the file.
///
/// # Errors
/// Every fault of it.
pub fn load(file: &Path) -> Result<AgentConfig, Problems> {
    Reader::open(file)?.read(|reader, root| {
        // Every section is read before any fault ends the work, so that all are told.
        let agent = agent(reader, root);
        let identity = config::identity(reader, root);
        let source = source(reader, root);
        let services = services(reader, root);
        let log = config::log(reader, root);
        let (name, frontends) = agent?;
        let (source, recipient_delimiter) = source?;
        let record = BackendRecord { services: services?, recipient_delimiter };
        Some(AgentConfig { name, frontends, identity: identity?, source, record, log })
    })
}

fn agent(reader: &mut Reader, root: &mut Table<'_>) -> Option<(SourceName, Vec<SocketAddr>)> {
    let mut table = reader.table(root, "agent");
    let text: Option<String> = reader.required(&mut table, "name");
    let name = text.as_deref().map(SourceName::parse);
    if let Some(Err(error)) = &name {
        reader.fault(&table, "name", error.to_string());
    }
    let frontends: Option<Vec<SocketAddr>> = reader.required(&mut table, "frontends");
    if frontends.as_ref().is_some_and(Vec::is_empty) {
        reader.fault(&table, "frontends", "should name at least one front end");
    }
    reader.close(table);
    Some((name?.ok()?, frontends?))
}

fn source(reader: &mut Reader, root: &mut Table<'_>) -> Option<(PasswdFileSource, Option<char>)> {
    let mut sources = reader.table(root, "source");
    let mut table = reader.table(&mut sources, "passwd_file");
    let path = reader.path(&mut table, "path");
    let default_domain: Option<String> = reader.optional(&mut table, "default_domain");
    if default_domain.as_ref().is_some_and(|domain| Address::parse(&format!("x@{domain}")).is_err()) {
        reader.fault(&table, "default_domain", "is no domain");
    }
    let text: Option<String> = reader.optional(&mut table, "recipient_delimiter");
    let delimiter = text.as_deref().map(one_character);
    if delimiter == Some(None) {
        reader.fault(&table, "recipient_delimiter", "should be one character other than '@'");
    }
    reader.close(table);
    reader.close(sources);
    Some((PasswdFileSource { path: path?, default_domain }, delimiter.flatten()))
}

fn one_character(text: &str) -> Option<char> {
    let mut characters = text.chars();
    let first = characters.next()?;
    (characters.next().is_none() && first != '@').then_some(first)
}

fn services(reader: &mut Reader, root: &mut Table<'_>) -> Option<Services> {
    let mut table = reader.table(root, "services");
    let services = Services {
        lmtp: endpoint(reader, &mut table, "lmtp"),
        imap: endpoint(reader, &mut table, "imap"),
        pop3: endpoint(reader, &mut table, "pop3"),
    };
    let any = ["lmtp", "imap", "pop3"].iter().any(|service| reader.has(&table, service));
    reader.close(table);
    if !any {
        let root_key = root;
        reader.fault(root_key, "services", "should have at least one of lmtp, imap and pop3");
    }
    Some(services)
}

/// None: there is no such service, or its fault was told.
fn endpoint(reader: &mut Reader, services: &mut Table<'_>, key: &'static str) -> Option<Endpoint> {
    let present = reader.has(services, key);
    let mut table = reader.table(services, key);
    if !present {
        return None;
    }
    let address = reader.required(&mut table, "address");
    let tls = if reader.or(&mut table, "tls", false) { EndpointTls::Implicit } else { EndpointTls::None };
    reader.close(table);
    Some(Endpoint { address: address?, tls })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AgentConfig, Problems> {
        let dir = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "node.pem", "node.key"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        load(&file)
    }

    const IDENTITY: &str = "[identity]\nca = \"ca.pem\"\ncertificate = \"node.pem\"\nkey = \"node.key\"\n";

    #[test]
    fn a_whole_configuration_reads() {
        let text = format!(
            "[agent]\nname = \"be1\"\nfrontends = [\"10.77.0.11:7400\", \"[fd77::12]:7400\"]\n{IDENTITY}\
             [source.passwd_file]\npath = \"/etc/dovecot/users\"\nrecipient_delimiter = \"+\"\n\
             [services]\nlmtp = {{ address = \"10.77.0.21:24\" }}\nimap = {{ address = \"10.77.0.21:993\", tls = true }}\n"
        );
        let config = read(&text).unwrap();
        assert_eq!((config.name.as_str(), config.frontends.len()), ("be1", 2));
        assert_eq!(config.source.path, Path::new("/etc/dovecot/users"));
        assert_eq!(config.record.recipient_delimiter, Some('+'));
        let Services { lmtp: Some(lmtp), imap: Some(imap), pop3: None } = config.record.services else {
            panic!("{:?}", config.record)
        };
        assert_eq!((lmtp.tls, imap.tls), (EndpointTls::None, EndpointTls::Implicit));
        assert_eq!(imap.address, "10.77.0.21:993".parse().unwrap());
    }

    #[test]
    fn every_fault_is_told() {
        let text = "[agent]\nname = \"Be1\"\nfrontends = []\nport = 1\n\
                    [source.passwd_file]\nrecipient_delimiter = \"+-\"\ndefault_domain = \"a b\"\n\
                    [services]\nlmtp = { adress = \"10.77.0.21:24\" }\nimap = { address = \"nowhere\", tls = 1 }\n";
        let told: Vec<_> = read(text).unwrap_err().problems.into_iter().map(|p| (p.line.unwrap_or(0), p.key)).collect();
        let expected = [
            (0, "identity.ca"),
            (0, "identity.certificate"),
            (0, "identity.key"),
            (2, "agent.name"),
            (3, "agent.frontends"),
            (4, "agent.port"),
            (5, "source.passwd_file.path"),
            (6, "source.passwd_file.recipient_delimiter"),
            (7, "source.passwd_file.default_domain"),
            (9, "services.lmtp.address"),
            (9, "services.lmtp.adress"),
            (10, "services.imap.address"),
            (10, "services.imap.tls"),
        ];
        assert_eq!(told, expected.map(|(line, key)| (line, key.to_owned())));
        let without = format!(
            "[agent]\nname = \"be1\"\nfrontends = [\"10.77.0.11:7400\"]\n{IDENTITY}[source.passwd_file]\npath = \"x\"\n"
        );
        let problems = read(&without).unwrap_err().problems;
        assert_eq!(problems.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(), ["services"]);
    }
}
