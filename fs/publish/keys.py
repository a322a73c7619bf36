"""The keys of a repository: files in a directory that only their owner may read.

==========================  ============================================================
file                        content
==========================  ============================================================
``NAME.masterkey``          RSA key that signs the whitelist
``NAME.masterkey.signer``   or a command that signs with it
``NAME.pub``                its public half, for clients
``NAME.key``                RSA key that signs manifests
``NAME.key.signer``         or a command that signs with it
``NAME.crt``                self-signed certificate of that key, listed by the whitelist
``NAME.key.next``, ``…crt`` the pair that a rotation is about to bring in
==========================  ============================================================

The master key is needed for whitelists only, and need not be where revisions are published.

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
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import NameOID

from fs.errors import AbsentError, MalformedError, RefusedError
from fs.format.hashes import Algorithm
from fs.format.signature import sign_text
from fs.publish.signers import CommandSigner, Digest, KeySigner, Signer
from fs.runtime.files import sync_directory, write_atomically

_BITS = 2048
_EXPONENT = 65537
_CERTIFICATE_LIFETIME = timedelta(days=365)
_LONGEST_COMMON_NAME = 30
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class Keys:
    """What a publisher signs with."""

    master: Signer | None  # None: it is kept elsewhere
    repository: Signer
    certificate_pem: bytes

    @property
    def certificate_der(self) -> bytes:
        """The certificate as the whitelist fingerprints it."""
        return self._certificate.public_bytes(Encoding.DER)

    @property
    def certificate_expires(self) -> datetime:
        """Until when the certificate is valid."""
        return self._certificate.not_valid_after_utc

    @property
    def _certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate_pem)

    def sign_manifest(self, text: bytes, algorithm: Algorithm) -> bytes:
        """The envelope of a manifest. Raises SignerError."""
        return sign_text(text, lambda data: self.repository.sign(data, Digest.SHA1), algorithm)

    def sign_whitelist(self, text: bytes, algorithm: Algorithm) -> bytes:
        """The envelope of a whitelist. Raises SignerError, AbsentError without the master key."""
        if self.master is None:
            raise AbsentError("the master key, which signs whitelists, is not among the keys")
        master = self.master
        return sign_text(text, lambda data: master.sign(data, Digest.NONE), algorithm)


def create_keys(folder: Path, name: str, now: datetime) -> Keys:
    """Make the keys of repository *name* that are not in *folder* yet; gives all of them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _signer_file(folder / f"{name}.masterkey").exists():
        master = _load_or_make(folder / f"{name}.masterkey")
        write_atomically(folder / f"{name}.pub", _public_pem(master.public_key()))
    if not _signer_file(folder / f"{name}.key").exists():
        certificate = folder / f"{name}.crt"
        is_new = not (folder / f"{name}.key").exists()
        repository = _load_or_make(folder / f"{name}.key")
        if is_new or not certificate.exists():
            write_atomically(certificate, _certify(repository, name, now))
    return load_keys(folder, name)


def load_keys(folder: Path, name: str) -> Keys:
    """The keys of repository *name*.

    Raises:
        AbsentError: one of the files is not there; the master key's may be missing.
        RefusedError: others may read a private key or change a command.
        MalformedError: a file is not an RSA key, or the certificate belongs to another one.
    """
    certificate = _read(folder / f"{name}.crt", "certificate")
    try:
        certified = x509.load_pem_x509_certificate(certificate).public_key()
    except ValueError as error:
        raise MalformedError(f"{folder / f'{name}.crt'} is not a certificate in PEM form") from error
    if not isinstance(certified, RSAPublicKey):
        raise MalformedError(f"{folder / f'{name}.crt'} is not the certificate of an RSA key")
    repository = _signer(folder / f"{name}.key", certified)
    if repository is None:
        raise AbsentError(f"there is no key {folder / f'{name}.key'}")
    if repository.public_key.public_numbers() != certified.public_numbers():
        raise MalformedError(
            f"{folder / f'{name}.crt'} is not the certificate of the key beside it; if a rotation was interrupted, run "
            "it again"
        )
    return Keys(_master(folder, name), repository, certificate)


def next_keys(folder: Path, name: str, now: datetime) -> bytes:
    """Make the pair that is to come after the present one, unless it is there; gives its certificate (PEM).

    Raises:
        RefusedError: a program has the key; it and the certificate are then replaced by whoever looks after it.
    """
    certificate = folder / f"{name}.crt.next"
    if _signer_file(folder / f"{name}.key").exists() and not certificate.exists():
        raise RefusedError(
            f"the key of {name} is in the hands of a program; put the new one's certificate to {name}.crt.next and "
            f"its command to {name}.key.signer.next"
        )
    if not certificate.exists():
        write_atomically(certificate, _certify(_load_or_make(folder / f"{name}.key.next"), name, now))
    return certificate.read_bytes()


def adopt_next(folder: Path, name: str) -> None:
    """Let the next pair be the present one. May be killed at any moment and called again."""
    for ending in ("key.signer", "key", "crt"):
        following = folder / f"{name}.{ending}.next"
        if following.exists():
            following.rename(folder / f"{name}.{ending}")
    sync_directory(folder)


def is_rotating(folder: Path, name: str) -> bool:
    """True if a rotation was begun and not finished."""
    return (folder / f"{name}.crt.next").exists()


def _signer_file(key: Path) -> Path:
    return key.with_name(key.name + ".signer")


def _signer(key: Path, public: RSAPublicKey) -> Signer | None:
    """Who signs with *key*; None if there is neither the key nor a command."""
    command = _signer_file(key)
    if command.exists():
        return CommandSigner.read(command, public)
    return KeySigner(_load(key)) if key.exists() else None


def _master(folder: Path, name: str) -> Signer | None:
    path = folder / f"{name}.masterkey"
    if not _signer_file(path).exists():
        return KeySigner(_load(path)) if path.exists() else None
    public = load_pem_public_key(_read(folder / f"{name}.pub", "public key"))
    if not isinstance(public, RSAPublicKey):
        raise MalformedError(f"{folder / f'{name}.pub'} is not an RSA key")
    return CommandSigner.read(_signer_file(path), public)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise AbsentError(f"there is no {what} {path}") from error


def _public_pem(key: RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


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
