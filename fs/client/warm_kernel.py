"""A program: makes the kernel learn names and files of a mount before somebody needs them. See warming.

Run by its path, without site packages: it has to be at work within milliseconds. Its argument is the mount point; on
standard input come records, ended by a zero byte: ``l`` and the path of a directory that is to be listed, ``r`` and
the path of a file that is to be read. It ends with its input.

A repository may have changed since a path was looked up, and may mean harm: no symbolic link is followed, and nothing
is opened but directories and regular files.
"""

import os
import stat
import sys
from collections.abc import Iterator

_PIECE_BYTES = 1 << 16
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY


class _Kernel:
    """Holds the last directory open, since files that are named in a row mostly lie in one."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._path: bytes | None = None
        self._folder = -1

    def list(self, path: bytes) -> None:
        """Go through a directory: the kernel keeps the names and the attributes that come with them."""
        self._enter(path)
        descriptor = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=self._folder)
        try:
            with os.scandir(descriptor) as entries:
                for _ in entries:
                    pass
        finally:
            os.close(descriptor)

    def read(self, path: bytes) -> None:
        """Let the kernel fetch a file; this does not wait for it."""
        folder, _, name = path.rpartition(b"/")
        self._enter(folder)
        if not stat.S_ISREG(os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mode):
            return
        descriptor = os.open(name, _FILE, dir_fd=self._folder)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)

    def _enter(self, path: bytes) -> None:
        if path == self._path:
            return
        self.leave()
        self._folder = os.open(self._root, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        for name in path.split(b"/")[1:]:
            inside = os.open(name, os.O_PATH | _FOLDER, dir_fd=self._folder)
            os.close(self._folder)
            self._folder = inside
        self._path = path

    def leave(self) -> None:
        """Keep nothing open: the mount would be busy."""
        self._path = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _records() -> Iterator[list[bytes]]:
    """As many at a time as have come."""
    rest = b""
    while piece := os.read(0, _PIECE_BYTES):
        *whole, rest = (rest + piece).split(b"\0")
        yield whole


def main() -> None:
    """Do what standard input says. What cannot be done is left out: whoever needs it gets the error."""
    kernel = _Kernel(os.fsencode(sys.argv[1]))
    actions = {b"l": kernel.list, b"r": kernel.read}
    for records in _records():
        for record in records:
            try:
                actions[record[:1]](record[1:])
            except OSError:
                kernel.leave()  # it may have been left half-way
        kernel.leave()


if __name__ == "__main__":
    main()
