"""Leases for the writers of one machine: a small table in a file, changed under a file lock.

The table says which process holds a lease, so that of a process that was killed is free at once.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fs.errors import MalformedError
from fs.publish.leases import Lease, conflicts, lost, refuse
from fs.publish.lock import exclusive
from fs.runtime.boot import boot_id
from fs.runtime.files import write_atomically

_TABLE = "leases.json"
_LOCK = "leases.lock"
_TIMEOUT_S = 30.0  # the lock is held for a few file operations


class FileLeases:
    """A LeaseKeeper in a directory of the writers."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Use *folder*, which must be there and belong to the writers alone."""
        self._folder = folder
        self._clock = clock

    def acquire(self, repository: str, path: bytes, owner: str, lifetime_s: float) -> Lease:
        """See LeaseKeeper.acquire."""
        with self._table() as table:
            for held in table.held(repository):
                if conflicts(held.path, path):
                    raise refuse(path, held)
            table.last_token += 1
            lease = Lease(repository, path, owner, table.last_token, self._clock() + lifetime_s)
            table.leases.append(lease)
            table.processes[lease.token] = _process(os.getpid())
            return lease

    def renew(self, lease: Lease, lifetime_s: float) -> Lease:
        """See LeaseKeeper.renew."""
        with self._table() as table:
            for index, held in enumerate(table.leases):
                if held.token == lease.token:
                    table.leases[index] = replace(held, expires_unix_s=self._clock() + lifetime_s)
                    return table.leases[index]
        raise lost(lease)

    def release(self, lease: Lease) -> None:
        """See LeaseKeeper.release."""
        with self._table() as table:
            table.leases = [held for held in table.leases if held.token != lease.token]

    def leases(self, repository: str) -> list[Lease]:
        """See LeaseKeeper.leases."""
        with self._table() as table:
            return table.held(repository)

    @contextmanager
    def _table(self) -> Iterator["_Table"]:
        """The table without what has run out; written back if the block changed it."""
        with exclusive(self._folder / _LOCK, timeout_s=_TIMEOUT_S):
            table = _Table.read(self._folder / _TABLE)
            before = (table.last_token, list(table.leases))
            now = self._clock()
            table.leases = [
                lease
                for lease in table.leases
                if lease.expires_unix_s > now and not _is_dead(table.processes[lease.token])
            ]
            yield table
            if (table.last_token, table.leases) != before:
                write_atomically(self._folder / _TABLE, table.encode(), mode=0o600)


class _Table:
    def __init__(self, last_token: int, leases: list[Lease], processes: dict[int, str]) -> None:
        self.last_token = last_token
        self.leases = leases
        self.processes = processes  # by token

    @classmethod
    def read(cls, path: Path) -> "_Table":
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            rows = document["leases"]
            processes = {int(row["token"]): str(row["process"]) for row in rows}
            return cls(int(document["last_token"]), [_lease(row) for row in rows], processes)
        except FileNotFoundError:
            return cls(0, [], {})
        except (ValueError, KeyError, TypeError) as error:
            raise MalformedError(f"{path} is damaged; tokens must only grow, so it is not made anew") from error

    def held(self, repository: str) -> list[Lease]:
        return [lease for lease in self.leases if lease.repository == repository]

    def encode(self) -> bytes:
        rows = [
            {
                "repository": lease.repository,
                "path": lease.path.decode("utf-8", "surrogateescape"),
                "owner": lease.owner,
                "token": lease.token,
                "expires_unix_s": lease.expires_unix_s,
                "process": self.processes[lease.token],
            }
            for lease in self.leases
        ]
        return json.dumps({"last_token": self.last_token, "leases": rows}, indent=1).encode()


def _lease(row: dict[str, Any]) -> Lease:
    path = str(row["path"]).encode("utf-8", "surrogateescape")
    return Lease(str(row["repository"]), path, str(row["owner"]), int(row["token"]), float(row["expires_unix_s"]))


def _process(pid: int) -> str:
    """What tells a process of this machine from every other one, numbers used again included.

    Source: proc(5), field 22 of ``/proc/PID/stat`` is the start time; it is behind the name, which may hold anything.
    """
    namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  # a text, not a path
    try:
        start = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except FileNotFoundError:
        start = "gone"
    return f"{boot_id()} {namespace} {pid} {start}"


def _is_dead(process: str) -> bool:
    """True if *process* is known to have ended; of those in other namespaces nothing is known."""
    boot, namespace, pid, _ = process.split(" ")
    if boot != boot_id():
        return True
    here = _process(int(pid))
    return here.split(" ")[1] == namespace and here != process
