//! `connect-relay completion SHELL` and `connect-relay man`: texts made from the definition of the command line, so that
//! they have each command and option that this binary has. They read nothing and need no relay.

use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::out;

/// Print a shell's completion script.
///
/// Save it where the shell looks for completions, such as
/// /usr/share/bash-completion/completions/connect-relay for bash.
#[derive(Debug, clap::Args)]
pub struct Completion {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the completion script.
///
/// # Errors
/// If standard output cannot be written.
pub fn completion(args: &Completion, mut program: Command) -> anyhow::Result<ExitCode> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, &name, &mut script);
    // clap issue 6421: the script for bash spells a program name with a hyphen in two ways, and completes no subcommand.
    let script = String::from_utf8(script)?.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
    out::print(&script)
}

/// Prints the manual page.
///
/// # Errors
/// If standard output cannot be written.
pub fn manual(program: Command) -> anyhow::Result<ExitCode> {
    out::print(&page(program)?)
}

/// One page for the program and all its commands: `clap_mangen` makes a page for each.
fn page(program: Command) -> anyhow::Result<String> {
    let mut program = without_help(program);
    program.build();
    let whole = Man::new(program.clone()).manual("connect-relay");
    let mut page = Vec::new();
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    Roff::new().control("SH", ["COMMANDS"]).to_writer(&mut page)?;
    render_commands(&program, &mut page)?;
    let notes = program.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    roff.control("SH", ["NOTES"]);
    for line in notes.lines() {
        roff.text([roman(line)]).control("br", []);
    }
    roff.to_writer(&mut page)?;
    Ok(String::from_utf8(page)?)
}

/// Leaves out `--help` and the command `help`, which each command would repeat.
fn without_help(command: Command) -> Command {
    command.disable_help_flag(true).disable_help_subcommand(true).mut_subcommands(without_help)
}

/// Writes a subsection for each command below this one.
fn render_commands(parent: &Command, page: &mut Vec<u8>) -> anyhow::Result<()> {
    for command in parent.get_subcommands() {
        if command.has_subcommands() {
            render_commands(command, page)?;
            continue;
        }
        Roff::new().control("SS", [command.get_bin_name().unwrap_or_default()]).to_writer(page)?;
        let (man, mut sections) = (Man::new(command.clone()), Vec::new());
        man.render_synopsis_section(&mut sections)?;
        man.render_description_section(&mut sections)?;
        man.render_options_section(&mut sections)?;
        // The sections of a page of its own are paragraphs of this one.
        for line in String::from_utf8(sections)?.lines() {
            page.extend(if line.starts_with(".SH ") { ".PP" } else { line }.bytes().chain([b'\n']));
        }
    }
    Ok(())
}
