//! A throw-away CA for the engine that encrypts.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Files that nodes read; removed at the end.
pub(crate) struct Pki {
    directory: PathBuf,
}

impl Pki {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("membership-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let node = CertificateParams::new(vec!["frontend.autocluster.internal".to_owned()])?.signed_by(&key, &ca)?;
        std::fs::write(directory.join("ca.pem"), ca.pem())?;
        std::fs::write(directory.join("node.pem"), node.pem())?;
        std::fs::write(directory.join("node.key"), key.serialize_pem())?;
        Ok(Self { directory })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Pki {
    fn drop(&mut self) {
        // Left-overs in the temporary directory do no harm.
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
