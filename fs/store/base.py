"""What a store of objects can do, as three Protocols split by what is allowed.

Contract that the conformance suite holds every implementation to:

* an object is immutable: ``put`` of a name that is there changes nothing;
* an object is there as a whole or not at all, whoever dies when;
* ``get`` gives bytes that hash to their name, never more than was asked for;
* named files (manifest, whitelist, reflog) are replaced as a whole; a reader sees the old or the new one;
* everything may be called from several threads at once.
"""

from typing import BinaryIO, Protocol

from fs.format.hashes import Hash, Suffix

Buffer = bytes | bytearray | memoryview


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
        """Store *stored*, which hashes to *name*; False if it was there already."""

    def settle(self) -> None:
        """Return when everything put so far, by anybody, survives a power cut."""


class NamedFiles(Protocol):
    """The few files of a repository that are found by name and may change."""

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """The content of file *name*.

        Raises:
            AbsentError: it is not there.
            RefusedError: it is larger than *limit_bytes*.
        """

    def replace_named(self, name: str, content: bytes) -> None:
        """Replace (or make) file *name*, durably and as a whole."""


class Store(ObjectReader, ObjectWriter, NamedFiles, Protocol):
    """All of it: what a publisher needs."""
