#!/usr/bin/env bash
# clap 4.6.9, clap_complete 4.6.11 (bash); bash 5
#
# Behaviour: the bash script of a program whose name has a hyphen names the program in two ways: the part that finds the
#   subcommand writes the hyphen as two underscores, the cases of the subcommands write it as `__subcmd__`. No case ever
#   matches, so nothing is completed after a subcommand. The same program without a hyphen completes its options.
#   (clap issues 6421 and 6529.)
# Seen:
#   mytool serve --p<TAB>: --port
#   my-tool serve --p<TAB>: nothing
# Wrong guess: a generated script that completes the subcommands of a program also completes their options, whatever
#   the program's name.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/probe/src"
cat >"$work/probe/Cargo.toml" <<'TOML'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"
[dependencies]
clap = { version = "=4.6.9", default-features = false, features = ["std", "help", "string"] }
clap_complete = "=4.6.11"
TOML
cat >"$work/probe/src/main.rs" <<'RS'
use clap::{Arg, Command};

fn main() {
    let name = std::env::args().nth(1).expect("the program's name");
    let serve = Command::new("serve").arg(Arg::new("port").long("port"));
    let mut program = Command::new(name.clone()).subcommand(serve);
    clap_complete::generate(clap_complete::Shell::Bash, &mut program, name, &mut std::io::stdout());
}
RS
(cd "$work/probe" && CARGO_TARGET_DIR="$work/target" cargo build --quiet)

# completions NAME: what bash offers for `NAME serve --p`.
completions() {
    "$work/target/debug/probe" "$1" >"$work/$1.bash"
    bash -c '
        source "$1"
        COMP_WORDS=("$2" serve --p); COMP_CWORD=2; COMPREPLY=()
        function=$(complete -p "$2" | sed "s/.* -F \([^ ]*\) .*/\1/")
        "$function" "$2" --p serve
        echo "${COMPREPLY[*]:-nothing}"' bash "$work/$1.bash" "$1"
}

plain=$(completions mytool)
hyphen=$(completions my-tool)
echo "mytool serve --p<TAB>: $plain"
echo "my-tool serve --p<TAB>: $hyphen"
[ "$plain" = "--port" ] && [ "$hyphen" = "nothing" ]
