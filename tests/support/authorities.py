"""Certificate authorities for tests, and what they certify."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC).replace(microsecond=0)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Certified:
    """A key and its certificate."""

    key: rsa.RSAPrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def certify(
        self,
        name: str,
        *,
        uri: str | None = None,
        is_authority: bool = False,
        key: rsa.RSAPrivateKey | None = None,
        days: int = 10,
    ) -> "Certified":
        """A certificate for *name*, of a new key unless one is given."""
        own = key or rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = self.certificate.subject
        made = _certificate(subject, own, issuer, self.key, uri=uri, is_authority=is_authority, days=days)
        return Certified(own, made)

    def revoke(self, *revoked: x509.Certificate, until: datetime = NOW + _DAY) -> bytes:
        """A revocation list in PEM form."""
        builder = x509.CertificateRevocationListBuilder(self.certificate.subject, NOW - 2 * _DAY, until)
        for one in revoked:
            entry = x509.RevokedCertificateBuilder(one.serial_number, NOW - _DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def enclose(self, text: bytes, *, others: Sequence[x509.Certificate] = (), whole: bool = True) -> bytes:
        """*text* as a signed PKCS#7 message in PEM form."""
        builder = PKCS7SignatureBuilder().set_data(text).add_signer(self.certificate, self.key, hashes.SHA256())
        for one in others:
            builder = builder.add_certificate(one)
        options = [PKCS7Options.Binary] if whole else [PKCS7Options.Binary, PKCS7Options.DetachedSignature]
        return builder.sign(Encoding.PEM, options)


def authority(name: str = "Root") -> Certified:
    """One that certified itself."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Certified(key, _certificate(subject, key, subject, key, uri=None, is_authority=True, days=100))


def _certificate(
    subject: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer: x509.Name,
    issuer_key: rsa.RSAPrivateKey,
    *,
    uri: str | None,
    is_authority: bool,
    days: int,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 20 * _DAY)
        .not_valid_after(NOW + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )
    if uri is not None:
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = builder.add_extension(name, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def write_authorities(folder: Path, *, certificates: Sequence[Certified], lists: Sequence[bytes] = ()) -> Path:
    """A directory as ``--ca-dir`` takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(certificates):
        (folder / f"{number:08x}.0").write_bytes(one.pem)
    for number, content in enumerate(lists):
        (folder / f"{number:08x}.r0").write_bytes(content)
    return folder
