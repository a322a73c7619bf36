"""Looking after what makes a repository trusted: the whitelist, the key that signs revisions, and when both end.

A client believes a manifest if the whitelist, signed by the master key, has the fingerprint of the manifest's
certificate. While a key is exchanged the whitelist has both, so that at no moment a client, or a cache on its way,
meets a pair that does not fit; the next whitelist has the new one alone.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fs.format.compression import inflate
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.format.manifest import Manifest
from fs.format.whitelist import Whitelist
from fs.publish.keys import Keys
from fs.store.base import NamedFiles, ReadStore

WHITELIST = ".cvmfswhitelist"
WHITELIST_LIFETIME = timedelta(days=30)
WARN_WHITELIST = timedelta(days=7)
WARN_CERTIFICATE = timedelta(days=30)

_MAX_CERTIFICATE_BYTES = 1 << 20
_log = structlog.get_logger()


def fingerprint(certificate_pem: bytes, algorithm: Algorithm) -> Hash:
    """How a whitelist names a certificate."""
    return Hash.of(x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER), algorithm)


def write_whitelist(store: NamedFiles, keys: Keys, whitelist: Whitelist) -> None:
    """Sign *whitelist* and put it in place. Raises AbsentError without the master key."""
    algorithm = whitelist.fingerprints[0].algorithm
    store.replace_named(WHITELIST, keys.sign_whitelist(whitelist.encode(), algorithm))


def published_certificate(store: ReadStore, name: Hash) -> bytes:
    """The certificate (PEM) that a manifest names."""
    stored = store.get(name, Suffix.CERTIFICATE, limit_bytes=_MAX_CERTIFICATE_BYTES)
    return inflate(stored, limit_bytes=_MAX_CERTIFICATE_BYTES, name=f"{name}X")


def published_certificate_expires(store: ReadStore, manifest: Manifest) -> datetime | None:
    """Until when the certificate that *manifest* names is valid."""
    if manifest.certificate is None:
        return None
    certificate = published_certificate(store, manifest.certificate)
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def expiry_warnings(whitelist_expires: datetime, certificate_expires: datetime | None, now: datetime) -> list[str]:
    """What whoever looks after the repository should do soon, one sentence each."""
    warnings = []
    for what, expires, ahead, remedy in (
        ("whitelist", whitelist_expires, WARN_WHITELIST, "run unpackd repo resign"),
        ("certificate", certificate_expires, WARN_CERTIFICATE, "run unpackd repo rotate-key"),
    ):
        if expires is not None and expires - now < ahead:
            verb = "expired" if expires <= now else "expires"
            warnings.append(f"the {what} {verb} at {expires:%Y-%m-%d %H:00} UTC; {remedy}")
    return warnings


def warn_of_expiry(name: str, warnings: Sequence[str]) -> None:
    """Put *warnings* into the log."""
    for warning in warnings:
        _log.warning("signature_expires", repository=name, reason=warning)
