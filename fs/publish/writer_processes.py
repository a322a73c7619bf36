"""Packing contents and building catalogs in other processes, because one's Python uses little more than one processor.

    a thread ── contents ──> process: hash, look up, compress, put ── names ──> the thread
    a thread ── trees ─────> process: build and put their catalogs ── subtrees ──> the thread

Each process serves one thread at a time; a thread that finds none free waits. Tasks and answers go through two pipes,
bytes lie in memory that both share, so that they are copied once and touch pages that are there. Processes are
started with the first contents that are worth the way. Until one says that it is there, where one has died, and where
one refuses, threads do the work themselves: it makes no difference who stores an object, nor whether two do.

A process ends when its pipe does, so with the process that started it, however that one ends. These processes are for
storage in directories: at servers one waits for the network, which threads do as well.
"""

import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog

from fs.errors import FsError
from fs.format.hashes import Hash, Suffix
from fs.format.tree import Node
from fs.publish.catalogs import CatalogOptions, Subtree, publish_tree
from fs.publish.packing import Codec, DedupIndex, Packer
from fs.publish.tree_transfer import decode_trees, encode_trees
from fs.runtime.collecting import collect_rarely
from fs.store.base import Buffer
from fs.store.local import LocalStore, Refreshed

_WORTHWHILE_BYTES = 64 << 10
_SHARED_BYTES = 16 << 20  # at least: more than a batch, and the trees of a large image
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
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class _Pack:
    """The bytes behind this are contents, which are to be stored."""

    suffix: Suffix
    lengths: list[int]

    def do(self, packer: Packer, data: memoryview) -> list[Hash]:
        bounds = pairwise(accumulate(self.lengths, initial=0))
        return packer.objects([data[start:end] for start, end in bounds], self.suffix)


@dataclass(frozen=True, slots=True)
class _Build:
    """The bytes behind this are trees, whose catalogs are to be stored."""

    paths: list[bytes]
    options: CatalogOptions

    def do(self, packer: Packer, data: memoryview) -> list[Subtree]:
        trees = zip(self.paths, decode_trees(data), strict=True)
        return [publish_tree(path, root, packer.store, self.options) for path, root in trees]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of it."""

    made: Any  # by ``do``
    refreshed: Refreshed


class WriterProcesses:
    """Makes objects of contents, and catalogs of trees, in other processes. Thread-safe."""

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
        shared_bytes = max(_SHARED_BYTES, codec.chunk_sizes.most)
        self._order = _Order(store.root.absolute(), store.is_durable, index.absolute(), codec, shared_bytes)
        self._count = count
        self._changed = threading.Condition()
        self._starting: list[_Process] = []
        self._free: list[_Process] = []
        self._busy: list[_Process] = []
        self._next_start = 0.0  # monotonic
        self._end = weakref.finalize(self, _end, (self._starting, self._free, self._busy))

    def objects(self, contents: Sequence[Buffer], suffix: Suffix) -> list[Hash]:
        """See Packing."""
        lengths = [len(data) for data in contents]
        if sum(lengths) >= _WORTHWHILE_BYTES:
            self._start_what_is_missing()
            answer = self._asked(_Pack(suffix, lengths), contents)
            if answer is not None:
                names: list[Hash] = answer.made
                return names
        return self._here.objects(contents, suffix)

    def build(self, trees: Mapping[bytes, Node], options: CatalogOptions) -> list[Subtree]:
        """As ``publish_tree`` for each path and tree of *trees*."""
        data = encode_trees(list(trees.values()))
        if len(data) >= _WORTHWHILE_BYTES:
            answer = self._asked(_Build(list(trees), options), [data])
            if answer is not None:
                subtrees: list[Subtree] = answer.made
                return subtrees
        return [publish_tree(path, root, self._store, options) for path, root in trees.items()]

    def flush(self) -> None:
        """See Packing; each process does it by itself when it has nothing else to do."""
        self._here.flush()

    def close(self) -> None:
        """See Packing."""
        self._end()
        self._here.close()

    def _asked(self, task: _Pack | _Build, data: Sequence[Buffer]) -> _Answer | None:
        """What a process answers; None if there is none to ask, it refuses, or *data* is too much for it."""
        if sum(map(len, data)) > self._order.shared_bytes:
            return None
        with self._one() as process:
            if process is None:
                return None
            try:
                answer = process.ask(task, data)
            except (EOFError, ConnectionError, TimeoutError) as error:
                self._lose(process, error)
                return None
        if answer is not None:
            self._store.take_over(answer.refreshed)
        return answer

    @contextmanager
    def _one(self) -> "Iterator[_Process | None]":
        """A process for the caller alone; None if none is there yet."""
        process = self._take()
        try:
            yield process
        finally:
            if process is not None:
                if process.owes_an_answer:  # whoever asked was interrupted
                    self._lose(process, TimeoutError("nobody waits for its answer"))
                with self._changed:
                    if process in self._busy:
                        self._busy.remove(process)
                        self._free.append(process)
                    self._changed.notify()

    def _take(self) -> "_Process | None":
        with self._changed:
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
        with self._changed:
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
        self.owes_an_answer = False
        with orders, answers, os.fdopen(os.memfd_create("unpackd-writer"), "r+b") as memory:
            memory.truncate(order.shared_bytes)
            self._shared = mmap.mmap(memory.fileno(), order.shared_bytes)
            numbers = [orders.fileno(), answers.fileno(), memory.fileno()]
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

    def ask(self, task: _Pack | _Build, data: Sequence[Buffer]) -> _Answer | None:
        """What it makes of *data*; None if it refuses, and whoever does the work himself learns why.

        Raises:
            EOFError, ConnectionError, TimeoutError: it has died, or is about to be given up.
            OSError: it could not store what it made.
        """
        self.owes_an_answer = True
        end = 0
        for part in data:
            start, end = end, end + len(part)
            self._shared[start:end] = part
        self._orders.send((task, end))  # which has room in an empty pipe
        return self._answer()

    def _answer(self) -> _Answer | None:
        if not self._answers.poll(_ANSWER_TIMEOUT_S):
            raise TimeoutError(f"no answer in {_ANSWER_TIMEOUT_S:g} s")
        answer: _Answer | OSError | None = self._answers.recv()
        self.owes_an_answer = False
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        """Let it end."""
        self._orders.close()
        self._answers.close()
        self._shared.close()

    def end(self) -> None:
        """End it, if it has not ended, and let the kernel forget it."""
        self.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end(groups: Sequence[list[_Process]]) -> None:
    processes = [process for group in groups for process in group]
    for process in processes:
        process.close()
    for process in processes:
        process.end()
    for group in groups:
        group.clear()


def _serve(orders: "Connection[Any]", answers: "Connection[Any]", shared: memoryview) -> None:
    """Be one of the processes, until whoever started it closes the pipes."""
    order: _Order = orders.recv()
    store = LocalStore(order.storage, durable=order.durable)
    packer = Packer(store, DedupIndex(order.index), order.codec)
    answers.send_bytes(_THERE)
    with suppress(EOFError, ConnectionError):
        while True:
            if not orders.poll(_IDLE_S):
                packer.flush()
            task, size = orders.recv()
            answers.send(_done(task, packer, store, shared[:size]))
    packer.close()


def _done(task: _Pack | _Build, packer: Packer, store: LocalStore, data: memoryview) -> _Answer | OSError | None:
    try:
        return _Answer(task.do(packer, data), store.hand_over())
    except OSError as error:
        return error
    except FsError:  # not each of them survives the way
        return None


def main() -> None:
    """Be one of the processes; the arguments are the descriptors of its pipes and of the memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started it
    collect_rarely()
    orders, answers, memory = map(int, sys.argv[1:])
    shared = memoryview(mmap.mmap(memory, 0))
    with Connection(orders, writable=False) as tasks, Connection(answers, readable=False) as made:
        _serve(tasks, made, shared)
