"""``unpackd repo gc | diff | rollback | replicate``: what is printed, and with which status they end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from fs.publish.operations import PutFile, Remove
from fs.publish.repository import Repository
from tests.integration.fs.conftest import REPOSITORY
from tests.support.flaky_origin import flaky_origin
from unpackd import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    # a logger that was bound to the stderr of one invocation would outlive it
    monkeypatch.setattr("fs.runtime.logs.configure_logging", lambda _level=None: None)
    runner = CliRunner()
    with capture_logs():
        yield lambda *words: runner.invoke(app, ["repo", *map(str, words)])


@pytest.fixture
def storage(repository: Repository, tmp_path: Path) -> Path:
    """Revisions 2 and 3, the first of them called ``first``; 4 takes a file away."""
    add = repository.ingester().add_bytes
    repository.commit([PutFile(b"/one", add(b"one")), PutFile(b"/two", add(b"two"))], tag="first")
    repository.commit([PutFile(b"/one", add(b"other")), PutFile(b"/odd\xff", add(b""))])
    repository.commit([Remove(b"/two")])
    return tmp_path / "storage"


def test_diff(run: Run, storage: Path) -> None:
    text = run("diff", "first", "--storage", storage)
    document = run("diff", "2", "3", "--storage", storage, "--json")

    assert text.exit_code == 0
    assert text.stdout.splitlines() == ["A /odd\\xff", "C /one  content time", "R /two"]
    assert json.loads(document.stdout) == [
        {"path": "/odd\\xff", "change": "added", "aspects": []},
        {"path": "/one", "change": "changed", "aspects": ["content", "time"]},
    ]


def test_diff_over_the_network(run: Run, storage: Path, tmp_path: Path) -> None:
    with flaky_origin(storage) as origin:
        found = run("diff", "3", "4", "--url", origin.url, "--pubkey", tmp_path / f"keys/{REPOSITORY}.pub")

    assert (found.exit_code, found.stdout) == (0, "R /two\n")


def test_diff_with_a_revision_that_is_not_there(run: Run, storage: Path) -> None:
    found = run("diff", "nothing", "--storage", storage, "--json")

    assert found.exit_code == 10
    assert json.loads(found.stderr)["exit"] == 10


def test_rollback(run: Run, storage: Path, repository: Repository, tmp_path: Path) -> None:
    undone = run("rollback", "--storage", storage, "--keys", tmp_path / "keys", "--json")
    assert json.loads(undone.stdout)["revision"] == 5
    assert json.loads(undone.stdout)["content_of"] == 3
    assert repository.view().lookup(b"/two") is not None

    named = run("rollback", "first", "--storage", storage, "--keys", tmp_path / "keys")

    assert named.exit_code == 0
    assert "revision 6" in named.stderr
    assert repository.view().read(b"/one", 10) == b"one"
    assert run("rollback", "17", "--storage", storage, "--keys", tmp_path / "keys").exit_code == 10


def test_gc(run: Run, storage: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    options = ("--storage", storage, "--keep-revisions", 1, "--keep-days", 0, "--grace-days", 0, "--alone")
    run("tag", "first", "--remove", "--storage", storage, "--keys", keys)
    pinned = run("gc", *options, "--pin", "2", "--dry-run", "--json")
    dry = run("gc", *options, "--dry-run", "--json")
    text = run("gc", *options, "--dry-run")
    capped = run("gc", *options, "--keys", keys, "--most", 1)
    rest = run("gc", *options, "--keys", keys, "--json")

    assert dry.exit_code == 0
    garbage = json.loads(dry.stdout)["garbage"]
    assert len(garbage) > len(json.loads(pinned.stdout)["garbage"])
    assert "root of revision 2, which is not kept" in {each["reason"] for each in garbage}
    assert len(text.stdout.splitlines()) == len(garbage)
    assert capped.exit_code == 3
    assert rest.exit_code == 0
    assert json.loads(rest.stdout)["is_complete"] is True
    assert run("check", "--storage", storage, "--pubkey", keys / f"{REPOSITORY}.pub").exit_code == 0
    assert run("diff", "2", "--storage", storage).exit_code == 10


def test_gc_does_not_take_chances(run: Run, storage: Path) -> None:
    assert run("gc", "--storage", storage, "--grace-days", 1).exit_code == 1
    assert run("gc", "--storage", storage, "--pin", "nothing").exit_code == 10
    assert run("gc", "--storage", storage, "--leases", "sqlite:////nowhere/at/all.db").exit_code == 13
    assert run("gc", "--storage", storage).exit_code == 0


def test_replicate(run: Run, storage: Path, tmp_path: Path) -> None:
    pubkey = tmp_path / f"keys/{REPOSITORY}.pub"
    target = tmp_path / "mirror"
    with flaky_origin(storage) as origin:
        words = ("replicate", "--pubkey", pubkey, "--storage", target, "--url", origin.url)
        made = run(*words[:-1], f"http://127.0.0.1:9/gone,{origin.url}", "--json")
        again = run(*words)
        other = run(*words, "--name", "other.test")

    assert json.loads(made.stdout)["revision"] == 4
    assert (again.exit_code, other.exit_code) == (0, 12)
    assert "revision 4 (was 4)" in again.stderr
    assert run("check", "--storage", target, "--pubkey", pubkey).exit_code == 0
    assert run(*words).exit_code == 13
    assert run("replicate", "--url", "ftp://x", "--pubkey", pubkey, "--storage", target).exit_code == 1


def test_storages_that_make_no_sense(run: Run, tmp_path: Path) -> None:
    assert run("info", "--storage", "ftp://x").exit_code == 1
    assert run("info", "--storage", "s3:///nobucket").exit_code == 1
    assert run("info", "--storage", "s3://key:secret@bucket").exit_code == 1
    assert run("serve", "--storage", "s3://bucket?endpoint=http://127.0.0.1:9").exit_code == 2
