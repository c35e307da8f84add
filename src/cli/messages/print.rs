//! Messages in a form for people.

use std::fmt::Write as _;
use std::time::Duration;

use crate::control::{ConversationCount, Message, Summary};
use crate::status::counted;

/// The JSON of messages, each after the separator, which is a comma from the first one on.
pub fn separated(messages: &[Message], separator: &mut &str) -> anyhow::Result<String> {
    let mut text = String::new();
    for message in messages {
        text += std::mem::replace(separator, ",");
        text += &serde_json::to_string(message)?;
    }
    Ok(text)
}

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
            // Another member with a line break could look like further members.
            let lines: &[char] = if name == "contents" { &['\n', '\t'] } else { &[] };
            let _ = writeln!(text, "{name:<14}{}", plain(&value, lines));
        }
    }
    text
}

/// The summary of the stored messages.
pub fn overview(summary: &Summary) -> String {
    let Summary { queued, conversations, expiring, dead, .. } = summary;
    let mut text = format!("queued        {queued} in {}", counted(*conversations, "conversation"));
    if *expiring > 0 {
        let first = summary.first_expiry.as_deref().unwrap_or("soon");
        let _ = write!(text, "; about {expiring} will expire before they can be sent, the first: {first}");
    }
    let reasons: Vec<_> = summary.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join(", ")) };
    let _ = writeln!(text, "\ndead letters  {dead}{reasons}");
    let _ = writeln!(text, "\n{:<14}{:>10}{:>10}", "ACCEPTED", "QUEUED", "DEAD");
    let mut bound = String::new();
    for age in &summary.ages {
        let class = match age.up_to_seconds {
            Some(seconds) => {
                bound = age_bound(seconds);
                format!("within {bound}")
            }
            None => format!("over {bound} ago"),
        };
        let _ = writeln!(text, "{class:<14}{:>10}{:>10}", age.queued, age.dead);
    }
    for (title, counts) in [("MOST QUEUED", &summary.most_queued), ("LONGEST WAITING", &summary.longest_waiting)] {
        if counts.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{:>10}  {:<24}  {title}", "QUEUED", "OLDEST ACCEPTED");
        for ConversationCount { conversation, queued, oldest_accepted_time, .. } in counts {
            let _ = writeln!(text, "{queued:>10}  {oldest_accepted_time:<24}  {conversation}");
        }
    }
    text
}

/// The bound of a class of ages, in the largest unit: `15m`, `7d`.
fn age_bound(seconds: u64) -> String {
    match seconds {
        days if days % 86_400 == 0 => format!("{}d", days / 86_400),
        _ => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}

/// A text of a bot or of Connect without characters that control the terminal, or the direction of the text after them.
fn plain(text: &str, but: &[char]) -> String {
    let controls = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if controls(c) && !but.contains(&c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Age, MessageError};

    #[test]
    fn messages_of_several_pages_are_one_json_document() {
        let mut separator = "[";
        let pages = [&[][..], &[message(), message()], &[], &[message()]];
        let text: String = pages.iter().map(|page| separated(page, &mut separator).unwrap()).collect();
        let read: Vec<Message> = serde_json::from_str(&(text + "]")).unwrap();
        assert_eq!((read.len(), separator), (3, ","));
        let mut separator = "[";
        assert_eq!((separated(&[], &mut separator).unwrap(), separator), (String::new(), "["));
    }

    #[test]
    fn summary_shows_the_conversations_that_fill_the_queue() {
        let count = |conversation: &str, queued| ConversationCount {
            conversation: conversation.into(),
            queued,
            oldest_accepted_time: "2026-11-22T14:03:07.412Z".into(),
            oldest_seconds: 90.5,
        };
        let summary = Summary {
            queued: 310,
            conversations: 2,
            expiring: 12,
            first_expiry: Some("2026-11-22T14:18:07.412Z".into()),
            dead: 5,
            reasons: [("expired".into(), 3), ("invalid".into(), 2)].into(),
            ages: vec![
                Age { up_to_seconds: Some(60), queued: 10, dead: 0 },
                Age { up_to_seconds: Some(3600), queued: 300, dead: 1 },
                Age { up_to_seconds: Some(7 * 86_400), queued: 0, dead: 0 },
                Age { up_to_seconds: None, queued: 0, dead: 4 },
            ],
            most_queued: vec![count("4711/bot", 300), count("t:0123456789ab", 10)],
            longest_waiting: vec![count("t:0123456789ab", 10)],
        };
        let expected = "\
queued        310 in 2 conversations; about 12 will expire before they can be sent, the first: 2026-11-22T14:18:07.412Z
dead letters  5: 3 expired, 2 invalid

ACCEPTED          QUEUED      DEAD
within 1m             10         0
within 1h            300         1
within 7d              0         0
over 7d ago            0         4

    QUEUED  OLDEST ACCEPTED           MOST QUEUED
       300  2026-11-22T14:03:07.412Z  4711/bot
        10  2026-11-22T14:03:07.412Z  t:0123456789ab

    QUEUED  OLDEST ACCEPTED           LONGEST WAITING
        10  2026-11-22T14:03:07.412Z  t:0123456789ab
";
        assert_eq!(overview(&summary), expected);
        let nothing = overview(&Summary::default());
        assert!(nothing.starts_with("queued        0 in 0 conversations\ndead letters  0\n"), "{nothing}");
        let one = overview(&Summary { queued: 7, conversations: 1, ..Summary::default() });
        assert!(one.starts_with("queued        7 in 1 conversation\n"), "{one}");
    }

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
        let steering = Message {
            client_token: "\x1b[2J\n\u{202e}".into(),
            content: Some("a\nb\x1b\u{9b}\u{2066}".into()),
            ..message()
        };
        assert!(table(std::slice::from_ref(&steering), false).ends_with(" \u{fffd}[2J\u{fffd}\u{fffd}\n"));
        let described = describe(&steering);
        assert!(described.contains("\nclient token  \u{fffd}[2J\u{fffd}\u{fffd}\ntype "), "{described}");
        assert!(described.ends_with("contents      a\nb\u{fffd}\u{fffd}\u{fffd}\n"), "{described}");
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
