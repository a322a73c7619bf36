"""Text that is enclosed and signed as PKCS#7 ``SignedData``, in PEM form: the other form of the whitelist.

Verified as RFC 5652 section 5 says, with RSA or elliptic curves and SHA-2: every signature must hold, over the signed
attributes if there are some. Who the signers are is for the caller to judge.
"""

import base64
import binascii
from dataclasses import dataclass

from asn1crypto import cms
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from fs.errors import MalformedError, NotTrustedError
from fs.format.authorities import BAD_CERTIFICATE

_BEGIN, _END = b"-----BEGIN PKCS7-----", b"-----END PKCS7-----"
_DIGESTS = {"sha224": hashes.SHA224(), "sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}
_SET = b"\x31"
_DAMAGED = (
    *BAD_CERTIFICATE,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
)
"""What a parser of hostile bytes raises."""


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """What was enclosed, and the certificates of all who signed it; their signatures hold."""

    content: bytes
    signers: tuple[x509.Certificate, ...]
    others: tuple[x509.Certificate, ...]  # that came along

    @classmethod
    def verify(cls, pem: bytes) -> "SignedMessage":
        """Take *pem* apart and check every signature.

        Raises:
            MalformedError: it is no signed message that encloses its content.
            NotTrustedError: nobody signed it, a signature does not hold, or by an algorithm that proves nothing.
        """
        try:
            return cls._verify(_body(pem))
        except _DAMAGED as error:
            raise MalformedError(f"a PKCS#7 message cannot be read: {error}") from error

    @classmethod
    def _verify(cls, body: bytes) -> "SignedMessage":
        outer = cms.ContentInfo.load(body, strict=True)
        if outer["content_type"].native != "signed_data":
            raise MalformedError("a PKCS#7 message is not signed")
        inner = outer["content"]
        if inner["encap_content_info"]["content_type"].native != "data":
            raise MalformedError("a PKCS#7 message encloses something else than plain data")
        content = inner["encap_content_info"]["content"].native
        if not isinstance(content, bytes):
            raise MalformedError("a PKCS#7 message does not enclose what it signs")
        certificates = [x509.load_der_x509_certificate(one.chosen.dump()) for one in inner["certificates"]]
        signers = tuple(_signer(info, content, certificates) for info in inner["signer_infos"])
        if not signers:
            raise NotTrustedError("nobody signed a PKCS#7 message")
        return cls(content, signers, tuple(one for one in certificates if one not in signers))


def _body(pem: bytes) -> bytes:
    _, begin, rest = pem.partition(_BEGIN)
    text, end, _ = rest.partition(_END)
    if not begin or not end:
        raise MalformedError("a PKCS#7 message is not in PEM form")
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise MalformedError("a PKCS#7 message is not in PEM form") from error


def _signer(info: cms.SignerInfo, content: bytes, certificates: list[x509.Certificate]) -> x509.Certificate:
    """The certificate of whom *info* tells, if the signature holds."""
    certificate = next((one for one in certificates if _is_meant(info["sid"], one)), None)
    if certificate is None:
        raise NotTrustedError("a PKCS#7 message comes without the certificate of who signed it")
    algorithm = info["digest_algorithm"]["algorithm"].native
    digest = _DIGESTS.get(algorithm)
    if digest is None:
        raise NotTrustedError(f"a PKCS#7 message is signed with {algorithm}, which proves nothing")
    signed = content
    if info["signed_attrs"]:
        signed = _signed_attributes(info, content, digest)
    key = certificate.public_key()
    try:
        if isinstance(key, rsa.RSAPublicKey) and info["signature_algorithm"].signature_algo == "rsassa_pkcs1v15":
            key.verify(info["signature"].native, signed, padding.PKCS1v15(), digest)
        elif isinstance(key, ec.EllipticCurvePublicKey) and info["signature_algorithm"].signature_algo == "ecdsa":
            key.verify(info["signature"].native, signed, ec.ECDSA(digest))
        else:
            raise NotTrustedError("a PKCS#7 message is signed by an algorithm that is not known here")
    except InvalidSignature as error:
        raise NotTrustedError("a signature of a PKCS#7 message does not hold") from error
    return certificate


def _signed_attributes(info: cms.SignerInfo, content: bytes, digest: hashes.HashAlgorithm) -> bytes:
    """What is signed instead of *content*, after a check that it stands for it."""
    hasher = hashes.Hash(digest)
    hasher.update(content)
    stated: dict[str, list[object]] = {}
    for attribute in info["signed_attrs"]:
        name = attribute["type"].native
        if name in stated:
            raise NotTrustedError("a PKCS#7 message has an attribute twice")
        stated[name] = [value.native for value in attribute["values"]]
    if stated.get("message_digest") != [hasher.finalize()] or stated.get("content_type") != ["data"]:
        raise NotTrustedError("the text of a PKCS#7 message was changed: it is not what was signed")
    encoded: bytes = info["signed_attrs"].dump()
    return _SET + encoded[1:]  # signed as a set, sent under a tag of its own


def _is_meant(identifier: cms.SignerIdentifier, certificate: x509.Certificate) -> bool:
    if identifier.name == "issuer_and_serial_number":
        named = identifier.chosen
        return (
            bool(named["serial_number"].native == certificate.serial_number)
            and named["issuer"].dump() == certificate.issuer.public_bytes()
        )
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return False
    return bool(identifier.native == extension.value.digest)


def names_of(certificate: x509.Certificate) -> list[str]:
    """The URIs among the subject's alternative names."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.UniformResourceIdentifier)
