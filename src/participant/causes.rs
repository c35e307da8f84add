//! Connection errors in plain sentences: the cause, and the operator's next step.
//!
//! Libraries nest errors, and some show their parts in Rust's debug form (`Other(OtherError(CaUsedAsEndEntity))`). Each
//! TLS error has a sentence here; all other errors are converted to words.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// The causes beneath an error, outermost first, or the error itself if it has none. Some errors repeat their cause in
/// their own text.
pub(super) fn causes(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), causes_of)
}

/// An error and the causes beneath it.
pub(super) fn causes_of(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in chain(error) {
        let tls = tls_error(cause).map(tls);
        let is_last = tls.is_some();
        let cause_text = tls.unwrap_or_else(|| cause.to_string());
        if !text.ends_with(&cause_text) {
            text = if text.is_empty() { cause_text } else { format!("{text}: {cause_text}") };
        }
        if is_last {
            break;
        }
    }
    text
}

/// An error, then its causes, outermost first.
pub(super) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

/// The TLS error in this error, which may be wrapped in one of input and output.
pub(super) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(error);
    }
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    tls_error(inner)
}

fn tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::NoCertificatesPresented => "the server presented no certificate".into(),
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) | rustls::Error::PeerIncompatible(_) => {
            "the server offers no version or cipher of TLS that the relay takes: TLS 1.2 or 1.3".into()
        }
        rustls::Error::AlertReceived(alert) => {
            format!("the server refused the TLS connection: {}", words_of_debug(&format!("{alert:?}")))
        }
        rustls::Error::InvalidMessage(_) => {
            "the server does not speak TLS: the port is wrong, or a proxy answers (sender.endpoint, sender.proxy)"
                .into()
        }
        error => format!("TLS failed: {}", words_of_debug(&error.to_string())),
    }
}

fn certificate(error: &CertificateError) -> String {
    let debug = format!("{error:?}");
    let text = match error {
        CertificateError::Expired => {
            "the server's certificate has expired: renew it there, or set this machine's clock"
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            let at = time(not_after.as_secs());
            return format!("the server's certificate expired at {at}: renew it there, or set this machine's clock");
        }
        CertificateError::NotValidYet => "the server's certificate is not valid yet: set this machine's clock",
        CertificateError::NotValidYetContext { not_before, .. } => {
            let at = time(not_before.as_secs());
            return format!("the server's certificate is not valid before {at}: set this machine's clock");
        }
        CertificateError::NotValidForName => {
            "the server's certificate is for another host: check sender.endpoint, or the names in the certificate"
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<_> = presented.iter().map(|name| host(name)).collect();
            return format!(
                "the server's certificate is for {}, not for {}: check sender.endpoint, or the names in the certificate",
                if presented.is_empty() { "no host".to_owned() } else { presented.join(", ") },
                expected.to_str()
            );
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is of an authority that is not trusted here: if it is yours, add the authority's \
             certificate to sender.ca_file"
        }
        CertificateError::Revoked => "the server's certificate was revoked: renew it there",
        CertificateError::BadEncoding => "the server's certificate cannot be read: it is no X.509 certificate",
        CertificateError::BadSignature => {
            "the signature of the server's certificate is wrong: the authority's certificate in sender.ca_file has the \
             right name and another key"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not one for servers: issue one with the extended key usage serverAuth"
        }
        _ if debug.contains("CaUsedAsEndEntity") => {
            "the server presents the certificate of an authority (CA:TRUE) as its own, such as a self-signed one: let it \
             present a certificate for servers (CA:FALSE) that this authority has issued, and keep the authority's in \
             sender.ca_file"
        }
        _ => return format!("the server's certificate is not accepted: {}", words_of_debug(&debug)),
    };
    text.into()
}

/// `DnsName("localhost")` and `IpAddress(127.0.0.1)` as hosts.
fn host(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"')
}

fn time(seconds: u64) -> String {
    crate::time::WallTime(seconds.saturating_mul(1000)).to_string()
}

/// A debug form in words: `Other(OtherError(UnsupportedCertVersion))` is "unsupported cert version".
fn words_of_debug(debug: &str) -> String {
    let innermost = debug.split(['(', '{']).rev().map(str::trim).find(|part| part.starts_with(char::is_alphabetic));
    let mut words = String::new();
    for c in innermost.unwrap_or(debug).trim_end_matches([')', '}', ' ']).chars() {
        if c.is_uppercase() && words.ends_with(char::is_lowercase) {
            words.push(' ');
        }
        words.extend(c.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::{InvalidMessage, OtherError};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("CaUsedAsEndEntity")]
    struct CaUsedAsEndEntity;

    #[derive(Debug, thiserror::Error)]
    #[error("UnsupportedCertVersion")]
    struct UnsupportedCertVersion;

    #[test]
    fn each_error_of_tls_is_a_sentence_without_debug_forms() {
        let moment = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (time, name) = (moment(0), ServerName::try_from("connect.example").unwrap());
        let invalid = rustls::Error::InvalidCertificate;
        let presented = vec!["DnsName(\"localhost\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()];
        let expired = CertificateError::ExpiredContext { time, not_after: moment(1_000_000_000) };
        let future = CertificateError::NotValidYetContext { time, not_before: moment(2_000_000_000) };
        let of_another = CertificateError::NotValidForNameContext { expected: name.to_owned(), presented };
        let other = |error: Arc<dyn Error + Send + Sync>| CertificateError::Other(OtherError(error));
        for (error, text) in [
            (invalid(CertificateError::Expired), "has expired"),
            (invalid(expired), "expired at 2001-09-09T01:46:40.000Z: "),
            (invalid(future), "not valid before 2033-05-18T03:33:20.000Z: "),
            (invalid(of_another), "is for localhost, 127.0.0.1, not for connect.example: "),
            (invalid(CertificateError::UnknownIssuer), "add the authority's certificate to sender.ca_file"),
            (invalid(other(Arc::new(CaUsedAsEndEntity))), "the certificate of an authority (CA:TRUE) as its own"),
            (invalid(other(Arc::new(UnsupportedCertVersion))), "not accepted: unsupported cert version"),
            (invalid(CertificateError::ApplicationVerificationFailure), "application verification failure"),
            (
                rustls::Error::AlertReceived(AlertDescription::HandshakeFailure),
                "refused the TLS connection: handshake failure",
            ),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), "does not speak TLS"),
        ] {
            let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
            let shown = causes_of(&wrapped);
            assert!(shown.contains(text), "{shown}");
            for debug in ["Other", "Context", "::", "{", "\"", "InvalidC"] {
                assert!(!shown.contains(debug), "{shown} has {debug}");
            }
        }
    }

    #[test]
    fn other_errors_are_their_chain_of_causes() {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "refused");
        assert_eq!(causes_of(&refused()), "refused");
        assert_eq!(causes(&refused()), "refused");
    }
}
