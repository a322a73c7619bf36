"""Real mounts: what programs see, how revisions come in, how a mount begins and ends."""

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs.client.holder import kernel_can_resume
from fs.format.tree import Node
from fs.publish.operations import Graft, MakeDirectory, Remove
from tests.support.flaky_origin import flaky_origin, flipped
from tests.support.mounts import UNPACKD, mounted, unpackd
from tests.support.processes import free_port, has_ended, listens, require_tool, running, unmount_below, wait_until
from tests.support.published import Published, publish

pytestmark = pytest.mark.root

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.commit(
        MakeDirectory(b"/dir", nested=True),
        made.file("/dir/inner", b"inside"),
        made.file("/file", CONTENT),
        made.file("/suid", b"#!/bin/sh\n", mode=0o4755),
    )
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)


def _url(published: Published) -> str:
    return published.storage.as_uri()


def test_a_refresh_shows_the_new_revision_at_once_and_open_files_keep_the_old(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        file, late = mount.path / "file", mount.path / "late"
        assert not late.exists()
        assert (mount.path / "dir" / "inner").read_bytes() == b"inside"
        before = file.stat()
        directory_before = (mount.path / "dir").stat()
        with file.open("rb") as opened:
            assert opened.read(10) == CONTENT[:10]
            revision = published.commit(
                published.file("/file", b"new content"),
                published.file("/late", b"came"),
                published.file("/dir/more", b"more"),
                Remove(b"/suid"),
            )
            answer = mount.control("refresh")
            assert answer["changed"]
            assert answer["revision"] == revision

            assert file.read_bytes() == b"new content"
            assert late.read_bytes() == b"came"
            assert sorted(os.listdir(mount.path / "dir")) == ["inner", "more"]
            assert not (mount.path / "suid").exists()
            assert opened.read() == CONTENT[10:]
            assert os.fstat(opened.fileno()).st_ino == before.st_ino
        assert file.stat().st_ino != before.st_ino
        assert (mount.path / "dir").stat().st_ino == directory_before.st_ino
        assert (mount.path / "dir").stat().st_mtime_ns > directory_before.st_mtime_ns
        assert int(os.getxattr(mount.path, "user.revision")) == revision
        assert mount.control("refresh")["changed"] is False


def test_inode_numbers_of_unchanged_files_are_the_same_in_every_revision_and_life(
    published: Published, work: Path
) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        before = (mount.path / "dir" / "inner").stat().st_ino
        published.put(other=b"x")
        mount.control("refresh")
        assert (mount.path / "dir" / "inner").stat().st_ino == before
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        assert (mount.path / "dir" / "inner").stat().st_ino == before


def test_a_directory_that_is_gone_keeps_serving_those_who_are_in_it(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        inside = os.open(mount.path / "dir", os.O_RDONLY | os.O_DIRECTORY)
        try:
            published.remove("/dir")
            mount.control("refresh")
            assert not (mount.path / "dir").exists()
            found = os.open("inner", os.O_RDONLY, dir_fd=inside)
            assert os.read(found, 100) == b"inside"
            os.close(found)
        finally:
            os.close(inside)


def test_an_announced_revision_is_there_within_seconds(published: Published, work: Path) -> None:
    port = free_port()
    command = [*UNPACKD, "repo", "serve", "--storage", published.storage, "--listen", f"127.0.0.1:{port}"]
    work.mkdir()
    with running(command, work / "origin.log"):
        wait_until(lambda: listens(port), "the origin listens")
        url = f"http://127.0.0.1:{port}/cvmfs/{published.name}"
        with mounted(published.name, [url], published.public_key, work) as mount:
            assert not (mount.path / "late").exists()
            time.sleep(0.5)  # until the mount has subscribed
            published.put(late=b"came")
            wait_until((mount.path / "late").exists, "the new revision shows", timeout_s=10)


def test_hard_links_of_several_directories_are_one_inode(published: Published, work: Path) -> None:
    linked = Node(mode=stat.S_IFREG | 0o644, content=published.writer.ingester().add_bytes(b"linked"))
    child = Node(mode=stat.S_IFDIR | 0o755, children={b"b": linked})
    root = Node(mode=stat.S_IFDIR | 0o755, children={b"a": linked, b"child": child, b"c": linked})
    published.commit(Graft(b"/tree", published.writer.prepare_subtree(b"/tree", root)))
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        tree = mount.path / "tree"
        numbers = {(tree / name).stat().st_ino for name in ("a", "c", "child/b")}
        assert len(numbers) == 1
        assert (tree / "a").stat().st_nlink == 3
        assert {entry.inode() for entry in os.scandir(tree) if entry.is_file() and entry.name in "ac"} == numbers


def test_targets_of_images_are_verbatim_and_of_others_expanded(published: Published, work: Path) -> None:
    published.link("/literal", b"$(HOME)/x")
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        assert os.readlink(mount.path / "literal") == "$(HOME)/x"
        assert os.lstat(mount.path / "literal").st_size == len("$(HOME)/x")
    with mounted(published.name, [_url(published)], published.public_key, work, "--raw-symlinks") as mount:
        assert os.readlink(mount.path / "literal") == "$(HOME)/x"


def test_it_can_be_read_by_everybody_and_written_by_nobody(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        with pytest.raises(OSError, match="Read-only") as caught:
            (mount.path / "new").write_bytes(b"")
        assert caught.value.errno == errno.EROFS
        table = next(line for line in Path("/proc/self/mounts").read_text().splitlines() if str(mount.path) in line)
        assert table.split(" ")[2] == "fuse.unpackd"
        options = table.split(" ")[3].split(",")
        assert {"ro", "default_permissions", "allow_other"} <= set(options)
        assert not {"nosuid", "nodev"} & set(options)
        require_tool("setpriv")
        read = ["setpriv", "--reuid=65534", "--clear-groups", "cat", mount.path / "dir" / "inner"]
        _let_everybody_in(work)
        numbers = os.statvfs(mount.path)
        assert numbers.f_namemax == 255
        assert numbers.f_files >= 5
        assert subprocess.run(read, capture_output=True, check=False, timeout=30).stdout == b"inside"


def test_a_spoilt_object_is_an_io_error_and_a_line_in_the_log(published: Published, work: Path) -> None:
    name = published.object_of(CONTENT)
    with flaky_origin(published.storage) as origin:
        origin.always(name.name, flipped)
        with mounted(published.name, [origin.url], published.public_key, work) as mount:
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / "file").read_bytes()
            assert (mount.path / "dir" / "inner").read_bytes() == b"inside"
            lines = [json.loads(line) for line in mount.control("log")]
            named = [line for line in lines if name.parent.name + name.name == line.get("object")]
            assert named
            assert any(line.get("url") == origin.url for line in lines)
            assert mount.control("status")["io_errors"] >= 1
            origin.mend()
            assert (mount.path / "file").read_bytes() == CONTENT


def test_magic_attributes_answer_and_are_not_listed(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        assert os.getxattr(mount.path, "user.fqrn") == published.name.encode()
        assert os.getxattr(mount.path, "user.host") == _url(published).encode()
        assert os.getxattr(mount.path, "user.nclg") == b"1"
        assert os.listxattr(mount.path) == []
        with pytest.raises(OSError, match="No data"):
            os.getxattr(mount.path, "user.none")


def test_the_daemon_has_ended_when_umount_returns(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        daemon = mount.control("status")["pid"]
        for path in mount.path.rglob("*"):
            if path.is_file():
                path.read_bytes()  # small ones are still on their way to the disk
        assert unpackd("umount", mount.path).returncode == 0
        assert has_ended(daemon)
        shutil.rmtree(work / "cache")


def test_umount_of_a_busy_mount_is_refused_and_lazily_done(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        with (mount.path / "file").open("rb") as opened:
            busy = unpackd("umount", mount.path)
            assert busy.returncode == 11
            assert "in use" in busy.stderr
            assert unpackd("umount", mount.path, "--lazy").returncode == 0
            assert opened.read() == CONTENT
        assert list(mount.path.iterdir()) == []
        absent = unpackd("umount", mount.path)
        assert absent.returncode == 10


def test_a_daemon_told_to_end_unmounts(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        os.kill(mount.pid, signal.SIGTERM)
        wait_until(lambda: not os.path.ismount(mount.path), "the mount goes")
        wait_until(lambda: "unmounted" in mount.log_text(), "the daemon ends")


def test_a_killed_daemon_leaves_a_mount_point_with_a_hint_and_a_sound_cache(published: Published, work: Path) -> None:
    with mounted(published.name, [_url(published)], published.public_key, work, "--no-resumable") as mount:
        assert (mount.path / "file").read_bytes() == CONTENT
        os.kill(mount.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{mount.pid}").exists() or _is_zombie(mount.pid), "the daemon dies")
        again = unpackd("mount", published.name, mount.path, "--url", _url(published), "--pubkey", published.public_key,
                        "--cache", work / "cache")  # fmt: skip
        assert again.returncode == 1
        assert f"unpackd umount {mount.path}" in again.stderr
        assert unpackd("mountctl", mount.path, "status").returncode == 10
        assert unpackd("umount", mount.path).returncode == 0
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        assert (mount.path / "file").read_bytes() == CONTENT
        assert mount.control("cache")["damaged"] == 0


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_many_kills_in_a_storm_of_reads_never_give_a_wrong_byte(published: Published, work: Path) -> None:
    contents = {f"f{number}": os.urandom(120_000) for number in range(12)}
    published.put(**contents)
    for _ in range(5):
        with mounted(published.name, [_url(published)], published.public_key, work, "--no-resumable") as mount:
            reader = subprocess.Popen(["sh", "-c", f"cat {mount.path}/f* > /dev/null 2>&1"], stdin=subprocess.DEVNULL)
            time.sleep(0.02)
            for name in ("f3", "f7"):
                assert (mount.path / name).read_bytes() == contents[name]
            os.kill(mount.pid, signal.SIGKILL)
            reader.wait(30)
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        for name, content in contents.items():
            assert (mount.path / name).read_bytes() == content


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--url", "http://127.0.0.1:9/none"], 13, "did not give"),
        (["--url", "ftp://host/x"], 1, "http, https and file"),
        (["--url", "{url}", "--tag", "none"], 10, "no tag 'none'"),
        (["--url", "{url}", "--quota", "much"], 2, "no size"),
        (["--url", "{url}", "--pubkey", "{other}"], 12, "not signed"),
    ],
)
def test_what_cannot_be_mounted_says_why(
    published: Published, work: Path, options: list[str], code: int, words: str
) -> None:
    other = publish(work / "other", "other.example.org")
    mountpoint = work / "mnt"
    mountpoint.mkdir(parents=True)
    filled = [part.format(url=_url(published), other=other.public_key) for part in options]
    key = [] if "--pubkey" in filled else ["--pubkey", published.public_key]
    done = unpackd("mount", published.name, mountpoint, "--cache", work / "cache", *filled, *key)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr
    assert not os.path.ismount(mountpoint)


def test_mounts_of_one_repository_and_of_its_revisions_share_a_cache(published: Published, work: Path) -> None:
    published.writer.commit([published.file("/file", b"tagged")], tag="then")
    published.put(file=b"now")
    cache = ("--cache", work / "shared")
    with (
        mounted(published.name, [_url(published)], published.public_key, work / "1", *cache) as now,
        mounted(published.name, [_url(published)], published.public_key, work / "2", *cache, "--tag", "then") as then,
    ):
        assert (now.path / "file").read_bytes() == b"now"
        assert (then.path / "file").read_bytes() == b"tagged"
        assert (then.path / "dir" / "inner").read_bytes() == b"inside"
        assert now.control("cache")["directory"] == then.control("cache")["directory"] == str(work / "shared")


def test_a_mount_in_the_foreground_ends_when_it_is_unmounted(published: Published, work: Path) -> None:
    mountpoint = work / "mnt"
    mountpoint.mkdir(parents=True)
    command = [*UNPACKD, "mount", published.name, mountpoint, "--url", _url(published), "--pubkey",
               published.public_key, "--cache", work / "cache", "--foreground"]  # fmt: skip
    with running(command, work / "log") as process:
        wait_until(lambda: os.path.ismount(mountpoint), "it is mounted")
        assert (mountpoint / "dir" / "inner").read_bytes() == b"inside"
        assert unpackd("umount", mountpoint).returncode == 0
        assert process.wait(20) == 0


_IS_RESUMABLE = kernel_can_resume(platform.release())
_AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups"


def test_a_user_without_privileges_can_mount(published: Published, work: Path) -> None:
    require_tool("setpriv", "fusermount3", "unshare", "getfattr")
    for folder in (work, work / "mnt", work / "cache"):
        folder.mkdir(mode=0o755, exist_ok=True)
        os.chown(folder, 65534, 65534)
    _let_everybody_in(work)
    device = work.parent / "fuse"  # here it may be root's alone; elsewhere it is everybody's
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    device.chmod(0o666)
    unpackd_command = shlex.join(UNPACKD)
    kill = f"kill -9 $(getfattr --only-values --absolute-names -n user.pid {work}/mnt)"
    restart = f"{unpackd_command} mountctl {work}/mnt restart > /dev/null"
    script = f"""
        set -e
        {unpackd_command} mount {published.name} {work}/mnt --url {_url(published)} \
            --pubkey {published.public_key} --cache {work}/cache
        cat {work}/mnt/dir/inner
        {unpackd_command} mountctl {work}/mnt revision
        exec 3< {work}/mnt/file
        {restart if _IS_RESUMABLE else "true"}
        {kill if _IS_RESUMABLE else "true"}
        cat {work}/mnt/dir/inner
        sha256sum <&3
        exec 3<&-
        {unpackd_command} umount {work}/mnt
    """
    script = f"mount --bind {device} /dev/fuse && {_AS_NOBODY} sh -c {shlex.quote(script)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("insiderevision: 2\n")
    assert done.stdout.endswith(f"inside{hashlib.sha256(CONTENT).hexdigest()}  -\n")
    assert not os.path.ismount(work / "mnt")


def _let_everybody_in(folder: Path) -> None:
    for one in (folder, *folder.parents):
        if one.is_relative_to("/tmp") and one != Path("/tmp"):
            one.chmod(one.stat().st_mode | 0o055)


def test_an_overlay_over_the_mount_is_a_root_file_system(published: Published, work: Path) -> None:
    trusted = {b"trusted.overlay.opaque": b"y"}
    capability = {b"security.capability": bytes.fromhex("0100000200040000000000000000000000000000")}
    content = published.writer.ingester().add_bytes(b"lower")
    directory = stat.S_IFDIR | 0o755
    opaque = Node(mode=directory, xattrs=trusted, children={b"f": Node(mode=stat.S_IFREG | 0o644, content=content)})
    able = Node(mode=stat.S_IFREG | 0o755, content=content, xattrs=capability)
    device = Node(mode=stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    tree = {b"opaque": opaque, b"able": able, b"null": device, b"sub": Node(mode=directory, children={b"f": able})}
    root = Node(mode=directory, children=tree)
    published.commit(Graft(b"/tree", published.writer.prepare_subtree(b"/tree", root)))
    with mounted(published.name, [_url(published)], published.public_key, work) as mount:
        assert os.getxattr(mount.path / "tree" / "opaque", "trusted.overlay.opaque") == b"y"
        assert os.getxattr(mount.path / "tree" / "able", "security.capability") == capability[b"security.capability"]
        for name in ("disk", "merged"):
            (work / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", work / "disk"], check=True, timeout=30)
        for name in ("upper", "work"):
            (work / "disk" / name).mkdir()
        options = f"lowerdir={mount.path}/tree,upperdir={work}/disk/upper,workdir={work}/disk/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", work / "merged"], check=True, timeout=30)
        try:
            merged = work / "merged"
            assert (merged / "null").read_bytes() == b""
            with (merged / "able").open("ab") as stream:
                stream.write(b" and upper")
            assert (merged / "able").read_bytes() == b"lower and upper"
            assert (mount.path / "tree" / "able").read_bytes() == b"lower"
            (merged / "sub" / "f").rename(merged / "sub" / "g")
            (merged / "opaque" / "f").unlink()
            assert os.listdir(merged / "opaque") == []
            assert os.getxattr(merged / "sub" / "g", "security.capability") == capability[b"security.capability"]
        finally:
            subprocess.run(["umount", work / "merged"], check=True, timeout=30)
            subprocess.run(["umount", work / "disk"], check=True, timeout=30)


@pytest.mark.parametrize("choice", ["--revision", "--root-hash"])
def test_a_fixed_revision_stays(published: Published, work: Path, choice: str) -> None:
    number = published.writer.commit([published.file("/which", b"chosen")], tag="chosen").revision
    root = str(published.writer.manifest.root_catalog)
    published.put(which=b"later")
    value = str(number) if choice == "--revision" else root
    if choice == "--root-hash":
        (published.storage / ".cvmfspublished").rename(work.parent / "away")  # nothing signed is needed
    with mounted(published.name, [_url(published)], published.public_key, work, choice, value) as mount:
        assert (mount.path / "which").read_bytes() == b"chosen"
        assert mount.control("refresh") == {
            "changed": False, "revision": number, "root": root, "ttl_s": 240,
            "tag": "chosen" if choice == "--revision" else None,
        }  # fmt: skip
        assert os.getxattr(mount.path, "user.expires") == b"never (fixed root catalog)"
