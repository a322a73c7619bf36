"""The keys of a repository: files in a directory that only their owner may read.

========================  ==============================================================
file                      content
========================  ==============================================================
``NAME.masterkey``        RSA key that signs the whitelist
``NAME.pub``              its public half, for clients
``NAME.key``              RSA key that signs manifests
``NAME.crt``              self-signed certificate of that key, listed by the whitelist
========================  ==============================================================

Source: CernVM-FS 2.12, cvmfs_server_ssl.sh.
"""

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from fs.errors import AbsentError, MalformedError, RefusedError
from fs.runtime.files import write_atomically

_BITS = 2048
_EXPONENT = 65537
_CERTIFICATE_LIFETIME = timedelta(days=365)
_LONGEST_COMMON_NAME = 30
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Keys:
    """What a publisher signs with."""

    master: RSAPrivateKey
    repository: RSAPrivateKey
    certificate_pem: bytes

    @property
    def certificate_der(self) -> bytes:
        """The certificate as the whitelist fingerprints it."""
        return x509.load_pem_x509_certificate(self.certificate_pem).public_bytes(Encoding.DER)


def create_keys(folder: Path, name: str, now: datetime) -> Keys:
    """Make the keys of repository *name* that are not in *folder* yet; gives all of them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    master = _load_or_make(folder / f"{name}.masterkey")
    public = master.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomically(folder / f"{name}.pub", public)
    certificate = folder / f"{name}.crt"
    is_new = not (folder / f"{name}.key").exists()
    repository = _load_or_make(folder / f"{name}.key")
    if is_new or not certificate.exists():
        write_atomically(certificate, _certify(repository, name, now))
    return Keys(master, repository, certificate.read_bytes())


def load_keys(folder: Path, name: str) -> Keys:
    """The keys of repository *name*.

    Raises:
        AbsentError: one of the files is not there.
        RefusedError: others may read a private key.
        MalformedError: a file is not an RSA key.
    """
    try:
        certificate = (folder / f"{name}.crt").read_bytes()
    except FileNotFoundError as error:
        raise AbsentError(f"there is no certificate {folder / f'{name}.crt'}") from error
    return Keys(_load(folder / f"{name}.masterkey"), _load(folder / f"{name}.key"), certificate)


def _load_or_make(path: Path) -> RSAPrivateKey:
    if path.exists():
        return _load(path)
    key = rsa.generate_private_key(_EXPONENT, _BITS)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    write_atomically(path, pem, mode=0o600)
    return key


def _load(path: Path) -> RSAPrivateKey:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if mode & _OTHERS:
                raise RefusedError(f"{path} can be read by others (mode {stat.S_IMODE(mode):o}); chmod 600 it")
            key = load_pem_private_key(stream.read(), None)
    except FileNotFoundError as error:
        raise AbsentError(f"there is no key {path}") from error
    except (ValueError, TypeError) as error:
        raise MalformedError(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, RSAPrivateKey):
        raise MalformedError(f"{path} is not an RSA key")
    return key


def _certify(key: RSAPrivateKey, name: str, now: datetime) -> bytes:
    shown = name if len(name) <= _LONGEST_COMMON_NAME else name[:_LONGEST_COMMON_NAME] + "[...]"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{shown} CernVM-FS Release Managers")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC))
        .not_valid_after(now.astimezone(UTC) + _CERTIFICATE_LIFETIME)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)
