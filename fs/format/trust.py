"""The trust chain: whitelist, certificate, manifest, root catalog; in that order or not at all.

Each step gives the value that the next one needs, so a step cannot be left out. A whitelist is signed by a master key
or, if it says so itself, a copy of it is enclosed in a PKCS#7 message whose signers are certified by authorities that
the reader believes, one of them for this very repository. Source: CernVM-FS 2.12, manifest_fetch.cc, whitelist.cc.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from fs.errors import MalformedError, NotTrustedError
from fs.format.authorities import BAD_CERTIFICATE, Authorities
from fs.format.blacklist import Blacklist
from fs.format.hashes import Hash
from fs.format.manifest import Manifest
from fs.format.pkcs7 import SignedMessage, names_of
from fs.format.signature import SEPARATOR, SignedText, is_raw_signature, verify_digest_signature
from fs.format.whitelist import Whitelist

_PEM_END = b"-----END PUBLIC KEY-----"
_PKCS7_LINE = b"Vpkcs7"


def load_public_keys(pem: bytes, origin: str = "the key file") -> list[RSAPublicKey]:
    """The RSA keys of one or several concatenated PEM blocks. Raises MalformedError, which names *origin*."""
    blocks = [block + _PEM_END for block in pem.split(_PEM_END) if block.strip()]
    keys: list[RSAPublicKey] = []
    for block in blocks:
        try:
            key = load_pem_public_key(block)
        except ValueError as error:
            raise MalformedError(f"a public key of {origin} is not in PEM form") from error
        if not isinstance(key, RSAPublicKey):
            raise MalformedError(f"a public key of {origin} is not an RSA key")
        keys.append(key)
    if not keys:
        raise MalformedError(f"there is no public key in {origin}")
    return keys


NOBODY = Authorities()
NOTHING_FORBIDDEN = Blacklist()


def names_pkcs7(envelope: bytes) -> bool:
    """True if the unverified whitelist *envelope* says that it is to be verified in its PKCS#7 form."""
    return _PKCS7_LINE in envelope.partition(SEPARATOR)[0].split(b"\n")


@dataclass(frozen=True, slots=True)
class TrustedWhitelist:
    """A whitelist that was verified against a master key, or against certificate authorities."""

    whitelist: Whitelist
    authorities: Authorities = NOBODY
    now: datetime | None = None  # of the verification

    @classmethod
    def verify(  # noqa: PLR0913  # everything that decides
        cls,
        envelope: bytes,
        *,
        name: str,
        keys: Sequence[RSAPublicKey],
        now: datetime,
        authorities: Authorities = NOBODY,
        pkcs7: bytes = b"",
    ) -> "TrustedWhitelist":
        """Check signature, repository name and expiry.

        Args:
            envelope: the whitelist.
            name: of the repository.
            keys: public halves of master keys.
            now: with a time zone.
            authorities: who may certify the signers of a PKCS#7 whitelist, and a publisher where that is demanded.
            pkcs7: the other form of the whitelist; needed if the first one names it.

        Raises:
            MalformedError: it is not a whitelist.
            NotTrustedError: one of the checks fails; the message says which.
        """
        if names_pkcs7(envelope) and (authorities.certificates or not _is_signed(envelope, keys)):
            whitelist = Whitelist.parse(_enclosed(pkcs7, name, authorities, now))
        else:
            signed = SignedText.parse(envelope)
            if not any(is_raw_signature(signed, key) for key in keys):
                raise NotTrustedError(f"the whitelist of {name} is not signed by any of the public keys given")
            whitelist = Whitelist.parse(signed.text)
        if whitelist.name != name:
            raise NotTrustedError(f"the whitelist is of {whitelist.name}, not of {name}")
        if whitelist.is_expired(now):
            raise NotTrustedError(f"the whitelist of {name} expired at {whitelist.expires:%Y-%m-%d %H:00} UTC")
        return cls(whitelist, authorities, now)

    def certificate(self, pem: bytes, blacklist: Blacklist = NOTHING_FORBIDDEN) -> "TrustedCertificate":
        """Check that a certificate is on the list, not on *blacklist*, and certified itself if the list demands it.

        Raises:
            MalformedError: *pem* is not an X.509 certificate with an RSA key.
            NotTrustedError: one of the checks fails.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = certificate.public_key()
        except BAD_CERTIFICATE as error:
            raise MalformedError("the repository's certificate is not an X.509 certificate in PEM form") from error
        if not isinstance(key, RSAPublicKey):
            raise MalformedError("the repository's certificate has no RSA key")
        encoded = certificate.public_bytes(Encoding.DER)
        blacklist.check_certificate(encoded)
        if not self.whitelist.lists(encoded):
            raise NotTrustedError(f"the certificate is not on the whitelist of {self.whitelist.name}")
        if self.whitelist.demands_ca_chain:
            what = f"the publisher's certificate of {self.whitelist.name}"
            self.authorities.verify(certificate, (), self.now or self.whitelist.issued, what=what)
        return TrustedCertificate(self.whitelist.name, key)


def _is_signed(envelope: bytes, keys: Sequence[RSAPublicKey]) -> bool:
    """True if one of *keys* signed a whitelist that names its other form, too: who believes that key needs no more."""
    try:
        signed = SignedText.parse(envelope)
    except (MalformedError, NotTrustedError):
        return False
    return any(is_raw_signature(signed, key) for key in keys)


def _enclosed(pkcs7: bytes, name: str, authorities: Authorities, now: datetime) -> bytes:
    """The whitelist's text in a message that somebody signed who may sign for repository *name*."""
    what = f"the PKCS#7 whitelist of {name}"
    if not authorities.certificates:
        raise NotTrustedError(f"{what} is certified by authorities; say with --ca-dir whom to believe")
    message = SignedMessage.verify(pkcs7)
    for signer in message.signers:
        authorities.verify(signer, [*message.others, *message.signers], now, what=what)
    if not any(f"cvmfs:{name}" in names_of(signer) for signer in message.signers):
        raise NotTrustedError(f"{what} is signed by nobody whose certificate names cvmfs:{name}")
    return message.content


@dataclass(frozen=True, slots=True)
class TrustedCertificate:
    """The key that may sign manifests of repository *name*."""

    name: str
    key: RSAPublicKey

    def manifest(self, envelope: bytes) -> Manifest:
        """Check signature and name of a manifest; what it names is trusted from then on.

        Raises:
            MalformedError: it is not a manifest.
            NotTrustedError: signature or name do not hold.
        """
        signed = SignedText.parse(envelope)
        verify_digest_signature(signed, self.key)
        manifest = Manifest.parse(signed.text)
        if manifest.name != self.name:
            raise NotTrustedError(f"the manifest is of {manifest.name}, not of {self.name}")
        return manifest


def named_certificate(envelope: bytes) -> Hash:
    """The certificate object that an unverified manifest names: what has to be fetched to verify it."""
    return Manifest.parse(SignedText.parse(envelope).text).certificate
