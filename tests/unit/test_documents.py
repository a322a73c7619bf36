"""What the documents tell people to type exists, and what they link to is there."""

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer.main

import unpackd

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("compose/*.md")]
)
BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands_in(document: Path) -> list[str]:
    found = []
    for block in BLOCK.findall(document.read_text()):
        joined = block.replace("\\\n", " ")
        found += [line.strip() for line in joined.splitlines() if re.match(r"\s*(\$ )?unpackd ", line)]
    return found


TYPED = [(document, line) for document in DOCUMENTS for line in commands_in(document)]


@pytest.mark.parametrize(("document", "line"), TYPED, ids=[f"{document.name}: {line[:60]}" for document, line in TYPED])
def test_commands_and_options_exist(document: Path, line: str) -> None:
    words = shlex.split(line.removeprefix("$ "), comments=True)[1:]
    words = words[: next((at for at, word in enumerate(words) if word in {"|", "&", "&&", ">", ";"}), len(words))]
    command: click.Command = typer.main.get_command(unpackd.app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]

    assert not getattr(command, "commands", {}), f"{line!r} names no command"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    assert used - known - {"--help"} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    missing = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]

    assert missing == []
