//! `openapi/ingress.yaml` has the code's routes and the code's errors, no more and no less. Other tests compare each
//! route's answers with the binary.

use std::collections::BTreeSet;

use hyper::Method;

use super::Route;

const FILE: &str = include_str!("../../openapi/ingress.yaml");

/// The files that may contain an error code for bots.
const SOURCES: [&str; 4] =
    [include_str!("../ingress.rs"), include_str!("error_reply.rs"), include_str!("body.rs"), include_str!("state.rs")];

/// The methods with their paths: two spaces before a path, four before its methods.
fn operations() -> Vec<(Method, &'static str)> {
    let mut path = "";
    let mut found = Vec::new();
    for line in FILE.lines() {
        if line.starts_with("  /") {
            path = line.trim().trim_end_matches(':');
        } else if let "    get:" | "    post:" = line {
            let method = line.trim().trim_end_matches(':').to_uppercase();
            found.push((method.parse().unwrap(), path));
        }
    }
    found
}

fn codes(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| word.ends_with("Exception") && *word != "Exception").collect()
}

#[test]
fn file_has_every_route_and_no_other() {
    let routes: Vec<Route> = operations().iter().map(|(method, path)| Route::of(method, path)).collect();
    let all = [
        Route::Message,
        Route::Batch,
        Route::Disconnect,
        Route::Event,
        Route::Connection,
        Route::Forward,
        Route::State,
        Route::Queue,
        Route::Outcomes,
    ];
    assert_eq!(routes, all);
}

#[test]
fn file_has_every_error_and_no_other() {
    let code = SOURCES.map(|source| source.split("#[cfg(test)]\nmod tests {").next().unwrap()).concat();
    assert_eq!(codes(FILE), codes(&code));
}
