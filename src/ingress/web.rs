//! Refuses web pages at the TCP port: a browser on the same machine can connect to it for any page that it shows.
//!
//! | a page's request | obstacle |
//! | --- | --- |
//! | a call with a token or JSON | the browser asks first (`OPTIONS`), and gets no permission |
//! | a plain form or text, sent without asking | it names its origin (`Origin`): 403 |
//! | to a host name of the page's own that resolves to 127.0.0.1 | the request names that host: 403 |
//!
//! No SDK sends `Origin`, and bots name this machine.

use std::net::IpAddr;

use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::http::uri::Authority;

use super::error_reply::ErrorReply;

/// Refuses requests of a browser.
pub(super) fn reject_browser(headers: &HeaderMap) -> Result<(), ErrorReply> {
    if headers.contains_key(ORIGIN) {
        return Err(ErrorReply::forbidden("connect-relay: the request comes from a web page (Origin)"));
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        // HTTP/1.0; a browser always sends a host.
        (None, _) => Ok(()),
        (Some(host), None) if host.to_str().is_ok_and(is_local) => Ok(()),
        _ => Err(ErrorReply::forbidden("connect-relay: Host is not this machine: localhost or a loopback address is")),
    }
}

fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let address = name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    address || name.trim_end_matches('.').eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_a_host() {
        for host in ["127.0.0.1:8480", "127.9.9.9", "localhost", "LocalHost:80", "localhost.:80", "[::1]:8480"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["", "bots.example", "127.0.0.1.bots.example:8480", "localhost.bots.example", "10.0.0.1", "[::2]"] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn page_is_known_by_its_origin_or_its_host() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            reject_browser(&headers).err().map(|error| error.status.as_u16())
        };
        assert_eq!(of(&[("host", "127.0.0.1:8480")]), None);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("host", "127.0.0.1"), ("origin", "null")]), Some(403));
        assert_eq!(of(&[("host", "page.example")]), Some(403));
        assert_eq!(of(&[("host", "127.0.0.1"), ("host", "127.0.0.1")]), Some(403));
    }
}
