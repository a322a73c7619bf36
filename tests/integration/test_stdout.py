"""stdout is for data: what a command logs, whichever it is, goes to stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fs.publish.repository import Repository
from tests.support.images import Member, make_layout
from tests.support.processes import free_port

NAME = "t.example.org"
_WITH_A_COMMAND_THAT_LOGS = """
import structlog, unpackd
log = structlog.get_logger()  # as modules do, before anything is configured

@unpackd.app.command()
def probe() -> None:
    log.warning("of the command")
    structlog.get_logger().error("of something below")
    log.info("of no interest")

unpackd.main()
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60, check=False)


def test_entry_sends_what_any_command_logs_to_stderr() -> None:
    ended = run("-c", _WITH_A_COMMAND_THAT_LOGS, "probe")

    assert (ended.returncode, ended.stdout) == (0, "")
    assert [json.loads(line)["event"] for line in ended.stderr.splitlines()] == ["of the command", "of something below"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the storage and the keys of a repository."""
    folder = tmp_path_factory.mktemp("house")
    Repository.create(NAME, str(folder / "storage"), folder / "keys", durable=False)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("repo", "info", "--url", "{dead},{dead}/other", "--pubkey", "{key}", "--json"),
        ("repo", "ls", "--url", "{dead},{dead}/other", "--pubkey", "{key}"),
        ("images", "ls", "--url", "{dead},{dead}/other", "--pubkey", "{key}", "--json"),
        ("convert", "{dead_host}/lib/app:1", "--repo", NAME, "--storage", "{storage}", "--keys", "{keys}"),
        ("wish", "ls", "--url", "{dead}"),
    ],
)
def test_commands_that_meet_trouble_print_no_data(command: tuple[str, ...], house: Path) -> None:
    host = f"127.0.0.1:{free_port()}"
    places = {
        "dead": f"http://{host}", "dead_host": host, "key": f"{house}/keys/{NAME}.pub", "storage": f"{house}/storage",
        "keys": f"{house}/keys",
    }  # fmt: skip

    ended = run("-m", "unpackd", *(word.format(**places) for word in command))

    assert ended.returncode == 13, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr


def test_path_is_all_that_convert_prints(house: Path, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [[Member("etc/hostname", b"x")]])
    options = ["--repo", NAME, "--storage", f"{house}/storage", "--keys", f"{house}/keys", "--name", "r.test/app:1"]

    ended = run("-m", "unpackd", "convert", layout.source, *options)

    assert (ended.returncode, ended.stdout) == (0, "/r.test/app:1\n"), ended.stderr
