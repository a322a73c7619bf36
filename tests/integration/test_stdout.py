"""stdout is for data: what a command logs, whichever it is, goes to stderr."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.images import Member, make_layout
from tests.support.processes import free_port

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


@pytest.mark.parametrize(
    "command",
    [
        ("repo", "info", "--url", "{dead},{dead}/other", "--pubkey", "{key}", "--json"),
        ("repo", "ls", "--url", "{dead},{dead}/other", "--pubkey", "{key}"),
        ("images", "ls", "--url", "{dead},{dead}/other", "--pubkey", "{key}", "--json"),
        ("convert", "{dead_host}/lib/app:1", "--repo", "t.example.org", "--storage", "{storage}", "--keys", "{keys}"),
        ("wish", "ls", "--url", "{dead}"),
    ],
)
def test_commands_that_meet_trouble_print_no_data(command: tuple[str, ...], tmp_path: Path) -> None:
    storage, keys = tmp_path / "storage", tmp_path / "keys"
    made = run("-m", "unpackd", "repo", "create", "t.example.org", "--storage", str(storage), "--keys", str(keys))
    host = f"127.0.0.1:{free_port()}"
    places = {
        "dead": f"http://{host}", "dead_host": host, "key": f"{keys}/t.example.org.pub", "storage": storage,
        "keys": keys,
    }  # fmt: skip

    ended = run("-m", "unpackd", *(word.format(**places) for word in command))

    assert (made.returncode, made.stdout) == (0, "")
    assert ended.returncode == 13, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr


def test_path_is_all_that_convert_prints(tmp_path: Path) -> None:
    storage, keys = str(tmp_path / "storage"), str(tmp_path / "keys")
    run("-m", "unpackd", "repo", "create", "t.example.org", "--storage", storage, "--keys", keys)
    layout = make_layout(tmp_path / "layout", [[Member("etc/hostname", b"x")]])
    options = ["--repo", "t.example.org", "--storage", storage, "--keys", keys, "--name", "r.test/app:1"]

    ended = run("-m", "unpackd", "convert", layout.source, *options)

    assert (ended.returncode, ended.stdout) == (0, "/r.test/app:1\n"), ended.stderr
