//! The HTTP listener for Kubernetes, Prometheus and browsers: read-only, no contents, no tokens, no conversation
//! keys.
//!
//! | path | reply |
//! | --- | --- |
//! | `/metrics` | all metrics, in Prometheus's text format |
//! | `/livez` | 200, unless a restart would help; then 503 and the part that makes no progress |
//! | `/readyz` | 200 while bots can use the relay; else 503 and the reason |
//! | `/` | the status page (`page.html`) |
//! | `/status.json` | the same as data; 503 and the reason while the queue does not answer |
//!
//! GET and HEAD only. The probes use neither the queue's disk nor its thread, so that they answer while those are
//! stuck, and before the queue is open. `/readyz` checks the path of the bots' socket, which is one system call.
//! `/metrics` asks the queue for fresh figures, with a short time-out: if the queue is stuck, it returns the last
//! figures.

mod page;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request, StatusCode};
use prometheus::{IntGauge, TextEncoder};

pub use self::page::Sources;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::serve::{Reply, SocketPath, reply};
use crate::time::Clock;

/// The longest wait of a scrape for the queue's own figures.
const REFRESH_MAX: Duration = Duration::from_millis(500);

/// The handler of the listener; clones are cheap.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The metrics.
    pub metrics: Metrics,
    /// The source of the probes.
    pub health: Health,
    /// The queue whose figures are refreshed, once it is open.
    pub queue: Arc<OnceLock<Queue>>,
    /// The sources of the status page, once the queue is open.
    pub sources: Arc<OnceLock<Sources>>,
    /// The path of the bots' socket, once it is bound.
    pub socket_path: Arc<OnceLock<SocketPath>>,
    /// 1 if the bots' socket was at its path at the last check.
    pub socket_present: IntGauge,
    /// For the age of the sender's last step.
    pub clock: Clock,
}

/// The pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Metrics,
    Live,
    Ready,
    Status,
    StatusData,
    NotFound,
    MethodNotAllowed,
}

impl Admin {
    /// Answers one request; ignores its body.
    pub async fn answer<B>(&self, request: &Request<B>) -> Reply {
        match page(request.method(), request.uri().path()) {
            Page::Metrics => {
                if let Some(queue) = self.queue.get() {
                    // This call refreshes the queue's gauges. On a time-out they keep their last values.
                    let _ = tokio::time::timeout(REFRESH_MAX, queue.overview()).await;
                }
                // This call refreshes the gauge; its result is not needed here.
                let _ = self.check_socket();
                render(&self.metrics)
            }
            Page::Live => {
                let commit = self.queue.get().map_or(Duration::ZERO, Queue::stalled);
                probe(self.health.live(self.clock.awake(), commit), "alive")
            }
            Page::Ready => probe(self.health.ready().and_then(|()| self.check_socket()), "ready"),
            Page::Status => page::page(),
            Page::StatusData => page::data(self.sources.get(), self.health.state().as_str()).await,
            Page::NotFound => {
                text(StatusCode::NOT_FOUND, "not found; there are /, /status.json, /metrics, /livez and /readyz")
            }
            Page::MethodNotAllowed => {
                let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here");
                reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
                reply
            }
        }
    }

    /// Checks that the bots' socket is at its path. Before it is bound it is not.
    fn check_socket(&self) -> Result<(), String> {
        let checked = self.socket_path.get().map_or(Err("it is not bound yet".into()), SocketPath::check);
        self.socket_present.set(i64::from(checked.is_ok()));
        checked.map_err(|why| format!("the bots' socket is not at its path: {why}"))
    }
}

fn page(method: &Method, path: &str) -> Page {
    let page = match path {
        "/metrics" => Page::Metrics,
        "/livez" => Page::Live,
        "/readyz" => Page::Ready,
        "/" => Page::Status,
        "/status.json" => Page::StatusData,
        _ => return Page::NotFound,
    };
    if method == Method::GET || method == Method::HEAD { page } else { Page::MethodNotAllowed }
}

fn probe(result: Result<(), String>, healthy: &str) -> Reply {
    match result {
        Ok(()) => text(StatusCode::OK, healthy),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

/// A reply of one line of text.
fn text(status: StatusCode, line: &str) -> Reply {
    // An error's text may contain line breaks; the reply must be one line.
    reply(status, "text/plain; charset=utf-8", line.replace(['\r', '\n'], " ") + "\n")
}

fn render(metrics: &Metrics) -> Reply {
    match TextEncoder::new().encode_to_string(&metrics.registry().gather()) {
        Ok(body) => reply(StatusCode::OK, prometheus::TEXT_FORMAT, body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("render the metrics: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use hyper::header::CONTENT_TYPE;

    use super::*;

    fn body(reply: Reply) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(reply.into_body().collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn admin_port_has_five_pages_for_get_and_head() {
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(page(&method, "/metrics"), Page::Metrics);
            assert_eq!(page(&method, "/livez"), Page::Live);
            assert_eq!(page(&method, "/readyz"), Page::Ready);
            assert_eq!(page(&method, "/"), Page::Status);
            assert_eq!(page(&method, "/status.json"), Page::StatusData);
        }
        assert_eq!(page(&Method::POST, "/metrics"), Page::MethodNotAllowed);
        for path in ["//", "/metrics/", "/status", "/participant/message"] {
            assert_eq!(page(&Method::GET, path), Page::NotFound);
        }
    }

    #[test]
    fn metrics_are_rendered_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.counter("repeats_total", "Submissions that had been accepted before.").inc();
        let reply = render(&metrics);
        assert_eq!(reply.headers()[CONTENT_TYPE], "text/plain; version=0.0.4");
        let body = body(reply);
        assert!(body.contains("# TYPE connect_relay_repeats_total counter\nconnect_relay_repeats_total 1\n"), "{body}");
    }

    #[test]
    fn failed_probe_returns_its_reason_in_one_line() {
        let reply = probe(Err("failed: write:\nno space left".into()), "ready");
        assert_eq!(reply.status(), 503);
        assert_eq!(body(reply), "failed: write: no space left\n");
        assert_eq!(probe(Ok(()), "ready").status(), 200);
    }
}
