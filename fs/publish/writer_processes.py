"""Packing in processes of its own, because one process's Python uses little more than one processor.

    a thread ── lengths and bytes of a batch ──> process: hash, look up, compress, put ── names ──> the thread

Each process serves one thread at a time over two pipes; a thread that finds none free waits. They are started
with the first batch that is worth the way. Until one says that it is there, and where one has died, threads pack by
themselves: it makes no difference who stores an object, nor whether two do.

A process ends when its pipe does, so with the process that started it, however that one ends. These processes are for
storage in directories: at servers one waits for the network, which threads do as well.
"""

import fcntl
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

from fs.errors import FsError
from fs.format.hashes import Hash, Suffix
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.store.base import Buffer
from fs.store.local import LocalStore, Refreshed

_WORTHWHILE_BYTES = 64 << 10
_PIPE_BYTES = 1 << 20  # what Linux allows everybody
_ANSWER_TIMEOUT_S = 600.0  # a batch is one chunk or a MiB
_END_TIMEOUT_S = 5.0
_NEXT_START_S = 30.0  # after one has died
_LOOK_INTERVAL_S = 0.1
_IDLE_S = 0.5
_THERE = b"there"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Order:
    """What a process is started for."""

    storage: Path
    durable: bool
    index: Path
    codec: Codec


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a batch."""

    names: list[Hash]
    refreshed: Refreshed


class WriterProcesses:
    """Makes objects of contents in other processes. Thread-safe."""

    def __init__(self, store: LocalStore, index: Path, codec: Codec, count: int) -> None:
        """Get ready; nothing is started yet.

        Args:
            store: where objects go.
            index: file of the index of contents, which the processes share.
            codec: how contents are stored.
            count: how many processes.
        """
        self.codec = codec
        self._store = store
        self._here = Packer(store, DedupIndex(index), codec)
        self._order = _Order(store.root.absolute(), store.is_durable, index.absolute(), codec)
        self._count = count
        self._changed = threading.Condition()
        self._starting: list[_Process] = []
        self._free: list[_Process] = []
        self._busy: list[_Process] = []
        self._next_start = 0.0  # monotonic
        self._end = weakref.finalize(self, _end, (self._starting, self._free, self._busy))

    def objects(self, contents: Sequence[Buffer], suffix: Suffix) -> list[Hash]:
        """See Packing."""
        if sum(map(len, contents)) >= _WORTHWHILE_BYTES:
            with self._one() as process:
                if process is not None:
                    try:
                        answer = process.ask(contents, suffix)
                    except (EOFError, ConnectionError, TimeoutError) as error:
                        self._lose(process, error)
                    else:
                        self._store.take_over(answer.refreshed)
                        return answer.names
        return self._here.objects(contents, suffix)

    def flush(self) -> None:
        """See Packing; each process does it by itself when it has nothing else to do."""
        self._here.flush()

    def close(self) -> None:
        """End the processes."""
        self._end()

    @contextmanager
    def _one(self) -> "Iterator[_Process | None]":
        """A process for the caller alone; None if none is there yet."""
        process = self._take()
        try:
            yield process
        finally:
            if process is not None:
                with self._changed:
                    if process in self._busy:
                        self._busy.remove(process)
                        self._free.append(process)
                    self._changed.notify()

    def _take(self) -> "_Process | None":
        with self._changed:
            self._start_what_is_missing()
            while True:
                self._welcome()
                if self._free or not self._busy:
                    break
                self._changed.wait(_LOOK_INTERVAL_S)
            if not self._free:
                return None
            self._busy.append(self._free.pop())
            return self._busy[-1]

    def _start_what_is_missing(self) -> None:
        missing = self._count - len(self._starting) - len(self._free) - len(self._busy)
        if missing and time.monotonic() >= self._next_start:
            self._starting += [_Process(self._order) for _ in range(missing)]

    def _welcome(self) -> None:
        """Take in those that have said that they are there, leave out those that have died before it."""
        for process in list(self._starting):
            try:
                if process.is_there():
                    self._starting.remove(process)
                    self._free.append(process)
            except (EOFError, ConnectionError) as error:
                self._lose(process, error)

    def _lose(self, process: "_Process", error: Exception) -> None:
        _log.warning("writer_process_lost", pid=process.pid, reason=f"{type(error).__name__}: {error}")
        with self._changed:
            for each in (self._starting, self._busy):
                if process in each:
                    each.remove(process)
            self._next_start = time.monotonic() + _NEXT_START_S
        process.end()


class _Process:
    """One of them, as whoever started it sees it."""

    def __init__(self, order: _Order) -> None:
        orders, self._orders = multiprocessing.Pipe(duplex=False)
        self._answers, answers = multiprocessing.Pipe(duplex=False)
        with suppress(OSError):  # then it is as large as the machine's owner allows
            fcntl.fcntl(orders, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with orders, answers:
            numbers = [orders.fileno(), answers.fileno()]
            command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()", *map(str, numbers)]
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(command, stdin=null, stdout=null, pass_fds=numbers)
        with suppress(ConnectionError):  # then it is not there, which is seen soon
            self._orders.send(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_there(self) -> bool:
        """Whether it is ready to be asked; asked until it is. Raises EOFError or ConnectionError: it has died."""
        return self._answers.poll() and self._answers.recv_bytes() == _THERE

    def ask(self, contents: Sequence[Buffer], suffix: Suffix) -> _Answer:
        """What it makes of *contents*.

        Raises:
            EOFError, ConnectionError, TimeoutError: it has died, or is about to be given up.
            OSError, FsError: it could not store them.
        """
        self._orders.send((suffix, [len(data) for data in contents]))
        self._orders.send_bytes(contents[0] if len(contents) == 1 else b"".join(contents))
        if not self._answers.poll(_ANSWER_TIMEOUT_S):
            raise TimeoutError(f"no answer in {_ANSWER_TIMEOUT_S:.0f} s")
        answer: _Answer | OSError | FsError = self._answers.recv()
        if isinstance(answer, _Answer):
            return answer
        raise answer

    def end(self) -> None:
        """End it, if it has not ended, and let the kernel forget it."""
        self._orders.close()
        self._answers.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end(groups: Iterable[list[_Process]]) -> None:
    for group in groups:
        for process in group:
            process.end()
        group.clear()


def _serve(orders: "Connection[Any]", answers: "Connection[Any]") -> None:
    """Be one of the processes, until whoever started it closes the pipes."""
    order: _Order = orders.recv()
    store = LocalStore(order.storage, durable=order.durable)
    index = DedupIndex(order.index)
    packer = Packer(store, index, order.codec)
    answers.send_bytes(_THERE)
    with suppress(EOFError, ConnectionError):
        while True:
            if not orders.poll(_IDLE_S):
                index.flush()
            suffix, lengths = orders.recv()
            with memoryview(orders.recv_bytes()) as data:
                contents = [data[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
                answers.send(_answer(packer, store, contents, suffix))
    index.close()


def _answer(packer: Packer, store: LocalStore, contents: list[memoryview], suffix: Suffix) -> _Answer | Exception:
    try:
        return _Answer(packer.objects(contents, suffix), store.hand_over())
    except OSError as error:
        return error
    except FsError as error:
        return FsError(str(error))  # not each of them survives the way


def main() -> None:
    """Be one of the processes; the arguments are the descriptors of its pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it
    with (
        Connection(int(sys.argv[1]), writable=False) as orders,
        Connection(int(sys.argv[2]), readable=False) as answers,
    ):
        _serve(orders, answers)
