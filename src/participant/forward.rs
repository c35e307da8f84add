//! The headers that are forwarded with a request and with its reply.

use hyper::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

/// Headers that belong to one connection, and those that the next connection sets anew.
const OF_A_CONNECTION: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// The service needs no signature, and one made for the relay's address would be invalid. `Relay-…`, which can contain a
/// token, and `Prefer` are for the relay. The caller's Accept-Encoding is not forwarded, because a reply to a bot is never
/// encoded.
fn stays_here(name: &HeaderName) -> bool {
    let text = name.as_str();
    [HOST, AUTHORIZATION, ACCEPT_ENCODING].contains(name)
        || ["x-amz-date", "x-amz-security-token", "x-amz-content-sha256", "prefer"].contains(&text)
        || text.starts_with("amz-sdk-")
        || text.starts_with("relay-")
}

/// A bot's headers as they are forwarded.
pub(super) fn request(headers: &HeaderMap) -> HeaderMap {
    let mut passed = end_to_end(headers);
    let dropped: Vec<HeaderName> = passed.keys().filter(|name| stays_here(name)).cloned().collect();
    for name in dropped {
        passed.remove(name);
    }
    if let Some(bearer) = passed.get_mut("x-amz-bearer") {
        bearer.set_sensitive(true);
    }
    passed.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    passed
}

/// The headers that are not of one connection: upstream's are returned to a bot like this.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|names| names.split(',')) {
        passed.remove(name.trim());
    }
    for name in OF_A_CONNECTION {
        passed.remove(name);
    }
    passed.remove("keep-alive");
    passed.remove("proxy-connection");
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(names: &[&'static str]) -> HeaderMap {
        names.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("x-nominated, x"))).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn signing_and_connection_headers_stay_here() {
        let given = map(&[
            "host",
            "connection",
            "x-nominated",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "expect",
            "content-length",
            "proxy-connection",
            "proxy-authorization",
            "authorization",
            "x-amz-date",
            "x-amz-security-token",
            "x-amz-content-sha256",
            "amz-sdk-request",
            "amz-sdk-invocation-id",
            "relay-conversation",
            "relay-replaces-token",
            "prefer",
            "accept-encoding",
            "x-amz-bearer",
            "content-type",
            "user-agent",
            "x-amz-user-agent",
        ]);
        let passed = request(&given);
        assert_eq!(
            names(&passed),
            ["accept-encoding", "content-type", "user-agent", "x-amz-bearer", "x-amz-user-agent"]
        );
        assert_eq!(passed["accept-encoding"], "identity");
        assert!(passed["x-amz-bearer"].is_sensitive());
    }

    #[test]
    fn reply_loses_only_what_belongs_to_its_connection() {
        let given = map(&[
            "connection",
            "x-nominated",
            "keep-alive",
            "transfer-encoding",
            "content-length",
            "proxy-authenticate",
            "content-type",
            "x-amzn-requestid",
            "x-amzn-errortype",
            "retry-after",
        ]);
        let passed = end_to_end(&given);
        assert_eq!(names(&passed), ["content-type", "retry-after", "x-amzn-errortype", "x-amzn-requestid"]);
    }
}
