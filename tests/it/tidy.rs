//! The repository under test: its floors, its absences, and that its tables say what the code says.
//!
//! A violation is printed as `file:line: rule`, all of them at once. The scan reads text, not syntax: comment lines,
//! and a module's tests at its end, are passed over, and everything else counts, so that a rule has no back door.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The modules, lowest floor first. A module names only modules of lower floors, and its own children.
pub(super) const FLOORS: &[&[&str]] = &[
    &["time", "metrics", "malloc"],
    &["retry", "storage"],
    &["message", "delivery", "ship"],
    &["message_log", "pacer", "fairness", "suspects", "health", "service_manager", "tls"],
    &["queue", "participant", "fleet", "serve"],
    &["status"],
    &["ingress", "sender", "control", "admin", "simulator"],
    &["config"],
    &["daemon"],
    &["cli"],
    &["lib", "main"],
];

/// Code that only some modules may contain, and the rule. The text of the code is searched.
const ABSENCES: &[(&[&str], &[&str], &str)] = &[
    (&["sled::"], &["storage"], "only storage names sled"),
    (
        &["TcpStream::connect", "TcpSocket", "HttpConnector", "hyper_rustls", "hyper_util::client", "lookup_host"],
        &["participant"],
        "only participant and fleet dial out",
    ),
    (&["async_nats"], &["fleet"], "only fleet names the NATS client"),
    (&["Instant::now", "SystemTime::now"], &["time"], "only time reads a clock"),
    (&["env::"], &["cli", "config", "main"], "only cli and config read arguments and environment"),
    (
        &["read_to_string(", "fs::read(", "File::open"],
        &["cli", "config", "storage", "ingress", "time"],
        "only cli and config read files; storage its own, ingress a peer's groups, and time the boot id",
    ),
    (
        &["tokio::spawn", "thread::spawn", "task::spawn"],
        &["daemon", "cli"],
        "only daemon spawns long-lived tasks (a JoinSet that is joined is not one)",
    ),
    (
        &["spawn_blocking"],
        &["daemon", "cli", "fleet"],
        "only daemon spawns long-lived tasks (fleet joins the thread that writes a restore)",
    ),
    (
        &["process::Command", "Command::new", "CommandExt"],
        &["cli"],
        "the relay starts no program, which would inherit its environment and its sockets; the demo starts servers and relays",
    ),
    (&["lazy_static!", "thread_local!", "LazyLock", "default_registry"], &[], "no statics and no global registry"),
    (&["#[allow(", "#![allow("], &[], "#[expect(…, reason)], never #[allow]"),
    (&["todo!", "unimplemented!", "dbg!"], &[], "nothing unfinished"),
];

#[test]
fn a_module_names_only_lower_floors_and_its_own_children() {
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let mut violations = Vec::new();
    for source in sources() {
        let Some(own) = floor(&source.module) else {
            violations.push(format!("{}:1: {} is on no floor", source.path.display(), source.module));
            continue;
        };
        for (line, named) in source.names() {
            let lower = floor(&named).is_some_and(|its| its < own);
            if named != source.module && !lower {
                violations.push(format!("{}:{line}: {} may not name {named}", source.path.display(), source.module));
            }
        }
    }
    none(violations);
}

#[test]
fn restricted_code_is_only_in_its_modules() {
    let mut violations = Vec::new();
    for source in sources() {
        for (number, line) in source.lines() {
            for (words, allowed, rule) in ABSENCES {
                if !allowed.contains(&&*source.module) && words.iter().any(|word| has_word(line, word)) {
                    violations.push(format!("{}:{number}: {rule}", source.path.display()));
                }
            }
            let item = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if item.starts_with("static ") {
                violations.push(format!("{}:{number}: no statics", source.path.display()));
            }
        }
    }
    none(violations);
}

#[test]
fn of_the_commands_only_the_demo_starts_programs() {
    let starts = |source: &Source| source.lines().any(|(_, line)| has_word(line, "Command::new"));
    let files: Vec<PathBuf> = sources().into_iter().filter(starts).map(|source| source.path).collect();
    let demo = root().join("src/cli/demo");
    assert!(!files.is_empty() && files.iter().all(|path| root().join(path).starts_with(&demo)), "{files:?}");
}

#[test]
fn configuration_table_is_the_shipped_file() {
    let shipped = shipped_keys();
    assert!(!shipped.is_empty(), "config/relay.toml has keys");
    let table = table("docs/configuration.md", "## Keys");
    let documented: BTreeMap<_, _> = table.iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let mut violations = Vec::new();
    for (key, (line, default)) in &shipped {
        match documented.get(key) {
            None => violations.push(format!("config/relay.toml:{line}: {key} is missing in docs/configuration.md")),
            Some(found) if found != default => {
                violations
                    .push(format!("config/relay.toml:{line}: {key} is {default}, docs/configuration.md says {found}"));
            }
            Some(_) => {}
        }
    }
    violations.extend(
        documented
            .keys()
            .filter(|key| !shipped.contains_key(*key))
            .map(|key| format!("docs/configuration.md: no such key: {key}")),
    );
    none(violations);
}

#[test]
fn every_setting_that_a_document_names_exists() {
    let shipped = shipped_keys();
    let names: BTreeSet<String> =
        shipped.keys().map(|key| format!("CONNECT_RELAY__{}", key.to_uppercase().replace('.', "__"))).collect();
    let mut documents = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name)).to_vec();
    collect(&root().join("docs"), &mut documents);
    collect(&root().join("deploy"), &mut documents);
    collect(&root().join("examples"), &mut documents);
    let mut violations = Vec::new();
    for path in documents {
        let text = read(&path);
        for (number, line) in (1..).zip(text.lines()) {
            for (start, _) in line.match_indices("CONNECT_RELAY__") {
                let name: String = line[start..]
                    .chars()
                    .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                    .collect();
                if name != "CONNECT_RELAY__" && !names.contains(&name) {
                    violations.push(format!("{}:{number}: no such setting: {name}", path.display()));
                }
            }
        }
    }
    none(violations);
}

#[test]
fn every_key_that_deploy_names_exists() {
    let keys = shipped_keys();
    let sections: BTreeSet<&str> = keys.keys().filter_map(|key| key.split('.').next()).collect();
    let mut files = vec![root().join("Dockerfile")];
    collect(&root().join("deploy"), &mut files);
    assert!(files.len() > 10, "deploy/ has files");
    let (mut named, mut violations) = (0, Vec::new());
    for path in files {
        for (number, line) in (1..).zip(read(&path).lines()) {
            // In prose and in TOML, a word of the form section.key; `control.sock` and `relay.toml` are files.
            for word in line.split(|c: char| !(c.is_ascii_lowercase() || c == '.' || c == '_' || c == '/')) {
                let word = word.trim_matches('.');
                let Some((section, key)) = word.split_once('.') else { continue };
                if sections.contains(section) && !matches!(key, "sock" | "svc") {
                    named += 1;
                    if !keys.contains_key(word) {
                        violations.push(format!("{}:{number}: no such key: {word}", path.display()));
                    }
                }
            }
        }
    }
    assert!(named > 5, "it is seen that deploy/ names keys");
    none(violations);
}

#[test]
fn metrics_table_is_what_the_code_registers() {
    let mut registered = BTreeSet::new();
    for source in sources() {
        registered.extend(source.metrics());
    }
    let documented: BTreeSet<String> = table("docs/metrics.md", "## All metrics")
        .iter()
        .map(|row| row[0].trim_start_matches("connect_relay_").split('{').next().unwrap_or_default().to_owned())
        .filter(|name| !name.starts_with("process_"))
        .collect();
    let missing = registered.difference(&documented).map(|name| format!("docs/metrics.md: metric {name} is missing"));
    let unknown = documented.difference(&registered).map(|name| format!("docs/metrics.md: no such metric: {name}"));
    none(missing.chain(unknown).collect());
}

#[test]
fn guarantees_name_the_number_of_hung_starts_after_which_a_store_is_set_aside() {
    let text: String = sources().into_iter().map(|source| source.text).collect();
    let most =
        text.split_once("const STARTS_MAX: u64 = ").and_then(|(_, rest)| rest.split_once(';')).map(|(most, _)| most);
    let ordinals = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"];
    let most: usize = most.and_then(|most| most.parse().ok()).expect("the code has the number");
    let said = format!("the start after the {} such start in a row sets the store aside", ordinals[most - 1]);
    assert!(read(&root().join("docs/guarantees.md")).contains(&said), "docs/guarantees.md: {said}");
}

/// A member has one type in all log lines, and `message` is the text: an integer of 128 bits is written as a text, and so
/// is what has a sigil.
#[test]
fn every_log_line_has_a_text_and_members_of_plain_types() {
    let (mut lines, mut violations) = (0, Vec::new());
    let mut sigils: BTreeMap<String, (bool, String)> = BTreeMap::new();
    for source in sources() {
        for (number, arguments) in source.log_lines() {
            lines += 1;
            let place = format!("{}:{number}", source.path.display());
            let text = arguments.iter().find(|argument| argument.starts_with('"'));
            if text.is_none() {
                violations.push(format!("{place}: a log line without a text"));
            }
            for argument in arguments.iter().take_while(|argument| !argument.starts_with('"')) {
                let (name, value) = argument.split_once('=').unwrap_or((argument, argument));
                let (name, value) = (name.trim().trim_start_matches(['%', '?']), value.trim());
                if ["message", "id"].contains(&name) {
                    violations.push(format!("{place}: {name} is no member: the text is message, an id message_id"));
                }
                if value.starts_with('?')
                    || ["as_millis()", "as_micros()", "as_nanos()"].iter().any(|of| value.contains(of))
                {
                    violations.push(format!("{place}: {name} is written as a debug form"));
                }
                let shown = value.starts_with('%');
                let (other, where_) = sigils.entry(name.to_owned()).or_insert_with(|| (shown, place.clone()));
                // A text may come either way; a number may not.
                if *other != shown && (name.ends_with("_ms") || name.ends_with("_seconds") || name.ends_with("_max")) {
                    violations.push(format!("{place}: {name} is a text here or at {where_}"));
                }
            }
        }
    }
    assert!(lines > 30, "the log lines are found: {lines}");
    none(violations);
}

#[test]
fn scan_finds_words_modules_metrics_and_arguments() {
    assert!(has_word("use sled::Db;", "sled::") && !has_word("unsled::x", "sled::"));
    let source = Source {
        path: "src/queue/x.rs".into(),
        module: "queue".into(),
        text: "use crate::{message::{A, B}, time};\n// crate::cli\nlet x = crate::delivery::Y;\n\
               metrics.counters(\n    \"a_total\", \"help\");\n#[cfg(test)]\nmod tests { use crate::cli; }\n"
            .into(),
    };
    let names: Vec<_> = source.names().into_iter().map(|(line, name)| format!("{line} {name}")).collect();
    assert_eq!(names, ["1 message", "1 time", "3 delivery"]);
    assert_eq!(source.metrics(), ["a_total"]);
    assert_eq!(
        arguments("a, %b, c = f(1, \"x, y\"), \"text, {}\", d);\nother(e)"),
        ["a", "%b", "c = f(1, \"x, y\")", "\"text, {}\"", "d",]
    );
}

/// Words that `src/storage` does not contain, in code or comments: what its rows mean is the business of the queue.
const UNKNOWN_TO_STORAGE: &[&str] = &[
    "message",
    "conversation",
    "clienttoken",
    "connectiontoken",
    "client_token",
    "dead letter",
    "lease",
    "chat",
    "sender",
];

#[test]
fn storage_does_not_know_what_its_rows_mean() {
    let mut violations = Vec::new();
    let storage: Vec<_> = sources().into_iter().filter(|source| source.module == "storage").collect();
    assert!(storage.len() > 10, "src/storage has files");
    for source in &storage {
        for (number, line) in (1..).zip(source.text.lines()) {
            let words = line.to_lowercase();
            let known = UNKNOWN_TO_STORAGE.iter().filter(|word| has_word(&words, word));
            violations.extend(known.map(|word| format!("{}:{number}: storage knows no {word}", source.path.display())));
        }
        // A row's prefix: its own are the journal's position, the copy of the stamp, and the place of the store's key.
        for (number, line) in source.lines() {
            for (at, _) in line.match_indices("b'") {
                let prefix = &line[at + 2..at + 3];
                if !["j", "f", "s"].contains(&prefix) {
                    violations.push(format!("{}:{number}: storage knows no prefix {prefix}", source.path.display()));
                }
            }
        }
    }
    none(violations);
}

/// Code that only `queue::rows` contains within the queue: it makes and reads all keys, so that each byte of a row is
/// described in one place.
const OF_ROWS: &[&str] = &["b'", "Key::new(", "number_at(", "hash_at("];

#[test]
fn only_rows_knows_the_letters_of_tables_and_the_parts_of_keys() {
    let (mut files, mut in_rows, mut violations) = (0, 0, Vec::new());
    for source in sources().iter().filter(|source| source.module == "queue") {
        let is_rows = source.is_in("queue::rows");
        files += usize::from(!is_rows);
        for (number, line) in source.lines() {
            // The end of a line of output is no letter of a table.
            let line = line.replace(r"b'\n'", "");
            for code in OF_ROWS.iter().filter(|code| line.contains(**code)) {
                if is_rows {
                    in_rows += 1;
                } else {
                    violations.push(format!("{}:{number}: only queue::rows has {code}", source.path.display()));
                }
            }
        }
    }
    assert!(files > 20 && in_rows > 20, "{files} files of the queue and {in_rows} places in rows are seen");
    none(violations);
}

/// The parts of the queue, lowest floor first. A part names only parts on lower floors, and its own files.
pub(super) const QUEUE_FLOORS: &[&[&str]] = &[
    &["queue::rows"],
    &["queue::api"],
    &["queue::hashed"],
    &["queue::state"],
    &["queue::ops"],
    &["queue::thread"],
    &["queue::recovery"],
    &["queue"],
];

#[test]
fn a_part_of_the_queue_names_only_lower_floors_and_its_own_files() {
    let floor = |module: &[String]| {
        let part = module[..module.len().min(2)].join("::");
        QUEUE_FLOORS.iter().position(|floor| floor.contains(&&*part))
    };
    let (mut arrows, mut violations) = (0, Vec::new());
    for (module, imports) in imports().iter().filter(|(module, _)| module[0] == "queue") {
        let Some(own) = floor(module) else {
            violations.push(format!("{} stands on no floor of the queue", module.join("::")));
            continue;
        };
        for import in imports.iter().filter(|import| import[0] == "queue") {
            arrows += 1;
            if floor(import).is_none_or(|its| its > own) {
                violations.push(format!("{} may not name {}", module.join("::"), import.join("::")));
            }
        }
    }
    assert!(arrows > 80, "{arrows} imports within the queue are seen");
    none(violations);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports();
    let named: usize = imports.values().map(BTreeSet::len).sum();
    assert!(imports.len() > 100 && named > 3 * imports.len(), "{named} imports of {} files are seen", imports.len());
    none(circles(&imports));
}

/// A type with methods in several files is one object if its files call each other in a circle, though no import shows
/// it.
#[test]
fn files_of_the_queues_state_do_not_call_each_others_methods_in_a_circle() {
    let sources = sources();
    let of_state = || sources.iter().filter(|source| source.is_in("queue::state"));
    let methods: BTreeMap<String, Vec<String>> = of_state()
        .flat_map(|source| source.methods_of("State").into_iter().map(|method| (method, source.module_path())))
        .collect();
    let mut calls: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for source in of_state() {
        let own = source.module_path();
        let called = source.calls().into_iter().filter_map(|method| methods.get(&method).cloned());
        calls.entry(own.clone()).or_default().extend(called.filter(|other| *other != own));
    }
    let files: BTreeSet<_> = methods.values().collect();
    assert!(methods.len() > 40 && files.len() >= 6, "{} methods in {} files", methods.len(), files.len());
    assert!(calls.values().map(BTreeSet::len).sum::<usize>() >= 5, "calls between the files are seen: {calls:?}");
    none(circles(&calls));
}

/// The files, each with the files that it imports.
fn imports() -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let sources = sources();
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module_path).collect();
    let files = sources.iter().filter(|source| source.lines().next().is_some());
    files.map(|source| (source.module_path(), source.imports(&modules))).collect()
}

/// The circles of imports, as paths of modules.
fn circles(imports: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<String> {
    let mut found = Vec::new();
    for start in imports.keys() {
        // A search over all that `start` imports, each with the module that led there.
        let (mut came_from, mut next) = (BTreeMap::new(), vec![start]);
        while let Some(module) = next.pop() {
            for import in imports.get(module).into_iter().flatten() {
                if let Entry::Vacant(unseen) = came_from.entry(import) {
                    unseen.insert(module);
                    next.push(import);
                }
            }
        }
        if came_from.contains_key(start) {
            let (mut way, mut at) = (vec![start.join("::")], came_from[start]);
            while at != start {
                way.push(at.join("::"));
                at = came_from[at];
            }
            way.push(start.join("::"));
            way.reverse();
            found.push(format!("a circle of imports: {}", way.join(" -> ")));
        }
    }
    found
}

#[test]
fn imports_and_circles_are_found() {
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<_>>();
    let modules: BTreeSet<_> = ["a", "a::b", "a::b::c", "a::d", "e"].map(path).into();
    let source = |path: &str, text: &str| Source { path: path.into(), module: "a".into(), text: text.into() };
    let imports = |file: &str, text: &str| {
        source(file, text).imports(&modules).into_iter().map(|path| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(imports("src/a.rs", "mod b;\npub use b::X;\nuse self::d::Y;"), ["a::b", "a::d"]);
    assert_eq!(imports("src/a/b.rs", "use super::{d::{self, Y}, Z};\nuse crate::e;"), ["a", "a::d", "e"]);
    assert_eq!(imports("src/a/b/c.rs", "use super::super::d;\nlet x = crate::a::b::T::new();"), ["a::b", "a::d"]);
    assert_eq!(imports("src/a/b.rs", "pub(in crate::e) fn f() { c::g() }"), ["a::b::c"]);
    let methods = source(
        "src/a.rs",
        "impl T {\n    pub fn f(\n        &self,\n    ) {\n        self.g();\n    }\n    fn h(x: u8) {}\n}\n",
    );
    assert_eq!(
        (methods.methods_of("T"), methods.methods_of("U"), methods.calls()),
        (vec!["f".into()], vec![], vec!["g".into()])
    );
    assert_eq!(imports("src/a/d.rs", "// super::b\nuse super::b::{\n    X, c::Y,\n};\n"), ["a::b", "a::b::c"]);
    let graph = |arrows: &[(&str, &str)]| {
        let mut graph: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (from, to) in arrows {
            graph.entry(path(from)).or_default().insert(path(to));
        }
        circles(&graph)
    };
    assert_eq!(graph(&[("a", "b"), ("b", "c"), ("a", "c")]), Vec::<String>::new());
    let circle = graph(&[("a", "b"), ("b", "c"), ("c", "b")]);
    assert_eq!(circle, ["a circle of imports: b -> c -> b", "a circle of imports: c -> b -> c"]);
    let crossed = graph(&[("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("c", "b"), ("c", "d"), ("d", "a")]);
    assert_eq!(crossed.len(), 4, "{crossed:?}");
}

/// One file of the crate.
struct Source {
    path: PathBuf,
    /// The module right under the crate's root that it belongs to.
    module: String,
    text: String,
}

impl Source {
    /// Its lines of code with their numbers: no comments, no tests.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let inline = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let of_tests =
            self.path.ends_with("tests.rs") || self.path.components().any(|part| part.as_os_str() == "tests");
        let end = if of_tests { 0 } else { inline };
        (1..).zip(self.text[..end].lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// The modules of this crate that it names, by `crate::x`, `crate::{x, y::z}` or, in main, `connect_relay::x`.
    fn names(&self) -> Vec<(usize, String)> {
        let code: Vec<_> = self.lines().collect();
        let mut found = Vec::new();
        for (index, (number, line)) in code.iter().enumerate() {
            for start in ["crate::", "connect_relay::"] {
                for (at, _) in line.match_indices(start) {
                    let rest = &line[at + start.len()..];
                    if rest.starts_with('{') {
                        let following = code[index + 1..].iter().map(|(_, line)| *line);
                        let whole: String = std::iter::once(rest).chain(following).collect::<Vec<_>>().join("\n");
                        found.extend(heads_of_group(&whole).into_iter().map(|name| (*number, name)));
                    } else {
                        found.extend(head(rest).map(|name| (*number, name)));
                    }
                }
            }
        }
        // An item of the root itself (a macro, the version) is no module: modules are in lower case.
        found.retain(|(_, name)| name.starts_with(|first: char| first.is_ascii_lowercase()));
        found
    }

    /// The arguments of each of its log lines.
    fn log_lines(&self) -> Vec<(usize, Vec<String>)> {
        let code: Vec<_> = self.lines().collect();
        let mut found = Vec::new();
        for (index, (number, line)) in code.iter().enumerate() {
            for level in ["error!(", "warn!(", "info!(", "debug!(", "trace!("] {
                for (at, _) in line.match_indices(level).filter(|(at, _)| has_word(&line[*at..], level)) {
                    let rest = &line[at + level.len()..];
                    let following = code[index + 1..].iter().map(|(_, line)| *line);
                    let whole: String = std::iter::once(rest).chain(following.take(40)).collect::<Vec<_>>().join("\n");
                    found.push((*number, arguments(&whole)));
                }
            }
        }
        found
    }

    /// Its module's path from the crate's root.
    fn module_path(&self) -> Vec<String> {
        let path = self.path.strip_prefix("src").expect("a file under src").with_extension("");
        path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    }

    /// True if it is the file of this module or of one below it.
    fn is_in(&self, module: &str) -> bool {
        let own = self.module_path().join("::");
        own.strip_prefix(module).is_some_and(|below| below.is_empty() || below.starts_with("::"))
    }

    /// The modules that it names, by paths that begin with `crate`, `super`, `self` or its own child.
    fn imports(&self, modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
        let own = self.module_path();
        let code = self.lines().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        let mut named = BTreeSet::new();
        for (at, _) in code.match_indices("::") {
            let first = code[..at].rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
            let before = &code[..at - first.len()];
            let child = || {
                let child = [&own[..], &[first.to_owned()]].concat();
                modules.contains(&child).then_some(child)
            };
            let start = match first {
                // A part of a longer path, or the reach of a visibility.
                _ if before.ends_with("::") || before.ends_with("(in ") => continue,
                "crate" => Vec::new(),
                "self" => own.clone(),
                "super" => own[..own.len() - 1].to_vec(),
                _ => match child() {
                    Some(child) => child,
                    None => continue,
                },
            };
            let mut tree = &code[at + 2..];
            follow(&mut tree, &start, modules, &mut named);
        }
        named.remove(&own);
        named.remove(&Vec::new());
        named
    }

    /// The names of the methods of a type that it has.
    fn methods_of(&self, owner: &str) -> Vec<String> {
        let (mut inside, mut found) = (false, Vec::new());
        let code: Vec<_> = self.lines().map(|(_, line)| line).collect();
        for (at, line) in code.iter().enumerate() {
            inside = *line == format!("impl {owner} {{") || (inside && *line != "}");
            let Some((_, rest)) = line.split_once("fn ").filter(|_| inside && line.starts_with("    ")) else {
                continue;
            };
            let signature = code[at..].iter().take(2).map(|line| line.trim()).collect::<String>();
            if ["(&self", "(&mut self"].iter().any(|with| signature.contains(with)) || rest.contains("<'a>(&self") {
                found.extend(head(rest));
            }
        }
        found
    }

    /// The names of the methods that it calls on `self`.
    fn calls(&self) -> Vec<String> {
        let code = self.lines().map(|(_, line)| line.trim()).collect::<Vec<_>>().join("");
        code.split("self.")
            .skip(1)
            .filter_map(|rest| head(rest).filter(|name| rest[name.len()..].starts_with('(')))
            .collect()
    }

    /// The metrics that it registers: the first argument of each of the constructors in `metrics`.
    fn metrics(&self) -> Vec<String> {
        let code: String = self.lines().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        let mut found = Vec::new();
        for method in
            ["counter", "counter_of", "counters", "seconds", "gauge", "gauges", "level", "levels", "histogram"]
        {
            for part in code.split(&format!(".{method}(")).skip(1) {
                if let Some((name, _)) = part.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"')) {
                    found.push(name.to_owned());
                }
            }
        }
        found
    }
}

/// The arguments of a call, from behind its opening parenthesis.
fn arguments(code: &str) -> Vec<String> {
    let (mut depth, mut text, mut all, mut argument, mut before) = (0, false, Vec::new(), String::new(), ' ');
    for c in code.chars() {
        match c {
            '"' if before != '\\' => text = !text,
            '(' | '[' | '{' if !text => depth += 1,
            ')' | ']' | '}' if !text => depth -= 1,
            _ => {}
        }
        if depth < 0 || (c == ',' && depth == 0 && !text) {
            all.push(std::mem::take(&mut argument).trim().to_owned());
        } else {
            argument.push(c);
        }
        if depth < 0 {
            break;
        }
        before = c;
    }
    all.retain(|argument| !argument.is_empty());
    all
}

/// Reads the rest of a path, or a group of them, and adds the module that each leads to.
fn follow(tree: &mut &str, start: &[String], modules: &BTreeSet<Vec<String>>, named: &mut BTreeSet<Vec<String>>) {
    *tree = tree.trim_start();
    if let Some(group) = tree.strip_prefix('{') {
        *tree = group;
        while !tree.is_empty() && !tree.trim_start().starts_with('}') {
            follow(tree, start, modules, named);
            *tree = tree.trim_start().trim_start_matches(',').trim_start();
        }
        *tree = tree.trim_start().strip_prefix('}').unwrap_or_default();
        return;
    }
    let Some(name) = head(tree) else {
        // A glob, or no path at all.
        named.insert(start.to_vec());
        *tree = tree.get(1..).unwrap_or_default();
        return;
    };
    *tree = &tree[name.len()..];
    let next = match &*name {
        "self" => start.to_vec(),
        "super" => start[..start.len() - 1].to_vec(),
        _ => [start, &[name]].concat(),
    };
    match tree.strip_prefix("::").filter(|_| next.len() <= start.len() || modules.contains(&next)) {
        Some(rest) => {
            *tree = rest;
            follow(tree, &next, modules, named);
        }
        None => {
            named.insert(if modules.contains(&next) { next } else { start.to_vec() });
            // The rest after an item belongs to no module.
            let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(tree.len());
            *tree = tree[end..]
                .strip_prefix(" as ")
                .map_or(&tree[end..], |rest| &rest[head(rest).map_or(0, |name| name.len())..]);
        }
    }
}

/// The first segment of a path.
fn head(path: &str) -> Option<String> {
    let name: String = path.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The first segments within `{…}`, at its outermost level.
fn heads_of_group(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut fresh) = (0, Vec::new(), false);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' => {}
            c if c.is_whitespace() => continue,
            _ if fresh && depth == 1 => heads.extend(head(&text[at..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        fresh = (c == '{' || c == ',') && depth == 1;
    }
    heads
}

/// True if the line has the word, and not as the tail of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Every file under src, with the module it belongs to.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut paths = Vec::new();
    collect(&src, &mut paths);
    let module = |path: &Path| {
        let first = path.strip_prefix(&src).ok()?.components().next()?;
        Some(first.as_os_str().to_str()?.trim_end_matches(".rs").to_owned())
    };
    paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source {
            module: module(&path).expect("a path under src"),
            text: read(&path),
            path: path.strip_prefix(root()).expect("under the root").to_owned(),
        })
        .collect()
}

/// Every key of the shipped file: its line and its default, as written there.
pub(super) fn shipped_keys() -> BTreeMap<String, (usize, String)> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for (number, line) in (1..).zip(read(&root().join("config/relay.toml")).lines()) {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            section = name.0.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let value = value.split_once(" #").map_or(value, |(value, _)| value).trim();
            keys.insert(format!("{section}.{key}"), (number, value.to_owned()));
        }
    }
    keys
}

/// The rows of the first table under a heading of a document, without head and rule; cells without their backticks.
pub(super) fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = read(&root().join(document));
    let rows = text.lines().skip_while(|line| *line != heading).skip(1).skip_while(|line| !line.starts_with('|'));
    rows.take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            // `\|` is a bar within a cell.
            let line = line.replace("\\|", "\u{0}");
            let cells =
                line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').replace('\u{0}', "|"));
            cells.collect()
        })
        .collect()
}

/// Every file under a folder; empty if there is no such folder.
pub(super) fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a folder can be listed").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() { collect(&path, into) } else { into.push(path) }
    }
}

pub(super) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|cause| panic!("read {}: {cause}", path.display()))
}

pub(super) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn none(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}
