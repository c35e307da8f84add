//! A trial of the way to the Participant Service, and a request to a port of this machine, both for
//! `connect-relay check --online`.
//!
//! The trial is one request without a token and without a message, as an attempt would send it: through the same
//! connector, proxy, roots and time-outs. The service sends nothing to a chat, whatever it answers. Each step that
//! the request has passed is a [`Step`] without a fault; the first that fails has a sentence with the next step, and is
//! the last.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::{self, connect::capture_connection};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::causes::{causes, chain, tls_error};
use super::response::{self, Response};
use super::{ANSWER_BYTES_MAX, Options, Participant};
use crate::time::Clock;

/// One step of the way, and the fault that ended the trial there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The step, such as `connect HOST:443`.
    pub name: String,
    /// A remark on a step that was passed; may be empty.
    pub remark: String,
    /// A sentence: the fault and the next step.
    pub fault: Option<String>,
}

/// Tries the way to the service. `setting` names the setting that decides the destination, with its value.
pub async fn try_connection(options: Options, setting: &str, clock: Clock) -> Vec<Step> {
    let trial = Trial::new(&options, setting);
    let mut steps = Vec::new();
    if trial.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
        steps.push(trial.resolve().await);
    }
    if steps.iter().all(|step| step.fault.is_none()) {
        match Participant::new(options, clock) {
            Ok(participant) => steps.extend(trial.request(&participant).await),
            Err(fault) => steps.push(failed(
                "certificate authorities",
                format!("{fault}: install the system's (ca-certificates), or name yours with sender.ca_file"),
            )),
        }
    }
    steps
}

/// The names of the way.
struct Trial<'a> {
    setting: &'a str,
    /// The setting and the value of the first host on the way.
    first_setting: String,
    /// The first host on the way, and its port: the proxy's if there is one.
    host: String,
    port: u16,
    /// The service's host and port.
    service: String,
    proxied: bool,
    secure: bool,
    connect_timeout: Duration,
    attempt_timeout: Duration,
}

impl Trial<'_> {
    fn new<'a>(options: &Options, setting: &'a str) -> Trial<'a> {
        let secure = options.endpoint.scheme() == Some(&Scheme::HTTPS);
        let proxy = options.proxy.as_ref().filter(|_| secure);
        let of = |uri: &Uri, default| (uri.host().unwrap_or_default().to_owned(), uri.port_u16().unwrap_or(default));
        let (service_host, service_port) = of(&options.endpoint, if secure { 443 } else { 80 });
        let service = format!("{service_host}:{service_port}");
        let (host, port) = proxy.map_or((service_host, service_port), |proxy| of(proxy, 80));
        Trial {
            setting,
            first_setting: proxy.map_or(setting.to_owned(), |proxy| format!("sender.proxy ({proxy})")),
            host,
            port,
            service,
            proxied: proxy.is_some(),
            secure,
            connect_timeout: options.connect_timeout,
            attempt_timeout: options.attempt_timeout,
        }
    }

    async fn resolve(&self) -> Step {
        let name = format!("resolve {}", self.host);
        let within = humantime::format_duration(self.connect_timeout);
        match timeout(self.connect_timeout, lookup_host((self.host.as_str(), self.port))).await {
            Ok(Ok(addresses)) => {
                let first = addresses.map(|address| address.ip().to_string()).next().unwrap_or_default();
                Step { name, remark: first, fault: None }
            }
            Ok(Err(error)) => failed(
                &name,
                format!("there is no such name ({error}): check {}, and the DNS of this host", self.first_setting),
            ),
            Err(_) => failed(
                &name,
                format!(
                    "DNS did not answer within {within}: allow this host to reach its DNS servers, or correct them"
                ),
            ),
        }
    }

    async fn request(&self, participant: &Participant) -> Vec<Step> {
        let connect = if self.proxied {
            format!("connect {} through the proxy {}:{}", self.service, self.host, self.port)
        } else {
            format!("connect {}", self.service)
        };
        let (certificate, answered) =
            (format!("certificate of {}", self.service), format!("answer of {}", self.service));
        let mut request = match request_of(participant) {
            Ok(request) => request,
            Err(error) => return vec![failed(&answered, format!("{error}: check {}", self.setting))],
        };
        let connection = capture_connection(&mut request);
        let exchange = async {
            let response = participant.0.client.request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok().map(|body| body.to_bytes());
            Ok::<_, legacy::Error>((head.status, head.headers, body))
        };
        let limit = || format!("within {} (sender.attempt_timeout)", humantime::format_duration(self.attempt_timeout));
        let answer = match timeout(self.attempt_timeout, exchange).await {
            Ok(Ok((status, headers, body))) => {
                let answer = Response { status, headers: &headers, body: body.as_deref() };
                match response::recognise(&answer) {
                    Err(why) if status.is_server_error() => {
                        Err(format!("it answered {why}: try again in a minute; if it lasts, check {}", self.setting))
                    }
                    Err(why) => {
                        let next = "and what is on the way to it (sender.proxy)";
                        Err(format!("it answered {why}: check {}, {next}", self.setting))
                    }
                    recognised => recognised,
                }
            }
            Ok(Err(error)) if !error.is_connect() => {
                Err(format!("no answer came: {}: try again; if it lasts, check {}", causes(&error), self.setting))
            }
            Ok(Err(error)) => {
                return match chain(&error).find_map(tls_error) {
                    Some(_) => vec![passed(&connect, String::new()), failed(&certificate, causes(&error))],
                    None => vec![failed(&connect, self.unconnected(&error))],
                };
            }
            Err(_) if connection.connection_metadata().is_none() => {
                return vec![failed(&connect, format!("no connection {}: {}", limit(), self.egress()))];
            }
            Err(_) => Err(format!("no answer {}: try again; if it lasts, check {}", limit(), self.setting)),
        };
        let answer = answer.map_or_else(|fault| failed(&answered, fault), |remark| passed(&answered, remark));
        let certificate = self.secure.then(|| passed(&certificate, String::new()));
        [passed(&connect, String::new())].into_iter().chain(certificate).chain([answer]).collect()
    }

    /// The sentence on a connection that was not made.
    fn unconnected(&self, error: &legacy::Error) -> String {
        let kind = chain(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).last().map(io::Error::kind);
        let text = causes(error);
        if text.contains("answered CONNECT") || text.contains("to CONNECT") || text.contains("answer CONNECT") {
            // The proxy's own words have the next step, or end with its fault.
            return format!("{text}; correct sender.proxy, or what the proxy allows");
        }
        match kind {
            Some(ErrorKind::ConnectionRefused) => {
                format!("nothing listens there, or a firewall refuses it: check {}", self.first_setting)
            }
            Some(ErrorKind::TimedOut) => {
                let within = humantime::format_duration(self.connect_timeout);
                format!("no connection within {within} (sender.connect_timeout): {}", self.egress())
            }
            Some(ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied) => {
                format!("{text}: {}", self.egress())
            }
            _ => format!("{text}: check {}, and what is on the way to it", self.first_setting),
        }
    }

    fn egress(&self) -> String {
        let instead = if self.proxied { "correct sender.proxy" } else { "set sender.proxy if there is a proxy" };
        format!(
            "allow this host to connect to {}:{} (firewall, security group, NetworkPolicy), or {instead}",
            self.host, self.port
        )
    }
}

/// The request of the trial: SendMessage without a token, a text and a type.
fn request_of(participant: &Participant) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let body = Bytes::from_static(b"{}");
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = participant.0.uri("/participant/message")?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("2"));
    request.headers_mut().insert(hyper::header::USER_AGENT, super::AGENT);
    Ok(request)
}

fn passed(name: &str, remark: String) -> Step {
    Step { name: name.into(), remark, fault: None }
}

fn failed(name: &str, fault: String) -> Step {
    Step { name: name.into(), remark: String::new(), fault: Some(fault) }
}

/// Asks a port of this machine for a page, to find out which program listens there. `None` if it is not HTTP, or does
/// not answer in time.
pub async fn get_page(address: SocketAddr, path: &str, within: Duration) -> Option<(HeaderMap, Bytes)> {
    let ask = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = Request::get(path).header(HOST, address.to_string()).header(CONNECTION, "close");
        let request = request.body(Full::<Bytes>::default()).ok()?;
        let reply = async {
            let (head, body) = sender.send_request(request).await.ok()?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok()?;
            Some((head.headers, body.to_bytes()))
        };
        let (reply, _) = tokio::join!(reply, connection);
        reply
    };
    timeout(within, ask).await.ok().flatten()
}
