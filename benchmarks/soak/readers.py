"""Readers, each a process: they read at random and hold every answer against what it must be.

What a reader finds wrong it appends to ``findings.jsonl`` at once. What it does is counted in shared memory, with the
time of its last sign of life, so that a reader that hangs is seen from outside.
"""

import json
import os
import random
import stat
import time
from ctypes import Array, c_bool, c_double, c_uint64
from dataclasses import dataclass, field
from multiprocessing import RawArray, RawValue, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.soak.contents import BLOCK_BYTES, WrongBytesError, check_block, size_of
from benchmarks.soak.world import File, Plan, Versions

KINDS = ("whole", "slices", "held", "listing", "stat", "absent", "passing")
_WEIGHTS = (54, 3, 0.5, 12, 20, 4, 6.5)  # slices cost a chunk each; who holds a file open does so for long
_SLICES = 3
_LARGE_SHARE = 0.25  # of what is held open
_PEEK_S = 5.0  # at a file that is held open
_FINDINGS_LIMIT = 50  # of one reader


@dataclass(frozen=True, slots=True)
class Settings:
    """What all readers have in common."""

    plan: Plan
    versions: Versions
    mountpoint: Path
    findings: Path
    pause_s: float
    longest_hold_s: float
    nice: int


@dataclass(slots=True)
class Board:
    """Where readers say what they do; shared."""

    counts: dict[str, "Array[c_uint64]"]
    signs: "Array[c_double]"  # of life
    longest_s: "Array[c_double]"
    lag_s: "Array[c_double]"  # how old the successor of what was seen was, at most
    read_bytes: "Array[c_uint64]"
    is_over: Any = field(default_factory=lambda: RawValue(c_bool, False))  # noqa: FBT003  # its own signature

    @classmethod
    def of(cls, readers: int) -> "Board":
        """For so many *readers*."""
        return cls(
            counts={kind: RawArray(c_uint64, readers) for kind in KINDS},
            signs=RawArray(c_double, readers),
            longest_s=RawArray(c_double, readers),
            lag_s=RawArray(c_double, readers),
            read_bytes=RawArray(c_uint64, readers),
        )


class Reader:
    """One reader's life."""

    def __init__(self, number: int, settings: Settings, board: Board) -> None:
        self._number = number
        self._settings = settings
        self._board = board
        self._random = random.Random(number)
        self._seen: dict[int, int] = {}  # the newest version that was opened, by file
        self._findings = 0
        self._root = str(settings.mountpoint)
        self._kinds = {kind: getattr(self, f"_{kind}") for kind in KINDS}

    def run(self) -> None:
        """Read until it is over."""
        os.nice(self._settings.nice)
        while not self._board.is_over.value:
            kind = self._random.choices(KINDS, _WEIGHTS)[0]
            began = self._live()
            try:
                self._kinds[kind]()
            except WrongBytesError as error:
                self._find("wrong", kind, str(error))
            except OSError as error:
                self._find("failed", kind, f"{error.filename}: {error.strerror or error}")
            except Exception as error:  # noqa: BLE001  # a fault of the soak's own must not look like a good run
                self._find("broken", kind, repr(error))
            if kind != "held":
                self._board.longest_s[self._number] = max(self._board.longest_s[self._number], self._live() - began)
            self._board.counts[kind][self._number] += 1
            self._live()
            time.sleep(self._random.uniform(0.5, 1.5) * self._settings.pause_s)

    def _live(self) -> float:
        now = time.monotonic()
        self._board.signs[self._number] = now
        return now

    def _find(self, what: str, kind: str, sentence: str) -> None:
        self._findings += 1
        if self._findings > _FINDINGS_LIMIT:
            return
        line = {"what": what, "kind": kind, "reader": self._number, "at": round(time.time(), 3), "sentence": sentence}
        with self._settings.findings.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _whole(self) -> None:
        self._read_and_check(self._random.choice(self._settings.plan.small))

    def _passing(self) -> None:
        try:
            self._read_and_check(self._random.choice(self._settings.plan.passing))
        except FileNotFoundError:
            return  # as it may be

    def _read_and_check(self, file: File) -> None:
        descriptor = os.open(self._root + file.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            versions = set()
            for start in range(0, max(size, 1), BLOCK_BYTES):
                versions.add(check_block(self._read(descriptor, start, file), file.number, start // BLOCK_BYTES))
            self._one_version(file, versions, size)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, start: int, file: File) -> bytes:
        data = os.pread(descriptor, BLOCK_BYTES, start)
        self._board.read_bytes[self._number] += len(data)
        if not data:
            raise WrongBytesError(f"{file.path} has no bytes at {start}")
        return data

    def _one_version(self, file: File, versions: set[int], size: int, *, is_new: bool = True) -> None:
        """Raise WrongBytesError unless all that was read is of one version that could be seen."""
        if len(versions) != 1:
            raise WrongBytesError(f"{file.path} was read in versions {sorted(versions)} at once")
        version = versions.pop()
        wanted = size_of(file.number, version, file.around_bytes)
        if size != wanted:
            raise WrongBytesError(f"{file.path} has {size} bytes; version {version} has {wanted}")
        shared = self._settings.versions
        if version > shared.newest[file.number]:
            raise WrongBytesError(f"{file.path} is of version {version}, which is not published")
        if not is_new:
            return
        if version < self._seen.get(file.number, 0):
            raise WrongBytesError(f"{file.path} went back to version {version} from {self._seen[file.number]}")
        self._seen[file.number] = version
        committed_at = shared.committed_at[file.number]
        if version == shared.committed[file.number] - 1:
            lag_s = time.monotonic() - committed_at
            self._board.lag_s[self._number] = max(self._board.lag_s[self._number], lag_s)

    def _slices(self) -> None:
        file = self._random.choice(self._settings.plan.large)
        descriptor = os.open(self._root + file.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            blocks = -(-size // BLOCK_BYTES)
            versions = set()
            for _ in range(_SLICES):
                number = self._random.randrange(blocks)
                versions.add(check_block(self._read(descriptor, number * BLOCK_BYTES, file), file.number, number))
            self._one_version(file, versions, size)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def _held(self) -> None:
        """A file that stays open while others make new versions and kill daemons keeps its bytes."""
        plan = self._settings.plan
        file = self._random.choice(plan.large if self._random.random() < _LARGE_SHARE else plan.small)
        descriptor = os.open(self._root + file.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            blocks = -(-size // BLOCK_BYTES)
            versions = {check_block(self._read(descriptor, 0, file), file.number, 0)}
            until = self._live() + self._random.uniform(0, self._settings.longest_hold_s)
            while time.monotonic() < until and not self._board.is_over.value:
                time.sleep(min(_PEEK_S, self._settings.longest_hold_s / 10))
                self._live()
                number = self._random.randrange(blocks)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                versions.add(check_block(self._read(descriptor, number * BLOCK_BYTES, file), file.number, number))
            self._one_version(file, versions, size, is_new=False)
        finally:
            os.close(descriptor)

    def _listing(self) -> None:
        folder = self._random.choice(self._settings.plan.folders)
        names = os.listdir(self._root + folder)  # noqa: PTH208  # nothing between this and the kernel
        if sorted(names) != sorted(self._settings.plan.always_in(folder)):
            raise WrongBytesError(f"{folder} lists {len(names)} names, {len(set(names))} of them different")

    def _stat(self) -> None:
        file = self._random.choice(self._settings.plan.small)
        status = os.stat(self._root + file.path)  # noqa: PTH116  # as above
        version = status.st_mtime_ns // 10**9
        self._one_version(file, {version}, status.st_size)
        if not stat.S_ISREG(status.st_mode):
            raise WrongBytesError(f"{file.path} is no file")

    def _absent(self) -> None:
        folder = self._random.choice(self._settings.plan.folders)
        path = f"{self._root}{folder}/never{self._random.randrange(50)}"
        try:
            os.stat(path)  # noqa: PTH116  # as above
        except FileNotFoundError:
            return
        raise WrongBytesError(f"{path} is there")


def start(count: int, settings: Settings, board: Board) -> list[BaseProcess]:
    """Fork *count* readers; threads must not have been started."""
    context = get_context("fork")
    processes: list[BaseProcess] = []
    for number in range(count):
        board.signs[number] = time.monotonic()
        process = context.Process(target=Reader(number, settings, board).run, daemon=True)
        process.start()
        processes.append(process)
    return processes
