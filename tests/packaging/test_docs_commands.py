"""Every command that a page names, in a fence or a line, exists, and so does every option it names."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from edge_agent.commands.root import app as edge_app
from pipelines.commands.root import app as core_app

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
COMMANDS: dict[str, Any] = {"edge-agent": typer.main.get_command(edge_app), "catchment": typer.main.get_command(core_app)}
# Reads like a command and is none: the text that a policy's signature begins with.
NO_COMMAND = "`catchment edge policy 1`"
ANYWHERE = {"--help", "--show-completion", "--install-completion"}
# A program's name, then words up to where a shell would end the command.
_SHELL = re.compile(r"(?:^|[\s/(\"'])(edge-agent|catchment)((?:[ \t]+[^\s;&><)]+)*)")


def called(group: Any, name: str) -> Any:
    """The command of this name as a shell that calls it gets it; None if there is none."""
    context = typer.Context(group)
    return group.resolve_command(context, [name])[1] if name in group.list_commands(context) else None


def named(text: str) -> list[tuple[str, list[str]]]:
    """The commands of a page: program and words. Of running text only what stands in backticks counts."""
    found: list[tuple[str, list[str]]] = []
    text = text.replace(NO_COMMAND, "")
    fences = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    fences += re.findall(r"^ {4}((?:edge-agent|catchment) .+)$", rest, re.MULTILINE)
    spans = re.findall(r"`((?:edge-agent|catchment) [^`]+)`", rest)
    for piece in [line for fence in fences for line in fence.replace("\\\n", " ").splitlines()] + spans:
        for program, words in _SHELL.findall(piece.split(" # ")[0]):
            try:
                split = shlex.split(words.strip().strip("\"'"))
            except ValueError:  # a quote that begins or ends outside: `$(edge-agent ...)"`
                split = words.replace('"', "").replace("'", "").split()
            if split and re.fullmatch(r"-{0,2}[a-z][\w|-]*", split[0]):
                found.append((program, split))
    return found


def faults(program: str, words: list[str]) -> list[str]:
    """What of a command does not exist."""
    found: list[str] = []
    commands = [COMMANDS[program]]
    left = list(words)
    while left and hasattr(commands[0], "commands") and not left[0].startswith("-"):
        word = left.pop(0)
        # `spool ls|show|verify` in a line names three.
        below = [called(commands[0], name) for name in word.split("|")]
        if None in below:
            return [f"{program}: no command {word!r} in {' '.join(words)!r}"]
        commands = [command for command in below if command is not None]
    if "--" in left:  # what follows is another program's
        left = left[: left.index("--")]
    for command in commands:
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | ANYWHERE
        given = [word.partition("=")[0] for word in left if re.match(r"--?[a-zA-Z]", word)]
        found += [f"{program} {command.name}: no option {name!r} in {' '.join(words)!r}" for name in given if name not in options]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_named_in_a_page_exists(page: Path) -> None:
    assert [fault for program, words in named(page.read_text()) for fault in faults(program, words)] == []


def test_commands_are_found_where_pages_name_them_and_wrong_ones_are_reported() -> None:
    page = (
        '```sh\neval "$(edge-agent --show-completion bash)"\nedge-agent check -c x.toml && edge-agent spool lss -c y\n'
        "catchment run \\\n  --nonsense 3\n```\n`edge-agent park ls|replay` and `edge-agent doctor --prob`; edge-agent nothing\n"
    )
    found = [fault for program, words in named(page) for fault in faults(program, words)]
    assert [fault.split(" in ")[0] for fault in found] == [
        "edge-agent: no command 'lss'",
        "catchment run: no option '--nonsense'",
        "edge-agent doctor: no option '--prob'",
    ]


def test_every_command_is_documented_somewhere() -> None:
    documented = {(program, words[0]) for page in PAGES for program, words in named(page.read_text())}
    for program, command in COMMANDS.items():
        assert sorted(name for name in command.list_commands(typer.Context(command)) if (program, name) not in documented) == []
