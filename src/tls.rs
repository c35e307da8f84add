//! TLS clients by rustls and ring: the trusted roots, and the certificate that a client shows.
//!
//! A client trusts the system's roots, as the operator keeps them, and those of one more PEM. The parts that connect to
//! other hosts share this, so that a root that the system has, or lacks, counts equally for all of them. The module reads
//! no file but the system's roots, and opens no connection.

use std::fmt;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use zeroize::Zeroizing;

/// The certificate that a client shows, and its private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate and the intermediate ones after it, in PEM.
    pub chain: Vec<u8>,
    /// The private key, in PEM.
    pub key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(not shown)")
    }
}

/// A TLS client that trusts the system's roots and those of a PEM.
///
/// # Errors
/// If there is no root at all, or the PEM has none that can be read.
pub fn with_roots(extra_pem: &[u8]) -> Result<ClientConfig, String> {
    Ok(builder(system_roots(extra_pem)?)?.with_no_client_auth())
}

/// The same client, which shows its certificate to a server that asks for one.
///
/// # Errors
/// If there is no root, or the certificate and the key cannot be read or do not match.
pub fn with_identity(extra_pem: &[u8], identity: &Identity) -> Result<ClientConfig, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&identity.chain).collect();
    let chain = chain.map_err(|error| format!("read the certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&identity.key).map_err(|error| format!("read the private key: {error}"))?;
    let client = builder(system_roots(extra_pem)?)?.with_client_auth_cert(chain, key);
    client.map_err(|error| format!("use the certificate with its private key: {error}"))
}

fn system_roots(extra_pem: &[u8]) -> Result<RootCertStore, String> {
    let system = rustls_native_certs::load_native_certs();
    let problem = system.errors.first().map(ToString::to_string);
    roots(system.certs, problem, extra_pem)
}

/// A TLS client without roots: for an endpoint without TLS, which never uses it.
///
/// # Errors
/// If TLS cannot be set up.
pub fn without_roots() -> Result<ClientConfig, String> {
    Ok(builder(RootCertStore::empty())?.with_no_client_auth())
}

fn builder(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("set up TLS: {error}"))?;
    Ok(builder.with_root_certificates(roots))
}

fn roots(
    system: Vec<CertificateDer<'static>>,
    problem: Option<String>,
    extra_pem: &[u8],
) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system);
    let own = roots.len();
    for certificate in CertificateDer::pem_slice_iter(extra_pem) {
        let certificate = certificate.map_err(|error| format!("read the extra trusted certificates: {error}"))?;
        roots.add(certificate).map_err(|error| format!("read the extra trusted certificates: {error}"))?;
    }
    if roots.len() == own && !extra_pem.is_empty() {
        return Err("read the extra trusted certificates: no certificate in the PEM".into());
    }
    if roots.is_empty() {
        let problem = problem.unwrap_or_else(|| "the system has none".into());
        return Err(format!("load the trusted certificates: {problem}"));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_any_root_there_is_no_client() {
        let error = roots(Vec::new(), None, b"").unwrap_err();
        assert_eq!(error, "load the trusted certificates: the system has none");
        let error = roots(Vec::new(), Some("permission denied".into()), b"").unwrap_err();
        assert_eq!(error, "load the trusted certificates: permission denied");
    }

    #[test]
    fn pem_that_holds_no_certificate_is_an_error_whatever_the_system_has() {
        let issued = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
        let system = || vec![issued.cert.der().clone()];
        for bad in [
            &b"not a PEM"[..],
            b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let error = roots(system(), None, bad).unwrap_err();
            assert!(error.starts_with("read the extra trusted certificates: "), "{error}");
        }
        assert_eq!(roots(system(), None, b"").unwrap().len(), 1);
        assert_eq!(roots(Vec::new(), None, issued.cert.pem().as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn identity_is_a_certificate_with_its_own_key_and_is_never_printed() {
        let [one, other] = ["one", "other"].map(|name| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap());
        let root = one.cert.pem();
        let identity = |chain: &str, key: &str| Identity {
            chain: chain.as_bytes().to_vec(),
            key: Zeroizing::new(key.as_bytes().to_vec()),
        };
        let key = one.signing_key.serialize_pem();
        let right = identity(&one.cert.pem(), &key);
        assert!(with_identity(root.as_bytes(), &right).is_ok());
        assert_eq!(format!("{right:?}"), "Identity(not shown)");
        for (wrong, expected) in [
            (identity(&other.cert.pem(), &key), "use the certificate with its private key: "),
            (identity(&one.cert.pem(), "no key"), "read the private key: "),
            (identity("none", &key), "use the certificate with its private key: "),
        ] {
            let error = with_identity(root.as_bytes(), &wrong).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
