//! The meaning of a path and its parameters.

use hyper::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::control::reply::{ErrorReply, invalid};
use crate::delivery::Reason;
use crate::queue::{Cursor, Selection, StateFilter};
use crate::time::{Clock, WallTime};

/// The most messages in a list.
const LIMIT_MAX: usize = 1000;
/// The parameters of a list, and of a bulk act.
pub(super) const LIST: &[&str] =
    &["state", "conversation", "reason", "accepted_after", "accepted_before", "after", "limit"];
const BULK: &[&str] =
    &["conversation", "reason", "accepted_after", "accepted_before", "after", "limit", "dry_run", "all"];

/// A request about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Target<'a> {
    /// `/messages/{id}`
    Message(&'a str),
    /// `/messages/{id}/redrive`
    Redrive(&'a str),
}

/// Parses the path of one message.
pub(in crate::control) fn target(path: &str) -> Option<Target<'_>> {
    let rest = path.strip_prefix("/messages/")?;
    let (id, of) = match rest.strip_suffix("/redrive") {
        Some(id) => (id, Target::Redrive(id)),
        None => (rest, Target::Message(rest)),
    };
    (!id.is_empty() && !id.contains('/')).then_some(of)
}

/// The parameters of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub of: Selection,
    pub after: Option<Cursor>,
    pub limit: Option<usize>,
    pub contents: bool,
    pub dry_run: bool,
    pub all: bool,
}

impl Query {
    /// Parses the parameters in `known`, each at most once.
    pub fn parse(parts: &Parts, known: &[&str], clock: &Clock) -> Result<Query, ErrorReply> {
        Query::read(parts, known, clock)?.checked()
    }

    /// Parses the parameters of a bulk act. Without a reason it is on messages of this state; only dead letters have one.
    pub fn parse_bulk(parts: &Parts, state: StateFilter, clock: &Clock) -> Result<Query, ErrorReply> {
        let mut query = Query::read(parts, BULK, clock)?;
        query.of.state = Some(if query.of.reason.is_some() { StateFilter::Dead } else { state });
        if query.of.has_no_filter() && !query.all {
            return Err(invalid("a bulk act without a filter needs all=true".into()));
        }
        query.checked()
    }

    fn read(parts: &Parts, known: &[&str], clock: &Clock) -> Result<Query, ErrorReply> {
        let mut query = Query::default();
        let mut seen: Vec<&str> = Vec::new();
        for pair in parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(invalid(format!("no such parameter here: {name:?}; known: {known}")));
            }
            if seen.contains(&name) {
                return Err(invalid(format!("{name} is given twice")));
            }
            seen.push(name);
            let value = percent_decode_str(value).decode_utf8();
            let value = value.map_err(|_| invalid(format!("{name}: percent-encoded UTF-8 is needed")))?;
            query.take(name, &value, clock)?;
        }
        Ok(query)
    }

    fn checked(self) -> Result<Query, ErrorReply> {
        if self.of.reason.is_some() && self.of.state == Some(StateFilter::Queued) {
            return Err(invalid("reason: queued messages have none".into()));
        }
        if self.after.is_some_and(|after| !self.of.leads_to(after)) {
            return Err(invalid("after: it is the Next of another list".into()));
        }
        Ok(self)
    }

    fn take(&mut self, name: &str, value: &str, clock: &Clock) -> Result<(), ErrorReply> {
        match name {
            "state" => {
                self.of.state = Some(match value {
                    "QUEUED" => StateFilter::Queued,
                    "DEAD" => StateFilter::Dead,
                    _ => return Err(invalid(format!("state: {value:?}, QUEUED or DEAD is needed"))),
                });
            }
            "conversation" if !value.is_empty() => self.of.conversation = Some(value.into()),
            "conversation" => return Err(invalid("conversation: it is empty".into())),
            "reason" => {
                let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == value);
                let known = || Reason::ALL.map(Reason::as_str).join(", ");
                self.of.reason =
                    Some(reason.ok_or_else(|| invalid(format!("reason: {value:?}, one of {} is needed", known())))?);
            }
            "after" => {
                let after = Cursor::parse(value);
                self.after = Some(after.ok_or_else(|| invalid("after: the Next of the page before is needed".into()))?);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
                self.limit =
                    Some(limit.ok_or_else(|| invalid(format!("limit: {value:?}, 1 to {LIMIT_MAX} is needed")))?);
            }
            "accepted_after" | "accepted_before" => {
                let time = WallTime::parse(value).map(|time| clock.point_shown(time)).ok_or_else(|| {
                    invalid(format!("{name}: {value:?}, a time such as 2026-11-22T14:03:07.412Z is needed"))
                })?;
                let bound =
                    if name == "accepted_after" { &mut self.of.accepted_after } else { &mut self.of.accepted_before };
                *bound = Some(time);
            }
            _ => {
                let flag = match name {
                    "dry_run" => &mut self.dry_run,
                    "all" => &mut self.all,
                    _ => &mut self.contents,
                };
                *flag = value.parse().map_err(|_| invalid(format!("{name}: {value:?}, true or false is needed")))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, StatusCode};

    use super::*;
    use crate::time::Timestamp;

    fn parts(text: &str) -> Parts {
        Request::get(format!("/messages?{text}")).body(()).unwrap().into_parts().0
    }

    fn text(ErrorReply(status, why): ErrorReply) -> String {
        assert_eq!(status, StatusCode::BAD_REQUEST);
        why
    }

    fn query(query: &str, known: &[&str]) -> Result<Query, String> {
        Query::parse(&parts(query), known, &Clock::still()).map_err(text)
    }

    fn bulk(query: &str, state: StateFilter) -> Result<Query, String> {
        Query::parse_bulk(&parts(query), state, &Clock::still()).map_err(text)
    }

    #[test]
    fn path_names_one_message() {
        assert_eq!(target("/messages/9f86d081-42"), Some(Target::Message("9f86d081-42")));
        assert_eq!(target("/messages/9f86d081-42/redrive"), Some(Target::Redrive("9f86d081-42")));
        for none in
            ["/messages", "/messages/", "/messages//redrive", "/messages/a/b", "/messages/a/b/redrive", "/redrive"]
        {
            assert_eq!(target(none), None, "{none}");
        }
    }

    #[test]
    fn unknown_repeated_and_malformed_parameters_are_refused() {
        let all = [LIST, &["contents"]].concat();
        let read = query(
            "state=DEAD&conversation=a%2Bb+%2F&&reason=expired&after=d7&limit=1000&contents=true\
             &accepted_after=1970-01-01T02:00:07+02:00&accepted_before=1970-01-01T00%3A00%3A08.001Z",
            &all,
        );
        let of = Selection {
            state: Some(StateFilter::Dead),
            conversation: Some("a+b+/".into()),
            reason: Some(Reason::Expired),
            accepted_after: Some(Timestamp(7000)),
            accepted_before: Some(Timestamp(8001)),
        };
        let expected =
            Query { of, after: Some(Cursor::Dead(7)), limit: Some(1000), contents: true, ..Query::default() };
        assert_eq!(read, Ok(expected));
        assert_eq!(query("", &[]), Ok(Query::default()));
        for (wrong, why) in [
            ("conversaton=C", "no such parameter here: \"conversaton\"; known: state, "),
            ("limit=1&limit=1", "limit is given twice"),
            ("conversation=%FF", "conversation: percent-encoded UTF-8 is needed"),
            ("conversation", "conversation: it is empty"),
            ("state=dead", "state: \"dead\", QUEUED or DEAD is needed"),
            ("reason=bored", "reason: \"bored\", one of chat_over, "),
            ("limit=1001", "limit: \"1001\", 1 to 1000 is needed"),
            ("after=7", "after: the Next of the page before is needed"),
            ("contents=1", "contents: \"1\", true or false is needed"),
            ("accepted_after=yesterday", "accepted_after: \"yesterday\", a time such as 2026-"),
            ("accepted_after=", "accepted_after: \"\", a time such as 2026-"),
            ("accepted_before=2026-02-30T00:00:00Z", "accepted_before: \"2026-02-30T00:00:00Z\", a time such as 2026-"),
            ("accepted_before=2026-11-22", "accepted_before: \"2026-11-22\", a time such as 2026-"),
            ("dry_run=true", "no such parameter here: \"dry_run\"; known: state, "),
            ("state=QUEUED&reason=expired", "reason: queued messages have none"),
            ("state=QUEUED&after=d7", "after: it is the Next of another list"),
            ("reason=expired&after=q7.1", "after: it is the Next of another list"),
        ] {
            let text = query(wrong, &all).unwrap_err();
            assert!(text.starts_with(why), "{wrong}: {text}");
        }
        // A bulk act has an implied state, and the cursor has to fit it.
        assert!(bulk("all=true&after=d7", StateFilter::Queued).is_err());
        assert!(bulk("all=true&after=q7.1", StateFilter::Dead).is_err());
        assert!(query("after=q7.1", &all).is_ok() && query("after=d7", &all).is_ok());
    }

    #[test]
    fn bulk_act_needs_a_filter_or_all_and_a_reason_selects_dead_letters() {
        for none in ["", "all=false", "dry_run=true", "limit=5", "after=q7.1"] {
            assert_eq!(
                bulk(none, StateFilter::Queued).unwrap_err(),
                "a bulk act without a filter needs all=true",
                "{none}"
            );
        }
        let state = |query| bulk(query, StateFilter::Queued).unwrap().of.state.unwrap();
        for queued in [
            "all=true",
            "conversation=C",
            "accepted_after=2026-11-22T14:03:07Z",
            "accepted_before=2026-11-22T14:03:07Z",
        ] {
            assert_eq!(state(queued), StateFilter::Queued, "{queued}");
        }
        assert_eq!(state("reason=expired"), StateFilter::Dead);
        assert_eq!(
            bulk("all=true&dry_run=yes", StateFilter::Dead).unwrap_err(),
            "dry_run: \"yes\", true or false is needed"
        );
        assert_eq!(bulk("all=1", StateFilter::Dead).unwrap_err(), "all: \"1\", true or false is needed");
    }
}
