"""The ways to a mount: mount(8), autofs, a user namespace; to older revisions: dates, snapshots in one mount point."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.flaky_origin import absent, flaky_origin
from tests.support.mounts import UNPACKD, mounted, unpackd
from tests.support.processes import require_tool, unmount_below
from tests.support.published import Published, publish

pytestmark = pytest.mark.root

HELPER = Path(sys.executable).parent / "mount.unpackd"


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.nest("/dir")
    made.writer.commit([made.file("/dir/inner", b"inside"), made.file("/file", b"first")], tag="v1")
    made.writer.commit([made.file("/file", b"second"), made.file("/dir/more", b"more")], tag="rel/2")
    made.put(file=b"third")
    return made


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "work"
    unmount_below(tmp_path)


def _let_everybody_in(folder: Path) -> None:
    for one in (folder, *folder.parents):
        if one.is_relative_to("/tmp") and one != Path("/tmp"):
            one.chmod(one.stat().st_mode | 0o055)


@pytest.mark.parametrize("frontend", ["pyfuse3", "wire"])
def test_all_tags_are_within_one_mount_point(published: Published, work: Path, frontend: str) -> None:
    with flaky_origin(published.storage) as origin:
        options = ("--frontend", frontend)
        with mounted(published.name, [origin.url], published.public_key, work, *options) as mount:
            snapshots = mount.path / ".cvmfs_snapshots"
            assert sorted(os.listdir(mount.path)) == ["dir", "file"]
            assert not (snapshots / "v2").exists()
            assert {"v1", "rel%2F2", "trunk"} <= set(os.listdir(snapshots))
            assert (snapshots / "v1" / "file").read_bytes() == b"first"
            assert (snapshots / "rel%2F2" / "file").read_bytes() == b"second"
            assert (mount.path / "file").read_bytes() == b"third"
            assert os.listdir(snapshots / "v1" / "dir") == ["inner"]
            assert sorted(os.listdir(snapshots / "rel%2F2" / "dir")) == ["inner", "more"]
            assert stat.S_IMODE((snapshots / "v1").stat().st_mode) == 0o555
            assert not (snapshots / "v1" / ".cvmfs_snapshots").exists()
            with (snapshots / "v1" / "file").open("rb", buffering=0) as held:
                published.writer.commit([published.file("/file", b"fourth")], tag="v2")
                assert mount.control("refresh")["changed"]
                assert (snapshots / "v2" / "file").read_bytes() == b"fourth"
                assert "v2" in os.listdir(snapshots)
                assert held.read(10) == b"first"
            assert (snapshots / "v1" / "file").read_bytes() == b"first"


def test_what_has_no_history_has_no_snapshots(published: Published, work: Path) -> None:
    root = str(published.writer.manifest.root_catalog)
    url = published.storage.as_uri()
    with mounted(published.name, [url], published.public_key, work, "--root-hash", root) as mount:
        assert not (mount.path / ".cvmfs_snapshots").exists()
    with flaky_origin(published.storage) as origin:
        history = published.writer.manifest.history
        assert history is not None
        origin.always(history.digest.hex()[2:], absent)
        with mounted(published.name, [origin.url], published.public_key, work) as mount:
            with pytest.raises(OSError, match="Input/output"):
                os.listdir(mount.path / ".cvmfs_snapshots")
            assert (mount.path / "file").read_bytes() == b"third"


def test_the_revision_of_a_date(tmp_path: Path, work: Path) -> None:
    made = publish(tmp_path / "made")
    made.writer.commit([made.file("/file", b"then")], tag="then")
    time.sleep(1.1)
    between = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=0)
    time.sleep(1.1)
    made.writer.commit([made.file("/file", b"now")], tag="now")
    url = made.storage.as_uri()
    for date, content in (
        (between.strftime("%Y-%m-%dT%H:%M:%SZ"), b"then"),
        ((between + timedelta(days=1)).strftime("%Y-%m-%d"), b"now"),
    ):
        with mounted(made.name, [url], made.public_key, work, "--date", date) as mount:
            assert (mount.path / "file").read_bytes() == content
            assert mount.control("refresh")["changed"] is False
    where = ("mount", made.name, work / "mnt", "--url", url, "--pubkey", made.public_key, "--cache", work / "c")
    early = unpackd(*where, "--date", "2001-01-01")
    assert (early.returncode, "as old as 2001-01-01" in early.stderr) == (10, True), early.stderr
    assert unpackd(*where, "--date", "yesterday").returncode == 2
    assert unpackd(*where, "--date", "2001-01-01", "--tag", "now").returncode == 2


def _in_own_sbin(script: str, work: Path, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run *script* in a mount namespace of its own where /sbin has our helper."""
    require_tool("unshare")
    for name in ("upper", "work"):
        (work / "disk" / name).mkdir(parents=True)
    prepared = f"""
        set -e
        mount -t tmpfs tmpfs {work}/disk
        mkdir {work}/disk/upper {work}/disk/work
        mount -t overlay -o lowerdir=/usr/sbin,upperdir={work}/disk/upper,workdir={work}/disk/work overlay /usr/sbin
        ln -s {HELPER} /usr/sbin/mount.unpackd
    """
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepared + script],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def test_mount_and_umount_of_the_system_do(published: Published, work: Path) -> None:
    (work / "mnt").mkdir(parents=True)
    options = f"url={published.storage.as_uri()},pubkey={published.public_key},cache={work}/cache,tag=v1,ro,_netdev"
    done = _in_own_sbin(
        f"""
        mount -t unpackd {published.name} {work}/mnt -o {options}
        cat {work}/mnt/file
        grep -c '{work}/mnt fuse.unpackd ' /proc/self/mounts
        umount {work}/mnt
        printf '%s %s %s %s 0 0\\n' {published.name} {work}/mnt unpackd noauto,{options} > {work}/fstab
        mount --fstab {work}/fstab {work}/mnt
        cat {work}/mnt/dir/inner
        umount {work}/mnt
        mount -t unpackd {published.name} {work}/mnt -o {options},nonsense=1 || echo refused
        """,
        work,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "first1\ninsiderefused\n"
    assert "nonsense" in done.stderr


@pytest.mark.parametrize("frontend", ["pyfuse3", "wire"])
def test_autofs_mounts_what_is_looked_at_and_unmounts_it_later(published: Published, work: Path, frontend: str) -> None:
    if shutil.which("automount") is None or "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("autofs is not here: the package autofs, and a kernel that has it")
    (work / "auto").mkdir(parents=True)
    where = f"url={published.storage.as_uri()},pubkey={published.public_key}"
    options = f"{where},cache={work}/cache,frontend={frontend}"
    (work / "map").write_text(f"{published.name} -fstype=unpackd,{options} :{published.name}\n")
    (work / "master").write_text(f"{work}/auto file:{work}/map --timeout=2\n")
    done = _in_own_sbin(
        f"""
        setsid automount -f -v -C -p {work}/pid {work}/master > {work}/log 2>&1 &
        daemon=$!
        for _ in $(seq 100); do grep -q ' {work}/auto autofs ' /proc/self/mounts && break; sleep 0.1; done
        cat {work}/auto/{published.name}/file
        ls {work}/auto/none 2>/dev/null || echo absent
        for _ in $(seq 200); do grep -q '{work}/auto/.* fuse.unpackd ' /proc/self/mounts || break; sleep 0.1; done
        grep -q '{work}/auto/.* fuse.unpackd ' /proc/self/mounts && echo still there
        cat {work}/auto/{published.name}/dir/inner
        kill $daemon
        wait $daemon || true
        """,
        work,
    )
    log = (work / "log").read_text() if (work / "log").exists() else ""
    assert (done.returncode, done.stdout) == (0, "thirdabsent\ninside"), done.stderr + log


def test_a_user_namespace_can_mount(published: Published, work: Path) -> None:
    require_tool("setpriv", "unshare")
    for folder in (work, work / "mnt", work / "cache"):
        folder.mkdir(mode=0o755, exist_ok=True)
        os.chown(folder, 65534, 65534)
    _let_everybody_in(work)
    device = work.parent / "fuse"  # here it may be root's alone; elsewhere it is everybody's
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    device.chmod(0o666)
    as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    if subprocess.run([*as_nobody.split(), "unshare", "-Urm", "true"], check=False, timeout=30).returncode:
        pytest.skip("users may not make namespaces here")
    command = shlex.join(UNPACKD)
    inside = f"""
        set -e
        {command} mount {published.name} {work}/mnt --url {published.storage.as_uri()} \\
            --pubkey {published.public_key} --cache {work}/cache
        cat {work}/mnt/dir/inner
        {command} mountctl {work}/mnt revision
        {command} umount {work}/mnt
    """
    script = f"mount --bind {device} /dev/fuse && {as_nobody} unshare -Urm sh -c {shlex.quote(inside)}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("insiderevision: ")
