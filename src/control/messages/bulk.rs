//! `POST /redrive` and `DELETE /messages`: acts on all messages of a selection.
//!
//! Each request that changes messages is one act, with one line in the log: with its operator, its filters and the number of
//! messages that it changed. The line is written when the act ends, also if it is broken off: by a failure, or because its
//! client disconnects. In that last case the page under way is done and not counted; each message has its own line.

use std::time::Duration;

use hyper::StatusCode;
use hyper::http::request::Parts;
use tracing::info;

use super::query::Query;
use super::schema::{Deleted, Redriven};
use crate::control::reply::{ErrorReply, json};
use crate::control::{ANSWER_MAX, Control};
use crate::delivery::Reason;
use crate::queue::{BulkProgress, Cursor, Selection, StateFilter, StoreFailed};
use crate::serve::Reply;
use crate::status::describe_full;
use crate::time::Timestamp;

/// The longest time for a page of an act under way: from then on `/livez` reports the store, too.
const PAGE_MAX: Duration = Duration::from_secs(60);

/// The change that a bulk act makes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Redrive,
    Delete,
}

/// A bulk act under way; its line is written when it is dropped.
struct Act<'a> {
    change: Change,
    control: &'a Control,
    query: &'a Query,
    uid: Option<u32>,
    progress: BulkProgress,
    /// True if it has come to its end.
    ended: bool,
}

impl Control {
    /// `POST /redrive`
    pub(in crate::control) async fn redrive_all(&self, parts: &Parts, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        let query = Query::parse_bulk(parts, StateFilter::Dead, &self.clock)?;
        let redrive = |of, page| self.queue.redrive_all(of, page, query.dry_run);
        let BulkProgress { done, full, next, .. } = self.act(Change::Redrive, &query, uid, redrive).await?;
        match full {
            Some(full) if done == 0 => Err(ErrorReply(StatusCode::TOO_MANY_REQUESTS, describe_full(full))),
            full => {
                let next = next.map(|next| next.to_string());
                let full = full.map(describe_full);
                Ok(json(StatusCode::OK, &Redriven { redriven: done, dry_run: query.dry_run, full, next }))
            }
        }
    }

    /// `DELETE /messages`
    pub(in crate::control) async fn delete_all(&self, parts: &Parts, uid: Option<u32>) -> Result<Reply, ErrorReply> {
        let query = Query::parse_bulk(parts, StateFilter::Queued, &self.clock)?;
        let delete = |of, page| self.queue.delete_all(of, page, query.dry_run);
        let BulkProgress { done, in_flight, next, .. } = self.act(Change::Delete, &query, uid, delete).await?;
        let next = next.map(|next| next.to_string());
        Ok(json(StatusCode::OK, &Deleted { deleted: done, in_flight, dry_run: query.dry_run, next }))
    }

    /// Repeats the operation of a page until there is no more, no room, or the limit is reached.
    async fn act<F>(
        &self,
        change: Change,
        query: &Query,
        uid: Option<u32>,
        page: impl Fn(Selection, (Cursor, usize)) -> F,
    ) -> Result<BulkProgress, ErrorReply>
    where
        F: Future<Output = Result<BulkProgress, StoreFailed>>,
    {
        let most = query.limit.map_or(u64::MAX, |limit| limit as u64);
        let next = Some(query.after.unwrap_or_else(|| query.of.start()));
        let progress = BulkProgress { next, ..BulkProgress::default() };
        let mut act = Act { change, control: self, query, uid, progress, ended: false };
        let all = &mut act.progress;
        while let Some(after) = all.next
            && all.full.is_none()
            && all.done + all.in_flight < most
        {
            let left = usize::try_from(most - all.done - all.in_flight).unwrap_or(usize::MAX);
            let paged = self.ask_queue_within(patience(all.done), page(query.of.clone(), (after, left))).await;
            let BulkProgress { done, in_flight, full, next } =
                paged.map_err(|ErrorReply(status, why)| match all.done {
                    0 => ErrorReply(status, why),
                    done => ErrorReply(status, format!("{why}; {done} messages were changed before")),
                })?;
            *all = BulkProgress { done: all.done + done, in_flight: all.in_flight + in_flight, full, next };
        }
        act.ended = true;
        Ok(act.progress)
    }
}

/// The time-out for the page of an act that has changed so many messages. A compaction of the store can hold a page up for
/// seconds, and must not break off an act that is under way.
fn patience(done: u64) -> Duration {
    if done == 0 { ANSWER_MAX } else { PAGE_MAX }
}

impl Drop for Act<'_> {
    fn drop(&mut self) {
        let BulkProgress { done, next, .. } = self.progress;
        if self.query.dry_run || !(self.ended || done > 0) {
            return;
        }
        let count = |change| (self.change == change).then_some(done);
        let (act, text) = match self.change {
            Change::Redrive => ("redrive_all", "an operator queued dead letters again"),
            Change::Delete => ("delete_all", "an operator deleted messages"),
        };
        let shown = |time: Option<Timestamp>| time.map(|time| self.control.clock.shown(time).to_string());
        let Selection { conversation, reason, accepted_after, accepted_before, .. } = &self.query.of;
        info!(
            act,
            uid = self.uid,
            reason = reason.map(Reason::as_str),
            conversation = conversation.as_deref(),
            accepted_after = shown(*accepted_after),
            accepted_before = shown(*accepted_before),
            redriven = count(Change::Redrive),
            deleted = count(Change::Delete),
            more = next.is_some(),
            "{text}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::sync::{Arc, Mutex};

    use hyper::Request;
    use tracing::subscriber::set_default;

    use super::*;
    use crate::control::tests::control;

    /// The log of a test.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        /// Takes the lines that were written.
        fn take(&self) -> Vec<serde_json::Value> {
            let bytes = std::mem::take(&mut *self.0.lock().unwrap());
            String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    fn query(control: &Control, parameters: &str) -> Query {
        let parts = Request::delete(format!("/messages?{parameters}")).body(()).unwrap().into_parts().0;
        Query::parse_bulk(&parts, StateFilter::Queued, &control.clock).unwrap_or_else(|_| panic!("{parameters}"))
    }

    #[tokio::test]
    async fn act_under_way_waits_longer_for_a_page_than_its_first_one() {
        assert_eq!((patience(0), patience(1)), (ANSWER_MAX, PAGE_MAX));
        let folder = tempfile::tempdir().unwrap();
        let (control, _writer) = control(folder.path());
        let hangs = std::future::pending::<Result<(), StoreFailed>>();
        let ErrorReply(status, why) = control.ask_queue_within(Duration::ZERO, hangs).await.unwrap_err();
        assert_eq!(
            (status, why.contains("has not answered for 0 s")),
            (StatusCode::SERVICE_UNAVAILABLE, true),
            "{why}"
        );
    }

    /// A page of 256 messages, and there are more.
    const PAGE: BulkProgress =
        BulkProgress { done: 256, in_flight: 1, full: None, next: Some(Cursor::Queued { pack: 7, nth: 0 }) };

    #[tokio::test]
    async fn act_is_one_line_with_its_total_also_if_it_is_broken_off() {
        let folder = tempfile::tempdir().unwrap();
        let (control, _writer) = control(folder.path());
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        let _log = set_default(subscriber);
        let last = BulkProgress { next: None, ..PAGE };
        let failed = || Err(StoreFailed("disk".into()));
        // None: the store does not answer, and the client disconnects.
        for (parameters, pages, logged) in [
            ("all=true", vec![Some(Ok(PAGE)), Some(Ok(PAGE)), Some(Ok(last))], Some((768, false))),
            ("all=true", vec![Some(Ok(PAGE)), Some(Ok(PAGE)), None], Some((512, true))),
            ("all=true", vec![Some(Ok(PAGE)), Some(failed())], Some((256, true))),
            ("all=true&limit=257", vec![Some(Ok(PAGE))], Some((256, true))),
            ("all=true&after=q7.0", vec![Some(Ok(last))], Some((256, false))),
            ("all=true", vec![Some(Ok(BulkProgress::default()))], Some((0, false))),
            ("all=true", vec![Some(failed())], None),
            ("all=true", vec![None], None),
            ("all=true&dry_run=true", vec![Some(Ok(PAGE)), Some(Ok(last))], None),
        ] {
            let (query, pages) = (query(&control, parameters), RefCell::new(pages.into_iter()));
            let page = |_, _| {
                let page = pages.borrow_mut().next().unwrap();
                async move {
                    match page {
                        Some(page) => page,
                        None => std::future::pending().await,
                    }
                }
            };
            tokio::select! {
                biased;
                ended = control.act(Change::Delete, &query, Some(1000), page) => {
                    let text = ended.err().map(|ErrorReply(_, why)| why).unwrap_or_default();
                    assert!(text.is_empty() || logged.is_none() || text.ends_with("; 256 messages were changed before"), "{text}");
                }
                () = tokio::task::yield_now() => {}
            }
            let lines = log.take();
            let found: Vec<_> =
                lines.iter().map(|line| (line["deleted"].as_u64().unwrap(), line["more"].as_bool().unwrap())).collect();
            assert_eq!(found, logged.into_iter().collect::<Vec<_>>(), "{parameters}");
            assert!(
                lines
                    .iter()
                    .all(|line| line["act"] == "delete_all" && line["uid"] == 1000 && line.get("redriven").is_none())
            );
        }
    }
}
