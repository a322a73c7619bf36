"""The reference repositories, unpacked, and their listings."""

import base64
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

NAMES = ("small", "misc", "rmd160", "ducc-edge")

VOLATILE = {"user.expires", "user.ncleanup24", "user.nclg", "user.repo_metainfo", "user.tag", "user.version"}
"""Magic attributes of the mount point that follow from the run, not from the repository."""


@dataclass(frozen=True)
class ReferenceRepository:
    """One unpacked archive."""

    folder: Path

    @property
    def storage(self) -> Path:
        return self.folder / "repo"

    @property
    def external(self) -> Path:
        return self.folder / "external"

    @property
    def public_key(self) -> Path:
        return next(self.folder.glob("*.pub"))

    @property
    def name(self) -> str:
        return self.public_key.name.removesuffix(".pub")

    def listing(self, tag: str = "") -> dict[str, Any]:
        file = self.folder / (f"listing-{tag}.json" if tag else "listing.json")
        document: dict[str, Any] = json.loads(file.read_text())
        return document

    def tags(self) -> list[str]:
        return sorted(file.stem.removeprefix("listing-") for file in self.folder.glob("listing-*.json"))


def unpack_reference(shared: Path, name: str, target: Path) -> ReferenceRepository:
    """Unpack the archive *name* below *target*."""
    with tarfile.open(shared / "fixtures" / f"{name}.tar.gz") as archive:
        archive.extractall(target)  # our own archives
    return ReferenceRepository(next(target.glob("*/repo")).parent)


class Probe(Protocol):
    """A way to look at a tree, path by path (paths as in listings, as bytes)."""

    def stat(self, path: bytes) -> os.stat_result: ...

    def names(self, path: bytes) -> list[bytes]: ...

    def readlink(self, path: bytes) -> bytes: ...

    def content(self, path: bytes) -> bytes: ...

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]: ...

    def magic(self, path: bytes, name: str) -> bytes: ...


class MountProbe:
    """Looks at a mounted tree."""

    def __init__(self, mountpoint: Path) -> None:
        self._root = os.fsencode(mountpoint)

    def stat(self, path: bytes) -> os.stat_result:
        return os.lstat(self._root + path)

    def names(self, path: bytes) -> list[bytes]:
        return os.listdir(self._root + path)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._root + path)

    def content(self, path: bytes) -> bytes:
        return Path(os.fsdecode(self._root + path)).read_bytes()

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        names = os.listxattr(self._root + path, follow_symlinks=False)
        return {os.fsencode(name): os.getxattr(self._root + path, name, follow_symlinks=False) for name in names}

    def magic(self, path: bytes, name: str) -> bytes:
        return os.getxattr(self._root + path, name, follow_symlinks=False)


class Below:
    """Looks at what *probe* shows below *prefix*."""

    def __init__(self, probe: Probe, prefix: bytes) -> None:
        self._probe = probe
        self._prefix = prefix

    def stat(self, path: bytes) -> os.stat_result:
        return self._probe.stat(self._prefix + path)

    def names(self, path: bytes) -> list[bytes]:
        return self._probe.names(self._prefix + path)

    def readlink(self, path: bytes) -> bytes:
        return self._probe.readlink(self._prefix + path)

    def content(self, path: bytes) -> bytes:
        return self._probe.content(self._prefix + path)

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        return self._probe.xattrs(self._prefix + path)

    def magic(self, path: bytes, name: str) -> bytes:
        return self._probe.magic(self._prefix + path, name)


def differences(listing: dict[str, Any], probe: Probe) -> list[str]:
    """Everything in which what *probe* shows is not what the reference client showed."""
    found: list[str] = []
    expected_names: dict[bytes, set[bytes]] = {}
    inodes: dict[int, int] = {}
    for entry in listing["entries"]:
        path = entry["path"].encode("utf-8", "surrogateescape")
        if path:
            parent, _, name = path.rpartition(b"/")
            expected_names.setdefault(parent, set()).add(name)
        found += [f"{path!r}: {difference}" for difference in _entry_differences(entry, path, probe, inodes)]
    for entry in listing["entries"]:
        path = entry["path"].encode("utf-8", "surrogateescape")
        if stat.S_ISDIR(int(entry["mode"], 8)) and set(probe.names(path)) != expected_names.get(path, set()):
            found.append(f"{path!r}: names differ")
    for name, value in listing["root"].items():
        if name not in VOLATILE and probe.magic(b"", name) != value.encode():
            found.append(f"root: {name} is {probe.magic(b'', name)!r}, not {value!r}")
    return found


def _entry_differences(entry: dict[str, Any], path: bytes, probe: Probe, inodes: dict[int, int]) -> list[str]:
    try:
        status = probe.stat(path)
    except OSError as error:
        return [str(error)]
    seen = {
        "mode": oct(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "size": status.st_size,
        "nlink": status.st_nlink,
        "mtime": status.st_mtime_ns // 1_000_000_000,
        "mtime_ns": status.st_mtime_ns,
    }
    mode = int(entry["mode"], 8)
    if "rdev" in entry:
        seen["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    if "target" in entry:
        seen["target"] = probe.readlink(path).decode("utf-8", "surrogateescape")
    if stat.S_ISREG(mode):
        seen["sha256"] = hashlib.sha256(probe.content(path)).hexdigest()
    stored = {key.decode(): base64.b64encode(value).decode() for key, value in probe.xattrs(path).items()}
    wrong = [f"{key} is {value!r}, not {entry[key]!r}" for key, value in seen.items() if value != entry[key]]
    if stored != entry.get("xattrs_b64", {}):
        wrong.append(f"xattrs are {stored}, not {entry.get('xattrs_b64', {})}")
    wrong += _magic_differences(entry.get("magic", {}), path, probe)
    # equal numbers mean equal inodes, and only they do
    if inodes.setdefault(entry["ino"], status.st_ino) != status.st_ino:
        wrong.append(f"inode {status.st_ino} differs from other names of the same file")
    if status.st_blocks != 1 + status.st_size // 512 or status.st_blksize != 4096:
        wrong.append(f"blocks {status.st_blocks} of {status.st_blksize}")
    return wrong


def _magic_differences(magic: dict[str, str], path: bytes, probe: Probe) -> list[str]:
    wrong: list[str] = []
    for name, value in magic.items():
        if name == "user.lhash" and magic["user.compression"] == "none":
            continue  # the reference client compresses the local copy before it hashes it, whatever is stored
        if probe.magic(path, name) != value.encode():
            wrong.append(f"{name} is {probe.magic(path, name)!r}, not {value!r}")
    return wrong
