"""The cases of containerd's own snapshotter suite that are about content, without Go.

Each case is a list of changes, one a layer. Every change is made in a mounted Active snapshot and in a plain directory;
both must be equal then, and so must a View of what was committed. The suite's cases about rules are in
``test_rules.py``, those about mounts in ``test_mounts.py``; ``test_containerd_suite.py`` runs the original where Go is.

==============================  ==========================================================
case of the suite               here
==============================  ==========================================================
Basic                           basic, and test_the_middle_of_a_chain_stays
StatActive, StatCommitted       test_stat_tells_kind_parent_and_times
TransitivityTest                transitivity, and the model in test_sequences.py
PreareViewFailing               test_a_name_is_used_once_whatever_the_kind
Update                          test_update_changes_labels_only, test_other_fields_cannot_be_updated
Remove                          test_names_are_free_at_once_after_remove
Walk                            test_list_takes_filters_and_gives_what_stat_gives
LayerFileupdate                 same-size
RemoveDirectoryInLowerLayer     opaque
Chown                           chown
DirectoryPermissionOnCommit     permission
RemoveIntermediateSnapshot      test_the_middle_of_a_chain_stays
DeletedFilesInChildSnapshot     deleted
MoveFileFromLowerLayer          hard-link
ViewReadonly                    test_a_view_cannot_be_written
StatInWalk                      test_many_entries_are_listed_completely_and_stat_works_meanwhile
CloseTwice                      nothing to close: a client of a socket
RootPermission                  test_a_new_snapshot_is_an_empty_directory_of_0755
Rename                          rename
128LayersMount                  test_128_layers, and test_deep.py through containerd
==============================  ==========================================================
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import unmount_below
from tests.support.snapshotter import SnapshotsClient

pytestmark = pytest.mark.root

Change = Callable[[Path], None]


def write(name: str, text: str, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> Change:
    def change(root: Path) -> None:
        (root / name).write_text(text)
        (root / name).chmod(mode)
        os.chown(root / name, *owner)

    return change


def folder(name: str, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> Change:
    def change(root: Path) -> None:
        (root / name).mkdir()
        (root / name).chmod(mode)
        os.chown(root / name, *owner)

    return change


def chown(name: str, uid: int, gid: int) -> Change:
    return lambda root: os.chown(root / name, uid, gid)


def chmod(name: str, mode: int) -> Change:
    return lambda root: (root / name).chmod(mode)


def remove(name: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def link(name: str, target: str) -> Change:
    return lambda root: (root / name).hardlink_to(root / target)


def symlink(name: str, target: str) -> Change:
    return lambda root: (root / name).symlink_to(target)


def rename(name: str, target: str) -> Change:
    return lambda root: os.rename(root / name, root / target)


def attribute(name: str, key: str, value: bytes) -> Change:
    return lambda root: os.setxattr(root / name, key, value)


CASES: dict[str, list[list[Change]]] = {
    "basic": [
        [write("foo", "foo\n", 0o777), folder("a"), folder("a/b"), folder("a/b/c"), write("a/b/c/x", "x")],
        [write("bar", "bar\n", 0o777), folder("d"), write("d/e", "e"), remove("a/b"), symlink("s", "foo")],
    ],
    "transitivity": [[write("file", "one")], [write("file", "two"), write("other", "2")], [remove("other")]],
    "same-size": [
        [write("config", "0000"), folder("etc"), write("etc/same", "same")],
        *([write("config", f"000{number}"), write("etc/same", "same")] for number in range(1, 6)),
    ],
    "opaque": [
        [folder("dir1"), folder("dir1/sub"), write("dir1/f1", "f1"), write("dir1/sub/f2", "f2"), folder("dir2")],
        [remove("dir1"), folder("dir1"), write("dir1/f2", "f2")],
        [write("dir1/f3", "f3"), folder("dir1/new")],
    ],
    "chown": [
        [folder("opt"), folder("opt/a"), folder("opt/b"), write("opt/a/f", "f"), write("opt/b/g", "g")],
        [chown("opt", 1, 1), chown("opt/a", 1, 2), chown("opt/b/g", 3, 4)],
        [chown("opt/a/f", 5, 6), attribute("opt/a", "user.who", b"me")],
    ],
    "permission": [
        [folder("dir1", 0o700), folder("dir2", 0o711), folder("dir3", 0o777), write("dir1/f", "f")],
        [chown("dir1", 1, 1), chmod("dir2", 0o750), remove("dir3")],
        [folder("dir3", 0o701, (2, 2)), chmod("dir1", 0o1777), write("dir2/f", "f", 0o4755)],
    ],
    "deleted": [[write("foo", "foo"), write("gone", "x"), folder("d"), write("d/gone", "x")], [remove("gone")], [], []],
    "hard-link": [
        [folder("dir1"), folder("dir1/sub"), write("dir1/f1", "f1"), write("dir1/sub/f2", "f2"), folder("dir2")],
        [link("dir2/f1", "dir1/f1"), remove("dir1/f1"), link("dir2/f2", "dir1/sub/f2"), remove("dir1")],
    ],
    "rename": [
        [folder("dir"), write("dir/f1", "1"), write("f2", "2"), write("f3", "3")],
        [rename("dir/f1", "dir/g1"), rename("f2", "dir/g2"), folder("new"), rename("new", "newer")],
        [rename("dir/g2", "f2"), write("dir/f1", "again"), rename("f3", "f2")],
    ],
}


def mount(mounts: Sequence[Any], place: Path) -> None:
    (only,) = mounts
    kind = ["--bind"] if only.type == "bind" else ["-t", only.type]
    options = ",".join(option for option in only.options if option != "rbind")
    subprocess.run(["mount", *kind, "-o", options, only.source, place], check=True, capture_output=True, timeout=30)


def shown(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below *root* that a program can see, times left out."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        names = os.listxattr(path, follow_symlinks=False)
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        where = str(path.relative_to(root))
        found[where] = (status.st_mode, status.st_uid, status.st_gid, content, attributes)
    return found


@pytest.mark.parametrize("case", CASES)
def test_content(client: SnapshotsClient, k: str, tmp_path: Path, place: Path, case: str) -> None:
    plain = tmp_path / "plain"
    plain.mkdir(mode=0o755)
    parent = ""
    for number, changes in enumerate(CASES[case]):
        mount(client.prepare(f"{k}{number}", parent), place)
        assert shown(place) == shown(plain), f"before the changes of layer {number}"
        for change in changes:
            change(place)
            change(plain)
        assert shown(place) == shown(plain), f"after the changes of layer {number}"
        unmount_below(place)
        client.commit(f"{k}c{number}", f"{k}{number}")
        parent = f"{k}c{number}"
        mount(client.view(f"{k}v{number}", parent), place)
        assert shown(place) == shown(plain), f"a view of layer {number}"
        unmount_below(place)
        client.remove(f"{k}v{number}")
    for number in reversed(range(len(CASES[case]))):
        client.remove(f"{k}c{number}")
