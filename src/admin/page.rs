//! The status page: one file, without any other resource, and its data as JSON.
//!
//! The Content-Security-Policy admits the page's own style and script by their hashes, its own `status.json`, and nothing
//! else. Texts of the status become text nodes, never markup.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;

use crate::serve::{Reply, reply};
use crate::status::Status;
use crate::status::history::{History, Point};
use crate::status::reporter::Reporter;
use crate::status::text::{figures, headline};

/// The page.
const PAGE: &str = include_str!("page.html");

/// The longest wait for the queue's answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The sources of the status; clones share them.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The present status.
    pub reporter: Reporter,
    /// The last hour.
    pub history: History,
}

/// The reply to `GET /status.json`: the status, also as text, and the last hour.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    status: &'a Status,
    time: String,
    headline: String,
    figures: Vec<Figure>,
    history: Vec<Point>,
}

/// A figure as text.
#[derive(Serialize)]
struct Figure {
    name: &'static str,
    value: String,
}

/// `GET /`
pub(super) fn page() -> Reply {
    let mut page = reply(StatusCode::OK, "text/html; charset=utf-8", PAGE);
    restrict(&mut page);
    let policy = policy(PAGE);
    page.headers_mut().extend(HeaderValue::try_from(policy).ok().map(|policy| (CONTENT_SECURITY_POLICY, policy)));
    page
}

/// `GET /status.json`; `sources` is `None` until the queue is open.
pub(super) async fn data(sources: Option<&Sources>, state: &str) -> Reply {
    let Some(Sources { reporter, history }) = sources else {
        return unknown(format!("the relay is {state}: its queue is not open yet, it has no status"));
    };
    match timeout(ANSWER_MAX, reporter.status(false)).await {
        Ok(Ok(status)) => {
            let figures = figures(&status, None).into_iter().map(|(name, value)| Figure { name, value }).collect();
            let time = reporter.clock.shown(reporter.clock.now()).to_string();
            let data = Data { status: &status, time, headline: headline(&status), figures, history: history.points() };
            json(StatusCode::OK, &data)
        }
        Ok(Err(failed)) => unknown(format!("{failed}: the relay exits; see its log")),
        Err(_) => unknown(format!(
            "the store has not answered for {} s: check the disk under queue.path",
            reporter.queue.stalled().max(ANSWER_MAX).as_secs()
        )),
    }
}

fn unknown(why: String) -> Reply {
    json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "Error": format!("connect-relay: {why}") }))
}

fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Plain structs of numbers and text: this cannot fail.
    let mut reply = reply(status, "application/json", serde_json::to_string(body).unwrap_or_default());
    restrict(&mut reply);
    reply
}

/// Forbids caches, guesses of the content type, and referrers.
fn restrict(reply: &mut Reply) {
    for (name, value) in
        [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (REFERRER_POLICY, "no-referrer")]
    {
        reply.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

/// The page's Content-Security-Policy.
fn policy(page: &str) -> String {
    let hash = |tag: &str| {
        let inner = page.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        let inner = inner.map_or("", |(inner, _)| inner);
        format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, inner.as_bytes())))
    };
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action \
         'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        hash("script"),
        hash("style")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_one_file_without_inline_handlers_or_styles() {
        for (tag, times) in [("<script", 1), ("<script>", 1), ("<style", 1), ("<style>", 1), ("<link", 1)] {
            assert_eq!(PAGE.matches(tag).count(), times, "{tag}");
        }
        for word in [" style=", "javascript:", "innerHTML", "eval(", "src=", "http://", "https://", "url(", "@import"] {
            let words = PAGE.matches(word).count();
            // The name of SVG's elements is not a place.
            let allowed = PAGE.matches("'http://www.w3.org/2000/svg'").count();
            assert_eq!(words, if word == "http://" { allowed } else { 0 }, "{word}");
        }
        let handlers = PAGE.split(" on").skip(1).filter(|rest| {
            let name: String = rest.chars().take_while(char::is_ascii_lowercase).collect();
            !name.is_empty() && rest[name.len()..].starts_with('=')
        });
        assert_eq!(handlers.count(), 0, "no inline event handler");
    }

    #[tokio::test]
    async fn queue_that_is_not_open_is_503_with_the_reason() {
        use http_body_util::BodyExt as _;
        let reply = data(None, "starting").await;
        assert_eq!(reply.status(), 503);
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        let expected =
            r#"{"Error":"connect-relay: the relay is starting: its queue is not open yet, it has no status"}"#;
        assert_eq!(body, expected);
    }

    #[test]
    fn policy_admits_the_pages_own_script_and_style_alone() {
        let policy = policy("<style>a</style><script>b</script>");
        // As `printf a | openssl dgst -sha256 -binary | base64` has it.
        assert!(policy.contains("style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"), "{policy}");
        assert!(policy.contains("script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='"), "{policy}");
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        let page = page();
        assert_eq!(page.headers()["x-content-type-options"], "nosniff");
        assert!(page.headers()["content-security-policy"].to_str().unwrap().contains("sha256-"));
    }
}
