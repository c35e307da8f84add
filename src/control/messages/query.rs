//! The meaning of a path and its parameters.

use hyper::http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::control::reply::{ErrorReply, invalid};
use crate::delivery::Reason;
use crate::queue::{Cursor, Selection, StateFilter};

/// The most messages in a list.
const LIMIT_MAX: usize = 1000;

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
}

impl Query {
    /// Parses the parameters in `known`, each at most once; `part` is the default of `state`.
    pub fn parse(parts: &Parts, known: &[&str], part: Option<StateFilter>) -> Result<Query, ErrorReply> {
        let mut query = Query { of: Selection { state: part, ..Selection::default() }, ..Query::default() };
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
            query.take(name, &value)?;
        }
        if query.of.reason.is_some() && query.of.state == Some(StateFilter::Queued) {
            return Err(invalid("reason: queued messages have none".into()));
        }
        if query.after.is_some_and(|after| !query.of.leads_to(after)) {
            return Err(invalid("after: it is the Next of another list".into()));
        }
        Ok(query)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), ErrorReply> {
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
            _ => {
                self.contents = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid(format!("contents: {value:?}, true or false is needed"))),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, StatusCode};

    use super::*;

    fn query(text: &str, known: &[&str], part: Option<StateFilter>) -> Result<Query, String> {
        let parts = Request::get(format!("/messages?{text}")).body(()).unwrap().into_parts().0;
        Query::parse(&parts, known, part).map_err(|ErrorReply(status, why)| {
            assert_eq!(status, StatusCode::BAD_REQUEST);
            why
        })
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
        let all = ["state", "conversation", "reason", "after", "limit", "contents"];
        let read =
            query("state=DEAD&conversation=a%2Bb+%2F&&reason=expired&after=d7&limit=1000&contents=true", &all, None);
        let of = Selection {
            state: Some(StateFilter::Dead),
            conversation: Some("a+b+/".into()),
            reason: Some(Reason::Expired),
        };
        assert_eq!(read, Ok(Query { of, after: Some(Cursor::Dead(7)), limit: Some(1000), contents: true }));
        assert_eq!(query("", &[], None), Ok(Query::default()));
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
            ("state=QUEUED&reason=expired", "reason: queued messages have none"),
            ("state=QUEUED&after=d7", "after: it is the Next of another list"),
            ("reason=expired&after=q7.1", "after: it is the Next of another list"),
        ] {
            let text = query(wrong, &all, None).unwrap_err();
            assert!(text.starts_with(why), "{wrong}: {text}");
        }
        // A bulk act has an implied state, and the cursor has to fit it.
        assert!(
            query("after=d7", &all, Some(StateFilter::Queued)).is_err()
                && query("after=q7.1", &all, Some(StateFilter::Dead)).is_err()
        );
        assert!(query("after=q7.1", &all, None).is_ok() && query("after=d7", &all, None).is_ok());
    }
}
