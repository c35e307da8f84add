//! Messages in a form for people.

use std::fmt::Write as _;

use crate::control::Message;

/// One line per message.
pub fn table(messages: &[Message], head: bool) -> String {
    let mut text = String::new();
    let mut row = |cells: [&str; 6]| {
        let [id, state, accepted, attempts, conversation, client_token] = cells;
        let _ =
            writeln!(text, "{id:<20}  {state:<20}  {accepted:<24}  {attempts:>8}  {conversation:<24}  {client_token}");
    };
    if head {
        row(["ID", "STATE", "ACCEPTED", "ATTEMPTS", "CONVERSATION", "CLIENT TOKEN"]);
    }
    for message in messages {
        let Message { id, accepted_time, attempts, conversation, client_token, .. } = message;
        let client_token = plain(client_token, &[]);
        row([id, &state(message), accepted_time, &attempts.to_string(), conversation, &client_token]);
    }
    text
}

/// The state, and special facts about it.
fn state(message: &Message) -> String {
    let mut state = message.state.to_ascii_lowercase();
    if let Some(reason) = &message.reason {
        let _ = write!(state, " {reason}");
    }
    if message.in_flight {
        state.push_str(" in_flight");
    }
    if message.maybe_delivered {
        state.push('?');
    }
    state
}

/// All known facts about one message.
pub fn describe(message: &Message) -> String {
    let error = message.error.as_ref().map(|error| {
        let text = error.message.as_deref().map(|text| format!(": {text}")).unwrap_or_default();
        format!("{}{text}", error.code)
    });
    let rows = [
        ("id", Some(message.id.clone())),
        ("state", Some(state(message))),
        ("conversation", Some(message.conversation.clone())),
        ("client token", Some(message.client_token.clone())),
        ("type", message.content_type.clone()),
        ("accepted", Some(message.accepted_time.clone())),
        ("lifetime ends", Some(message.expiry_time.clone())),
        ("attempts", Some(message.attempts.to_string())),
        ("not before", message.next_attempt_time.clone()),
        ("died", message.dead_time.clone()),
        ("error", error),
        ("delivered", message.maybe_delivered.then(|| "perhaps: an attempt may have arrived".to_owned())),
        ("trace id", message.trace_id.clone()),
        ("contents", message.content.clone()),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<14}{}", plain(&value, &['\n', '\t']));
        }
    }
    text
}

/// A text of a bot or of Connect without terminal control characters.
fn plain(text: &str, but: &[char]) -> String {
    text.chars().map(|c| if c.is_control() && !but.contains(&c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MessageError;

    fn message() -> Message {
        Message {
            id: "9f86d081-42".into(),
            client_token: "order-4711".into(),
            state: "DEAD".into(),
            conversation: "C/bot".into(),
            content_type: Some("text/plain".into()),
            accepted_time: "2026-11-22T14:03:07.412Z".into(),
            expiry_time: "2026-11-22T14:18:07.412Z".into(),
            attempts: 3,
            dead_time: Some("2026-11-22T14:18:07.501Z".into()),
            reason: Some("expired".into()),
            error: Some(MessageError { code: "GoneException".into(), message: Some("connect-relay: too late".into()) }),
            maybe_delivered: true,
            ..Message::default()
        }
    }

    #[test]
    fn table_has_a_line_a_message() {
        let queued =
            Message { state: "QUEUED".into(), reason: None, maybe_delivered: false, in_flight: true, ..message() };
        let expected = "\
ID                    STATE                 ACCEPTED                  ATTEMPTS  CONVERSATION              CLIENT TOKEN
9f86d081-42           queued in_flight      2026-11-22T14:03:07.412Z         3  C/bot                     order-4711
9f86d081-42           dead expired?         2026-11-22T14:03:07.412Z         3  C/bot                     order-4711
";
        assert_eq!(table(&[queued, message()], true), expected);
        assert_eq!(table(&[], false), "");
        let steering =
            Message { client_token: "\x1b[2J\n".into(), content: Some("a\nb\x1b\u{9b}".into()), ..message() };
        assert!(table(std::slice::from_ref(&steering), false).ends_with(" \u{fffd}[2J\u{fffd}\n"));
        assert!(describe(&steering).ends_with("contents      a\nb\u{fffd}\u{fffd}\n"));
    }

    #[test]
    fn one_message_is_described_as_far_as_it_goes() {
        let expected = "\
id            9f86d081-42
state         dead expired?
conversation  C/bot
client token  order-4711
type          text/plain
accepted      2026-11-22T14:03:07.412Z
lifetime ends 2026-11-22T14:18:07.412Z
attempts      3
died          2026-11-22T14:18:07.501Z
error         GoneException: connect-relay: too late
delivered     perhaps: an attempt may have arrived
";
        assert_eq!(describe(&message()), expected);
    }
}
