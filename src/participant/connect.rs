//! Connecting to the Participant Service: TCP, a proxy's CONNECT and TLS, all under one time-out.
//!
//! Until a connection stands nothing of a request is written; so whatever fails here, the time-out included, cannot
//! have delivered anything. hyper's own connect time-out ends with TCP, hence the wrapper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections, each within the limit or not at all.
#[derive(Clone)]
pub(super) struct Connector {
    route: Route,
    limit: Duration,
}

#[derive(Clone)]
enum Route {
    Direct(HttpsConnector<HttpConnector>),
    Proxied(HttpsConnector<Tunnel<HttpConnector>>),
}

impl Connector {
    /// A connector over `tls`, through the proxy where there is one.
    pub(super) fn new(tls: ClientConfig, proxy: Option<Uri>, limit: Duration) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared among a name's addresses, so that one that swallows packets leaves time for the next.
        tcp.set_connect_timeout(Some(limit));
        // An idle connection whose other end has vanished is found out before a message is written to it.
        tcp.set_keepalive(Some(Duration::from_secs(15)));
        let tls = Arc::new(tls);
        let route = match proxy {
            Some(proxy) => Route::Proxied((Tunnel::new(proxy, tcp), tls).into()),
            None => Route::Direct((tcp, tls).into()),
        };
        Connector { route, limit }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.route {
            Route::Direct(inner) => inner.poll_ready(task),
            Route::Proxied(inner) => inner.poll_ready(task),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = match &mut self.route {
            Route::Direct(inner) => inner.call(to),
            Route::Proxied(inner) => inner.call(to),
        };
        let limit = self.limit;
        Box::pin(async move {
            tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                let text = format!("no connection within {}", humantime::format_duration(limit));
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            })
        })
    }
}

/// A TLS client that trusts the system's roots and those of a PEM.
pub(super) fn trusting(extra_pem: &[u8]) -> Result<ClientConfig, String> {
    let system = rustls_native_certs::load_native_certs();
    let problem = system.errors.first().map(ToString::to_string);
    config(roots(system.certs, problem, extra_pem)?)
}

/// A TLS client that trusts nobody: for an endpoint without TLS, which never asks it.
pub(super) fn trusting_nobody() -> Result<ClientConfig, String> {
    config(RootCertStore::empty())
}

fn config(roots: RootCertStore) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("set up TLS: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
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
}
