"""After any sequence of changes a mount shows exactly the newest revision, whatever the kernel had kept."""

import os
import random
import stat
from pathlib import Path

import anyio
import pytest

from fs.client.adoption import Invalidations
from fs.client.control import ask
from fs.client.dormants import Dormant, Dormants
from fs.client.inodes import ROOT, Inode
from fs.client.mountpoints import control_socket
from fs.errors import RefusedError
from fs.format.entries import Flag
from fs.publish.operations import MakeDirectory, Operation, PutSymlink, Remove
from tests.support.library import Library, opened
from tests.support.mounts import mounted
from tests.support.published import Published, publish

Seen = dict[bytes, tuple[object, ...]]
REVISIONS = 15


def _path(choose: random.Random) -> bytes:
    return b"".join(b"/" + choose.choice([b"a", b"b", b"c"]) for _ in range(choose.randint(1, 3)))


def _operation(choose: random.Random, published: Published) -> Operation:
    path = _path(choose)
    match choose.randrange(5):
        case 0 | 1:
            content = b"%d" % choose.randint(0, 3) * choose.randint(1, 50)
            return published.file(path.decode(), content, mtime_ns=choose.randint(0, 3) * 10**9)
        case 2:
            return PutSymlink(path, choose.choice([b"x", b"yy"]))
        case 3:
            return MakeDirectory(path, nested=choose.random() < 0.5)
        case _:
            return Remove(path)


def _through_the_kernel(root: bytes, path: bytes = b"") -> Seen:
    seen: Seen = {}
    for name in os.listdir(root + path):
        below = path + b"/" + name
        status = os.lstat(root + below)
        if stat.S_ISDIR(status.st_mode):
            seen[below] = ("directory", status.st_mode, status.st_mtime_ns, status.st_nlink)
            seen |= _through_the_kernel(root, below)
        elif stat.S_ISLNK(status.st_mode):
            seen[below] = ("link", os.readlink(root + below))
        else:
            content = Path(os.fsdecode(root + below)).read_bytes()
            seen[below] = ("file", content, status.st_size, status.st_mtime_ns)
    return seen


def _afresh(library: Library, path: bytes = b"") -> Seen:
    seen: Seen = {}
    for found in library.run(library.repository.listing, path):
        entry = found.entry
        if entry.flags & Flag.HIDDEN:
            continue
        if entry.is_directory:
            seen[found.path] = ("directory", entry.mode, entry.mtime_ns, entry.linkcount)
            seen |= _afresh(library, found.path)
        elif entry.is_symlink:
            seen[found.path] = ("link", entry.target)
        else:
            seen[found.path] = ("file", library.content(found.path), entry.size, entry.mtime_ns)
    return seen


@pytest.mark.root
@pytest.mark.parametrize(("seed", "frontend"), [(1, "pyfuse3"), (2, "pyfuse3"), (1, "wire"), (3, "wire")])
def test_random_revisions(tmp_path: Path, seed: int, frontend: str) -> None:
    choose = random.Random(seed)
    published = publish(tmp_path / "made")
    where = str(published.storage)
    urls, options = [published.storage.as_uri()], ("--frontend", frontend)
    with mounted(published.name, urls, published.public_key, tmp_path / "work", *options) as mount:
        root = os.fsencode(mount.path)
        held: list[tuple[int, bytes]] = []
        for number in range(REVISIONS):
            for _ in range(choose.randint(1, 4)):
                try:
                    published.commit(_operation(choose, published))
                except RefusedError:
                    continue  # a file where a directory has to be, or the other way round
            for _ in range(20):
                os.path.lexists(root + _path(choose))  # the kernel shall have something to forget
            ask(control_socket(mount.path, 0), {"command": "refresh"})

            seen = _through_the_kernel(root)
            with opened(published.name, [where], published.public_key, tmp_path / f"cache{number}") as library:
                expected = _afresh(library)
            assert seen == expected
            for path in (_path(choose) for _ in range(20)):
                assert os.path.lexists(root + path) == (path in expected)
            files = [(path, value[1]) for path, value in sorted(expected.items()) if value[0] == "file"]
            if files:
                path, content = choose.choice(files)
                assert isinstance(content, bytes)
                held.append((os.open(root + path, os.O_RDONLY), content))
        for descriptor, content in held:
            assert os.pread(descriptor, 1000, 0) == content
            os.close(descriptor)


def test_what_wakes_while_a_revision_is_adopted_is_compared_too(tmp_path: Path) -> None:
    published = publish(tmp_path)
    published.put(old=b"old", same=b"same")
    with opened(published.name, [str(published.storage)], published.public_key, tmp_path / "cache") as library:
        operations, home = library.operations, library.repository.revision.root
        inodes = [Inode(library.inode(b"/" + name)) for name in (b"old", b"same")]
        nodes = [node for node in map(operations.inodes.get, inodes) if node is not None]

        async def adopt_while_asked() -> Invalidations:
            for node in nodes:
                operations.forget(node.inode, 1)
            dormants = Dormants()
            dormants.put(
                (node.inode, Dormant(node.key, home, home, is_directory=False, paths=tuple(node.paths)))
                for node in nodes
            )
            operations.restore(dormants, [])
            assert await library.repository.refresh()
            async with anyio.create_task_group() as group:
                for inode in inodes:
                    group.start_soon(operations.attributes, inode)
                return await operations.adopt()

        published.put(old=b"new")
        forgotten = library.run(adopt_while_asked)

        assert forgotten.entries == [(ROOT, b"old")]
