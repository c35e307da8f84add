//! The streams of a fleet, for operators: which there are, what one of an owner that is gone holds, and its removal.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::connection::{Connector, Happening, Link};
use super::options::Options;
use super::replica::explained;
use super::restore::restore_all;
use super::signs::{Sign, subject_of_all};
use super::stream;
use super::stream::{Listed, Stream, StreamError, list};
use crate::ship::record::Codec;
use crate::storage::SealingKey;

/// The time in which a relay that lives gives a sign of it, several times over.
const LISTEN: Duration = Duration::from_secs(4);

/// A stream of the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    /// The identity of the relay whose queue it has.
    pub identity: String,
    /// The machine of the relay that gave a sign of life; `None` if none did.
    pub lives_on: Option<String>,
    /// The time of its last record, by the servers' clock.
    pub last: String,
    /// Queued messages. `None` if its last record cannot be read.
    pub queued: Option<u64>,
    /// Bytes, in one copy.
    pub bytes: u64,
}

impl Overview {
    /// Returns true if it holds messages, and no relay sends them.
    #[must_use]
    pub fn is_orphan(&self) -> bool {
        self.lives_on.is_none() && self.queued != Some(0)
    }
}

/// The server that leads the stream of a relay, by its name; `None` while none does.
///
/// # Errors
/// If no server answers.
pub async fn leader(options: &Options, identity: &str) -> Result<Option<String>, StreamError> {
    let connector = Connector::new(options).map_err(StreamError::Unsupported)?;
    let link = connector.connect(0).await.map_err(StreamError::Failed)?;
    Stream::new(link.client(), &options.name, identity).leader().await
}

/// The fleet as an operator sees it, over one connection.
#[derive(Debug)]
pub struct Operator {
    options: Options,
    link: Link,
    alive: BTreeMap<String, String>,
}

impl Operator {
    /// Connects, and listens for relays that live.
    ///
    /// # Errors
    /// If no server answers.
    pub async fn connect(options: Options) -> Result<Operator, StreamError> {
        let connector = Connector::new(&options).map_err(StreamError::Unsupported)?;
        let mut link = connector.connect(0).await.map_err(StreamError::Failed)?;
        Stream::new(link.client(), &options.name, "").check_server().await?;
        link.subscribe(&subject_of_all(&options.name)).await.map_err(StreamError::Failed)?;
        let mut alive = BTreeMap::new();
        let listen = async {
            loop {
                match link.next().await {
                    Happening::Message(payload) => {
                        if let Ok(Sign { identity, node, .. }) = serde_json::from_slice(&payload) {
                            alive.insert(identity, node);
                        }
                    }
                    Happening::Refused(why) | Happening::Lost(why) => return why,
                }
            }
        };
        // It ends only if the connection does.
        match timeout(LISTEN, listen).await {
            Ok(why) => Err(StreamError::Failed(why)),
            Err(_) => Ok(Operator { options, link, alive }),
        }
    }

    /// The streams of the fleet, by identity.
    ///
    /// # Errors
    /// If the servers do not answer.
    pub async fn list(&mut self) -> Result<Vec<Overview>, StreamError> {
        let found = list(&self.link.client(), &self.options.name, |_| true).await;
        let found = self.explained(found).await?;
        let overviews = found.into_iter().map(|Listed { identity, last, queued, bytes }| {
            let lives_on = self.alive.get(&identity).cloned();
            Overview { lives_on, identity, last, queued, bytes }
        });
        Ok(overviews.collect())
    }

    /// Restores the queue of a relay that is gone, in an empty folder. Returns false if the stream has no complete one.
    ///
    /// # Errors
    /// If the relay lives, there is no such stream, no key opens it, or a file cannot be written.
    pub async fn restore(&mut self, identity: &str, keys: Vec<SealingKey>, into: &Path) -> Result<bool, StreamError> {
        let restored = async {
            let stream = self.of_a_silent_owner(identity).await?;
            let codec = Codec::new(keys, &stream::name(&self.options.name, identity));
            let last = stream.info().await?.unwrap_or_default().last;
            restore_all(&stream, &codec, last, into, |_| Ok(None)).await
        };
        let restored = restored.await;
        self.explained(restored).await
    }

    /// Removes the stream of a relay that is gone.
    ///
    /// # Errors
    /// If the relay lives, there is no such stream, or the servers refuse it.
    pub async fn remove(&mut self, identity: &str) -> Result<(), StreamError> {
        let removed = async { self.of_a_silent_owner(identity).await?.delete().await };
        let removed = removed.await;
        self.explained(removed).await
    }

    /// Adds the server's own words to an error.
    async fn explained<T>(&mut self, result: Result<T, StreamError>) -> Result<T, StreamError> {
        match result {
            Err(StreamError::Failed(why)) => Err(StreamError::Failed(explained(why, self.link.refusal().await))),
            other => other,
        }
    }

    async fn of_a_silent_owner(&self, identity: &str) -> Result<Stream, StreamError> {
        if let Some(node) = self.alive.get(identity) {
            return Err(StreamError::Failed(format!("the relay {identity} lives on {node}: stop it first")));
        }
        let stream = Stream::new(self.link.client(), &self.options.name, identity);
        match stream.info().await? {
            Some(_) => Ok(stream),
            None => {
                let fleet = &self.options.name;
                Err(StreamError::Failed(format!(
                    "the fleet {fleet} has no stream of {identity}; see connect-relay fleet list"
                )))
            }
        }
    }
}
