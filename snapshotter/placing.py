"""Where a new snapshot stands: what lies below it, and whether a layer of the repository belongs there.

Everything here reads rows and decides; nothing is changed, and the repository is not looked at.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.filesystem import FoundLayer
from snapshotter.labels import GID_MAPPING, PARENT_CHAIN_ID, SNAPSHOT_REF, UID_MAPPING, WantedLayer
from snapshotter.metastore import Reading
from snapshotter.snapshots import LayerSource, Snapshot, check_free, check_parent, stands_on


@dataclass(frozen=True, slots=True)
class Stack:
    """The snapshots whose content lies below a new one, uppermost first."""

    members: tuple[Snapshot, ...]

    @classmethod
    def below(cls, chain: Sequence[Snapshot]) -> "Stack":
        """From a chain, uppermost first: nothing below a whole root file system is needed."""
        members: list[Snapshot] = []
        for snapshot in chain:
            members.append(snapshot)
            if snapshot.source is not None and snapshot.source.is_whole:
                break
        return cls(tuple(members))

    @property
    def sources(self) -> tuple[LayerSource, ...]:
        """The members that lie in the repository."""
        return tuple(member.source for member in self.members if member.source is not None)

    @property
    def whole(self) -> tuple[int, LayerSource] | None:
        """Number and place of the whole root file system at the bottom, if there is one."""
        if not self.members:
            return None
        lowest = self.members[-1]
        return (lowest.number, lowest.source) if lowest.source is not None and lowest.source.is_whole else None


def id_mapping(labels: Mapping[str, str]) -> tuple[str, ...]:
    """The mount options that map IDs as *labels* say."""
    mapping = (("uidmap", labels.get(UID_MAPPING)), ("gidmap", labels.get(GID_MAPPING)))
    return tuple(f"{option}={value}" for option, value in mapping if value)


def check_place(rows: Reading, key: str, parent: str) -> Snapshot | None:
    """The parent of a new snapshot *key*, None for none. Raises in the order in which containerd's own store does."""
    above = rows.find(parent) if parent else None
    if parent:
        check_parent(above, parent)
    check_free(rows.find(key))
    return above


def is_offered(rows: Reading, wanted: WantedLayer, parent: str) -> bool:
    """True if the wanted layer is a snapshot already, made by us, on this parent and with the same content."""
    known = {(False, wanted.chain_digits), (True, wanted.layer_digits)}
    return any(
        row.source is not None and row.source.identity in known and row.info.parent == parent
        for row in rows.with_reference(wanted.reference)
    )


def fits(found: FoundLayer, parent: Snapshot | None, labels: Mapping[str, str]) -> bool:
    """True if the layer belongs on *parent*.

    A puller that prepares every layer without a parent, to rebase at Commit, is refused here: the chain would break.
    """
    said = labels.get(PARENT_CHAIN_ID)
    if not found.parent_known:
        return (said is None) if parent is None else True
    if said is not None and said != found.parent_chain_id:
        return False
    reference = None if parent is None else parent.info.labels.get(SNAPSHOT_REF)
    return stands_on(parent, found.parent_chain_id, reference_label=reference)


def free_name(rows: Reading, reference: str, parent: str) -> str:
    """The ChainID, so that namespaces share; told apart by the parent if another snapshot has that name."""
    if rows.find(reference) is None:
        return reference
    base = f"{reference}@{hashlib.sha256(parent.encode()).hexdigest()[:16]}"
    name, count = base, 1
    while rows.find(name) is not None:
        count += 1
        name = f"{base}-{count}"
    return name
