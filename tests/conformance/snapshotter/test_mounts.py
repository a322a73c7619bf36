"""What the mounts show when they are really mounted."""

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import unmount_below
from tests.support.snapshotter import Service, SnapshotsClient

pytestmark = pytest.mark.root


def mount(mounts: Sequence[Any], place: Path) -> None:
    """What containerd does: it shortens the lower paths if they are long."""
    (only,) = mounts
    options = list(only.options)
    here = Path("/")
    lower = next((option for option in options if option.startswith("lowerdir=")), None)
    if lower is not None and len(",".join(options)) > 3500:
        paths = lower.removeprefix("lowerdir=").split(":")
        here = Path(os.path.commonpath(paths))
        assert here != Path("/")
        short = ":".join(os.path.relpath(path, here) for path in paths)
        options = [f"lowerdir={short}" if option == lower else option for option in options]
    kind = ["--bind"] if only.type == "bind" else ["-t", only.type]
    rest = [option for option in options if option != "rbind"]
    command = ["mount", *kind, "-o", ",".join(rest), only.source, place]
    subprocess.run(command, check=True, capture_output=True, cwd=here, timeout=30)


def test_a_new_snapshot_is_an_empty_directory_of_0755(client: SnapshotsClient, k: str, place: Path) -> None:
    mount(client.prepare(f"{k}a"), place)

    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert list(place.iterdir()) == []
    (place / "f").write_text("x")


def test_layers_add_change_and_delete(client: SnapshotsClient, k: str, place: Path) -> None:
    mount(client.prepare(f"{k}1"), place)
    (place / "same").write_text("same")
    (place / "changed").write_text("old")
    (place / "deleted").write_text("x")
    (place / "dir").mkdir()
    (place / "dir/hidden").write_text("x")
    os.chown(place / "same", 7, 8)
    unmount_below(place)
    client.commit(f"{k}c1", f"{k}1")
    mount(client.prepare(f"{k}2", f"{k}c1"), place)
    (place / "changed").write_text("new")
    (place / "deleted").unlink()
    (place / "dir/hidden").unlink()
    (place / "dir").rmdir()
    (place / "dir").mkdir()
    (place / "dir/new").write_text("y")
    unmount_below(place)
    client.commit(f"{k}c2", f"{k}2")
    mount(client.view(f"{k}v", f"{k}c2"), place)

    assert sorted(str(path.relative_to(place)) for path in place.rglob("*")) == ["changed", "dir", "dir/new", "same"]
    assert (place / "changed").read_text() == "new"
    assert ((place / "same").stat().st_uid, (place / "same").stat().st_gid) == (7, 8)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_view_cannot_be_written(client: SnapshotsClient, k: str, place: Path, depth: int) -> None:
    parent = ""
    for number in range(depth):
        client.committed(f"{k}{number}", parent)
        parent = f"{k}{number}"
    mount(client.view(f"{k}v", parent), place)

    with pytest.raises(OSError, match="Read-only"):
        (place / "f").write_text("x")


def test_the_root_has_the_owner_of_the_parents_root(client: SnapshotsClient, k: str, place: Path) -> None:
    mount(client.prepare(f"{k}1"), place)
    os.chown(place, 11, 12)
    unmount_below(place)
    client.commit(f"{k}c", f"{k}1")
    mount(client.prepare(f"{k}2", f"{k}c"), place)

    assert (place.stat().st_uid, place.stat().st_gid) == (11, 12)


def test_id_mapping_gives_the_root_to_the_mapped_root(client: SnapshotsClient, k: str, service: Service) -> None:
    labels = {
        "containerd.io/snapshot/uidmapping": "0:100000:65536",
        "containerd.io/snapshot/gidmapping": "0:200000:65536",
    }
    (mounted,) = client.prepare(f"{k}a", labels=labels)

    assert (Path(mounted.source).stat().st_uid, Path(mounted.source).stat().st_gid) == (100000, 200000)
    assert {"uidmap=0:100000:65536", "gidmap=0:200000:65536"} <= set(mounted.options)


def test_mapped_lower_directories_are_given_where_they_really_are(
    client: SnapshotsClient, k: str, service: Service
) -> None:
    """containerd 2.2 maps the directory that all have in common, in which links would lead to nowhere."""
    client.committed(f"{k}1")
    client.committed(f"{k}2", f"{k}1")
    mapping = {f"containerd.io/snapshot/{kind}mapping": "0:100000:65536" for kind in ("uid", "gid")}

    (mounted,) = client.prepare(f"{k}a", f"{k}2", mapping)

    lowers = next(option for option in mounted.options if option.startswith("lowerdir=")).removeprefix("lowerdir=")
    assert all(Path(lower).parent.parent == service.root / "s" for lower in lowers.split(":"))
    assert client.mounts(f"{k}a") == [mounted]


def test_128_layers(client: SnapshotsClient, k: str, place: Path) -> None:
    parent = ""
    for number in range(128):
        mounts = client.prepare(f"{k}a{number}", parent)
        if number % 32 == 0 or number == 127:
            mount(mounts, place)
            (place / f"f{number}").write_text(str(number))
            unmount_below(place)
        client.commit(f"{k}c{number}", f"{k}a{number}")
        parent = f"{k}c{number}"
    mount(client.view(f"{k}v", parent), place)

    assert sorted(path.name for path in place.iterdir()) == ["f0", "f127", "f32", "f64", "f96"]


def test_usage_counts_one_snapshot_alone(client: SnapshotsClient, k: str, place: Path) -> None:
    mount(client.prepare(f"{k}1"), place)
    (place / "big").write_bytes(b"x" * 1_000_000)
    (place / "link").hardlink_to(place / "big")
    unmount_below(place)
    active = client.usage(f"{k}1")
    client.commit(f"{k}c", f"{k}1")
    client.prepare(f"{k}2", f"{k}c")

    assert 1_000_000 <= active.size < 1_100_000
    assert active.inodes == 2
    assert client.usage(f"{k}c") == active == client.usage(f"{k}c")
    assert client.usage(f"{k}2").size < 10_000


def test_mounts_stay_the_same(client: SnapshotsClient, k: str) -> None:
    client.committed(f"{k}1")
    client.committed(f"{k}2", f"{k}1")

    for parent in ("", f"{k}1", f"{k}2"):
        given = client.prepare(f"{k}a{parent}", parent)
        assert client.mounts(f"{k}a{parent}") == given
        given = client.view(f"{k}v{parent}", parent)
        assert client.mounts(f"{k}v{parent}") == given


def test_removed_data_goes_with_cleanup_also_when_mounted(
    client: SnapshotsClient, k: str, service: Service, place: Path
) -> None:
    (mounted,) = client.prepare(f"{k}a")
    mount([mounted], place)
    (place / "f").write_text("x")
    client.remove(f"{k}a")

    client.cleanup()

    assert not Path(mounted.source).exists()
    assert list((service.root / "t").iterdir()) == []
