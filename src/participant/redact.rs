//! Masks a credential in upstream's texts.
//!
//! An error text may echo the token, unchanged or escaped: for a URL (`%2F`), for JSON (`\/`, `\u002f`), or with its
//! bytes read as Latin-1. [`redact`] finds all of these, also mixed, and a token that the end of the text has cut.
//!
//! Connect's tokens have hundreds of characters. One of a few characters is a developer's, `a` or `bot-1`, and its
//! letters are in every sentence: it is masked in a text only as a separate word, and in an id not at all.

/// The replacement of a token.
const MASK: &str = "[token]";
/// The length from which a token, or its beginning at the end of a text, cannot be there by chance.
const NO_WORD: usize = 8;

/// Returns the text without the token, in any of its spellings.
pub(super) fn redact(text: &str, token: &[u8]) -> String {
    let latin: Vec<char> = token.iter().map(|byte| char::from(*byte)).collect();
    let utf8: Vec<char> = String::from_utf8_lossy(token).chars().collect();
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    let mut before = None;
    while let Some(first) = rest.chars().next() {
        let found = spelled(rest, &latin).or_else(|| spelled(rest, &utf8));
        let found = found.filter(|length| !is_short(token) || stands_alone(before, &rest[*length..]));
        let length = found.unwrap_or(first.len_utf8());
        clean.push_str(if found.is_some() { MASK } else { &rest[..length] });
        before = rest[..length].chars().next_back();
        rest = &rest[length..];
    }
    clean
}

/// Does the same for an id or a time, which may contain the letters of a short token by chance.
pub(super) fn redact_id(id: &str, token: &[u8]) -> String {
    if is_short(token) { id.to_owned() } else { redact(id, token) }
}

fn is_short(token: &[u8]) -> bool {
    token.len() < NO_WORD
}

/// True if the spelled token is not part of a longer word.
fn stands_alone(before: Option<char>, after: &str) -> bool {
    ![before, after.chars().next()].into_iter().flatten().any(char::is_alphanumeric)
}

/// The number of bytes at the beginning of the text that spell the token.
fn spelled(text: &str, token: &[char]) -> Option<usize> {
    let mut at = 0;
    for (matched, wanted) in token.iter().enumerate() {
        let rest = &text[at..];
        match character(rest, *wanted) {
            Some(length) => at += length,
            None if rest.is_empty() && matched >= NO_WORD => return Some(at),
            None => return None,
        }
    }
    (!token.is_empty()).then_some(at)
}

/// The number of bytes at the beginning of the text that spell this character.
fn character(text: &str, wanted: char) -> Option<usize> {
    if text.starts_with(wanted) {
        return Some(wanted.len_utf8());
    }
    match text.as_bytes().first()? {
        b'\\' if text[1..].starts_with(wanted) => Some(1 + wanted.len_utf8()),
        b'\\' => {
            let mut units = [0; 2];
            let escapes = wanted.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}"));
            prefix(text, &escapes.collect::<String>())
        }
        b'%' => {
            let mut bytes = [0; 4];
            let escapes = wanted.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02x}"));
            let latin = u8::try_from(u32::from(wanted)).ok().map(|byte| format!("%{byte:02x}"));
            prefix(text, &escapes.collect::<String>()).or_else(|| prefix(text, &latin?))
        }
        _ => None,
    }
}

/// The length of `escape` if the text begins with it, in any case.
fn prefix(text: &str, escape: &str) -> Option<usize> {
    let head = text.as_bytes().get(..escape.len())?;
    head.eq_ignore_ascii_case(escape.as_bytes()).then_some(escape.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn token_is_masked_in_every_spelling() {
        let token = "QVI/b\"+é==".as_bytes();
        for spelling in [
            "QVI/b\"+é==",
            "QVI%2Fb%22%2B%C3%A9%3D%3D",
            "QVI%2fb%22%2b%e9%3d%3d".replace("%e9", "%c3%a9").as_str(),
            r#"QVI\/b\"+\u00e9=="#,
            "\\u0051VI\\u002Fb\\u0022%2b\u{e9}==",
            "QVI/b\"+Ã©==",
            "QVI/b\"+%C3%A9=%3d",
        ] {
            assert_eq!(
                redact(&format!("token {spelling}, {spelling}!"), token),
                "token [token], [token]!",
                "{spelling}"
            );
        }
    }

    #[test]
    fn short_token_is_masked_only_as_a_separate_word() {
        for (text, token, clean) in [
            ("Access denied", "d", "Access denied"),
            ("The security token is invalid", "tok", "The security token is invalid"),
            ("bad token bot-1, not bot-12", "bot-1", "bad token [token], not bot-12"),
            ("\"a\" and a", "a", "\"[token]\" and [token]"),
            (r"a\u002fb", "a/b", "[token]"),
        ] {
            assert_eq!(redact(text, token.as_bytes()), clean);
        }
        let id = "3c44edee-257d-4ed3-9d10-a";
        assert_eq!((redact_id(id, b"a"), redact_id(id, b"257d-4ed3")), (id.into(), "3c44edee-[token]-9d10-a".into()));
    }

    #[test]
    fn token_cut_off_at_the_end_is_masked() {
        assert_eq!(redact("bad token abcdefghijk", b"abcdefghijklmnop"), "bad token [token]");
        assert_eq!(redact("abcdefg", b"abcdefghijklmnop"), "abcdefg", "seven characters may be a word");
        assert_eq!(redact("é stays", b"\xff\xfe"), "é stays");
    }

    proptest! {
        #[test]
        fn nothing_else_is_touched(text in "[a-m %\\\\é]{0,60}", token in "[n-z]{1,20}") {
            prop_assert_eq!(redact(&text, token.as_bytes()), text);
        }

        #[test]
        fn no_token_survives(before in ".{0,20}", token in "[!-~]{8,40}", after in ".{0,20}") {
            let text = format!("{before}{token}{after}");
            prop_assert!(!redact(&text, token.as_bytes()).contains(&token));
        }
    }
}
