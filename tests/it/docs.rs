//! The documents under test: their links, the paths and commands that they name, and the architecture that they describe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::tidy::{FLOORS, QUEUE_FLOORS, collect, none, read, root, shipped_keys, table};

#[test]
fn readme_has_at_most_220_lines() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines <= 220, "README.md has {lines} lines: move some of it to docs/");
}

#[test]
fn each_link_leads_to_a_file_and_a_heading_that_exist() {
    let (mut links, mut violations) = (0, Vec::new());
    for path in documents() {
        for (number, line) in prose(&read(&path)) {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                links += 1;
                if let Some(fault) = fault_of(target, &path) {
                    violations.push(format!("{}:{number}: {fault}", path.display()));
                }
            }
        }
    }
    assert!(links > 50, "the documents have links");
    none(violations);
}

#[test]
fn a_dead_link_is_found() {
    let readme = root().join("README.md");
    assert_eq!(fault_of("docs/alerts.md#connectrelaystuck", &readme), None);
    assert!(fault_of("docs/alerts.md#connectrelaystruck", &readme).is_some());
    assert!(fault_of("docs/alert.md", &readme).is_some());
    assert!(fault_of("#guarantee", &readme).is_some());
}

/// None if the target exists, seen from a document.
fn fault_of(target: &str, from: &Path) -> Option<String> {
    if target.starts_with("https://") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { from.to_owned() } else { from.parent().expect("a folder").join(file) };
    if !path.exists() {
        return Some(format!("no such file: {target}"));
    }
    let known = anchor.is_empty() || anchors(&read(&path)).contains(anchor);
    (!known).then(|| format!("no such heading: {target}"))
}

#[test]
fn each_path_of_the_repository_in_a_document_exists() {
    let folders = ["src/", "tests/", "docs/", "deploy/", "examples/", "openapi/", "config/", "benches/"];
    let (mut paths, mut violations) = (0, Vec::new());
    for path in documents().into_iter().filter(|path| !path.ends_with("CHANGELOG.md")) {
        for (number, line) in prose(&read(&path)) {
            for code in line.split('`').skip(1).step_by(2) {
                let named = code.split([' ', '#']).next().unwrap_or_default();
                if folders.iter().any(|folder| named.starts_with(folder)) && !named.contains('*') {
                    paths += 1;
                    if !root().join(named).exists() {
                        violations.push(format!("{}:{number}: no such path: {named}", path.display()));
                    }
                }
            }
        }
    }
    assert!(paths > 30, "the documents name paths");
    none(violations);
}

#[test]
fn each_option_of_tests_run_in_a_document_exists() {
    let usage = read(&root().join("tests/run"));
    let (mut options, mut violations) = (0, Vec::new());
    for path in documents() {
        for (number, line) in (1..).zip(read(&path).lines()) {
            for command in line.split("tests/run ").skip(1) {
                let words = command.split(['`', '#']).next().unwrap_or_default().split_whitespace();
                for word in words.filter(|word| word.starts_with("--")) {
                    options += 1;
                    if !usage.contains(&format!("{word})")) {
                        violations.push(format!("{}:{number}: tests/run has no {word}", path.display()));
                    }
                }
            }
        }
    }
    assert!(options > 5, "the documents name options of tests/run");
    none(violations);
}

#[test]
fn readmes_keys_are_rows_of_the_configuration_table() {
    let all: BTreeMap<_, _> = shipped_keys().into_iter().map(|(key, (_, default))| (key, default)).collect();
    let rows = table("README.md", "## Configuration");
    assert!((5..=10).contains(&rows.len()), "the keys that most people set");
    none(
        rows.iter()
            .filter(|row| all.get(&row[0]) != Some(&row[1]))
            .map(|row| format!("README.md: {} is not {}", row[0], row[1]))
            .collect(),
    );
}

#[test]
fn readmes_figures_are_in_the_documents_that_measure_them() {
    let readme = read(&root().join("README.md"));
    let figures = readme.split("## Figures").nth(1).expect("the chapter");
    let measured =
        ["benchmarks", "rate-control", "kubernetes"].map(|name| read(&root().join(format!("docs/{name}.md"))));
    let numbers = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ','));
        words.map(|word| word.trim_matches(['.', ',']).to_owned()).filter(|word| !word.is_empty()).collect()
    };
    let known = numbers(&measured.concat());
    let lines: Vec<_> = figures.lines().filter(|line| line.starts_with("- ")).collect();
    assert_eq!(lines.len(), 3, "figures in three lines");
    none(
        numbers(&lines.concat())
            .difference(&known)
            .map(|number| format!("README.md: {number} is measured nowhere"))
            .collect(),
    );
}

#[test]
fn kubernetes_table_names_each_entry_of_its_folder() {
    let rows = table("docs/kubernetes.md", "# Kubernetes").concat().join(" ").replace('`', "");
    let mut files = Vec::new();
    collect(&root().join("deploy/kubernetes"), &mut files);
    let folder = root().join("deploy/kubernetes");
    let entries: BTreeSet<_> = files
        .iter()
        .filter_map(|file| file.strip_prefix(&folder).ok()?.components().next()?.as_os_str().to_str())
        .filter(|entry| !rows.contains(entry))
        .map(|entry| format!("docs/kubernetes.md: {entry} is not in the table"))
        .collect();
    none(entries.into_iter().collect());
}

#[test]
fn each_older_name_in_the_glossary_is_still_in_the_code() {
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    let code = sources.iter().map(|path| read(path).to_lowercase()).collect::<String>();
    let rows = table("docs/glossary.md", "# Glossary");
    assert!(rows.len() > 30, "the glossary has terms");
    let mut terms: Vec<_> = rows.iter().map(|row| row[0].to_lowercase()).collect();
    let order = terms.clone();
    terms.sort();
    assert_eq!(order, terms, "in order");
    none(
        rows.iter()
            .filter(|row| !row[2].is_empty() && !code.contains(&row[2]))
            .map(|row| format!("docs/glossary.md: the code has no {} any more", row[2]))
            .collect(),
    );
}

#[test]
fn readme_and_operations_name_the_same_commands() {
    let readme = read(&root().join("README.md"));
    let short: Vec<_> = readme
        .lines()
        .filter(|line| line.starts_with("connect-relay ") && line.contains(" # "))
        .map(|line| line.split(" #").next().unwrap_or_default().trim().to_owned())
        .collect();
    let long: Vec<_> = table("docs/operations.md", "## Commands").into_iter().map(|row| row[0].clone()).collect();
    assert!(short.len() > 8 && short == long, "{short:#?}\n{long:#?}");
}

#[test]
fn the_architectures_floors_are_the_tested_ones() {
    let rows = table("docs/architecture.md", "## Floors");
    let documented: Vec<Vec<&str>> =
        rows.iter().rev().map(|row| row[1].split(", ").map(|name| name.trim_matches('`')).collect()).collect();
    let tested: Vec<Vec<&str>> = FLOORS.iter().map(|floor| floor.to_vec()).collect();
    assert_eq!(documented, tested);
}

#[test]
fn the_architectures_parts_of_the_queue_are_the_tested_ones() {
    let rows = table("docs/architecture.md", "### The parts of the queue");
    let documented: Vec<Vec<&str>> = rows.iter().rev().map(|row| vec![row[1].as_str()]).collect();
    let tested: Vec<Vec<&str>> = QUEUE_FLOORS.iter().map(|floor| floor.to_vec()).collect();
    assert_eq!(documented, tested);
}

#[test]
fn each_step_of_a_messages_way_names_a_function_and_its_calls() {
    let steps = table("docs/architecture.md", "## A message's way");
    assert!(steps.len() >= 15, "the whole way");
    let mut violations = Vec::new();
    for step in &steps {
        let [number, file, function, _, calls] = step.as_slice() else { panic!("five cells: {step:?}") };
        let path = root().join(file);
        let Some(body) = path.exists().then(|| body_of(&read(&path), function)).flatten() else {
            violations.push(format!("step {number}: {file} has no {function}"));
            continue;
        };
        let mut rest = body.as_str();
        for call in calls.split(", ").map(|call| call.trim_matches('`')).filter(|call| !call.is_empty()) {
            match called(rest, call) {
                Some(after) => rest = &rest[after..],
                None => violations.push(format!("step {number}: {function} does not call {call}, in this order")),
            }
        }
    }
    none(violations);
}

#[test]
fn a_step_that_is_not_in_the_code_is_found() {
    let text = "impl Queue {\n    pub fn ask(&self) {\n        self.send(1);\n    }\n}\n\nfn send() {\n    go();\n}\n";
    let body = body_of(text, "Queue::ask").expect("it has it");
    assert!(called(&body, "send").is_some() && called(&body, "end").is_none() && called(&body, "go").is_none());
    assert!(body_of(text, "State::ask").is_none() && body_of(text, "Queue::send").is_none());
    assert!(body_of(text, "send").is_some());
}

/// The lines of a function, comments left out. A name with a type is looked for in that type's `impl`.
fn body_of(text: &str, function: &str) -> Option<String> {
    let (owner, name) = function.rsplit_once("::").map_or((None, function), |(owner, name)| (Some(owner), name));
    let mut inside = owner.is_none();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if let Some(owner) = owner
            && !line.is_empty()
            && trimmed.len() == line.len()
        {
            let is_owner = |word: &str| word == owner;
            inside = line.starts_with("impl") && line.split(|c: char| !c.is_alphanumeric()).any(is_owner)
                || (inside && line == "}");
        }
        let declared = trimmed.split_once("fn ").filter(|(before, _)| {
            before.split_whitespace().all(|word| word.starts_with("pub") || matches!(word, "async" | "const"))
        });
        let is_it =
            declared.is_some_and(|(_, rest)| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with(['(', '<'])));
        if inside && is_it {
            let end = format!("{}}}", &line[..line.len() - trimmed.len()]);
            let body = lines.take_while(|line| **line != *end).filter(|line| !line.trim_start().starts_with("//"));
            return Some(body.collect::<Vec<_>>().join("\n"));
        }
    }
    None
}

/// The end of the first call of a function in this text.
fn called(text: &str, name: &str) -> Option<usize> {
    let is_whole = |at: usize| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    text.match_indices(&format!("{name}(")).find(|(at, _)| is_whole(*at)).map(|(at, found)| at + found.len())
}

#[test]
fn each_rule_of_the_store_that_the_code_cites_is_in_the_architecture() {
    let text = read(&root().join("docs/architecture.md"));
    let rules = text.split("## The twelve rules of the store").nth(1).expect("the chapter");
    let numbered: BTreeSet<usize> =
        rules.lines().filter_map(|line| line.split_once(". **").and_then(|(number, _)| number.parse().ok())).collect();
    assert_eq!(numbered, (1..=12).collect());
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    let mut violations = Vec::new();
    for path in sources {
        for (number, line) in (1..).zip(read(&path).lines()) {
            for (at, _) in line.match_indices(" of the store").filter(|(at, _)| *at > 0) {
                let cited = line[..at].rsplit_once("rule ").map(|(_, cited)| cited.parse::<usize>());
                if let Some(Ok(cited)) = cited
                    && !numbered.contains(&cited)
                {
                    violations.push(format!("{}:{number}: no rule {cited}", path.display()));
                }
            }
        }
    }
    none(violations);
}

/// Every document that is text for readers.
fn documents() -> Vec<PathBuf> {
    let mut paths = Vec::new();
    collect(&root().join("docs"), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    assert!(paths.len() >= 14, "docs/ has its documents");
    paths.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    paths
}

/// The numbered lines outside code blocks.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut code = false;
    let lines = (1..).zip(text.lines());
    lines
        .filter(|(_, line)| {
            let fence = line.starts_with("```");
            code ^= fence;
            !code && !fence
        })
        .collect()
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .into_iter()
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}
