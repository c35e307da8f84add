//! Builds the replies of the admin port.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use crate::serve::Reply;

/// A reply of one line of text.
pub(super) fn text(status: StatusCode, line: &str) -> Reply {
    // An error's text may contain line breaks; the reply must be one line.
    reply(status, "text/plain; charset=utf-8", line.replace(['\r', '\n'], " ") + "\n")
}

/// A reply with any body.
pub(super) fn reply(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Bytes::from(body).into());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
