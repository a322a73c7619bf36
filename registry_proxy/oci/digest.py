"""Digests: the names of blobs and manifests."""

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol, Self

from registry_proxy.errors import DigestSyntaxError

# Source: OCI image-spec, descriptor.md, "Digests": algorithm components joined by one of "+._-", then the encoding.
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_HEX_DIGITS = {"sha256": 64, "sha512": 128}
_MAX_LENGTH = 255


class Hasher(Protocol):
    """What takes bytes and gives their hash at the end."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far, as lower-case hex digits."""
        ...


@dataclass(frozen=True, slots=True)
class Digest:
    """Algorithm and encoded hash of bytes exactly as a registry keeps them."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Inverse of ``str()``.

        A well-formed digest of an unknown algorithm is accepted; ``is_verifiable`` says no then.

        Raises:
            DigestSyntaxError: *text* does not follow the grammar, or has the wrong length for its algorithm.
        """
        if len(text) > _MAX_LENGTH or not _GRAMMAR.fullmatch(text):
            raise DigestSyntaxError(text)
        algorithm, _, encoded = text.partition(":")
        length = _HEX_DIGITS.get(algorithm)
        if length is not None and (len(encoded) != length or not _HEX.fullmatch(encoded)):
            raise DigestSyntaxError(text)
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Self:
        """Digest of *data*."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @property
    def is_verifiable(self) -> bool:
        """True if the algorithm is one that can be computed here."""
        return self.algorithm in _HEX_DIGITS

    def hasher(self) -> Hasher:
        """A fresh hasher of the digest's algorithm.

        Raises:
            DigestSyntaxError: the algorithm is unknown.
        """
        if not self.is_verifiable:
            raise DigestSyntaxError(str(self))
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        """True if *data* has this digest."""
        hasher = self.hasher()
        hasher.update(data)
        return hasher.hexdigest() == self.hex

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
