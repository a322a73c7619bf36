"""A program: makes the kernel learn names and files of a mount before somebody needs them. See warming.

Run by its path, without site packages: it has to be at work within milliseconds. Its argument is the mount point; on
standard input come records, ended by a zero byte: ``l`` and the path of a directory that is to be listed, ``r`` and
the path of a file that is to be read. It ends with its input.
"""

import os
import sys
from collections.abc import Iterator

_PIECE_BYTES = 1 << 16
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _records() -> Iterator[bytes]:
    rest = b""
    while piece := os.read(0, _PIECE_BYTES):
        *whole, rest = (rest + piece).split(b"\0")
        yield from whole


def _list(path: bytes) -> None:
    """Go through a directory: the kernel keeps the names and the attributes that come with them."""
    with os.scandir(path) as entries:
        for _ in entries:
            pass


def _read(path: bytes) -> None:
    """Let the kernel fetch a file; this does not wait for it."""
    descriptor = os.open(path, _FLAGS)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)


def main() -> None:
    """Do what standard input says. What cannot be done is left out: whoever needs it gets the error."""
    root = os.fsencode(sys.argv[1])
    actions = {b"l": _list, b"r": _read}
    for record in _records():
        try:
            actions[record[:1]](root + record[1:])
        except OSError:
            continue


if __name__ == "__main__":
    main()
