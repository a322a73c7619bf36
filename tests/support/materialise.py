"""A published tree as real files, so that tools that know only directories can judge it."""

import os
import stat
from pathlib import Path

from fs.format.entries import Entry
from fs.publish.view import View

LARGEST_FILE_BYTES = 1 << 30


def materialise(view: View, path: bytes, target: Path) -> None:
    """Write what *view* has at *path* to the new directory *target*, with all attributes. Needs root."""
    target.mkdir()
    _fill(view, path, os.fsencode(target))
    root = view.lookup(path)
    assert root is not None
    _set_attributes(os.fsencode(target), root)


def _fill(view: View, path: bytes, target: bytes) -> None:
    pending = [(path, target)]
    directories = []
    linked: dict[int, bytes] = {}
    while pending:
        here, there = pending.pop()
        for entry in view.list(here):
            source, made = here + b"/" + entry.name, there + b"/" + entry.name
            if entry.link_group and entry.link_group in linked:
                os.link(linked[entry.link_group], made, follow_symlinks=False)
                continue
            if entry.link_group:
                linked[entry.link_group] = made
            if entry.is_directory:
                os.mkdir(made)
                pending.append((source, made))
                directories.append((made, entry))
                continue
            _make(view, source, entry, made)
            _set_attributes(made, entry)
    for made, entry in reversed(directories):
        _set_attributes(made, entry)


def _make(view: View, path: bytes, entry: Entry, target: bytes) -> None:
    if entry.is_symlink:
        os.symlink(view.readlink(path), target)
    elif entry.is_regular:
        with open(target, "xb") as stream:
            stream.write(view.read(path, LARGEST_FILE_BYTES))
    else:
        os.mknod(target, entry.mode, entry.rdev)


def _set_attributes(target: bytes, entry: Entry) -> None:
    os.chown(target, entry.uid, entry.gid, follow_symlinks=False)
    for key, value in entry.xattrs.items():
        os.setxattr(target, key, value, follow_symlinks=False)
    if not entry.is_symlink:
        os.chmod(target, stat.S_IMODE(entry.mode))
    os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
