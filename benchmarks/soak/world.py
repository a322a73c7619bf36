"""The repository that is read: which files there are, and who changes them."""

import random
import time
from collections.abc import Iterator
from ctypes import Array, c_double, c_uint64
from dataclasses import dataclass
from multiprocessing import RawArray
from pathlib import Path

from benchmarks.soak.contents import content, size_of
from fs.publish.operations import MakeDirectory, Operation, PutFile, Remove
from fs.publish.repository import Repository

NAME = "soak.example.org"
SMALL_IN_FOLDER = 60
_SMALL_BYTES = 24_000
_LARGE_BYTES = 12 << 20
_COMING_AND_GOING = 40
_FOLDERS_COMING_AND_GOING = 6
_IN_ONE_OF_THEM = 5
_CHANGED_SHARE = 0.02
_LARGE_EVERY = 6  # revisions


@dataclass(frozen=True, slots=True)
class File:
    """One name."""

    number: int
    path: str
    around_bytes: int
    is_always_there: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """All names that ever exist."""

    small: list[File]
    large: list[File]
    passing: list[File]  # not in every revision
    folders: list[str]  # which always exist

    @classmethod
    def of(cls, data_mib: int) -> "Plan":
        """About *data_mib* of files: a third in large ones, the rest small."""
        numbers = iter(range(1 << 30))
        large_count = max(1, data_mib * (1 << 20) // 3 // _LARGE_BYTES)
        folders = max(1, (data_mib * (1 << 20) * 2 // 3) // (_SMALL_BYTES * SMALL_IN_FOLDER))
        small = [
            File(next(numbers), f"/d{folder}/f{one}", _SMALL_BYTES)
            for folder in range(folders)
            for one in range(SMALL_IN_FOLDER)
        ]
        large = [File(next(numbers), f"/large/l{one}", _LARGE_BYTES) for one in range(large_count)]
        passing = [
            File(next(numbers), f"/passing/p{one}", _SMALL_BYTES, is_always_there=False)
            for one in range(_COMING_AND_GOING)
        ]
        passing += [
            File(next(numbers), f"/passing/g{folder}/p{one}", _SMALL_BYTES, is_always_there=False)
            for folder in range(_FOLDERS_COMING_AND_GOING)
            for one in range(_IN_ONE_OF_THEM)
        ]
        return cls(small, large, passing, [f"/d{folder}" for folder in range(folders)])

    @property
    def files(self) -> list[File]:
        """All of them, by number."""
        return [*self.small, *self.large, *self.passing]

    def always_in(self, folder: str) -> set[str]:
        """The names that a listing of *folder* must hold."""
        return {file.path.rpartition("/")[2] for file in self.small if file.path.startswith(folder + "/")}


class Versions:
    """Which version of each file was published last, and when; shared with the readers."""

    def __init__(self, count: int) -> None:
        self.newest: Array[c_uint64] = RawArray(c_uint64, count)  # set before the commit
        self.committed: Array[c_uint64] = RawArray(c_uint64, count)
        self.committed_at: Array[c_double] = RawArray(c_double, count)


class World:
    """Makes the repository and its revisions."""

    def __init__(self, work: Path, plan: Plan) -> None:
        keys = work / "keys"
        keys.mkdir(parents=True)
        self.plan = plan
        self.storage = work / "storage"
        self.public_key = keys / f"{NAME}.pub"
        self.versions = Versions(len(plan.files))
        self.revisions = 0
        self.data_bytes = 0
        self._random = random.Random(7)
        self._there: set[int] = set()
        self._repository = Repository.create(NAME, str(self.storage), keys, durable=False)

    def begin(self) -> None:
        """Publish the first version of everything that is always there."""
        folders = [*self.plan.folders, "/large", "/passing"]
        self._repository.commit([MakeDirectory(folder.encode(), nested=True) for folder in folders])
        self._put([*self.plan.small, *self.plan.large])

    def go_on(self) -> None:
        """Publish one more revision: some files change, some come, some go."""
        changed = self._random.sample(self.plan.small, max(1, int(len(self.plan.small) * _CHANGED_SHARE)))
        if self.revisions % _LARGE_EVERY == 0:
            changed.append(self._random.choice(self.plan.large))
        coming = self._random.sample(self.plan.passing, 6)
        gone = self._random.choice([*{parent_of(file) for file in self.plan.passing}])
        self._put([*changed, *coming], remove=list(self._going(gone)))

    def _going(self, folder: str) -> Iterator[str]:
        if folder != "/passing":
            yield folder
            return
        yield from (file.path for file in self._random.sample(self.plan.passing[:_COMING_AND_GOING], 5))

    def _put(self, files: list[File], remove: list[str] | None = None) -> None:
        removed = remove or []
        files = [file for file in files if file.path not in removed and parent_of(file) not in removed]
        ingester = self._repository.ingester()
        operations: list[Operation] = [Remove(path.encode()) for path in removed]
        operations += [MakeDirectory(folder.encode()) for folder in sorted({parent_of(file) for file in files})]
        for file in files:
            version = self.versions.newest[file.number] + 1
            self.versions.newest[file.number] = version
            size = size_of(file.number, version, file.around_bytes)
            if version == 1:
                self.data_bytes += size
            data = content(file.number, version, size)
            operations.append(PutFile(file.path.encode(), ingester.add_bytes(data), mtime_ns=version * 10**9))
        self._repository.commit(operations)
        self.revisions += 1
        now = time.monotonic()
        for file in files:
            self.versions.committed_at[file.number] = now
            self.versions.committed[file.number] = self.versions.newest[file.number]


def parent_of(file: File) -> str:
    """The folder of *file*."""
    return file.path.rpartition("/")[0]
