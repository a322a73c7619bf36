"""The manifest, ``.cvmfspublished``: which catalog is the root of which revision."""

from dataclasses import dataclass
from typing import Self

from fs.errors import HashSyntaxError, ManifestError
from fs.format.hashes import Hash

ROOT_PATH_HASH = "d41d8cd98f00b204e9800998ecf8427e"
"""Field ``R``: the MD5 of the empty root path, in every manifest."""

MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the manifest says. Letters are the format's field keys."""

    root_catalog: Hash  # C
    catalog_size: int = 0  # B: bytes of the uncompressed root catalog
    ttl_s: int = 240  # D
    revision: int  # S
    garbage_collectable: bool = False  # G
    aliases: bool = False  # A
    name: str  # N
    certificate: Hash  # X
    history: Hash | None = None  # H
    published_unix_s: int = 0  # T
    metainfo: Hash | None = None  # M
    reflog: Hash | None = None  # Y

    @classmethod
    def parse(cls, signed: bytes) -> Self:
        """Parse the lines before the ``--`` separator; the signature is not looked at.

        Unknown letters are ignored, the last of repeated ones wins.
        Source: CernVM-FS 2.12, manifest.cc.

        Raises:
            ManifestError: a field is missing or malformed; ``error.field`` is its letter.
        """
        fields = _Fields(signed)
        if fields.text("R") != ROOT_PATH_HASH:
            raise ManifestError("R", "is not the hash of the root path")
        return cls(
            root_catalog=fields.hash("C"),
            catalog_size=fields.number("B", 0),
            ttl_s=fields.number("D"),
            revision=fields.number("S"),
            garbage_collectable=fields.text("G", "no") == "yes",
            aliases=fields.text("A", "no") == "yes",
            name=fields.text("N"),
            certificate=fields.hash("X"),
            history=fields.optional_hash("H"),
            published_unix_s=fields.number("T", 0),
            metainfo=fields.optional_hash("M"),
            reflog=fields.optional_hash("Y"),
        )

    def encode(self) -> bytes:
        """The text that is signed, in the reference writer's order of fields."""
        lines = [
            f"C{self.root_catalog}",
            f"B{self.catalog_size}",
            f"R{ROOT_PATH_HASH}",
            f"D{self.ttl_s}",
            f"S{self.revision}",
            f"G{'yes' if self.garbage_collectable else 'no'}",
            f"A{'yes' if self.aliases else 'no'}",
            f"N{self.name}",
            f"X{self.certificate}",
        ]
        optional = (
            ("H", self.history),
            ("T", self.published_unix_s or None),
            ("M", self.metainfo),
            ("Y", self.reflog),
        )
        lines += [f"{letter}{value}" for letter, value in optional if value is not None]
        return "".join(line + "\n" for line in lines).encode()


class _Fields:
    """The lines of a manifest by their letter."""

    def __init__(self, signed: bytes) -> None:
        self._values: dict[str, str] = {}
        for line in signed.split(b"\n"):
            if line == b"--":
                break
            if line:
                text = line.decode("utf-8", "replace")
                self._values[text[0]] = text[1:]

    def text(self, letter: str, default: str | None = None) -> str:
        value = self._values.get(letter, default)
        if value is None:
            raise ManifestError(letter, "is missing")
        return value

    def number(self, letter: str, default: int | None = None) -> int:
        text = self.text(letter, None if default is None else str(default))
        if not text.isascii() or not text.isdigit():
            raise ManifestError(letter, f"{text!r} is not a number")
        return int(text)

    def hash(self, letter: str) -> Hash:
        text = self.text(letter)
        try:
            return Hash.parse(text)
        except HashSyntaxError as error:
            raise ManifestError(letter, f"{text!r} is not a hash") from error

    def optional_hash(self, letter: str) -> Hash | None:
        return self.hash(letter) if letter in self._values else None
