"""The content view, and pins: what root file systems of containers ask of a mount."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs.client.content_view import VIEW
from fs.errors import MountingError
from fs.publish.operations import MakeDirectory
from fs.rootfs.idmapping import attach, mapped_clone, try_mapping, user_namespace
from fs.rootfs.mounting import mount as mount_at
from tests.support.mounts import TestMount, mounted, unpackd
from tests.support.processes import require_root, unmount_below, wait_until
from tests.support.published import Published, publish

pytestmark = pytest.mark.root

CONTENT = bytes(range(256)) * 300
OTHER = b"other" * 1000


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.commit(
        MakeDirectory(b"/.unpackd", nested=True),
        MakeDirectory(b"/a", nested=True),
        MakeDirectory(b"/b", nested=True),
        made.file("/a/one", CONTENT, mode=0o755),
        made.file("/b/two", CONTENT, mode=0o600, mtime_ns=10**17),
        made.file("/b/three", OTHER),
        made.file("/.unpackd/real", b"real"),
    )
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)


def inside(mount: TestMount, path: str) -> Path:
    return mount.path / VIEW.decode().lstrip("/") / path


@pytest.mark.parametrize("frontend", ["wire", "pyfuse3"])
def test_files_with_the_same_bytes_are_one_inode_there_and_only_there(
    published: Published, work: Path, frontend: str
) -> None:
    require_root()
    url = published.storage.as_uri()
    with mounted(published.name, [url], published.public_key, work, "--frontend", frontend) as mount:
        one, two, three = (inside(mount, path) for path in ("a/one", "b/two", "b/three"))

        assert one.read_bytes() == two.read_bytes() == CONTENT
        assert three.read_bytes() == OTHER
        assert one.stat() == two.stat()
        assert (one.stat().st_mode, one.stat().st_uid, one.stat().st_mtime) == (0o100444, 0, 0)
        assert len({path.stat().st_ino for path in (one, three, mount.path / "a/one", mount.path / "b/two")}) == 4
        assert sorted(os.listdir(mount.path / ".unpackd")) == ["real"]
        assert sorted(os.listdir(inside(mount, ""))) == [".unpackd", "a", "b"]
        assert sorted(os.listdir(inside(mount, "b"))) == ["three", "two"]
        assert not inside(mount, ".unpackd/content").exists()
        assert not inside(mount, "a/absent").exists()
        assert mount.control("profile")["reads"] == [{"path": "/a/one"}, {"path": "/b/three"}]

        published.commit(published.file("/b/two", OTHER), published.file("/a/absent", b"came"))
        with one.open("rb") as opened:
            mount.control("refresh")
            assert two.read_bytes() == OTHER
            assert two.stat().st_ino == three.stat().st_ino
            assert one.read_bytes() == opened.read() == CONTENT
        assert inside(mount, "a/absent").read_bytes() == b"came"


def test_the_view_outlives_the_daemon(published: Published, work: Path) -> None:
    url = published.storage.as_uri()
    with mounted(published.name, [url], published.public_key, work, "--frontend", "wire") as mount:
        status = mount.control("status")
        if not status["is_resumable"]:
            pytest.skip("this kernel cannot resume sessions")
        one = inside(mount, "a/one")
        with one.open("rb") as opened:
            number = os.fstat(opened.fileno()).st_ino
            os.kill(status["pid"], signal.SIGKILL)
            assert opened.read() == CONTENT
        assert inside(mount, "b/two").stat().st_ino == number


def test_what_is_pinned_stays_in_the_cache_and_pins_survive_the_daemon(published: Published, work: Path) -> None:
    filler = [os.urandom(100_000) for _ in range(30)]
    pinned = os.urandom(100_000)
    published.commit(
        MakeDirectory(b"/many"),
        published.file("/a/kept", pinned),
        *(published.file(f"/many/{number}", content) for number, content in enumerate(filler)),
    )
    url = published.storage.as_uri()
    options = ("--frontend", "wire", "--quota", "1M")
    with mounted(published.name, [url], published.public_key, work, *options) as mount:
        assert json.loads(unpackd("mountctl", mount.path, "pin", mount.path / "a", "--json").stdout)
        assert (mount.path / "a/kept").read_bytes() == pinned
        name = os.getxattr(mount.path / "a/kept", "user.hash").decode()
        cached = Path(mount.control("cache")["directory"]) / "objects" / name[:2] / name[2:]
        wait_until(cached.exists, "the object's arrival")
        pid = mount.control("status")["pid"]
        os.kill(pid, signal.SIGKILL)
        for number, content in enumerate(filler):
            assert (mount.path / f"many/{number}").read_bytes() == content
        counts = mount.control("cache")
        assert counts["evicted"] > 0
        assert counts["evicted_pinned"] == 0
        assert cached.exists()
        assert counts["used_bytes"] <= 1_100_000
        (pin,) = mount.control("pins")
        assert (pin["owner"], pin["path"]) == ("mountctl", "/a")
        assert pin["objects"] == 2, "the file and the catalog that says where it is"
        assert 'unpackd_mount_tree_bytes_read_total{tree="/a"}' in mount.control("metrics")

        assert unpackd("mountctl", mount.path, "unpin", "/a").returncode == 0
        published.commit(*(published.file(f"/many/n{number}", os.urandom(100_000)) for number in range(20)))
        mount.control("refresh")
        for number in range(20):
            (mount.path / f"many/n{number}").read_bytes()
        wait_until(lambda: not cached.exists(), "the object's removal")
        assert mount.control("pins") == []


def test_a_cache_full_of_pinned_objects_goes_on(published: Published, work: Path) -> None:
    contents = [os.urandom(100_000) for _ in range(20)]
    published.commit(*(published.file(f"/a/n{number}", content) for number, content in enumerate(contents)))
    url = published.storage.as_uri()
    with mounted(published.name, [url], published.public_key, work, "--quota", "1M") as mount:
        assert unpackd("mountctl", mount.path, "pin", "/a").returncode == 0
        for number, content in enumerate(contents):
            assert (mount.path / f"a/n{number}").read_bytes() == content
        counts = mount.control("cache")
        assert counts["evicted_pinned"] > 0
        assert counts["used_bytes"] <= 1_100_000
        assert "cache_too_small_for_pins" in mount.log_text()


def test_owners_can_be_mapped_and_containers_write_over_them(published: Published, work: Path) -> None:
    require_root()
    url = published.storage.as_uri()
    with mounted(published.name, [url], published.public_key, work, "--frontend", "wire") as mount:
        try:
            try_mapping(work)
            try_mapping(mount.path)
        except MountingError as error:
            pytest.skip(f"this kernel does not map owners of FUSE mounts (Linux 6.12): {error}")
        below, upper, index, merged = (work / name for name in ("below", "upper", "index", "merged"))
        for folder in (below, upper, index, merged):
            folder.mkdir()
        with user_namespace((0, 100_000, 65_536), (0, 200_000, 65_536)) as namespace:
            for source, inner in ((mount.path, "b"), (mount.path / "b", "")):  # all below one place, or each alone
                tree = mapped_clone(source, namespace, is_recursive=True)
                attach(tree, below)
                os.close(tree)
                shown = (below / inner / "three").stat()
                assert (shown.st_uid, shown.st_gid) == (100_000, 200_000)
                assert (mount.path / "b/three").stat().st_uid == 0
        os.chown(upper, 100_000, 200_000)
        mount_at("overlay", "overlay", merged, 0, f"lowerdir={below},upperdir={upper},workdir={index},index=off")
        write = f"cd {merged} && echo more >> three && stat -c %u:%g three"
        root = ["setpriv", "--reuid", "100000", "--regid", "200000", "--clear-groups", "sh", "-c", write]
        for folder in (work, *list(work.parents)[:-2]):
            folder.chmod(0o755)
        done = subprocess.run(root, check=False, capture_output=True, text=True, timeout=30)
        assert done.stdout.split() == ["100000:200000"], done.stderr
        assert (upper / "three").read_bytes() == OTHER + b"more\n"
        assert (mount.path / "b/three").read_bytes() == OTHER
        unmount_below(merged)
        unmount_below(below)


def test_the_other_front_end_says_that_owners_cannot_be_mapped(published: Published, work: Path) -> None:
    require_root()
    with (
        mounted(published.name, [published.storage.as_uri()], published.public_key, work) as mount,
        pytest.raises(MountingError, match="cannot map the owners"),
    ):
        try_mapping(mount.path)
