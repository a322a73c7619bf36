"""Names of objects.

Source: CernVM-FS 2.12, crypto/hash.h: algorithms, text suffixes, object path below the repository's root.
"""

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Self

from fs.errors import HashSyntaxError

DIGEST_BYTES = 20
"""Every content hash of the format is cut to 160 bits."""


class Algorithm(Enum):
    """A content hash; the value is the suffix of its text form."""

    SHA1 = ""
    RMD160 = "-rmd160"
    SHAKE128 = "-shake128"

    def __init__(self, tag: str) -> None:
        self.tag = tag  # the value again: names are written very often, and ``value`` is slow

    @property
    def flag_number(self) -> int:
        """The number that catalogs store in bits 8 to 10 of an entry's flags."""
        return _FLAG_ORDER.index(self)

    @classmethod
    def from_flag_number(cls, number: int) -> Self:
        """Inverse of ``flag_number``. Raises HashSyntaxError for a number that is not defined."""
        if number >= len(_FLAG_ORDER):
            raise HashSyntaxError(f"algorithm {number}")
        return _FLAG_ORDER[number]

    def hasher(self) -> "hashlib._Hash":
        """A new hashlib object; finish it with ``Hash.finish``."""
        match self:
            case Algorithm.SHA1:
                return hashlib.sha1(usedforsecurity=False)
            case Algorithm.RMD160:
                return hashlib.new("ripemd160", usedforsecurity=False)
            case Algorithm.SHAKE128:
                return hashlib.shake_128(usedforsecurity=False)


_FLAG_ORDER = (Algorithm.SHA1, Algorithm.RMD160, Algorithm.SHAKE128)


class Suffix(Enum):
    """The letter behind an object's hash that tells what kind of object it is."""

    PLAIN = ""
    CATALOG = "C"
    HISTORY = "H"
    CERTIFICATE = "X"
    METAINFO = "M"
    CHUNK = "P"


@dataclass(frozen=True, slots=True)
class Hash:
    """Name of an object: the digest of its bytes *as stored*, that is, after compression."""

    digest: bytes  # DIGEST_BYTES long for every algorithm of the format
    algorithm: Algorithm = Algorithm.SHA1

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def of(cls, stored: bytes | bytearray | memoryview, algorithm: Algorithm = Algorithm.SHA1) -> Self:
        """The name of an object whose stored bytes are *stored*."""
        hasher = algorithm.hasher()
        hasher.update(stored)
        return cls.finish(hasher, algorithm)

    @classmethod
    def finish(cls, hasher: "hashlib._Hash", algorithm: Algorithm) -> Self:
        """The name that a *hasher* of *algorithm* has come to."""
        if algorithm is Algorithm.SHAKE128:
            return cls(hasher.digest(DIGEST_BYTES), algorithm)  # type: ignore[call-arg]  # SHAKE takes a length
        return cls(hasher.digest(), algorithm)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str()``. Raises HashSyntaxError."""
        digits, dash, tag = text.partition("-")
        try:
            value = cls(bytes.fromhex(digits), Algorithm(dash + tag))
        except ValueError as error:
            raise HashSyntaxError(text) from error
        # fromhex() also takes upper case and blanks; the format does not
        if str(value) != text or len(value.digest) != DIGEST_BYTES:
            raise HashSyntaxError(text)
        return value

    def __str__(self) -> str:
        return self.digest.hex() + self.algorithm.tag

    def object_path(self, suffix: Suffix = Suffix.PLAIN) -> str:
        """Path of the object below the repository's root: ``data/<2 digits>/<rest><algorithm><letter>``."""
        digits = self.digest.hex()
        return f"data/{digits[:2]}/{digits[2:]}{self.algorithm.tag}{suffix.value}"
