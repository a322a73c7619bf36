"""Small repositories of our own making, for tests of readers."""

from dataclasses import dataclass
from pathlib import Path

from fs.publish.operations import MakeDirectory, Operation, PutFile, PutSymlink, Remove
from fs.publish.repository import Repository


@dataclass
class Published:
    """A repository and who writes it."""

    writer: Repository
    storage: Path
    keys: Path

    @property
    def name(self) -> str:
        return self.writer.name

    @property
    def public_key(self) -> Path:
        return self.keys / f"{self.name}.pub"

    def file(self, path: str, content: bytes, *, mode: int = 0o644, mtime_ns: int = 10**18) -> PutFile:
        """The operation that puts *content* at *path*."""
        return PutFile(path.encode(), self.writer.ingester().add_bytes(content), mode=mode, mtime_ns=mtime_ns)

    def put(self, **files: bytes) -> int:
        """Publish one revision with these files in the root; gives its number."""
        return self.commit(*(self.file(f"/{name}", content) for name, content in files.items()))

    def commit(self, *operations: Operation) -> int:
        return self.writer.commit(operations).revision

    def remove(self, path: str) -> int:
        return self.commit(Remove(path.encode()))

    def link(self, path: str, target: bytes) -> int:
        return self.commit(PutSymlink(path.encode(), target))

    def nest(self, path: str) -> int:
        return self.commit(MakeDirectory(path.encode(), nested=True))

    def object_of(self, content: bytes) -> Path:
        """The file in the storage that holds *content*."""
        stored = self.writer.ingester().add_bytes(content)
        assert stored.hash is not None
        return self.storage / stored.hash.object_path()


def publish(work: Path, name: str = "test.example.org") -> Published:
    """Make a repository below *work*."""
    storage, keys = work / "storage", work / "keys"
    keys.mkdir(parents=True, exist_ok=True)
    writer = Repository.create(name, str(storage), keys, durable=False)
    return Published(writer, storage, keys)
