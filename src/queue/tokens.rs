//! Renewals of ConnectionTokens.

use super::rows::{Hash, Token, keys};
use crate::storage::Key;

/// Returns the token that the messages of a token are sent with, and its row, which is empty if there is none. It is the
/// token itself or the last one that renewed it.
pub fn newest_token<E>(
    hash: &Hash,
    mut read: impl FnMut(&Key) -> Result<Option<Token>, E>,
) -> Result<(Hash, Token), E> {
    let mut newest = (*hash, read(&keys::token(hash))?.unwrap_or_default());
    // Renewals are a chain. The limit guards against a cycle in damaged rows.
    for _ in 0..1000 {
        let Some(next) = newest.1.renewed_by else { break };
        let Some(row) = read(&keys::token(&next))? else { break };
        newest = (next, row);
    }
    Ok(newest)
}
