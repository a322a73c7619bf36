"""The check finds nothing in good repositories, and finds each kind of damage."""

import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fs.format.chunking import ChunkSizes
from fs.format.hashes import Hash, Suffix
from fs.format.tree import Node
from fs.format.trust import load_public_keys
from fs.publish.catalogs import StoredCatalog
from fs.publish.check import CheckOptions, Verdict, check_repository
from fs.publish.draft import Draft
from fs.publish.ingest import store_empty
from fs.publish.operations import Graft, MakeDirectory, PutFile
from fs.publish.packing import Codec
from fs.publish.repository import Repository, Settings
from fs.publish.transaction import Base, Transaction
from fs.store.local import LocalStore

NAME = "published.test"
NOW = datetime.now(UTC)


@pytest.fixture
def filled(make_repository: Callable[..., Repository]) -> Repository:
    """/n is nested, /n/t a grafted tree with everything in it; /f is chunked."""
    repository = make_repository(Settings(codec=Codec(chunk_sizes=ChunkSizes(64, 128, 256))))
    add = repository.ingester().add_bytes
    regular, directory = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
    near = Node(mode=regular, content=add(b"near"))
    far = Node(mode=regular, content=add(b"far"))
    sub = Node(mode=directory, children={b"far2": far})
    pipe = Node(mode=stat.S_IFIFO | 0o600)
    tree = Node(mode=directory, children={b"a": near, b"b": near, b"far1": far, b"sub": sub, b"pipe": pipe})
    repository.commit(
        [
            MakeDirectory(b"/n", nested=True),
            Graft(b"/n/t", repository.prepare_subtree(b"/n/t", tree)),
            PutFile(b"/f", add(os.urandom(2000))),
            PutFile(b"/g", add(b"plain")),
        ]
    )
    return repository


def check(repository: Repository, tmp_path: Path, **options: object) -> Verdict:
    keys = load_public_keys((tmp_path / "keys" / f"{repository.name}.pub").read_bytes())
    chosen = replace(CheckOptions(keys=keys, now=NOW), **options)  # type: ignore[arg-type]
    return check_repository(LocalStore(tmp_path / "storage"), chosen)


def kinds(verdict: Verdict) -> set[str]:
    return {finding.kind for finding in verdict.findings if not finding.is_note}


def object_file(tmp_path: Path, name: Hash | None, suffix: Suffix) -> Path:
    assert name is not None
    return tmp_path / "storage" / name.object_path(suffix)


def republish(repository: Repository, path: bytes, spoil: Callable[[Draft], None]) -> None:
    """Publish a revision, properly signed, in which the catalog that serves *path* was spoiled."""
    manifest = repository.manifest
    empty = store_empty(repository._store, manifest.root_catalog.algorithm)
    base = Base(StoredCatalog(manifest.root_catalog, manifest.catalog_size), manifest.revision)
    transaction = Transaction(base, fetch=repository._cache.fetch, now_ns=1, empty=empty)
    draft = transaction._serving(path)
    spoil(draft)
    draft.changes += 1
    stored = transaction.seal(
        partial(repository._keep, manifest.root_catalog.algorithm),
        revision=manifest.revision + 1,
        last_modified_unix_s=manifest.published_unix_s,
        ttl_s=manifest.ttl_s,
    )
    spoiled = replace(manifest, root_catalog=stored.hash, catalog_size=stored.size, revision=manifest.revision + 1)
    with repository._locked(10):
        repository._publish(spoiled, [])


def sql(statement: str) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        assert draft._db.execute(statement).rowcount > 0

    return spoil


def miscount(draft: Draft) -> None:
    draft.own["regular"] += 1


def miscount_below(draft: Draft) -> None:
    draft.subtree["symlink"] += 1


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, 1 << 22, (1 << 22) + 1])
def test_an_object_that_ends_where_a_piece_does_is_whole(
    make_repository: Callable[..., Repository], tmp_path: Path, size: int
) -> None:
    repository = make_repository()
    repository.commit([PutFile(b"/zeros", repository.ingester().add_bytes(bytes(size)))])

    assert check(repository, tmp_path).findings == []


def test_a_good_repository_is_good(filled: Repository, tmp_path: Path) -> None:
    verdict = check(filled, tmp_path)

    assert verdict.findings == []
    assert verdict.is_good
    assert verdict.objects == verdict.objects_read > 10


@pytest.mark.parametrize(
    ("path", "spoil", "kind"),
    [
        (b"/n/t", miscount, "counter"),
        (b"/n", miscount_below, "counter"),
        (b"/n/t", sql("UPDATE catalog SET hardlinks = 7 WHERE name = 'sub'"), "link"),
        (b"/n/t", sql("UPDATE catalog SET hardlinks = (1 << 32) | 3 WHERE name IN ('a', 'b')"), "link"),
        (b"/n/t", sql("UPDATE catalog SET mtime = 99 WHERE name = 'a'"), "link"),
        (b"/n/t", sql("UPDATE unpackd_links SET linkcount = 5"), "link"),
        (b"/n/t", sql("DELETE FROM unpackd_links WHERE rowid = 1"), "link"),
        (b"/n/t", sql("UPDATE catalog SET hardlinks = 0 WHERE name = 'pipe'"), "link"),
        (b"/n/t", sql("UPDATE catalog SET name = 'zz' WHERE name = 'a'"), "entry"),
        (b"/n/t", sql("UPDATE catalog SET parent_1 = 5 WHERE name = 'a'"), "entry"),
        (b"/n/t", sql("UPDATE catalog SET flags = 12 WHERE name = 'a'"), "entry"),
        (b"/n/t", sql("UPDATE catalog SET size = 3 WHERE name = 'pipe'"), "entry"),
        (b"/n/t", sql("UPDATE catalog SET hash = NULL WHERE name = 'far1'"), "entry"),
        (b"/n/t", sql("UPDATE catalog SET size = 4 WHERE name = 'far1'"), "object"),
        (b"/n/t", sql("UPDATE properties SET value = '/x' WHERE key = 'root_prefix'"), "catalog"),
        (b"/n/t", sql("DELETE FROM catalog WHERE name = '.cvmfscatalog'"), "transition"),
        (b"/n", sql("UPDATE catalog SET mtime = 99 WHERE name = 't'"), "transition"),
        (b"/n", sql("UPDATE catalog SET flags = 1 WHERE name = 't'"), "transition"),
        (b"/n", sql("DELETE FROM nested_catalogs"), "transition"),
        (b"/n", sql("UPDATE nested_catalogs SET size = 1"), "catalog"),
        (b"", sql("DELETE FROM chunks WHERE offset = 0"), "chunk"),
        (b"", sql("UPDATE chunks SET size = size + 1 WHERE offset = 0"), "chunk"),
        (b"", sql("UPDATE catalog SET name = '.cvmfscatalog', md5path_1 = 1 WHERE name = 'g'"), "entry"),
    ],
)
def test_damage_in_catalogs_is_found(
    filled: Repository, tmp_path: Path, path: bytes, spoil: Callable[[Draft], None], kind: str
) -> None:
    republish(filled, path, spoil)

    assert kind in kinds(check(filled, tmp_path))


@pytest.mark.parametrize("harm", ["remove", "flip", "cut", "lengthen"])
@pytest.mark.parametrize("which", ["file", "chunk", "nested", "root", "history", "certificate", "metainfo"])
def test_damage_in_objects_is_found(filled: Repository, tmp_path: Path, which: str, harm: str) -> None:
    manifest, view = filled.manifest, filled.view()
    found = {
        "file": object_file(tmp_path, view.content(b"/g").hash, Suffix.PLAIN),
        "chunk": object_file(tmp_path, view.content(b"/f").chunks[1].hash, Suffix.CHUNK),
        "nested": object_file(tmp_path, view._root().nested()[0].hash, Suffix.CATALOG),
        "root": object_file(tmp_path, manifest.root_catalog, Suffix.CATALOG),
        "history": object_file(tmp_path, manifest.history, Suffix.HISTORY),
        "certificate": object_file(tmp_path, manifest.certificate, Suffix.CERTIFICATE),
        "metainfo": object_file(tmp_path, manifest.metainfo, Suffix.METAINFO),
    }[which]
    stored = found.read_bytes()
    if harm == "remove":
        found.unlink()
    else:
        spoiled = {"flip": bytes([stored[0] ^ 1]) + stored[1:], "cut": stored[:-1], "lengthen": stored + b"x"}
        found.write_bytes(spoiled[harm])

    verdict = check(filled, tmp_path)

    assert not verdict.is_good
    expected = {"file": "object", "chunk": "object", "nested": "catalog", "root": "catalog", "metainfo": "object"}
    assert expected.get(which, which if which == "history" else "signature") in kinds(verdict)


def test_a_changed_manifest_is_found(filled: Repository, tmp_path: Path) -> None:
    path = tmp_path / "storage/.cvmfspublished"
    path.write_bytes(path.read_bytes().replace(b"\nS2\n", b"\nS9\n"))

    assert kinds(check(filled, tmp_path)) == {"manifest"}


def test_a_signature_that_does_not_hold_is_found(filled: Repository, tmp_path: Path) -> None:
    path = tmp_path / "storage/.cvmfspublished"
    stored = path.read_bytes()
    path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))

    assert kinds(check(filled, tmp_path)) == {"signature"}


def test_another_public_key_and_an_expired_whitelist_are_found(
    filled: Repository, tmp_path: Path, shared: Path
) -> None:
    with tarfile.open(shared / "fixtures/rmd160.tar.gz") as archive:
        pem = archive.extractfile("rmd160/rmd160.peer.test.pub")
        assert pem is not None
        other = load_public_keys(pem.read())

    assert kinds(check(filled, tmp_path, keys=other)) == {"signature"}
    assert kinds(check(filled, tmp_path, now=NOW + timedelta(days=31))) == {"signature"}
    assert kinds(check(filled, tmp_path, keys=(), now=NOW + timedelta(days=31))) == {"signature"}


def test_a_reflog_that_forgot_something_is_found(filled: Repository, tmp_path: Path) -> None:
    path = tmp_path / "storage/.cvmfsreflog"
    before = path.read_bytes()
    filled.commit([MakeDirectory(b"/new")])
    path.write_bytes(before)

    verdict = check(filled, tmp_path)
    assert kinds(verdict) == {"reflog"}
    path.unlink()
    assert kinds(check(filled, tmp_path)) == {"reflog"}


def test_a_sample_reads_less_but_misses_nothing_that_is_absent(filled: Repository, tmp_path: Path) -> None:
    name = filled.view().content(b"/g").hash
    object_file(tmp_path, name, Suffix.PLAIN).unlink()

    verdict = check(filled, tmp_path, sample=0.01)

    assert verdict.objects_read < verdict.objects
    assert "object" in kinds(verdict)


@pytest.mark.parametrize("name", ["small", "misc", "rmd160", "ducc-edge"])
def test_repositories_of_the_reference_are_judged_as_its_own_checker_does(
    shared: Path, tmp_path: Path, name: str
) -> None:
    with tarfile.open(shared / f"fixtures/{name}.tar.gz") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / name
    keys = load_public_keys(next(folder.glob("*.pub")).read_bytes())

    verdict = check_repository(LocalStore(folder / "repo"), CheckOptions(keys=keys, now=NOW))

    if "PROBLEMS" in (folder / "check.txt").read_text():
        assert kinds(verdict) == {"link", "counter", "entry"}
        spoiled = "/.chains/ed/ed022d3555900c35cf31852d592e6d854e538dc9a5ae1563e6ffb1a91eb580c2"
        links = {finding.where for finding in verdict.findings if finding.kind == "link"}
        assert links == {spoiled, spoiled + "/becomes-dir"}
    else:
        assert verdict.is_good
