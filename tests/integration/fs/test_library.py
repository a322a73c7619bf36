"""The repository as a library, as an fsspec file system, and written out."""

import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from fs.client.export import export_tar
from fs.client.fsspec_filesystem import UnpackdFileSystem
from fs.client.library import OpenRepository, open_repository
from fs.errors import NotTrustedError, RefusedError
from fs.format.tree import Node
from fs.publish.keys import create_keys
from fs.publish.operations import Graft
from tests.support.flaky_origin import FlakyOrigin, flaky_origin
from tests.support.mounts import unpackd
from tests.support.published import Published, publish

BIG = os.urandom(1 << 20) * 20
TIME_NS = 1_600_000_000_123_456_789


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    made = publish(tmp_path_factory.mktemp("library") / "made")
    add = made.writer.ingester().add_bytes

    def file(content: bytes, **more: object) -> Node:
        return Node(mode=stat.S_IFREG | 0o640, content=add(content), mtime_ns=TIME_NS, **more)  # type: ignore[arg-type]

    linked = file(b"linked", xattrs={b"user.note": b"\xff\0x"}, uid=1000, gid=1001)
    inner = Node(mode=stat.S_IFDIR | 0o750, mtime_ns=TIME_NS, children={b"other": linked, b"caf\xe9": file(b"latin")})
    root = Node(
        mode=stat.S_IFDIR | 0o755,
        children={
            b"linked": linked,
            b"inner": inner,
            b"big": file(BIG),
            b"empty": file(b""),
            b"setuid": Node(mode=stat.S_IFREG | 0o4755, content=add(b"x"), mtime_ns=0),
            b"to-inner": Node(mode=stat.S_IFLNK | 0o777, target=b"inner"),
            b"absolute": Node(mode=stat.S_IFLNK | 0o777, target=b"/tree/inner/other"),
            b"up": Node(mode=stat.S_IFLNK | 0o777, target=b"../tree/./big"),
            b"loop": Node(mode=stat.S_IFLNK | 0o777, target=b"loop"),
            b"dangling": Node(mode=stat.S_IFLNK | 0o777, target=b"nowhere"),
            b"pipe": Node(mode=stat.S_IFIFO | 0o600),
            b"null": Node(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)),
        },
    )
    made.commit(Graft(b"/tree", made.writer.prepare_subtree(b"/tree", root)), made.file("/top", b"top"))
    return made


@pytest.fixture(scope="module")
def origin(published: Published) -> Iterator[FlakyOrigin]:
    with flaky_origin(published.storage) as server:
        yield server


@pytest.fixture(scope="module")
def opened(published: Published, origin: FlakyOrigin) -> Iterator[OpenRepository]:
    with open_repository(origin.url, published.name, published.public_key) as repository:
        yield repository


def test_names_and_kinds(opened: OpenRepository) -> None:
    assert [status.name for status in opened.ls("/")] == ["top", "tree"]
    kinds = {status.name: stat.S_IFMT(status.mode) for status in opened.ls("tree")}
    assert kinds["pipe"] == stat.S_IFIFO
    assert opened.stat("/tree/null").rdev == os.makedev(1, 3)
    assert os.fsencode(opened.ls("/tree/inner")[0].name) == b"caf\xe9"
    assert opened.read(b"/tree/inner/caf\xe9") == b"latin"


def test_links_lead_where_the_kernel_would_go(opened: OpenRepository) -> None:
    assert opened.read("/tree/to-inner/other") == b"linked"
    assert opened.read("/tree/absolute") == b"linked"
    assert opened.stat("/tree/up").size == len(BIG)
    assert opened.readlink("/tree/up") == "../tree/./big"
    assert opened.stat("/tree/to-inner", follow_symlinks=False).is_symlink
    assert opened.stat("/tree/inner/../../..").is_directory
    assert opened.stat("/tree/linked").ino == opened.stat("/tree/inner/other").ino


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/none", FileNotFoundError),
        ("/tree/dangling", FileNotFoundError),
        ("/tree/big/x", NotADirectoryError),
        ("/tree", IsADirectoryError),
        ("/tree/loop", OSError),
        ("/tree/pipe", OSError),
    ],
)
def test_errors_are_those_of_the_os(opened: OpenRepository, path: str, error: type[OSError]) -> None:
    with pytest.raises(error) as caught:
        opened.read(path)
    assert caught.value.filename == path
    assert not opened.exists("/none")


def test_files_are_files(opened: OpenRepository) -> None:
    with opened.open("/tree/big") as stream:
        assert stream.read(10) == BIG[:10]
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == BIG[-5:]
        stream.seek(12_345_678)
        assert stream.read(100_000) == BIG[12_345_678:12_445_678]
    assert opened.read("/tree/big", 10, len(BIG) - 4) == BIG[-4:]
    assert opened.read("/tree/empty") == b""


def test_walk_can_leave_directories_out(opened: OpenRepository) -> None:
    assert [where for where, _, _ in opened.walk("/")] == ["/", "/tree", "/tree/inner"]
    seen = []
    for where, folders, _ in opened.walk("/"):
        seen.append(where)
        folders[:] = [one for one in folders if one.name != "inner"]
    assert seen[0] == "/"


def test_the_cache_serves_the_next_time(published: Published, tmp_path: Path) -> None:
    with flaky_origin(published.storage) as origin:
        for _ in range(2):
            with open_repository([origin.url], published.name, [published.public_key], tmp_path / "c") as repository:
                assert repository.prefetch(["/tree/inner", "/top"]).failed == 0
                assert repository.read("/top") == b"top"
            origin.always("/data/", lambda _: (503, b""))


def test_another_key_is_not_believed(origin: FlakyOrigin, published: Published, tmp_path: Path) -> None:
    create_keys(tmp_path, "other.example.org", now=datetime.now(UTC))
    with (
        pytest.raises(NotTrustedError),
        open_repository(origin.url, published.name, tmp_path / "other.example.org.pub"),
    ):
        pass


@pytest.fixture
def filesystem(published: Published, origin: FlakyOrigin) -> Iterator[UnpackdFileSystem]:
    system = fsspec.filesystem(
        "unpackd", name=published.name, url=origin.url, pubkey=str(published.public_key), skip_instance_cache=True
    )
    assert isinstance(system, UnpackdFileSystem)
    yield system
    system.close()


def test_fsspec(filesystem: UnpackdFileSystem, published: Published, tmp_path: Path) -> None:
    base = f"unpackd://{published.name}"

    assert filesystem.ls("/", detail=False) == ["/top", "/tree"]
    assert filesystem.ls(f"{base}/tree/inner", detail=False)[1] == "/tree/inner/other"
    assert filesystem.cat(f"{base}/top") == b"top"
    assert filesystem.cat_file("/tree/big", -3) == BIG[-3:]
    assert filesystem.isdir("/tree/to-inner")
    assert not filesystem.exists("/none")
    assert filesystem.find("/tree/inner") == ["/tree/inner/caf\udce9", "/tree/inner/other"]
    assert filesystem.glob("/t*") == ["/top", "/tree"]
    assert filesystem.unstrip_protocol("/top") == f"{base}/top"
    filesystem.get("/tree/inner/", str(tmp_path / "got"), recursive=True)
    assert (tmp_path / "got" / "other").read_bytes() == b"linked"
    with pytest.raises(PermissionError):
        filesystem.open("/top", "wb")


def test_fsspec_opens_by_url(published: Published, origin: FlakyOrigin) -> None:
    url = f"unpackd://{published.name}/tree/big"
    with fsspec.open(url, url=origin.url, pubkey=str(published.public_key)) as stream:
        assert stream.read(4) == BIG[:4]
    UnpackdFileSystem(published.name, origin.url, str(published.public_key)).close()


def _xattrs(path: str) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about every entry of a directory."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            inside = os.path.relpath(path, root)
            is_file = stat.S_ISREG(status.st_mode)
            found[inside] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns,
                Path(path).read_bytes() if is_file else None,
                os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
                _xattrs(path),
                first.setdefault(status.st_ino, inside) if is_file else None,
            )  # fmt: skip
    return found


@pytest.mark.root
def test_a_directory_and_a_tar_say_the_same(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    remote = ["--url", origin.url, "--pubkey", published.public_key]
    done = unpackd("repo", "export", "/tree", tmp_path / "d", *remote, "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["files"], counts["directories"], counts["links"], counts["others"]) == (5, 2, 6, 2)
    assert unpackd("repo", "export", "/tree", tmp_path / "t.tar", "--storage", published.storage).returncode == 0
    (tmp_path / "u").mkdir()
    untar = [
        "tar",
        "-xpf",
        tmp_path / "t.tar",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-C",
        tmp_path / "u",
    ]
    subprocess.run(untar, check=True)

    written = snapshot(tmp_path / "d")
    assert written == snapshot(tmp_path / "u")
    assert written["linked"][7] == {"user.note": b"\xff\0x"}
    assert written["linked"][1:3] == (1000, 1001)
    assert written["linked"][8] == written["inner/other"][8]
    assert written["inner"][4] == TIME_NS
    assert stat.S_IMODE(written["setuid"][0]) == 0o4755  # type: ignore[arg-type]
    assert written["big"][5] == BIG


def test_a_file_and_a_folder_are_copied(published: Published, tmp_path: Path) -> None:
    words = ["--storage", published.storage]
    assert unpackd("repo", "cp", "/top", tmp_path, *words).returncode == 0
    assert (tmp_path / "top").read_bytes() == b"top"
    assert unpackd("repo", "cp", "/tree/inner", tmp_path / "i", *words).returncode == 2
    assert unpackd("repo", "cp", "-r", "/tree/inner", tmp_path / "i", *words).returncode == 0
    assert (tmp_path / "i" / "other").read_bytes() == b"linked"
    assert (tmp_path / "i").stat().st_mtime_ns == TIME_NS
    assert unpackd("repo", "cp", "/top", tmp_path / "top", *words).returncode == 1
    assert unpackd("repo", "cp", "/none", tmp_path / "n", *words).returncode == 10


def test_a_tar_to_a_full_place_is_an_error(opened: OpenRepository) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(RefusedError):
        export_tar(opened, "/tree", full)


def test_a_tar_of_one_file(opened: OpenRepository, tmp_path: Path) -> None:
    with (tmp_path / "one.tar").open("wb") as output:
        export_tar(opened, "/top", output)
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.getnames() == ["top"]
