//! Incoming bodies: each is limited, and all together.
//!
//! The reader of a body holds as many permits as the body may need bytes, from its first byte until the queue has
//! answered: a thousand slow uploads cost the relay at most `ingress.bodies_bytes_max`. One caller has at most a
//! quarter of them at once, so that its slow uploads delay only its own requests. Long replies hold permits too, until
//! they have been read: a batch its body's, a forwarded reply those of another budget. A body that is not needed is
//! read to its end and dropped, within limits, because closing a connection under a client that is still writing may
//! lose the reply.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::error_reply::{ErrorReply, RejectReason};
use crate::message::Caller;

/// The most that is read of a body that is not needed.
const DISCARD_MAX: usize = 16 << 20;

/// The limits of one body.
#[derive(Clone, Copy)]
pub(super) struct BodyLimit {
    /// The most bytes.
    pub(super) most: usize,
    /// The setting's name.
    pub(super) key: &'static str,
    /// The time for the whole body to arrive.
    pub(super) within: Duration,
    /// True if the client waits for permission to send it (`Expect: 100-continue`).
    pub(super) expects_continue: bool,
}

/// The budget that all bodies share.
#[derive(Debug)]
pub(super) struct BodyBudget {
    free: Arc<Semaphore>,
    all: u32,
    /// The share of each caller that has bodies: a quarter of all.
    caller_shares: Mutex<HashMap<Caller, Arc<Semaphore>>>,
}

/// A complete body, and its permits.
pub(super) struct BufferedBody {
    pub(super) bytes: Bytes,
    pub(super) permit: BudgetPermit,
}

/// Permits, returned when dropped: of the caller's share, and of the whole budget.
#[derive(Default)]
pub(super) struct BudgetPermit(#[expect(dead_code, reason = "held, not looked at")] [Option<OwnedSemaphorePermit>; 2]);

impl BudgetPermit {
    /// The bytes of a reply, which hold the permits until they are written or dropped.
    pub(super) fn attach_to(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        struct Held<T>(T, #[expect(dead_code, reason = "held, not looked at")] BudgetPermit);

        impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
            fn as_ref(&self) -> &[u8] {
                self.0.as_ref()
            }
        }

        Bytes::from_owner(Held(bytes, self))
    }
}

enum ReadError {
    TooLarge,
    Broken,
}

impl BodyBudget {
    pub(super) fn new(bytes_max: usize) -> BodyBudget {
        let all = bytes_max.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        BodyBudget {
            free: Arc::new(Semaphore::new(all)),
            all: u32::try_from(all).unwrap_or(u32::MAX),
            caller_shares: Mutex::default(),
        }
    }

    /// Reads a whole body.
    pub(super) async fn read<B: Body<Data = Bytes>>(
        &self,
        body: B,
        limit: BodyLimit,
        caller: Caller,
    ) -> Result<BufferedBody, ErrorReply> {
        let hint = body.size_hint();
        if hint.upper() == Some(0) {
            return Ok(BufferedBody { bytes: Bytes::new(), permit: BudgetPermit::default() });
        }
        if hint.lower() > limit.most as u64 {
            discard(body, limit).await;
            return Err(too_large(Some(hint.lower()), limit));
        }
        let need = hint.upper().and_then(|upper| usize::try_from(upper).ok()).unwrap_or(limit.most).min(limit.most);
        let need = u32::try_from(need).unwrap_or(u32::MAX);
        let mut body = pin!(body);
        let whole = timeout(limit.within, async {
            let permit = self.acquire(need, caller).await;
            (collect(body.as_mut(), limit.most).await, permit)
        });
        match whole.await {
            Ok((Ok(bytes), permit)) => Ok(BufferedBody { bytes, permit }),
            Ok((Err(ReadError::TooLarge), permit)) => {
                drop(permit);
                discard(body, limit).await;
                Err(too_large(None, limit))
            }
            // The client is gone: this reply has no reader.
            Ok((Err(ReadError::Broken), _)) => Err(ErrorReply::invalid("the body ended before its time")),
            Err(_) => Err(ErrorReply::new(
                StatusCode::REQUEST_TIMEOUT,
                "RequestTimeoutException",
                format!(
                    "connect-relay: the body did not arrive within {} ms (ingress.request_timeout)",
                    limit.within.as_millis()
                ),
            )),
        }
    }

    /// Takes permits for a forwarded reply: of the caller's share, and all of the share for a longer one.
    pub(super) async fn acquire_for_reply(&self, bytes: usize, caller: Caller) -> BudgetPermit {
        self.acquire(u32::try_from(bytes).unwrap_or(u32::MAX).min(self.caller_share()), caller).await
    }

    /// First takes those of the caller's share, so that a caller that waits for them does not block others.
    async fn acquire(&self, need: u32, caller: Caller) -> BudgetPermit {
        let caller_share = self.caller_share();
        let own = {
            let mut shares = self.caller_shares.lock().unwrap_or_else(PoisonError::into_inner);
            // Removes callers without a body: all their permits are returned.
            if !shares.contains_key(&caller) {
                shares.retain(|_, own| Arc::strong_count(own) > 1);
            }
            Arc::clone(shares.entry(caller).or_insert_with(|| Arc::new(Semaphore::new(caller_share as usize))))
        };
        // The semaphores are never closed. A body larger than the share waits for all of it, one larger than
        // the budget for all of the budget.
        let own = own.acquire_many_owned(need.min(caller_share)).await.ok();
        BudgetPermit([own, Arc::clone(&self.free).acquire_many_owned(need.min(self.all)).await.ok()])
    }

    fn caller_share(&self) -> u32 {
        (self.all / 4).max(1)
    }
}

/// Reads and discards a body, so that its client gets to the reply.
pub(super) async fn discard<B: Body<Data = Bytes>>(body: B, limit: BodyLimit) {
    if limit.expects_continue || body.is_end_stream() || body.size_hint().lower() > DISCARD_MAX as u64 {
        return;
    }
    let mut body = pin!(body);
    let _ = timeout(limit.within, async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > DISCARD_MAX {
                break;
            }
        }
    })
    .await;
}

/// Returns a single frame as it is; joins several.
async fn collect<B: Body<Data = Bytes> + Unpin>(mut body: B, most: usize) -> Result<Bytes, ReadError> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        if first.len() + rest.len() + data.len() > most {
            return Err(ReadError::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else if rest.is_empty() {
            rest.reserve(body.size_hint().lower().min(most as u64) as usize + first.len() + data.len());
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        } else {
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

fn too_large(bytes: Option<u64>, BodyLimit { most, key, .. }: BodyLimit) -> ErrorReply {
    let came = bytes.map_or_else(|| "more".to_owned(), |bytes| bytes.to_string());
    let sizes = match bytes {
        Some(bytes) if most >= 1024 => format!(": {}, at most {}", ByteSize(bytes), ByteSize(most as u64)),
        _ => String::new(),
    };
    ErrorReply::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "ValidationException",
        format!("connect-relay: the body has {came} bytes, at most {most} are allowed ({key}){sizes}"),
    )
    .counted(RejectReason::TooLarge)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    fn limit(most: usize) -> BodyLimit {
        BodyLimit { most, key: "ingress.body_bytes_max", within: Duration::from_secs(60), expects_continue: false }
    }

    fn chunks(chunks: &'static [&'static str]) -> impl Body<Data = Bytes, Error = Infallible> {
        Chunks(chunks.iter())
    }

    /// A body that comes in several frames.
    struct Chunks(std::slice::Iter<'static, &'static str>);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::Poll::Ready(self.0.next().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
        }
    }

    const BOT: Caller = Caller::Uid(1);
    const OTHER: Caller = Caller::Uid(2);

    #[tokio::test]
    async fn body_is_whole_however_it_is_cut() {
        let bodies = BodyBudget::new(100);
        assert_eq!(bodies.read(Full::new(Bytes::from("abcdef")), limit(6), BOT).await.unwrap().bytes, "abcdef");
        assert_eq!(bodies.read(chunks(&["ab", "", "cd", "ef"]), limit(6), BOT).await.unwrap().bytes, "abcdef");
        assert_eq!(bodies.read(chunks(&[]), limit(6), BOT).await.unwrap().bytes, "");
    }

    #[tokio::test]
    async fn body_over_its_limit_is_refused_with_the_limits_name() {
        let bodies = BodyBudget::new(100);
        let error = bodies.read(Full::new(Bytes::from("abcdefg")), limit(6), BOT).await.err().unwrap();
        assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(error.text, "connect-relay: the body has 7 bytes, at most 6 are allowed (ingress.body_bytes_max)");
        let text = too_large(Some(9_000_000), BodyLimit { key: "k", ..limit(262_144) }).text;
        assert!(text.ends_with("9000000 bytes, at most 262144 are allowed (k): 8.6 MiB, at most 256.0 KiB"), "{text}");
        let error = bodies.read(chunks(&["abcd", "efg"]), limit(6), BOT).await.err().unwrap();
        assert_eq!(
            error.text,
            "connect-relay: the body has more bytes, at most 6 are allowed (ingress.body_bytes_max)"
        );
    }

    #[tokio::test]
    async fn bodies_of_one_caller_take_at_most_a_quarter() {
        let bodies = BodyBudget::new(32);
        let six = || Full::new(Bytes::from("abcdef"));
        let first = bodies.read(six(), limit(6), BOT).await.unwrap();
        let impatient = BodyLimit { within: Duration::from_millis(1), ..limit(6) };
        let error = bodies.read(six(), impatient, BOT).await.err().unwrap();
        assert_eq!(error.code, "RequestTimeoutException");
        // Other callers are not affected.
        assert!(bodies.read(six(), impatient, OTHER).await.is_ok());
        drop(first);
        assert!(bodies.read(six(), impatient, BOT).await.is_ok());
        // Larger than the share: it waits for all of it, and not for ever.
        assert!(bodies.read(Full::new(Bytes::from("abcdefghij")), limit(10), BOT).await.is_ok());
        assert!(bodies.caller_shares.lock().unwrap().len() <= 2);
    }

    #[tokio::test]
    async fn bodies_of_all_callers_share_one_budget() {
        let bodies = BodyBudget::new(8);
        let first = bodies.read(Full::new(Bytes::from("abcdef")), limit(6), BOT).await.unwrap();
        let impatient = BodyLimit { within: Duration::from_millis(1), ..limit(6) };
        assert!(bodies.read(Full::new(Bytes::from("abcdef")), impatient, OTHER).await.is_err());
        drop(first);
        assert!(bodies.read(Full::new(Bytes::from("abcdef")), impatient, OTHER).await.is_ok());
        // A caller that is gone is removed.
        assert!(bodies.read(Full::new(Bytes::from("a")), limit(6), Caller::Tcp).await.is_ok());
        assert_eq!(bodies.caller_shares.lock().unwrap().len(), 1);
    }
}
