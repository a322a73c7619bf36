"""The trust chain: whitelist, certificate, manifest, root catalog; in that order or not at all.

Each step gives the value that the next one needs, so a step cannot be left out. Source: CernVM-FS 2.12,
manifest_fetch.cc, whitelist.cc.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from fs.errors import MalformedError, NotTrustedError
from fs.format.hashes import Hash
from fs.format.manifest import Manifest
from fs.format.signature import SignedText, is_raw_signature, verify_digest_signature
from fs.format.whitelist import Whitelist

_PEM_END = b"-----END PUBLIC KEY-----"


def load_public_keys(pem: bytes) -> list[RSAPublicKey]:
    """The RSA keys of one or several concatenated PEM blocks. Raises MalformedError."""
    blocks = [block + _PEM_END for block in pem.split(_PEM_END) if block.strip()]
    keys: list[RSAPublicKey] = []
    for block in blocks:
        try:
            key = load_pem_public_key(block)
        except ValueError as error:
            raise MalformedError("a public key is not in PEM form") from error
        if not isinstance(key, RSAPublicKey):
            raise MalformedError("a public key is not an RSA key")
        keys.append(key)
    if not keys:
        raise MalformedError("there is no public key in the key file")
    return keys


@dataclass(frozen=True, slots=True)
class TrustedWhitelist:
    """A whitelist that was verified against a master key."""

    whitelist: Whitelist

    @classmethod
    def verify(cls, envelope: bytes, *, name: str, keys: Sequence[RSAPublicKey], now: datetime) -> "TrustedWhitelist":
        """Check signature, repository name and expiry.

        Raises:
            MalformedError: it is not a whitelist.
            NotTrustedError: one of the checks fails; the message says which.
        """
        signed = SignedText.parse(envelope)
        if not any(is_raw_signature(signed, key) for key in keys):
            raise NotTrustedError(f"the whitelist of {name} is not signed by any of the public keys given")
        whitelist = Whitelist.parse(signed.text)
        if whitelist.name != name:
            raise NotTrustedError(f"the whitelist is of {whitelist.name}, not of {name}")
        if whitelist.demands_ca_chain:
            raise NotTrustedError(
                f"the whitelist of {name} demands a chain of certificates, which is not verified here"
            )
        if whitelist.is_expired(now):
            raise NotTrustedError(f"the whitelist of {name} expired at {whitelist.expires:%Y-%m-%d %H:00} UTC")
        return cls(whitelist)

    def certificate(self, pem: bytes) -> "TrustedCertificate":
        """Check that a certificate is on the list.

        Raises:
            MalformedError: *pem* is not an X.509 certificate with an RSA key.
            NotTrustedError: it is not listed.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = certificate.public_key()
        except ValueError as error:
            raise MalformedError("the repository's certificate is not an X.509 certificate in PEM form") from error
        if not isinstance(key, RSAPublicKey):
            raise MalformedError("the repository's certificate has no RSA key")
        if not self.whitelist.lists(certificate.public_bytes(Encoding.DER)):
            raise NotTrustedError(f"the certificate is not on the whitelist of {self.whitelist.name}")
        return TrustedCertificate(self.whitelist.name, key)


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
