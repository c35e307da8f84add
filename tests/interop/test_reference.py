"""`connect-relay completion` and `connect-relay man`: they name each command and each option that `--help` names."""

import re
import subprocess

import pytest

from kit.processes import BINARY, command

NAME = "connect-relay"


def help_of(words):
    done = command(*words, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(words=()):
    """Each command without commands of its own, with its help."""
    text = help_of(words)
    listed = re.search(r"^Commands:\n((?: .*\n)+)", text, re.M)
    if not listed:
        return {words: text}
    found = {}
    for name in re.findall(r"^  ([\w-]+)  ", listed[1], re.M):
        if name != "help":
            found |= commands((*words, name))
    return found


def options(text):
    """The long options in a command's help, without --help itself."""
    return set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", text, re.M)) - {"--help"}


def plain(roff):
    """The text of a manual page."""
    return re.sub(r"\\f[BIR]", "", roff).replace(r"\-", "-").replace(r"\*(Aq", "'")


def test_manual_has_a_section_for_each_command_with_its_options():
    done = command("man")
    assert done.returncode == 0, done.stderr
    page = plain(done.stdout)
    assert ".TH connect-relay 1 " in page.split(".SH")[0], page[:400]
    sections = dict(re.findall(r'^\.SS "?([^"\n]+)"?\n(.*?)(?=^\.S[SH] |\Z)', page, re.M | re.S))
    expected = commands()
    assert len(expected) > 15 and set(sections) == {" ".join((NAME, *words)) for words in expected}
    for words, text in expected.items():
        section = sections[" ".join((NAME, *words))]
        assert set(re.findall(r"^(--[\w-]+)", section, re.M)) == options(text), words
    assert "75 stopped with messages still queued" in page, "the exit codes"


@pytest.mark.parametrize("shell", ["bash", "elvish", "fish", "powershell", "zsh"])
def test_completion_of_each_shell_has_each_command_and_option(shell):
    done = command("completion", shell)
    assert done.returncode == 0, done.stderr
    for words, text in commands().items():
        assert words[-1] in done.stdout
        for option in options(text):
            # fish writes them without the dashes.
            assert re.search(rf"(--|-l ){option[2:]}\b", done.stdout), (words, option)


def completed(*words):
    """The completions that bash offers for the last of these words."""
    script = command("completion", "bash").stdout
    typed = " ".join(f"'{word}'" for word in (NAME, *words))
    function = re.search(r"complete -F (\S+) .*\b" + NAME, script)[1]
    call = f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; {function} {NAME} '{words[-1]}' '{(NAME, *words)[-2]}'"
    done = subprocess.run(["bash", "-c", f'{script}\n{call}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_values():
    assert completed("mess") == ["messages"]
    assert set(completed("messages", "")) >= {"list", "show", "redrive", "delete"}
    assert completed("messages", "list", "--conv") == ["--conversation"]
    assert completed("completion", "f") == ["fish"]


def test_unknown_shell_is_bad_usage():
    done = command("completion", "csh")
    assert done.returncode == 2 and "bash, elvish, fish, powershell, zsh" in done.stderr and not done.stdout
