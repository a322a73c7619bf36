"""What a store of objects can do, as three Protocols split by what is allowed.

Contract that the conformance suite holds every implementation to:

* an object is immutable: ``put`` of a name that is there changes nothing;
* an object is there as a whole or not at all, whoever dies when;
* ``get`` gives bytes that hash to their name, never more than was asked for;
* named files (manifest, whitelist, reflog) are replaced as a whole; a reader sees the old or the new one;
* everything may be called from several threads at once;
* an object that ``put`` or ``claim`` has said is there stays there for REFRESH_AFTER_S at least: garbage collection
  spares what is young, and both make what is old young again. ``settle`` has the last word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from fs.format.hashes import Hash, Suffix

Buffer = bytes | bytearray | memoryview

REFRESH_AFTER_S = 86_400.0
"""An object older than this gets a new time when somebody counts on it. Grace periods of collections are longer."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store knows about an object without reading it."""

    name: Hash
    suffix: Suffix
    size_bytes: int  # as stored
    modified_unix_s: float  # when it was put, or claimed after it had become old


class ObjectReader(Protocol):
    """Reading objects by name; bytes are as stored, that is, compressed."""

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        """The whole object, verified.

        Raises:
            AbsentError: it is not there.
            CorruptError: its bytes do not hash to its name.
            RefusedError: it is larger than *limit_bytes*.
        """

    def has(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """True if the object is there (and *stored_bytes* long, if given); its bytes are not looked at."""

    def open(self, name: Hash, suffix: Suffix) -> BinaryIO:
        """A stream of the stored bytes, not verified; the caller closes it. Raises AbsentError."""


class ObjectWriter(Protocol):
    """Adding objects."""

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        """Store *stored*, which hashes to *name*; False if it was there already, which also claims it."""

    def claim(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """As ``has``, for an object that a new revision will refer to: it is safe from garbage collection for a day."""

    def settle(self) -> None:
        """Return when everything put so far, by anybody, survives a power cut. To be called under the writer's lock.

        Raises:
            OvertakenError: an object that was claimed has been collected as garbage at the same moment.
        """


class NamedReader(Protocol):
    """Reading the few files of a repository that are found by name."""

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """The content of file *name*.

        Raises:
            AbsentError: it is not there.
            RefusedError: it is larger than *limit_bytes*.
        """


class NamedFiles(NamedReader, Protocol):
    """Changing them as well."""

    def replace_named(self, name: str, content: bytes) -> None:
        """Replace (or make) file *name*, durably and as a whole."""

    def swap_named(self, name: str, content: bytes, *, expected: bytes | None) -> None:
        """Replace file *name*, but only if it holds *expected* (None: is not there) at that very moment.

        So a writer that was held up, whatever it believes about its locks, cannot undo what came after it.

        Raises:
            OvertakenError: it holds something else; nothing was changed.
        """

    def remove_named(self, name: str) -> None:
        """Remove file *name*; no mistake if it is not there."""


class ObjectReaper(Protocol):
    """Finding and removing what nobody needs."""

    def objects(self) -> Iterator[StoredObject]:
        """Every object of the store, in no particular order; those put meanwhile may be missing."""

    def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
        """What is known about each of *objects* now, in their order; None for one that is not there."""

    def now_unix_s(self) -> float:
        """The time of the clock that dates the objects, which need not be this machine's."""

    def remove(self, objects: Sequence[StoredObject]) -> None:
        """Remove objects; no mistake if they are gone."""

    def remove_leftovers(self, before_unix_s: float) -> int:
        """Remove what writers that died before that time left unfinished; gives the number."""


class ReadStore(ObjectReader, NamedReader, Protocol):
    """What a reader needs."""


class Store(ObjectReader, ObjectWriter, NamedFiles, Protocol):
    """All of it: what a publisher needs."""


class TendedStore(Store, ObjectReaper, Protocol):
    """What whoever looks after a repository needs."""

    def prepare(self) -> None:
        """Make what has to be there before the first object, or check that it is."""
