"""Random stacks of layers, the same for the same seed: every type of entry, whiteouts, opaque directories, any order.

They have what builds write, and mean the same to every engine that reads them. Left out is what engines understand
differently: names through symlinks of lower layers, hard links into lower layers, a name that is removed and made anew
in one layer; ``docs/exactness.md`` has the list.
"""

import random
import stat
import tarfile
from dataclasses import dataclass, replace

from tests.support.images import Member

_OPAQUE = ".wh..wh..opq"
_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000").decode("latin-1")
_TIMES = (0, 1, 999_999_999.5, 1_600_000_000.25, 1_700_000_000, 4_000_000_000.125, -1.5, -86_400 * 365)
_OWNERS = (0, 0, 1, 1000, 65_534, 2_097_152, 4_294_967_294)
_MODES = (0o644, 0o755, 0o600, 0o000, 0o4711, 0o2755, 0o6755, 0o1777)
_DIRECTORY_MODES = (0o755, 0o755, 0o700, 0o2775, 0o1777, 0o555)
_DEVICES = ((1, 3), (5, 0), (259, 70_000), (0, 1))
_KINDS = ("file",) * 6 + ("directory",) * 4 + ("symlink",) * 3 + ("hardlink",) * 3 + ("fifo", "character", "block")


def random_stack(seed: int) -> list[list[Member]]:
    """Two to five layers, lowest first."""
    chance = random.Random(f"{seed} False")  # part of what a seed means: stacks are talked of by their numbers
    state: dict[str, str] = {}
    history = _History({}, set(), set(), set())
    return [_Layer(chance, state, history).make() for _ in range(chance.randint(2, 5))]


def _entry(chance: random.Random, kind: str, name: str) -> Member:
    """An entry with random attributes; hard links are made by whoever knows what there is to link to."""
    member = Member(
        name,
        mode=chance.choice(_MODES),
        uid=chance.choice(_OWNERS),
        gid=chance.choice(_OWNERS),
        mtime=chance.choice(_TIMES),
    )
    if kind == "directory":
        member = replace(member, kind=tarfile.DIRTYPE, mode=chance.choice(_DIRECTORY_MODES))
    elif kind == "symlink":
        target = chance.choice(("d0", "../d1", "/d2", "/d0/d1", "nowhere/at/all", "f0", ".", "t" * 150))
        return replace(member, kind=tarfile.SYMTYPE, mode=0o777, linkname=target)
    elif kind == "fifo":
        return replace(member, kind=tarfile.FIFOTYPE)
    elif kind == "character":
        return replace(member, kind=tarfile.CHRTYPE, device=chance.choice(_DEVICES))
    elif kind == "block":
        return replace(member, kind=tarfile.BLKTYPE, device=chance.choice(_DEVICES))
    else:
        member = replace(member, data=chance.randbytes(chance.choice((0, 1, 511, 512, 513, 5000))))
    if kind in ("file", "directory") and chance.random() < 0.3:
        member.pax["SCHILY.xattr.user.note"] = name
        if kind == "file":
            member.pax["SCHILY.xattr.security.capability"] = _CAPABILITY
    return member


@dataclass(slots=True)
class _History:
    """What all layers so far have said, as far as it still matters."""

    gives_group: dict[str, bool]  # of directories: what is made in them has their group
    noted: set[str]  # directories with extended attributes
    directories: set[str]  # what was ever a directory
    others: set[str]  # what was ever something else than a directory


@dataclass(slots=True)
class _Touched:
    """What the layer that is being made has said so far."""

    entries: dict[str, str]  # kind by path, of what has an entry
    members: dict[str, Member]  # of those
    removed: set[str]
    opaque: set[str]
    gone: set[str]  # directories of lower layers that something else has replaced


class _Layer:
    """One layer over the names in *state*, which is kept up to date."""

    def __init__(self, chance: random.Random, state: dict[str, str], history: "_History") -> None:
        self._chance = chance
        self._lower = dict(state)
        self._state = state
        self._history = history
        self._touched = _Touched({}, {}, set(), set(), set())
        self._members: list[Member] = []

    def make(self) -> list[Member]:
        chance = self._chance
        if chance.random() < 0.3:
            self._members.append(replace(_entry(chance, "directory", "./"), mode=0o755))
        for _ in range(chance.randint(2, 14)):
            step = chance.random()
            if step < 0.18:
                self._remove()
            elif step < 0.26:
                self._make_opaque()
            else:
                self._add()
        self._say_implied()
        return self._members

    def _path(self) -> str:
        chance = self._chance
        if chance.random() < 0.35 and self._state:
            return chance.choice(sorted(self._state))
        above = [chance.choice(("d0", "d1", "d2")) for _ in range(chance.choice((0, 1, 1, 2, 3)))]
        return "/".join([*above, chance.choice(("d0", "d1", "d2", "f0", "f1", "f2", "é", "x" * 120))])

    @staticmethod
    def _is_below(path: str, paths: set[str]) -> bool:
        return any(path == one or path.startswith(one + "/") for one in paths)

    def _add(self) -> None:
        path = self._path()
        kind = self._chance.choice(_KINDS)
        if path.rpartition("/")[2].startswith("d") and self._chance.random() < 0.7:
            kind = "directory"
        if not self._is_possible(path) or (self._is_odd_directory(path) if kind == "directory" else self._holds(path)):
            return
        member = self._link(path) if kind == "hardlink" else _entry(self._chance, kind, path)
        if member is None:
            return
        if kind == "hardlink":
            kind = self._touched.entries[member.linkname]
        if kind != "directory":
            if self._lower.get(path) == "directory":
                self._touched.gone.add(path)
            self._forget(path)
        for parent in _parents(path):
            self._imply(parent)
        self._members.append(member)
        self._touched.entries[path], self._touched.members[path] = kind, member
        self._state[path] = kind
        (self._history.directories if kind == "directory" else self._history.others).add(path)
        self._note_attributes(path, member)

    def _is_possible(self, path: str) -> bool:
        """True if an entry of *path* means the same to everybody."""
        parents = _parents(path)
        is_clear = all(self._state.get(parent, "directory") == "directory" for parent in parents)
        # containerd looks for the attributes of implied parents in each layer, and fails at what is none
        is_clear = is_clear and not self._history.others.intersection(parents[:-1])
        # removed and made anew in one layer
        return is_clear and not self._is_below(path, self._touched.removed | self._touched.gone)

    def _is_odd_directory(self, path: str) -> bool:
        """True if containerd would not make of a directory what the last entry for it says."""
        touched = self._touched
        if touched.entries.get(path, "directory") != "directory" and self._lower.get(path) == "directory":
            return True
        # a second entry does not take attributes back there
        return path in self._history.noted and (path in touched.entries or self._has_parts(path))

    def _holds(self, path: str) -> bool:
        """True if *path* is a directory that this layer has something to say of: nothing else takes its place."""
        is_directory = "directory" in (self._lower.get(path), self._state.get(path))
        # containerd fails to set the time of a directory that does not outlive its layer
        return self._touched.entries.get(path) == "directory" or (is_directory and self._has_parts(path))

    def _link(self, path: str) -> Member | None:
        """A hard link to what the layer has an entry for, with its attributes, as tools write them."""
        targets = [one for one, kind in self._touched.entries.items() if kind != "directory" and one != path]
        if not targets:
            return None
        target = self._chance.choice(sorted(targets))
        return replace(self._touched.members[target], name=path, data=b"", kind=tarfile.LNKTYPE, linkname=target)

    def _imply(self, path: str) -> None:
        """Add a missing parent, with an entry if engines would give it different attributes.

        These are a group by the set-gid bit of the directory above, and what a directory of this name, gone since, had.
        """
        if path in self._state:
            return
        if self._history.gives_group.get(path.rpartition("/")[0], False) or path in self._history.directories:
            self._say_directory(path)
        self._state[path] = "directory"
        self._history.directories.add(path)

    def _say_directory(self, path: str) -> None:
        member = _entry(self._chance, "directory", path)
        self._members.append(member)
        self._touched.entries[path], self._touched.members[path] = "directory", member
        self._note_attributes(path, member)

    def _note_attributes(self, path: str, member: Member) -> None:
        self._history.gives_group[path] = bool(member.mode & stat.S_ISGID)
        if member.pax:
            self._history.noted.add(path)
        else:
            self._history.noted.discard(path)

    def _has_parts(self, path: str) -> bool:
        """True if the layer says anything of what is below *path*."""
        touched = self._touched
        return any(one.startswith(path + "/") for one in (*touched.entries, *touched.removed)) or any(
            one == path or one.startswith(path + "/") for one in touched.opaque
        )

    def _remove(self) -> None:
        chance, touched = self._chance, self._touched
        path = chance.choice(sorted(self._lower)) if self._lower else ""
        if not path or self._is_below(path, touched.removed | touched.gone | touched.opaque):
            return
        if any(one == path or one.startswith(path + "/") for one in (*touched.entries, *touched.opaque)):
            return
        if any(self._state.get(parent) != "directory" for parent in _parents(path)):
            return
        if self._history.others.intersection(_parents(path)[:-1]):
            return
        if any(one.startswith(path + "/") for one in touched.removed):
            return
        above, _, name = path.rpartition("/")
        self._members.append(Member(f"{above}/.wh.{name}".lstrip("/")))
        touched.removed.add(path)
        self._history.others.add(path)
        self._forget(path)

    def _make_opaque(self) -> None:
        chance, touched = self._chance, self._touched
        directories = sorted(path for path, kind in self._state.items() if kind == "directory")
        path = chance.choice(directories) if directories else ""
        if not path or self._is_below(path, touched.removed | touched.gone | touched.opaque):
            return
        if any(one.startswith(path + "/") for one in (*touched.removed, *touched.gone, *touched.opaque)):
            return
        if any(self._is_between(path, one) for one in touched.entries):
            return  # a directory without an entry, of which only the lower layers know the attributes
        if self._history.others.intersection(_parents(path)):
            return
        self._members.append(Member(f"{path}/{_OPAQUE}"))
        touched.opaque.add(path)
        for one in [one for one in self._state if one.startswith(path + "/") and one not in touched.entries]:
            if not any(entry.startswith(one + "/") for entry in touched.entries):
                del self._state[one]

    def _is_between(self, path: str, entry: str) -> bool:
        """True if a directory below *path* on the way to *entry* has no entry of its own."""
        return entry.startswith(path + "/") and any(
            parent.startswith(path + "/") and parent not in self._touched.entries for parent in _parents(entry)
        )

    def _forget(self, path: str) -> None:
        for one in [one for one in self._state if one == path or one.startswith(path + "/")]:
            del self._state[one]

    def _say_implied(self) -> None:
        """Directories below opaque ones have entries, as builds write them."""
        implied = {
            parent
            for path in (*self._touched.entries, *self._touched.opaque, *self._touched.removed)
            for parent in _parents(path)
            if parent not in self._touched.entries | dict.fromkeys(self._touched.opaque)
            and self._is_below(parent, self._touched.opaque)
        }
        for path in sorted(implied):
            self._say_directory(path)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
