"""What a snapshot is and which transitions are legal. PURE.

Source: containerd documentation, "Snapshotters"; containerd's snapshotter test suite.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self, assert_never

from snapshotter.errors import (
    HasChildrenError,
    InvalidRequestError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    WrongKindError,
)

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
NAME_LIMIT_BYTES = 4096
"""Longest key or name that is accepted; containerd's are below 200."""


class Kind(IntEnum):
    """Kind of a snapshot; the values are those on the wire."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3

    @property
    def word(self) -> str:
        """The kind as filters and messages name it."""
        return self.name.lower()


class SourceKind(StrEnum):
    """By which of the repository's names a layer is found."""

    CHAIN_LAYER = "chain-layer"
    """The uppermost layer of a ChainID."""
    CHAIN_FLAT = "chain-flat"
    """The whole root file system of a ChainID; nothing has to be stacked below it."""
    LAYER = "layer"
    """A layer by the digest of its blob."""


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where the content of a remote snapshot is: ``<kind>:<64 hex digits>[@<repository>]`` as text."""

    kind: SourceKind
    hex: str
    repository: str = ""
    """Which one, if there are several."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.hex}" + (f"@{self.repository}" if self.repository else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str()``. Raises ValueError."""
        kind, _, rest = text.partition(":")
        digits, _, repository = rest.partition("@")
        if _DIGEST.fullmatch(f"sha256:{digits}") is None:
            raise ValueError(text)
        return cls(SourceKind(kind), digits, repository)

    @property
    def is_whole(self) -> bool:
        """True if the content stands for the snapshot and everything below it."""
        match self.kind:
            case SourceKind.CHAIN_FLAT:
                return True
            case SourceKind.CHAIN_LAYER | SourceKind.LAYER:
                return False
            case _:
                assert_never(self.kind)

    @property
    def identity(self) -> tuple[bool, str]:
        """Equal for two sources of the same content: by ChainID or by layer digest, and which."""
        return (self.kind is SourceKind.LAYER, self.hex)


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What Stat and List say about a snapshot."""

    name: str
    parent: str  # empty: none
    kind: Kind
    created_ns: int
    updated_ns: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Disk space of one snapshot without its parents."""

    size_bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A row of the metadata store: what is said about a snapshot, and where its content is."""

    number: int
    info: Info
    source: LayerSource | None = None  # None: its own directory
    usage: Usage | None = None  # None: not measured yet


def sha256_digits(digest: str) -> str | None:
    """The 64 digits of a sha256 digest, None for anything else. Only such digits ever become part of a path."""
    matched = _DIGEST.fullmatch(digest)
    return None if matched is None else matched[1]


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """ChainID of each layer, bottom first.

    Source: OCI image specification, "Layer ChainID".
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            digest = hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest()
            chain.append(f"sha256:{digest}")
        else:
            chain.append(diff_id)
    return tuple(chain)


def check_name(name: str, *, role: str) -> None:
    """Refuse names that cannot be stored. Raises InvalidRequestError."""
    if not name:
        raise InvalidRequestError(f"the {role} is empty")
    if len(name.encode()) > NAME_LIMIT_BYTES:
        raise InvalidRequestError(f"the {role} is longer than {NAME_LIMIT_BYTES} bytes")


def check_parent(parent: Snapshot | None, name: str) -> None:
    """A new snapshot may stand on a Committed one only. Raises SnapshotNotFoundError, InvalidRequestError."""
    if parent is None:
        raise SnapshotNotFoundError(name, role="parent snapshot")
    if parent.info.kind is not Kind.COMMITTED:
        raise InvalidRequestError(f"parent snapshot {name!r} is {parent.info.kind.word}, not committed")


def check_free(existing: Snapshot | None) -> None:
    """A name is used once, whatever the kind. Raises SnapshotExistsError."""
    if existing is not None:
        raise SnapshotExistsError(existing.info.name)


def check_active(snapshot: Snapshot | None, key: str) -> Snapshot:
    """Only an Active snapshot can be committed. Raises SnapshotNotFoundError, WrongKindError."""
    if snapshot is None:
        raise SnapshotNotFoundError(key)
    if snapshot.info.kind is not Kind.ACTIVE:
        raise WrongKindError(f"cannot commit snapshot {key!r}: it is {snapshot.info.kind.word}, not active")
    return snapshot


def check_rebase(active: Snapshot, parent: Snapshot | None, name: str) -> None:
    """The parent given at Commit, *name*, where *parent* is the snapshot of that name.

    Raises:
        InvalidRequestError: the Active snapshot stands on another one.
        SnapshotNotFoundError: there is no such parent.
        WrongKindError: it is not Committed.
    """
    if active.info.parent:
        if name != active.info.parent:
            raise InvalidRequestError(f"snapshot {active.info.name!r} stands on {active.info.parent!r}, not {name!r}")
    elif parent is None:
        raise SnapshotNotFoundError(name, role="parent snapshot")
    elif parent.info.kind is not Kind.COMMITTED:
        raise WrongKindError(f"parent snapshot {name!r} is {parent.info.kind.word}, not committed")


def check_mountable(snapshot: Snapshot | None, key: str) -> Snapshot:
    """A Committed snapshot has no mounts. Raises SnapshotNotFoundError, WrongKindError."""
    if snapshot is None:
        raise SnapshotNotFoundError(key)
    if snapshot.info.kind is Kind.COMMITTED:
        raise WrongKindError(f"snapshot {key!r} is committed and has no mounts")
    return snapshot


def check_removable(snapshot: Snapshot | None, key: str, *, has_children: bool) -> Snapshot:
    """A parent cannot go before its children. Raises SnapshotNotFoundError, HasChildrenError."""
    if snapshot is None:
        raise SnapshotNotFoundError(key)
    if has_children:
        raise HasChildrenError(key)
    return snapshot


def stands_on(parent: Snapshot | None, chain_id: str | None, *, reference_label: str | None) -> bool:
    """True if *parent* is certain to hold *chain_id*; both None means no parent.

    A remote parent knows its ChainID. An unpacked one was named by containerd, ``<namespace>/<number>/<ChainID>``,
    or carries it as *reference_label*.
    """
    if parent is None or chain_id is None:
        return parent is None and chain_id is None
    if parent.source is not None and parent.source.kind is not SourceKind.LAYER:
        return f"sha256:{parent.source.hex}" == chain_id
    return chain_id in (parent.info.name.rpartition("/")[2], reference_label)
