"""Repositories as an fsspec file system: ``unpackd://repo.example.org/path``.

```python
import fsspec

options = {"url": "http://origin/cvmfs/repo.example.org", "pubkey": "repo.example.org.pub"}
with fsspec.open("unpackd://repo.example.org/software/readme.txt", **options) as stream:
    print(stream.read())
```

Storage options are ``url``, ``pubkey``, ``cache``, ``name`` (else the host of the URL) and ``tag``. It is read-only.
Instances are kept by fsspec and hold their cache directory until ``close``. Needs ``pip install unpackd[fsspec]``.
"""

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from fs.client.library import OpenRepository, Options, RepositoryFile, Status, open_repository
from fs.client.repository import Selection

PROTOCOL = "unpackd"


class UnpackdFileSystem(AbstractFileSystem):  # type: ignore[misc]  # the module is not followed
    """See the module; methods are fsspec's."""

    protocol = PROTOCOL
    root_marker = "/"

    def __init__(
        self,
        name: str,
        url: str | list[str],
        pubkey: str | list[str],
        *,
        cache: str | None = None,
        tag: str | None = None,
        **storage_options: Any,  # noqa: ANN401  # fsspec's own
    ) -> None:
        super().__init__(**storage_options)
        self._stack = ExitStack()
        options = Options(selection=Selection(tag=tag))
        self._repository = self._stack.enter_context(open_repository(url, name, pubkey, cache, options=options))

    @property
    def repository(self) -> OpenRepository:
        """The repository behind it."""
        return self._repository

    def close(self) -> None:
        """Give connections and cache directory up; the instance cannot be used any more."""
        self._stack.close()
        self.clear_instance_cache()

    @classmethod
    def _strip_protocol(cls, path: str | list[str]) -> str | list[str]:
        if isinstance(path, list):
            return [str(cls._strip_protocol(one)) for one in path]
        if path.startswith(f"{PROTOCOL}://"):
            path = path.removeprefix(f"{PROTOCOL}://").partition("/")[2]
        return "/" + path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        name = path.removeprefix(f"{PROTOCOL}://").partition("/")[0] if path.startswith(f"{PROTOCOL}://") else ""
        return {"name": name} if name else {}

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path."""
        return f"{PROTOCOL}://{self._repository.name}{self._strip_protocol(name)}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:  # noqa: ANN401  # fsspec's own
        """What is at *path*, links followed."""
        stripped = str(self._strip_protocol(path))
        return _info(self._repository.stat(stripped), stripped)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:  # noqa: ANN401, FBT001, FBT002  # fsspec's own
        """What is in a directory, or the file itself."""
        stripped = str(self._strip_protocol(path))
        status = self._repository.stat(stripped)
        if status.is_directory:
            base = stripped.rstrip("/")
            found = [self._child(f"{base}/{one.name}", one) for one in self._repository.ls(stripped)]
        else:
            found = [_info(status, stripped)]
        return found if detail else [one["name"] for one in found]

    def _child(self, path: str, status: Status) -> dict[str, Any]:
        """A link shows what it leads to, if that exists, as with local files."""
        if status.is_symlink:
            try:
                return _info(self._repository.stat(path), path) | {"islink": True, "destination": status.target}
            except OSError:
                return _info(status, path)
        return _info(status, path)

    def created(self, path: str) -> Any:  # noqa: ANN401  # fsspec's own
        """The format knows the modification time only."""
        return self.modified(path)

    def modified(self, path: str) -> Any:  # noqa: ANN401  # fsspec's own
        """Modification time."""
        return datetime.fromtimestamp(self._repository.stat(str(self._strip_protocol(path))).mtime_ns / 1e9, UTC)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:  # noqa: ANN401
        """The bytes of a file, or some of them."""
        with self._raw(path) as file:
            first, last, _step = slice(start, end).indices(file.size)
            return file.pread(max(0, last - first), first)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:  # noqa: ANN401  # fsspec's own
        if mode != "rb":
            raise PermissionError(f"{path} cannot be written: repositories are read-only")
        return self._repository.open(str(self._strip_protocol(path)))

    def _raw(self, path: str) -> RepositoryFile:
        return self._repository.open_raw(str(self._strip_protocol(path)))


def _info(status: Status, path: str) -> dict[str, Any]:
    kind = (
        "directory"
        if status.is_directory
        else "file"
        if status.is_regular
        else "link"
        if status.is_symlink
        else "other"
    )
    return {
        "name": path,
        "size": 0 if status.is_directory else status.size,
        "type": kind,
        "mode": status.mode,
        "uid": status.uid,
        "gid": status.gid,
        "mtime": status.mtime_ns / 1e9,
        "nlink": status.nlink,
        "ino": status.ino,
    } | ({"destination": status.target} if status.is_symlink else {})
