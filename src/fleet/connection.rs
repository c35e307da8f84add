//! A connection to one of the servers: only this file and `stream`, which makes requests over it, name the NATS client.
//!
//! The NATS client keeps what is published while it is disconnected, and sends it after it has connected again, however
//! old it is then. So the relay has a client for each connection, and none connects twice: a client that tries to gets
//! no credentials, gives up, and is dropped with all that it holds. (It has no setting for that: `max_reconnects` 0 means
//! for ever, and 1 allows one.)
//!
//! **Tasks.** [`Connector::connect_to`] is the one place that starts tasks which the daemon does not join: the client
//! starts two of its own, one for the connection and one for its events. Both end when the last handle on the client is
//! dropped, or their connection is lost. Only the fleet's own task owns handles, and it drops them before it ends.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Auth, Client, ConnectOptions, Event, ServerAddr, Subscriber};
use bytes::Bytes;
use futures_core::Stream as _;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::credentials::Credentials;
use super::options::{Login, Options, Server};
use crate::retry::Backoff;
use crate::tls;

/// The time for one server to accept the connection and the relay's credentials. A server that is stopped accepts
/// connections and never answers.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// The time between two pings, and the pings without an answer after which the connection is lost.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// The delays between rounds in which no server accepted.
pub const BACKOFF: Backoff =
    Backoff { initial: Duration::from_millis(200), multiplier: 2.0, randomization: 0.5, max: Duration::from_secs(5) };

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    servers: Vec<Server>,
    credentials: Option<Credentials>,
    tls: ClientConfig,
}

/// A connection. It is lost for good when [`Link::next`] says so.
#[derive(Debug)]
pub struct Link {
    /// The server, without its login.
    pub server: String,
    client: Client,
    events: mpsc::UnboundedReceiver<Event>,
    subscriber: Option<Subscriber>,
}

/// An event of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A message of the subscribed subject.
    Message(Bytes),
    /// The server refuses something, such as a subject, in its own words.
    Refused(String),
    /// The connection is lost, and why.
    Lost(String),
}

impl Connector {
    /// A connector with these settings.
    ///
    /// # Errors
    /// If the certificates or the credentials cannot be used.
    pub fn new(options: &Options) -> Result<Connector, String> {
        let tls = match &options.identity {
            Some(identity) => tls::with_identity(&options.extra_roots, identity),
            None => tls::with_roots(&options.extra_roots),
        };
        if let Some(credentials) = &options.credentials {
            credentials.public_key()?;
        }
        Ok(Connector { servers: options.servers.clone(), credentials: options.credentials.clone(), tls: tls? })
    }

    /// Connects to the first server that accepts, beginning with the one at `first` (of any number).
    ///
    /// # Errors
    /// If none accepts, with the reason of each.
    pub async fn connect(&self, first: usize) -> Result<Link, String> {
        let mut faults = Vec::new();
        for index in 0..self.servers.len() {
            let server = &self.servers[first.wrapping_add(index) % self.servers.len()];
            match self.connect_to(server).await {
                Ok(link) => return Ok(link),
                Err(fault) => faults.push(format!("{server}: {fault}")),
            }
        }
        Err(faults.join("; "))
    }

    /// Connects to one server.
    ///
    /// # Errors
    /// With the reason, in words.
    pub async fn connect_to(&self, server: &Server) -> Result<Link, String> {
        let address: ServerAddr = server.to_string().parse().map_err(|error| format!("{error}"))?;
        let (seen, events) = mpsc::unbounded_channel();
        let login = self.login(server)?;
        let authenticated = AtomicBool::new(false);
        let options = ConnectOptions::with_auth_callback(move |nonce| {
            // Asked for a second time, it would connect again: it gets nothing, and ends (see the module's head).
            let again = authenticated.swap(true, Ordering::Relaxed);
            let auth = if again { Err("the connection was lost".into()) } else { login.answer(&nonce) };
            async { auth.map_err(async_nats::AuthError::new) }
        });
        let options = options
            .name("connect-relay")
            .require_tls(server.tls)
            .tls_client_config(self.tls.clone())
            .connection_timeout(CONNECT_MAX)
            .ping_interval(PING_INTERVAL)
            .ignore_discovered_servers()
            .max_reconnects(1)
            .event_callback(move |event| {
                // After the last handle is gone, events concern nothing any more.
                let _ = seen.send(event);
                async {}
            });
        // The limit of the options is for each address of a name.
        match timeout(CONNECT_MAX, options.connect(address)).await {
            Ok(Ok(client)) => Ok(Link { server: server.to_string(), client, events, subscriber: None }),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err(format!("no answer within {}", humantime::format_duration(CONNECT_MAX))),
        }
    }

    /// Tries one server: connects, and sends a word to itself over `subject`, if there is one.
    ///
    /// # Errors
    /// With the reason and the next step, in words.
    pub async fn try_server(&self, server: &Server, subject: Option<&str>) -> Result<(), String> {
        let mut link = self.connect_to(server).await.map_err(|fault| format!("{fault}: {}", next_step(&fault)))?;
        let Some(subject) = subject else { return Ok(()) };
        let word = format!("\"check {:016x}\"", fastrand::u64(..));
        link.subscribe(subject).await?;
        link.publish(subject, word.clone().into_bytes()).await?;
        let came_back = async {
            loop {
                match link.next().await {
                    Happening::Message(payload) if payload == word => return Ok(()),
                    Happening::Message(_) => {}
                    Happening::Refused(why) => {
                        return Err(format!("{why}: allow the relay's account to publish and subscribe on {subject}"));
                    }
                    Happening::Lost(why) => return Err(format!("{why}: try again")),
                }
            }
        };
        timeout(CONNECT_MAX, came_back).await.unwrap_or_else(|_| {
            let within = humantime::format_duration(CONNECT_MAX);
            Err(format!("a message to {subject} did not come back within {within}: check the server"))
        })
    }

    fn login(&self, server: &Server) -> Result<Identification, String> {
        Ok(match (&self.credentials, &server.login) {
            (Some(credentials), _) => Identification::Signed(credentials.clone(), credentials.public_key()?),
            (None, Some(login)) => Identification::Login(login.clone()),
            (None, None) => Identification::Nothing,
        })
    }
}

/// The answer to a server that asks who the relay is.
enum Identification {
    Nothing,
    Login(Login),
    /// The credentials, and their public key.
    Signed(Credentials, String),
}

impl Identification {
    fn answer(&self, nonce: &[u8]) -> Result<Auth, String> {
        let mut auth = Auth::new();
        match self {
            Identification::Nothing => {}
            Identification::Login(Login::Token(token)) => auth.token = Some(token.to_string()),
            Identification::Login(Login::User(user, password)) => {
                (auth.username, auth.password) = (Some(user.clone()), Some(password.to_string()));
            }
            Identification::Signed(credentials, public_key) => {
                auth.signature = Some(credentials.sign(nonce)?);
                match credentials.jwt() {
                    Some(jwt) => auth.jwt = Some(jwt.to_owned()),
                    None => auth.nkey = Some(public_key.clone()),
                }
            }
        }
        Ok(auth)
    }
}

impl Link {
    /// The client, for requests. It must not outlive the connection.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Subscribes to the one subject whose messages [`Link::next`] returns.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn subscribe(&mut self, subject: &str) -> Result<(), String> {
        let subscriber = self.client.subscribe(subject.to_owned()).await;
        self.subscriber = Some(subscriber.map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Publishes a message. It may get lost.
    ///
    /// # Errors
    /// If the connection is lost.
    pub async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), String> {
        self.client.publish(subject.to_owned(), payload.into()).await.map_err(|error| error.to_string())
    }

    /// The reason of the server for a request that got no answer, if it gave one: a right that the account lacks.
    pub async fn refusal(&mut self) -> Option<String> {
        match timeout(Duration::ZERO, self.next()).await {
            Ok(Happening::Refused(why)) => Some(why),
            _ => None,
        }
    }

    /// Waits for what happens next. Dropping it loses nothing.
    pub async fn next(&mut self) -> Happening {
        loop {
            let message = async {
                match &mut self.subscriber {
                    Some(subscriber) => std::future::poll_fn(|task| Pin::new(&mut *subscriber).poll_next(task)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Some(Event::Connected) => {}
                    Some(Event::ServerError(error)) => return Happening::Refused(error.to_string()),
                    Some(Event::Disconnected | Event::Closed) | None => {
                        return Happening::Lost("the connection was closed".into());
                    }
                    Some(Event::LameDuckMode) => return Happening::Lost("the server shuts down".into()),
                    Some(_) => {}
                },
                message = message => return match message {
                    Some(message) => Happening::Message(message.payload),
                    None => Happening::Lost("the connection was closed".into()),
                },
            }
        }
    }
}

/// The operator's next step after a connection failed.
fn next_step(fault: &str) -> &'static str {
    let fault = fault.to_lowercase();
    if fault.contains("authorization") || fault.contains("authentication") {
        "check the user and password in fleet.servers, or fleet.credentials_file"
    } else if fault.contains("certificate") || fault.contains("tls") {
        "check fleet.ca_file, fleet.cert_file, and the name in fleet.servers"
    } else {
        "check fleet.servers, and that this host may connect there (firewall, security group, NetworkPolicy)"
    }
}

/// An error and its causes, in one line.
fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
