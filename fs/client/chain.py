"""The trust chain over a network: fetch whitelist, certificate and manifest, verify them in that order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.client.objects import Objects
from fs.client.receiving import ObjectRef
from fs.format.hashes import Suffix
from fs.format.manifest import MAX_MANIFEST_BYTES, Manifest
from fs.format.trust import TrustedWhitelist, named_certificate
from fs.format.whitelist import MAX_WHITELIST_BYTES
from fs.store.reading import BytesReceiver, Request, StorageReader

MANIFEST_FILE = ".cvmfspublished"
WHITELIST_FILE = ".cvmfswhitelist"
_CERTIFICATE_LIMIT_BYTES = 1 << 20

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a reader believes beforehand: the repository's name and the public halves of its master keys."""

    name: str
    keys: Sequence[RSAPublicKey]


@dataclass(frozen=True, slots=True)
class Chain:
    """Three documents that prove a revision, as they came."""

    whitelist: bytes
    certificate: bytes  # PEM
    manifest: bytes

    def verify(self, anchor: Anchor, now: datetime) -> Manifest:
        """The manifest, if everything holds. Raises MalformedError, NotTrustedError."""
        trusted = TrustedWhitelist.verify(self.whitelist, name=anchor.name, keys=anchor.keys, now=now)
        return trusted.certificate(self.certificate).manifest(self.manifest)


async def fetch_chain(reader: StorageReader, objects: Objects) -> Chain:
    """What *reader* gives now, not verified. Raises FsError."""
    manifest = await _fetch(reader, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    certificate = ObjectRef(named_certificate(manifest), Suffix.CERTIFICATE, limit_bytes=_CERTIFICATE_LIMIT_BYTES)
    return Chain(
        whitelist=await _fetch(reader, WHITELIST_FILE, MAX_WHITELIST_BYTES),
        certificate=await objects.whole(certificate),
        manifest=manifest,
    )


async def _fetch(reader: StorageReader, name: str, limit_bytes: int) -> bytes:
    receiver = BytesReceiver(name, limit_bytes)
    await reader.read(Request(name, is_fresh=True), receiver)
    return receiver.content
