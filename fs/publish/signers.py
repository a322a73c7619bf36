"""Who signs: a key in a file, or a program that has the key, such as a hardware token's.

The format needs two signatures of RSA with PKCS#1 v1.5 padding: a usual one (a DigestInfo is padded) and one in which
the text itself is padded. A program gets what is to be padded on its standard input and prints the signature, as
``openssl pkeyutl -sign -inkey KEY`` does with any of OpenSSL's engines and providers, and
``pkcs11-tool --sign --mechanism RSA-PKCS`` with a token. What it prints is verified before it is used.
"""

import hashlib
import os
import shlex
import stat
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from fs.errors import FsError, RefusedError

_TIMEOUT_S = 60.0
_SHOWN_BYTES = 500
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Digest(Enum):
    """What is padded: the DigestInfo of a hash, whose first bytes are the value (in hexadecimal), or the data itself.

    Source: RFC 8017, section 9.2, note 1.
    """

    NONE = ""
    SHA1 = "3021300906052b0e03021a05000414"
    SHA256 = "3031300d060960864801650304020105000420"

    def padded(self, data: bytes) -> bytes:
        """What is padded for *data*."""
        match self:
            case Digest.NONE:
                return data
            case Digest.SHA1:
                return bytes.fromhex(self.value) + hashlib.sha1(data, usedforsecurity=False).digest()
            case Digest.SHA256:
                return bytes.fromhex(self.value) + hashlib.sha256(data).digest()


class SignerError(FsError):
    """The program that signs did not, or not with the key it should have."""


class Signer(Protocol):
    """Has an RSA key."""

    @property
    def public_key(self) -> RSAPublicKey:
        """The key's public half."""

    def sign(self, data: bytes, digest: Digest) -> bytes:
        """The signature of *data*. Raises SignerError."""


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A Signer that has the key itself."""

    key: RSAPrivateKey

    @property
    def public_key(self) -> RSAPublicKey:
        """See Signer.public_key."""
        return self.key.public_key()

    def sign(self, data: bytes, digest: Digest) -> bytes:
        """See Signer.sign."""
        match digest:
            case Digest.SHA1:
                return self.key.sign(data, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303  # the format's
            case Digest.SHA256:
                return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
            case Digest.NONE:
                return self._sign_bare(data)

    def _sign_bare(self, data: bytes) -> bytes:
        numbers = self.key.private_numbers()
        modulus = numbers.public_numbers.n
        length = (modulus.bit_length() + 7) // 8
        padded = b"\x00\x01" + b"\xff" * (length - len(data) - 3) + b"\x00" + data
        return pow(int.from_bytes(padded), numbers.d, modulus).to_bytes(length)


@dataclass(frozen=True, slots=True)
class CommandSigner:
    """A Signer that runs a program; no shell is involved."""

    command: tuple[str, ...]
    public_key: RSAPublicKey

    @classmethod
    def read(cls, path: Path, public_key: RSAPublicKey) -> "CommandSigner":
        """The signer whose command is in the file *path*, words as in a shell.

        Raises:
            RefusedError: others may change the file, or there is no command in it.
        """
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read().decode("utf-8", "surrogateescape")
        if mode & _WRITABLE_BY_OTHERS:
            raise RefusedError(f"{path} can be changed by others (mode {stat.S_IMODE(mode):o}); chmod 600 it")
        try:
            command = tuple(shlex.split(text, comments=True))
        except ValueError as error:
            raise RefusedError(f"{path} does not hold a command: {error}") from error
        if not command:
            raise RefusedError(f"{path} does not hold a command")
        return cls(command, public_key)

    def sign(self, data: bytes, digest: Digest) -> bytes:
        """See Signer.sign."""
        wanted = digest.padded(data)
        shown = self.command[0]
        try:
            done = subprocess.run(self.command, input=wanted, capture_output=True, timeout=_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SignerError(f"the program {shown} that signs cannot be run: {error}") from error
        if done.returncode != 0:
            said = done.stderr[-_SHOWN_BYTES:].decode("utf-8", "replace").strip()
            raise SignerError(f"the program {shown} that signs failed with status {done.returncode}: {said}")
        try:
            signed = self.public_key.recover_data_from_signature(done.stdout, padding.PKCS1v15(), None)
        except (InvalidSignature, ValueError) as error:
            raise SignerError(f"what the program {shown} printed is no signature of the expected key") from error
        if signed != wanted:
            raise SignerError(f"the program {shown} signed something else than it was given")
        return done.stdout
