"""What we publish passes rules that were written down a second time, without any of our code."""

import os
import random
import sqlite3
import stat
import zlib
from pathlib import Path

import pytest

from fs.format.chunking import ChunkSizes
from fs.format.hashes import Algorithm, Suffix
from fs.format.tree import Node
from fs.publish.catalogs import CatalogOptions
from fs.publish.operations import Graft, MakeDirectory, PutFile, PutSymlink, Remove
from fs.publish.packing import Codec
from fs.publish.repository import Repository, Settings
from tests.support.independent_checker import Checker, findings
from tests.support.reference import unpack_reference

NAME = "checked.example.org"


@pytest.mark.parametrize("name", ["small", "misc", "rmd160"])
def test_the_reference_servers_repositories_pass(shared: Path, tmp_path: Path, name: str) -> None:
    reference = unpack_reference(shared, name, tmp_path)

    checker = Checker(reference.storage, reference.public_key.read_bytes()).run()

    assert checker.findings == []
    assert checker.entries > 20


def nasty_tree(repository: Repository) -> Node:
    """Everything the format can say: links of both kinds, devices, attributes, chunks, odd names, many entries."""
    ingester, chance = repository.ingester(), random.Random(4)

    def file(content: bytes, **attributes: object) -> Node:
        return Node(mode=stat.S_IFREG | 0o640, content=ingester.add_bytes(content), **attributes)  # type: ignore[arg-type]

    large = chance.randbytes(400_000)
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        return large[position - size : position]

    root = Node(mode=stat.S_IFDIR | 0o755, mtime_ns=-1)
    there = Node(mode=stat.S_IFDIR | 0o1777)
    twice, apart = file(b"twice", xattrs={b"user.a": b"", b"security.capability": b"\1" * 20}), file(b"apart")
    root.children = {
        b"twice": twice,
        b"again": twice,
        b"apart": apart,
        b"there": there,
        b"chunked": Node(mode=stat.S_IFREG | 0o644, content=ingester.add_stream(read, len(large))),
        b"empty": file(b""),
        b"not-utf8-\xff\n": file(b"odd", uid=2**32 - 2, gid=70_000, mtime_ns=1_500_000_000_123_456_789),
        b"link": Node(mode=stat.S_IFLNK | 0o777, target=b"../$(HOME)/\xfe"),
        b"fifo": Node(mode=stat.S_IFIFO | 0o600),
        b"device": Node(mode=stat.S_IFBLK | 0o600, rdev=os.makedev(259, 70_000)),
    }
    there.children = {b"apart": apart, b"n" * 255: file(b"long name")}
    for number in range(60):
        below = root.children[b"d%02d" % number] = Node(mode=stat.S_IFDIR | 0o700, uid=number)
        below.children = {b"f%03d" % index: file(b"%d" % (index % 7)) for index in range(number)}
    return root


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_revision_we_publish_passes(tmp_path: Path, algorithm: Algorithm) -> None:
    settings = Settings(
        codec=Codec(algorithm=algorithm, chunk_sizes=ChunkSizes(4096, 8192, 16384)),
        catalogs=CatalogOptions(most_rows=300, least_rows=20, algorithm=algorithm),
    )
    keys = tmp_path / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(tmp_path / "storage"), keys, settings=settings, durable=False)
    tree = nasty_tree(repository)
    content = repository.ingester().add_bytes(b"metadata")
    steps = [
        [Graft(b"/.flat/ab/one", repository.prepare_subtree(b"/.flat/ab/one", tree)), PutSymlink(b"/r/i:1", b"../x")],
        [MakeDirectory(b"/.flat", nested=True), MakeDirectory(b"/.flat/ab", nested=True)],
        [PutFile(b"/.metadata/r/i:1/m.json", content, xattrs={b"user.k": b"v"}), PutSymlink(b"/r/i:1", b"../longer")],
        [Graft(b"/.flat/ab/two", repository.prepare_subtree(b"/.flat/ab/two", tree)), Remove(b"/r")],
        [Remove(b"/.flat/ab/one")],
    ]

    for operations in steps:
        repository.commit(operations)
        checker = Checker(tmp_path / "storage", (keys / f"{NAME}.pub").read_bytes()).run()
        assert checker.findings == []
    assert checker.catalogs > 5


@pytest.fixture
def published(tmp_path: Path) -> Repository:
    keys = tmp_path / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(tmp_path / "storage"), keys, durable=False)
    repository.commit([PutFile(b"/file", repository.ingester().add_bytes(b"content"))])
    return repository


def test_a_missing_object_is_found(published: Repository, tmp_path: Path) -> None:
    content = published.ingester().add_bytes(b"content")
    assert content.hash is not None
    (tmp_path / "storage" / content.hash.object_path()).unlink()

    assert any("is missing" in finding for finding in findings(tmp_path / "storage", tmp_path / f"keys/{NAME}.pub"))


def test_a_wrong_counter_is_found(published: Repository, tmp_path: Path) -> None:
    checker = Checker(tmp_path / "storage", (tmp_path / f"keys/{NAME}.pub").read_bytes())
    root = published.manifest.root_catalog
    database = tmp_path / "catalog"
    database.write_bytes(zlib.decompress((tmp_path / "storage" / root.object_path(Suffix.CATALOG)).read_bytes()))
    connection = sqlite3.connect(database)
    connection.execute("UPDATE statistics SET value = value + 1 WHERE counter = 'self_regular'")
    connection.commit()
    connection.close()

    checker.catalog(b"", database.read_bytes(), None)

    assert any("counter regular" in finding for finding in checker.findings)
