//! Reading a request's body, bounded in bytes, in time, and in memory over all connections.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::Semaphore;

/// What is read and thrown away of a body that is too large, so that its sender comes to read the reply: one that is
/// still writing when the connection closes never sees it.
const DISCARDED_MAX: u64 = 4 << 20;

/// The memory that bodies being read may take, all connections together.
#[derive(Debug)]
pub struct BodyBudget {
    free: Semaphore,
    total: u32,
}

impl BodyBudget {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> BodyBudget {
        let total = u32::try_from(bytes).unwrap_or(u32::MAX).min(Semaphore::MAX_PERMITS.try_into().unwrap_or(u32::MAX));
        BodyBudget { free: Semaphore::new(total as usize), total }
    }
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// It did not arrive in time, or no memory became free for it.
    #[error("the body did not arrive within {0:?}")]
    TimedOut(Duration),
    /// The peer left, or broke the rules of HTTP.
    #[error("the body was cut off")]
    Aborted,
}

/// Reads a whole body of at most `bytes_max`, which must arrive `within` this time. Its memory is taken from the budget
/// before it is read (all that it may need, so that two half-read bodies never wait for one another) and counts until
/// this returns.
///
/// # Errors
/// When it is too large, too slow, or cut off.
pub async fn read_body(
    body: Incoming,
    bytes_max: usize,
    within: Duration,
    budget: &BodyBudget,
) -> Result<Bytes, BodyError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let read = async {
        let announced = body.size_hint();
        if announced.lower() > bytes_max as u64 {
            discard(body).await;
            return Err(BodyError::TooLarge(bytes_max));
        }
        let most = announced.upper().unwrap_or(bytes_max as u64).min(bytes_max as u64);
        let most = u32::try_from(most).unwrap_or(u32::MAX).min(budget.total);
        // Never closed.
        let _reserved = budget.free.acquire_many(most).await.map_err(|_| BodyError::Aborted)?;
        collect(body, bytes_max, most as usize).await
    };
    tokio::time::timeout(within, read).await.unwrap_or(Err(BodyError::TimedOut(within)))
}

async fn collect(mut body: Incoming, bytes_max: usize, expected: usize) -> Result<Bytes, BodyError> {
    let (mut first, mut whole) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Aborted)?.into_data() else { continue };
        if first.len() + whole.len() + data.len() > bytes_max {
            drop((first, whole));
            discard(body).await;
            return Err(BodyError::TooLarge(bytes_max));
        }
        // Most bodies come in one piece, and are passed on without a copy.
        if first.is_empty() && whole.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(expected);
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

async fn discard(mut body: Incoming) {
    let mut discarded = 0;
    while discarded < DISCARDED_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        discarded += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
}
