"""Jobs of publishers, each in a process that ends by SIGKILL at its n-th change to the disk, whatever that is.

A change is a system call that Python code makes: creating, opening for writing, writing, fsync, syncfs, rename, link,
unlink, mkdir, utime, chmod. Nothing in the project knows of this: the interpreter's audit hooks tell of most of them,
and ``os.write``, ``os.fsync`` and ``syncfs`` are wrapped in the process that is to die. A server process has imported
everything and forks, so that a run costs milliseconds.
"""

import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "published.test"
NEVER = 1 << 30
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.utime", "os.chmod"}


# --- the process that is to die


class _Fate:
    def __init__(self, left: int) -> None:
        self.left = left

    def change(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if event in _EVENTS or is_writing:
            self.change()

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:  # noqa: ANN401  # of any function
            self.change()
            return real(*arguments)

        return call

    def begin(self) -> None:
        import fs.store.local

        libc = fs.store.local._libc
        syncfs = self.before(libc.syncfs)
        fs.store.local._libc = type("Libc", (), {"syncfs": staticmethod(syncfs)})()
        for name in ("write", "fsync", "fdatasync", "ftruncate"):
            setattr(os, name, self.before(getattr(os, name)))
        sys.addaudithook(self.hear)


def _repository(folder: Path, *, leases: bool = False) -> Any:  # noqa: ANN401  # imported late
    from fs.format.chunking import ChunkSizes
    from fs.publish.file_leases import FileLeases
    from fs.publish.packing import Codec
    from fs.publish.repository import Repository, Settings

    settings = Settings(
        codec=Codec(chunk_sizes=ChunkSizes(1024, 2048, 4096)),
        leases=FileLeases(folder / "storage/.publisher") if leases else None,
    )
    return Repository.open(NAME, str(folder / "storage"), folder / "keys", settings=settings)


def _ingest(folder: Path, number: int, go: Callable[[], None]) -> None:
    with _repository(folder).ingester() as ingester:
        go()
        for content in contents(number):
            ingester.add_bytes(content)


def contents(number: int) -> list[bytes]:
    """A small file, an empty one, one in chunks, and the small one again."""
    small = b"%d" % number * 30
    return [small, b"", random.Random(number).randbytes(6000), small]


def image(number: int) -> bytes:
    """Where the image of a turn is grafted."""
    return b"/.flat/%02d/image" % (number % 3)


def turn(number: int) -> str:
    """The name of the revision of a turn; few, so that a check has not much to read."""
    return f"turn-{number % 4}"


def _graft(folder: Path, number: int, go: Callable[[], None]) -> None:
    from fs.format.tree import Node
    from fs.publish.operations import Graft, MakeDirectory, PutSymlink, Remove

    repository = _repository(folder, leases=True)
    go()
    files = [repository.ingester().add_bytes(content) for content in contents(number)]
    children = {b"f%d" % index: Node(mode=stat.S_IFREG | 0o644, content=file) for index, file in enumerate(files)}
    children[b".cvmfscatalog"] = Node(mode=stat.S_IFREG | 0o644, content=files[1])
    below = Node(mode=stat.S_IFDIR | 0o755, children=children)
    tree = Node(mode=stat.S_IFDIR | 0o755, children={b"usr": below})
    path = image(number)
    repository.commit(
        [
            MakeDirectory(b"/.flat", nested=True),
            Remove(b"/turn"),
            Graft(path, repository.prepare_subtree(path, tree)),
            PutSymlink(b"/turn", b"%d" % number),
        ],
        tag=turn(number),
    )


def _tag(folder: Path, number: int, go: Callable[[], None]) -> None:
    from dataclasses import replace

    repository = _repository(folder)
    go()
    repository.set_tag(replace(repository.tags()[0], name=f"tag-{number}", description="made by a test"))
    if any(known.name == f"tag-{number - 1}" for known in repository.tags()):
        repository.remove_tag(f"tag-{number - 1}")


def _rollback(folder: Path, number: int, go: Callable[[], None]) -> None:
    from fs.publish.revisions import named_revision
    from fs.store.local import LocalStore

    repository = _repository(folder)
    target = named_revision(LocalStore(folder / "storage"), repository.manifest, turn(number % 2))
    go()
    repository.rollback(target.root_catalog)


def _resign(folder: Path, _number: int, go: Callable[[], None]) -> None:
    repository = _repository(folder)
    go()
    repository.resign()


def _rotate(folder: Path, number: int, go: Callable[[], None]) -> None:
    from fs.publish import keys
    from fs.publish.rotation import rotate_key

    made = iter(_KEYS[number % len(_KEYS) :])  # making one takes longer than all the rest
    keys.rsa.generate_private_key = lambda *_: next(made)  # type: ignore[assignment]
    go()
    rotate_key(NAME, str(folder / "storage"), folder / "keys")


def _gc(folder: Path, _number: int, go: Callable[[], None]) -> None:
    from fs.publish.gc import GcOptions, collect
    from fs.publish.keys import load_keys
    from fs.store.local import LocalStore

    store = LocalStore(folder / "storage")
    options = GcOptions(keep_revisions=1, keep_newer_s=0, grace_s=60, is_alone=True)
    go()
    collect(store, store.private, options, load_keys(folder / "keys", NAME))


def _replicate(folder: Path, _number: int, go: Callable[[], None]) -> None:
    import anyio

    from fs.format.trust import load_public_keys
    from fs.publish.replicate import ReplicaOptions, replicate
    from fs.store.directory import DirectoryReader
    from fs.store.local import LocalStore

    keys = load_public_keys((folder / "keys" / f"{NAME}.pub").read_bytes())
    store = LocalStore(folder / "mirror")
    store.prepare()
    go()
    anyio.run(replicate, DirectoryReader(folder / "storage"), store, ReplicaOptions(keys=keys, transfers=2))


_KEYS: list[Any] = []
_MADE_KEYS = 4

JOBS = {
    "ingest": _ingest,
    "graft": _graft,
    "tag": _tag,
    "rollback": _rollback,
    "resign": _resign,
    "rotate": _rotate,
    "gc": _gc,
    "replicate": _replicate,
}


def serve() -> None:
    """Run the jobs that standard input asks for, each in a fork; say how each ended."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is logged is no answer
    for module in ("publish.gc", "publish.replicate", "publish.rotation", "publish.repository", "store.directory"):
        __import__(f"fs.{module}")
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["job"] == "rotate" and not _KEYS:
            from cryptography.hazmat.primitives.asymmetric import rsa

            _KEYS.extend(rsa.generate_private_key(65537, 2048) for _ in range(_MADE_KEYS))
        child = os.fork()
        if child == 0:
            status = 1
            try:
                fate = _Fate(asked["after"])
                JOBS[asked["job"]](Path(asked["folder"]), asked["number"], fate.begin)
                status = 0
            finally:
                sys.stderr.flush()
                if status:
                    import traceback

                    traceback.print_exc()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        answers.write(json.dumps([asked["id"], os.waitstatus_to_exitcode(ended)]) + "\n")
        answers.flush()


# --- the test's side


class Mortals:
    """Asks the server for runs."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self._ids = itertools.count()

    def run(self, job: str, folder: Path, number: int = 0, *, after: int = NEVER) -> bool:
        """True if the run was completed, False if it was killed before its change number *after*."""
        own = next(self._ids)
        asked = {"id": own, "job": job, "folder": str(folder), "number": number, "after": after}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answered, status = -1, -1
        while answered != own:  # a test that was cut short leaves an answer behind
            answered, status = json.loads(self._process.stdout.readline() or "[0, 1]")
        assert status in (0, -signal.SIGKILL), self._log.read_text()
        return status == 0


@contextmanager
def mortals(log: Path) -> Iterator[Mortals]:
    """A running server."""
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.mortal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # no threads: it forks
        ) as process,
    ):
        try:
            yield Mortals(process, log)
        finally:
            process.kill()


def make_old(storage: Path) -> None:
    """Let all objects be older than any grace period."""
    then = time.time() - 30 * 86_400
    for folder, _, names in os.walk(storage / "data"):
        for name in names:
            os.utime(Path(folder) / name, (then, then))


if __name__ == "__main__":
    serve()
