"""A session that a holder keeps: what a daemon takes over from the one before it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fs.client.holder import Inheritance
from fs.client.operations import Operations
from fs.client.wire_journal import Journal, Remembered, State, load
from fs.format.hashes import Hash


@dataclass(frozen=True, slots=True)
class Held:
    """What lets a session go on after its daemon."""

    inherited: Inheritance
    journal: Journal
    root: Hash | None  # the catalog under which the kernel was told what it knows from an earlier life


def hold(operations: Operations, inherited: Inheritance, file: Path) -> Held:
    """Take over what the journal in *file* says that the kernel knows, and record from now on."""
    remembered = load(file) if inherited.is_resumed else Remembered(root=operations.repository.revision.root.hash)
    journal = Journal(file)
    journal.start(remembered.state())
    journal.present = partial(_present, operations, journal)
    operations.restore(remembered.dormants(), remembered.absent)
    operations.inodes.recorder = journal
    operations.absent_recorder = journal.absent
    return Held(inherited, journal, remembered.root)


def _present(operations: Operations, journal: Journal) -> State | None:
    """What the kernel knows; None while it is being told what to forget."""
    root = operations.repository.revision.root.hash
    if journal.root != root:
        return None
    return State(root, operations.inodes.all_asleep(), operations.absent)
