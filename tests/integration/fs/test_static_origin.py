"""Any server of files is an origin: the storage directory, served as it is, needs no program of ours beside it."""

import json
import sys
from pathlib import Path

from fs.publish.operations import PutFile
from fs.publish.repository import Repository
from tests.integration.fs.conftest import REPOSITORY
from tests.support.mounts import unpackd
from tests.support.processes import free_port, listens, running, wait_until


def test_a_plain_file_server_is_an_origin(repository: Repository, tmp_path: Path) -> None:
    repository.commit([PutFile(b"/file", repository.ingester().add_bytes(b"content" * 1000))])
    served = tmp_path / "htdocs/cvmfs"
    served.mkdir(parents=True)
    (served / REPOSITORY).symlink_to(tmp_path / "storage")
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", served.parent]
    key = tmp_path / "keys" / f"{REPOSITORY}.pub"
    place = ("--url", f"http://127.0.0.1:{port}/cvmfs/{REPOSITORY}", "--pubkey", key)

    with running(command, tmp_path / "server.log"):
        wait_until(lambda: listens(port), "the start of the file server")
        checked = unpackd("repo", "check", *place, "--json")
        read = unpackd("repo", "cat", "/file", *place)
        mirrored = unpackd("repo", "replicate", *place, "--storage", tmp_path / "mirror", "--json")

    assert checked.returncode == 0, checked.stderr
    assert read.stdout == "content" * 1000
    assert mirrored.returncode == 0, mirrored.stderr
    assert json.loads(mirrored.stdout)["revision"] == 2
