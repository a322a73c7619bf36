"""``unpackd repo``: what each command prints and with which status it ends."""

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from fs.format.tree import Node
from fs.origin import origin_app
from fs.publish.keys import create_keys
from fs.publish.operations import Graft, PutFile, PutSymlink
from fs.publish.repository import Repository
from fs.runtime.serving import listening_socket
from tests.support.processes import free_port
from unpackd import app

NAME = "published.test"
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    # a logger that was bound to the stderr of one invocation would outlive it
    monkeypatch.setattr("fs.runtime.logs.configure_logging", lambda _level=None: None)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, ["repo", *map(str, words)])


@pytest.fixture
def storage(repository: Repository, tmp_path: Path) -> Path:
    add = repository.ingester().add_bytes
    tree = Node(mode=stat.S_IFDIR | 0o755, children={b"f": Node(mode=stat.S_IFREG | 0o644, content=add(b"inside"))})
    repository.commit(
        [
            Graft(b"/tree", repository.prepare_subtree(b"/tree", tree)),
            PutFile(b"/big", add(b"0123456789" * 1_000_000)),
            PutSymlink(b"/link", b"$(not) a variable"),
        ],
        tag="filled",
    )
    repository.commit([PutFile(b"/later", add(b"x"))])
    return tmp_path / "storage"


def test_create_info_and_check(run: Run, tmp_path: Path) -> None:
    made = run("create", "new.test", "--storage", tmp_path / "s", "--keys", tmp_path / "k", "--ttl", "7", "--json")
    info = run("info", "--storage", tmp_path / "s", "--json")
    checked = run("check", "--storage", tmp_path / "s", "--pubkey", tmp_path / "k/new.test.pub", "--json")

    assert (made.exit_code, info.exit_code, checked.exit_code) == (0, 0, 0)
    assert json.loads(made.stdout) == {
        "name": "new.test",
        "revision": 1,
        "storage": str(tmp_path / "s"),
        "pubkey": str(tmp_path / "k/new.test.pub"),
    }
    facts = json.loads(info.stdout)
    assert (facts["name"], facts["revision"], facts["ttl_s"], facts["counters"]["dir"]) == ("new.test", 1, 7, 1)
    assert json.loads(checked.stdout)["findings"] == []


def test_create_refuses_what_is_there_and_bad_names(run: Run, storage: Path, tmp_path: Path) -> None:
    assert run("create", "other.test", "--storage", storage, "--keys", tmp_path / "keys").exit_code == 1
    assert run("create", "a/b", "--storage", tmp_path / "n", "--keys", tmp_path / "keys").exit_code == 1
    assert run("create", "a.test").exit_code == 2


def test_ls_and_cat(run: Run, storage: Path) -> None:
    assert run("ls", "--storage", storage).stdout == "big\nlater\nlink\ntree\n"
    assert run("ls", "--storage", storage, "/tree").stdout == "f\n"
    assert run("ls", "--storage", storage, "--tag", "filled").stdout == "big\nlink\ntree\n"
    assert " -> $(not) a variable" in run("ls", "--storage", storage, "-l").stdout
    listed = json.loads(run("ls", "--storage", storage, "/link", "--json").stdout)
    assert listed[0]["target"] == "$(not) a variable"
    assert run("cat", "--storage", storage, "/tree/f").stdout == "inside"
    assert run("cat", "--storage", storage, "/big").stdout_bytes == b"0123456789" * 1_000_000


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("ls", "/none"), 10),
        (("cat", "/none"), 10),
        (("cat", "/tree"), 1),
        (("ls", "--tag", "none"), 10),
        (("ls", "/../etc"), 1),
        (("check", "--sample", "many"), 2),
        (("check", "--sample", "0%"), 2),
        (("tag", "new"), 2),
        (("serve", "--listen", "nowhere"), 2),
    ],
)
def test_statuses(run: Run, storage: Path, words: tuple[str, ...], status: int) -> None:
    assert run(*words, "--storage", storage).exit_code == status


def test_absent_storage(run: Run, tmp_path: Path) -> None:
    result = run("info", "--storage", tmp_path / "none", "--json")

    assert result.exit_code == 10
    assert json.loads(result.stderr)["exit"] == 10


def test_tag_and_history(run: Run, storage: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    assert run("tag", "--storage", storage, "--keys", keys, "one", "--revision", "1").exit_code == 0
    assert run("tag", "--storage", storage, "--keys", keys, "trunk").exit_code == 1
    assert run("tag", "--storage", storage, "--keys", keys, "two", "--revision", "77").exit_code == 10
    rows = json.loads(run("history", "--storage", storage, "--json").stdout)
    assert [(row["revision"], row["tags"]) for row in rows] == [
        (3, ["trunk"]),
        (2, ["filled", "trunk-previous"]),
        (1, ["one"]),
    ]
    assert run("tag", "--storage", storage, "--keys", keys, "one", "--remove").exit_code == 0
    assert "one" not in {row["name"] for row in json.loads(run("tag", "--storage", storage, "--json").stdout)}


@pytest.fixture
def url(storage: Path) -> Iterator[str]:
    with listening_socket("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(origin_app(storage, NAME), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/cvmfs/{NAME}"
        server.should_exit = True
        thread.join(10)


def test_a_remote_repository_looks_as_it_does_here(run: Run, storage: Path, url: str, tmp_path: Path) -> None:
    remote = ("--url", url, "--pubkey", tmp_path / "keys" / f"{NAME}.pub")

    for words in (("info", "--json"), ("ls", "-l"), ("ls", "/tree"), ("history",), ("tag",), ("cat", "/tree/f")):
        here, there = run(*words, "--storage", storage), run(*words, *remote)
        assert (here.exit_code, here.stdout) == (there.exit_code, there.stdout) == (0, here.stdout)
    assert run("cat", "/big", *remote).stdout_bytes == b"0123456789" * 1_000_000
    verdict = json.loads(run("check", *remote, "--json").stdout)
    assert (verdict["good"], verdict["findings"]) == (True, [])


def test_mirrors_are_tried_in_turn(run: Run, storage: Path, url: str, tmp_path: Path) -> None:
    key = tmp_path / "keys" / f"{NAME}.pub"

    assert run("ls", "--url", f"file://{storage},{url}", "--pubkey", key).exit_code == 0
    assert run("ls", "--url", f"file://{tmp_path}/none,{url}", "--pubkey", key).exit_code == 0
    assert run("ls", "--url", f"http://127.0.0.1:{free_port()}/", "--pubkey", key).exit_code == 13
    assert run("ls", "--url", "ftp://x/", "--pubkey", key).exit_code == 1


def test_a_server_is_not_believed_without_its_key(run: Run, storage: Path, url: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    create_keys(other, NAME, datetime.now(UTC))

    assert run("ls", "--url", url).exit_code == 2
    assert run("ls").exit_code == 2
    assert run("ls", "--url", url, "--storage", storage).exit_code == 2
    assert run("ls", "--url", url, "--pubkey", other / f"{NAME}.pub").exit_code == 12


def test_a_damaged_object_is_not_printed_and_the_log_is_not_data(
    storage: Path, url: str, tmp_path: Path, repository: Repository
) -> None:
    name = repository.view().content(b"/tree/f").hash
    assert name is not None
    (storage / name.object_path()).write_bytes(b"damaged")

    words = ["repo", "cat", "/tree/f", "--url", url, "--pubkey", str(tmp_path / "keys" / f"{NAME}.pub")]
    done = subprocess.run(
        [sys.executable, "-m", "unpackd", *words], check=False, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout) == (12, "")
    assert "object_corrupt_at_source" in done.stderr


def test_check_finds_damage_and_says_so(run: Run, repository: Repository, storage: Path) -> None:
    name = repository.view().content(b"/tree/f").hash
    assert name is not None
    (storage / name.object_path()).write_bytes(b"damaged")

    text, document = run("check", "--storage", storage), run("check", "--storage", storage, "--json")

    assert (text.exit_code, document.exit_code) == (12, 12)
    assert "/tree/f" in text.stdout
    findings = [found for found in json.loads(document.stdout)["findings"] if not found["note"]]
    assert [found["kind"] for found in findings] == ["object"]


def test_resign(run: Run, storage: Path, tmp_path: Path) -> None:
    result = run("resign", "--storage", storage, "--keys", tmp_path / "keys", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["name"] == NAME
    (tmp_path / "keys" / f"{NAME}.masterkey").chmod(0o644)
    assert run("resign", "--storage", storage, "--keys", tmp_path / "keys").exit_code == 1
