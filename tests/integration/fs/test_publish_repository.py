"""Commits: what they change, what they leave alone, and who may make them."""

import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fs.errors import AbsentError, LockedError, NotTrustedError, RefusedError
from fs.format.chunking import ChunkSizes
from fs.format.compression import Compression, inflate
from fs.format.hashes import Algorithm, Suffix
from fs.format.tree import Node
from fs.format.trust import TrustedWhitelist, load_public_keys, named_certificate
from fs.publish.check import CheckOptions, check_repository
from fs.publish.operations import Graft, MakeDirectory, PutFile, PutSymlink, Remove
from fs.publish.packing import Codec
from fs.publish.repository import Repository, Settings
from fs.store.local import LocalStore

NAME = "published.test"


def file(repository: Repository, data: bytes = b"data") -> Node:
    return Node(mode=stat.S_IFREG | 0o644, content=repository.ingester().add_bytes(data))


def put(repository: Repository, path: bytes, data: bytes = b"data") -> PutFile:
    return PutFile(path, repository.ingester().add_bytes(data))


def graft(repository: Repository, path: bytes, **files: bytes) -> Graft:
    root = Node(mode=stat.S_IFDIR | 0o755)
    root.children = {name.encode(): file(repository, data) for name, data in files.items()}
    return Graft(path, repository.prepare_subtree(path, root))


def names(repository: Repository, path: bytes) -> list[bytes]:
    return [entry.name for entry in repository.view().list(path)]


def assert_good(repository: Repository, tmp_path: Path) -> None:
    keys = load_public_keys((tmp_path / "keys" / f"{NAME}.pub").read_bytes())
    verdict = check_repository(LocalStore(tmp_path / "storage"), CheckOptions(keys=keys, now=datetime.now(UTC)))
    assert verdict.findings == []


def test_a_new_repository_is_empty_good_and_trusted(repository: Repository, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "storage")
    envelope = store.read_named(".cvmfspublished", limit_bytes=10_000)
    whitelist = TrustedWhitelist.verify(
        store.read_named(".cvmfswhitelist", limit_bytes=10_000),
        name=NAME,
        keys=load_public_keys((tmp_path / "keys" / f"{NAME}.pub").read_bytes()),
        now=datetime.now(UTC),
    )
    certificate = inflate(
        store.get(named_certificate(envelope), Suffix.CERTIFICATE, limit_bytes=10_000), limit_bytes=10_000
    )

    assert whitelist.certificate(certificate).manifest(envelope).revision == repository.revision == 1
    assert names(repository, b"") == []
    assert_good(repository, tmp_path)


def test_one_commit_with_everything(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit(
        [
            MakeDirectory(b"/.flat", nested=True),
            MakeDirectory(b"/.flat/ab", nested=True),
            graft(repository, b"/.flat/ab/abc", f=b"1", g=b"22"),
            PutSymlink(b"/registry/image:tag", b"../.flat/ab/abc"),
            put(repository, b"/.metadata/registry/image:tag/manifest.json", b"{}"),
        ]
    )

    assert (commit.revision, commit.changed) == (2, True)
    assert names(repository, b"") == [b".flat", b".metadata", b"registry"]
    assert repository.view().read(b"/.flat/ab/abc/g", 10) == b"22"
    assert repository.view().readlink(b"/registry/image:tag") == b"../.flat/ab/abc"
    assert repository.view().lookup(b"/.flat/none") is None
    with pytest.raises(AbsentError):
        repository.view().list(b"/none")
    assert_good(repository, tmp_path)


def test_nothing_to_do_makes_no_revision(repository: Repository) -> None:
    operations = [
        MakeDirectory(b"/.flat", nested=True),
        graft(repository, b"/.flat/a", f=b"1"),
        PutSymlink(b"/l", b"t"),
        put(repository, b"/f"),
        Remove(b"/none"),
    ]
    first = repository.commit(operations)

    second = repository.commit(operations)

    assert (second.changed, second.revision, second.root_hash) == (False, 2, first.root_hash)


def test_catalogs_that_are_not_on_the_way_keep_their_hash(repository: Repository) -> None:
    def catalog_of(path: bytes) -> object:
        return next(found.hash for found in repository.view()._root().nested() if found.path == path)

    repository.commit([MakeDirectory(b"/a", nested=True), MakeDirectory(b"/b", nested=True)])
    before = catalog_of(b"/a")
    repository.commit([put(repository, b"/b/f")])

    assert catalog_of(b"/a") == before


def test_a_graft_replaces_what_was_there(repository: Repository, tmp_path: Path) -> None:
    repository.commit([graft(repository, b"/x/tree", a=b"1", b=b"2"), put(repository, b"/x/plain/f")])
    repository.commit([graft(repository, b"/x/tree", c=b"3"), graft(repository, b"/x/plain", d=b"4")])

    assert names(repository, b"/x/tree") == [b"c"]
    assert names(repository, b"/x/plain") == [b"d"]
    assert_good(repository, tmp_path)


def test_a_directory_that_is_there_becomes_a_catalog(repository: Repository, tmp_path: Path) -> None:
    repository.commit(
        [
            put(repository, b"/a/b/f", b"1"),
            put(repository, b"/a/big", bytes(5 << 20)),
            PutSymlink(b"/a/b/l", b"t"),
            graft(repository, b"/a/b/tree", g=b"2"),
        ]
    )
    repository.commit([MakeDirectory(b"/a", nested=True)])
    repository.commit([MakeDirectory(b"/a/b", nested=True)])

    assert names(repository, b"/a/b") == [b"f", b"l", b"tree"]
    assert repository.view().read(b"/a/b/tree/g", 10) == b"2"
    assert repository.view().read(b"/a/big", 6 << 20) == bytes(5 << 20)
    assert_good(repository, tmp_path)


def test_removing_takes_everything_below(repository: Repository, tmp_path: Path) -> None:
    repository.commit(
        [
            MakeDirectory(b"/a", nested=True),
            graft(repository, b"/a/b/tree", g=b"2"),
            put(repository, b"/a/b/c/f"),
            put(repository, b"/keep"),
        ]
    )
    repository.commit([Remove(b"/a/b")])

    assert names(repository, b"/a") == []
    repository.commit([Remove(b"/a")])
    assert names(repository, b"") == [b"keep"]
    assert_good(repository, tmp_path)


def test_removing_one_name_of_a_hard_link(repository: Repository, tmp_path: Path) -> None:
    shared, other = file(repository), file(repository, b"2")
    root = Node(mode=stat.S_IFDIR | 0o755, children={b"a": shared, b"b": shared, b"c": shared, b"d": other})
    root.children[b"sub"] = Node(mode=stat.S_IFDIR | 0o755, children={b"e": other, b"g": other})
    repository.commit([Graft(b"/t", repository.prepare_subtree(b"/t", root))])

    for path, count in ((b"/t/a", 2), (b"/t/b", 1)):
        repository.commit([Remove(path)])
        entry = repository.view().lookup(b"/t/c")
        assert entry is not None
        assert entry.linkcount == count
        assert_good(repository, tmp_path)
    repository.commit([Remove(b"/t/sub/e")])
    entry = repository.view().lookup(b"/t/d")
    assert entry is not None
    assert entry.linkcount == 2
    assert_good(repository, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda repository: put(repository, b"/dir"),
        lambda repository: put(repository, b"/file/below"),
        lambda repository: put(repository, b"relative"),
        lambda repository: put(repository, b"/a/../b"),
        lambda repository: put(repository, b"/a//b"),
        lambda repository: put(repository, b"/a/"),
        lambda repository: put(repository, b"/dir/.cvmfscatalog"),
        lambda _: Remove(b""),
        lambda _: MakeDirectory(b"/file"),
        lambda repository: Graft(b"/elsewhere", graft(repository, b"/here", f=b"1").subtree),
        lambda repository: graft(repository, b"/file/below", f=b"1"),
    ],
)
def test_an_operation_that_makes_no_sense_changes_nothing(
    repository: Repository, wrong: Callable[[Repository], PutFile]
) -> None:
    repository.commit([MakeDirectory(b"/dir"), put(repository, b"/file")])

    with pytest.raises(RefusedError):
        repository.commit([put(repository, b"/new"), wrong(repository)])

    assert repository.revision == 2
    assert names(repository, b"") == [b"dir", b"file"]


def test_another_writer_is_waited_for_and_then_named(repository: Repository, tmp_path: Path) -> None:
    other = Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with repository._locked(1):
            inside.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(10)
    with pytest.raises(LockedError):
        other.commit([put(other, b"/f")], timeout_s=0.1)
    done.set()
    holder.join(10)

    assert other.commit([put(other, b"/f")], timeout_s=10).revision == 2


def test_writers_that_commit_at_once_lose_nothing(repository: Repository, tmp_path: Path) -> None:
    writers = [Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False) for _ in range(3)]

    def work(number: int) -> None:
        for turn in range(5):
            path = b"/%d/%d" % (number, turn)
            writers[number].commit([put(writers[number], path)], timeout_s=30)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert repository.revision == 16
    assert [names(repository, b"/%d" % number) for number in range(3)] == [[b"0", b"1", b"2", b"3", b"4"]] * 3
    assert_good(repository, tmp_path)


def test_the_time_never_goes_back(make_repository: Callable[..., Repository], tmp_path: Path) -> None:
    times = iter([2_000_000_000.0] * 4 + [1_000_000_000.0] * 100)
    repository = make_repository(Settings(clock=lambda: next(times)))
    before = repository.manifest.published_unix_s

    repository.commit([put(repository, b"/f")])

    assert repository.manifest.published_unix_s >= before


def test_tags(repository: Repository, tmp_path: Path) -> None:
    first = repository.commit([put(repository, b"/f")], tag="first", description="the first")
    second = repository.commit([put(repository, b"/g")])

    tags = {tag.name: tag for tag in repository.tags()}
    assert tags["trunk"].root_catalog == second.root_hash
    assert tags["trunk-previous"].root_catalog == tags["first"].root_catalog == first.root_hash
    assert tags["first"].description == "the first"
    repository.remove_tag("first")
    assert "first" not in {tag.name for tag in repository.tags()}
    assert repository.revision == 3
    with pytest.raises(AbsentError):
        repository.remove_tag("first")
    with pytest.raises(RefusedError):
        repository.commit([], tag="trunk")
    assert_good(repository, tmp_path)


def test_a_whitelist_is_renewed(make_repository: Callable[..., Repository], tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=60)
    old = make_repository(Settings(clock=long_ago.timestamp))
    keys = load_public_keys((tmp_path / "keys" / f"{NAME}.pub").read_bytes())
    store = LocalStore(tmp_path / "storage")

    with pytest.raises(NotTrustedError):
        _verify(store, keys)
    new = Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys")
    expires = new.resign()
    _verify(store, keys)

    assert old.whitelist_expires() == new.whitelist_expires() == expires.replace(microsecond=0)


def _verify(store: LocalStore, keys: list) -> None:  # type: ignore[type-arg]
    envelope = store.read_named(".cvmfswhitelist", limit_bytes=10_000)
    TrustedWhitelist.verify(envelope, name=NAME, keys=keys, now=datetime.now(UTC))


def test_the_ttl_is_in_the_catalog_and_the_manifest(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(Settings(ttl_s=5))

    repository.commit([put(repository, b"/f")])

    assert repository.manifest.ttl_s == repository.view()._root().ttl_s == 5


def test_keys_that_others_can_read_are_refused(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "keys" / f"{NAME}.key").chmod(0o640)

    with pytest.raises(RefusedError, match="chmod 600"):
        Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys")


def test_keys_and_private_files_are_private(repository: Repository, tmp_path: Path) -> None:
    repository.commit([put(repository, b"/f")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()}

    assert modes[f"{NAME}.key"] == modes[f"{NAME}.masterkey"] == 0o600
    assert stat.S_IMODE((tmp_path / "storage/.publisher").stat().st_mode) == 0o700
    objects = [path for path in (tmp_path / "storage/data").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in objects} == {0o644}


def test_there_is_one_repository_in_a_storage(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        Repository.create("other.test", str(tmp_path / "storage"), tmp_path / "keys")
    with pytest.raises(RefusedError):
        Repository.open("other.test", str(tmp_path / "storage"), tmp_path / "keys")
    with pytest.raises(AbsentError):
        Repository.open("other.test", str(tmp_path / "nothing"), tmp_path / "keys")
    with pytest.raises(RefusedError, match="ftp"):
        Repository.open("other.test", "ftp://bucket", tmp_path / "keys")


@pytest.mark.parametrize("algorithm", [Algorithm.RMD160, Algorithm.SHAKE128])
@pytest.mark.parametrize("compression", Compression)
def test_other_hashes_and_no_compression(
    make_repository: Callable[..., Repository], tmp_path: Path, algorithm: Algorithm, compression: Compression
) -> None:
    codec = Codec(algorithm, compression, chunk_sizes=ChunkSizes(64, 128, 256))
    repository = make_repository(Settings(codec=codec))
    data = bytes(range(256)) * 4

    repository.commit(
        [
            graft(repository, b"/t/x", f=b"1", empty=b""),
            put(repository, b"/big", data),
            MakeDirectory(b"/n", nested=True),
        ]
    )

    assert repository.manifest.root_catalog.algorithm is algorithm
    assert len(repository.view().content(b"/big").chunks) > 2
    assert repository.view().read(b"/big", 2000) == data
    assert repository.view().read(b"/t/x/f", 10) == b"1"
    assert_good(repository, tmp_path)


def test_many_changes_leave_the_catalog_dense(repository: Repository, tmp_path: Path) -> None:
    repository.commit([put(repository, b"/f%d" % number) for number in range(400)])
    repository.commit([Remove(b"/f%d" % number) for number in range(390)])

    root = repository.view()._root()
    assert max(entry.rowid for _, entry in root.entries()) == 11
    assert repository.manifest.catalog_size < 80_000
    assert_good(repository, tmp_path)


def test_an_index_of_contents_that_is_damaged_begins_anew(repository: Repository, tmp_path: Path) -> None:
    repository.commit([put(repository, b"/f", b"1")])
    repository.ingester().packing.close()
    (tmp_path / "storage/.publisher/contents.db").write_bytes(b"no database at all")

    with capture_logs() as logs:
        other = Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
        other.commit([put(other, b"/g", b"2")])

    assert other.view().read(b"/g", 100) == b"2"
    assert "content_index_lost" in {line["event"] for line in logs}
    assert_good(other, tmp_path)


def test_a_view_serves_many_threads_and_stays_when_the_repository_moves_on(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fs.publish.view._OPEN_BYTES", 200_000)  # three catalogs: they come and go all the time
    grafts = [graft(repository, b"/t/%d" % number, f=b"%d" % number) for number in range(12)]
    repository.commit(grafts)
    view = repository.view()
    repository.commit([Remove(b"/t")])
    wrong: list[bytes] = []

    def work() -> None:
        for number in [*range(12)] * 5:
            content = view.read(b"/t/%d/f" % number, 10)
            if content != b"%d" % number:
                wrong.append(content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert wrong == []
    assert repository.view().lookup(b"/t") is None
