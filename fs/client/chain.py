"""The trust chain over a network: fetch whitelist, certificate and manifest, verify them in that order."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.client.objects import Objects
from fs.client.receiving import ObjectRef
from fs.errors import AbsentError
from fs.format.authorities import Authorities
from fs.format.blacklist import Blacklist
from fs.format.hashes import Suffix
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.trust import TrustedWhitelist, load_public_keys, named_certificate, names_pkcs7
from fs.format.whitelist import MAX_WHITELIST_BYTES
from fs.store.reading import BytesReceiver, Request, StorageReader

_log = structlog.get_logger()

MANIFEST_FILE = ".cvmfspublished"
WHITELIST_FILE = ".cvmfswhitelist"
PKCS7_FILE = ".cvmfswhitelist.pkcs7"
_CERTIFICATE_LIMIT_BYTES = 1 << 20

Now = Callable[[], datetime]


def read_public_keys(places: Iterable[Path]) -> bytes:
    """The PEM text of key files, and of all ``*.pub`` in directories of them.

    Raises:
        AbsentError: a file cannot be read, or a directory has no key.
        MalformedError: a file holds no RSA key; the message names the file.
    """
    found: list[bytes] = []
    for place in places:
        try:
            files = sorted(place.glob("*.pub")) if place.is_dir() else [place]
            if not files:
                raise AbsentError(f"the directory {place} holds no public key (*.pub)")
            for file in files:
                pem = file.read_bytes().rstrip() + b"\n"
                load_public_keys(pem, str(file))
                found.append(pem)
        except OSError as error:
            raise AbsentError(f"the public key {error.filename} cannot be read: {error.strerror}") from error
    return b"".join(found)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a reader believes beforehand, and what it does not.

    Directories and files are read at each verification, because others renew them.
    """

    name: str
    keys: Sequence[RSAPublicKey]  # public halves of master keys
    ca_directories: tuple[Path, ...] = ()  # see fs.format.authorities
    blacklists: tuple[Path, ...] = ()  # see fs.format.blacklist

    def authorities(self) -> Authorities:
        """Whom to believe now. Raises AbsentError."""
        try:
            files = [file for folder in self.ca_directories for file in sorted(folder.iterdir()) if file.is_file()]
            return Authorities.parse(file.read_bytes() for file in files)
        except OSError as error:
            raise AbsentError(f"the authorities in {error.filename} cannot be read: {error.strerror}") from error

    def blacklist(self) -> Blacklist:
        """What is forbidden now. Raises AbsentError: a list that cannot be read forbids everything."""
        try:
            forbidden = Blacklist.parse([file.read_bytes() for file in self.blacklists])
        except OSError as error:
            raise AbsentError(f"the blacklist {error.filename} cannot be read: {error.strerror}") from error
        for line in forbidden.unknown_lines:
            _log.warning("blacklist_line_not_understood", line=line)
        return forbidden


@dataclass(frozen=True, slots=True)
class Chain:
    """The documents that prove a revision, as they came."""

    whitelist: bytes
    certificate: bytes  # PEM
    manifest: bytes
    pkcs7: bytes = b""  # the whitelist's other form, if it has one

    def verify(self, anchor: Anchor, now: datetime) -> Manifest:
        """The manifest, if everything holds. Raises AbsentError, MalformedError, NotTrustedError."""
        trusted = TrustedWhitelist.verify(
            self.whitelist,
            name=anchor.name,
            keys=anchor.keys,
            now=now,
            authorities=anchor.authorities(),
            pkcs7=self.pkcs7,
        )
        blacklist = anchor.blacklist()
        manifest = trusted.certificate(self.certificate, blacklist).manifest(self.manifest)
        blacklist.check_revision(anchor.name, manifest.revision)
        return manifest


async def fetch_chain(reader: StorageReader, objects: Objects) -> Chain:
    """What *reader* gives now, not verified. Raises FsError."""
    manifest = await _fetch(reader, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    certificate = ObjectRef(named_certificate(manifest), Suffix.CERTIFICATE, limit_bytes=_CERTIFICATE_LIMIT_BYTES)
    whitelist = await _fetch(reader, WHITELIST_FILE, MAX_WHITELIST_BYTES)
    return Chain(
        whitelist=whitelist,
        certificate=await objects.whole(certificate),
        manifest=manifest,
        pkcs7=await _fetch(reader, PKCS7_FILE, MAX_WHITELIST_BYTES) if names_pkcs7(whitelist) else b"",
    )


async def _fetch(reader: StorageReader, name: str, limit_bytes: int) -> bytes:
    receiver = BytesReceiver(name, limit_bytes)
    await reader.read(Request(name, is_fresh=True), receiver)
    return receiver.content
