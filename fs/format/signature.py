r"""The signed envelope that manifest and whitelist share, and the two kinds of signature in it.

``<text>--\n<hash of text>\n<raw signature>``. A manifest is signed by the certificate's key as usual (PKCS#1 v1.5
with a SHA-1 DigestInfo over the hash line); a whitelist by the master key with the hash line itself in the padding,
without DigestInfo. Source: CernVM-FS 2.12, crypto/signature.cc, manifest_fetch.cc, whitelist.cc.
"""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from fs.errors import HashSyntaxError, MalformedError, NotTrustedError
from fs.format.hashes import Algorithm, Hash

SEPARATOR = b"\n--\n"
"""Between the text of an envelope and the rest."""

Sign = Callable[[bytes], bytes]
"""Gives the signature of the bytes."""


@dataclass(frozen=True, slots=True)
class SignedText:
    """An envelope taken apart; nothing is verified yet."""

    text: bytes  # everything before the separator line, its newline included
    hash_line: bytes  # what is signed: the hash as text, without newline
    signature: bytes

    @classmethod
    def parse(cls, envelope: bytes) -> "SignedText":
        """Take *envelope* apart and check that the hash line is the hash of the text.

        Raises:
            MalformedError: there is no separator or no hash line.
            NotTrustedError: the hash line is not the hash of the text.
        """
        text, separator, rest = envelope.partition(SEPARATOR)
        hash_line, newline, signature = rest.partition(b"\n")
        if not separator or not newline:
            raise MalformedError("a signed file has no separator or no hash line")
        text += b"\n"
        try:
            stated = Hash.parse(hash_line.decode("ascii"))
        except (UnicodeDecodeError, HashSyntaxError) as error:
            raise MalformedError("the hash line of a signed file is not a hash") from error
        if Hash.of(text, stated.algorithm) != stated:
            raise NotTrustedError("the text of a signed file was changed: it does not hash to its hash line")
        return cls(text, hash_line, signature)

    def encode(self) -> bytes:
        """Inverse of ``parse``."""
        return self.text + b"--\n" + self.hash_line + b"\n" + self.signature


def verify_digest_signature(signed: SignedText, key: RSAPublicKey) -> None:
    """Check a manifest's signature. Raises NotTrustedError."""
    try:
        key.verify(signed.signature, signed.hash_line, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303  # the format's
    except InvalidSignature as error:
        raise NotTrustedError("the manifest's signature is not of the certificate's key") from error


def sign_text(text: bytes, sign: Sign, algorithm: Algorithm) -> bytes:
    """The envelope of *text*, which ends in a newline.

    Args:
        text: of a manifest or a whitelist.
        sign: for a manifest, makes a usual signature with SHA-1; for a whitelist, pads what it gets and signs it bare.
        algorithm: of the hash line.
    """
    hash_line = str(Hash.of(text, algorithm)).encode()
    return SignedText(text, hash_line, sign(hash_line)).encode()


def is_raw_signature(signed: SignedText, key: RSAPublicKey) -> bool:
    """True if the whitelist envelope *signed* was made with the private half of *key*."""
    try:
        recovered = key.recover_data_from_signature(signed.signature, padding.PKCS1v15(), None)
    except (InvalidSignature, ValueError):
        return False
    return recovered == signed.hash_line
