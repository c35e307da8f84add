//! The traffic of the bots: numbered messages, distributed in turn to many conversations.
//!
//! Every message is unlike every other (its number is in its ClientToken and in its text), and neighbours are of
//! different conversations, 5,000 in all: what a queue behind a busy instance looks like, and the hardest case for a
//! store ordered by conversation. A request is rendered once per connection; for each message only the digits in it are
//! overwritten, so that the generator's own work does not hide the server's.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Conversations, each with a ConnectionToken of its own.
pub const CONVERSATIONS: u64 = 5_000;

/// Bytes of a ConnectionToken, about what Connect hands out.
const TOKEN_BYTES: usize = 200;
const TOKEN_DIGITS: usize = 8;
const CLIENT_TOKEN_HEAD: &str = "6f1e0c52-9a41-4d7b-8f30-";
const NUMBER_DIGITS: usize = 12;

/// A stream of messages that connections draw from.
#[derive(Debug)]
pub struct Traffic {
    /// Bytes of each text.
    pub contents: usize,
    /// Messages in one request; without batches each has a request of its own.
    pub batch: Option<usize>,
    /// True if each request waits for its outcome.
    waits: bool,
    next: AtomicU64,
}

impl Traffic {
    /// Messages with so long a text, one a request or in batches.
    pub fn new(contents: usize, batch: Option<usize>) -> Traffic {
        assert!(contents >= NUMBER_DIGITS, "a text holds its number");
        Traffic { contents, batch, waits: false, next: AtomicU64::new(0) }
    }

    /// Messages with so long a text, each answered by its outcome.
    pub fn waiting(contents: usize) -> Traffic {
        Traffic { waits: true, ..Traffic::new(contents, None) }
    }

    /// The same numbering goes on in another form: a store that has seen some of these sees no repeat.
    pub fn continued(&self, batch: Option<usize>) -> Traffic {
        Traffic { batch, next: AtomicU64::new(self.next.load(Ordering::Relaxed)), ..*self }
    }

    /// Messages in one request.
    pub fn per_request(&self) -> u64 {
        self.batch.unwrap_or(1) as u64
    }

    /// The bytes of one message that must survive: its text, its ClientToken and its ConnectionToken.
    pub fn record_bytes(&self) -> usize {
        self.contents + CLIENT_TOKEN_HEAD.len() + NUMBER_DIGITS + TOKEN_BYTES
    }

    /// Takes the next message's number, or a batch's first.
    pub fn take(&self) -> u64 {
        self.next.fetch_add(self.per_request(), Ordering::Relaxed)
    }

    /// A request to be numbered and sent as often as one likes.
    pub fn request(&self) -> Request {
        let mut request = Request { bytes: Vec::new(), slots: Vec::new() };
        match self.batch {
            None => {
                let mut body = Request { bytes: Vec::new(), slots: Vec::new() };
                body.text(r#"{"ContentType":"text/plain","Content":""#).number(0).text(&filler(self.contents));
                body.text(r#"","ClientToken":""#).text(CLIENT_TOKEN_HEAD).number(0).text(r#""}"#);
                request.text("POST /participant/message HTTP/1.1\r\nHost: relay\r\nX-Amz-Bearer: ").token(0);
                request.text(if self.waits { "\r\nPrefer: wait=10" } else { "" });
                request.text(&head_end("application/json", body.bytes.len())).append(body);
            }
            Some(messages) => {
                let mut body = Request { bytes: Vec::new(), slots: Vec::new() };
                for nth in 0..messages as u64 {
                    body.text(r#"{"ContentType":"text/plain","Content":""#).number(nth).text(&filler(self.contents));
                    body.text(r#"","ClientToken":""#).text(CLIENT_TOKEN_HEAD).number(nth);
                    body.text(r#"","ConnectionToken":""#).token(nth).text("\"}\n");
                }
                request.text("POST /participant/messages HTTP/1.1\r\nHost: relay");
                request.text(&head_end("application/x-ndjson", body.bytes.len())).append(body);
            }
        }
        request
    }
}

/// A request's bytes, and the positions of its numbers.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

impl Request {
    /// Its bytes, as the message numbered `first`, or the batch that begins with it.
    pub fn numbered(&mut self, first: u64) -> &[u8] {
        for slot in &self.slots {
            let number = first + slot.nth;
            let shown = if slot.conversation { number % CONVERSATIONS } else { number };
            write_digits(&mut self.bytes[slot.at.clone()], shown);
        }
        &self.bytes
    }

    fn text(&mut self, text: &str) -> &mut Request {
        self.bytes.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, nth: u64) -> &mut Request {
        self.slot(NUMBER_DIGITS, nth, false)
    }

    fn token(&mut self, nth: u64) -> &mut Request {
        self.text(&"QVFJREFIaGRyZWxheQ".repeat(12)[..TOKEN_BYTES - TOKEN_DIGITS]).slot(TOKEN_DIGITS, nth, true)
    }

    fn slot(&mut self, digits: usize, nth: u64, conversation: bool) -> &mut Request {
        let from = self.bytes.len();
        self.bytes.resize(from + digits, b'0');
        self.slots.push(Slot { at: from..from + digits, nth, conversation });
        self
    }

    fn append(&mut self, other: Request) {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        let moved = other.slots.into_iter().map(|slot| Slot { at: slot.at.start + from..slot.at.end + from, ..slot });
        self.slots.extend(moved);
    }
}

#[derive(Debug)]
struct Slot {
    at: Range<usize>,
    nth: u64,
    conversation: bool,
}

fn head_end(content_type: &str, length: usize) -> String {
    format!("\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n")
}

fn filler(contents: usize) -> String {
    " Your order left our warehouse today.".chars().cycle().take(contents - NUMBER_DIGITS).collect()
}

fn write_digits(at: &mut [u8], mut number: u64) {
    for digit in at.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}
