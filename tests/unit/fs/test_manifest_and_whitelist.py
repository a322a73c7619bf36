from base64 import encodebytes
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes as digests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import FsError, ManifestError, NotTrustedError
from fs.format.hashes import Algorithm, Hash
from fs.format.manifest import Manifest
from fs.format.signature import SignedText, sign_text
from fs.format.trust import TrustedWhitelist, load_public_keys
from fs.format.whitelist import Whitelist
from fs.publish.signers import Digest, KeySigner

NAME = "sw.example.org"
NOW = datetime(2026, 1, 2, 3, 30, tzinfo=UTC)
NOBODY = Hash(bytes(20))

hash_values = st.builds(Hash, st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))
manifests = st.builds(
    Manifest,
    root_catalog=hash_values,
    catalog_size=st.integers(0, 2**40),
    ttl_s=st.integers(0, 10**6),
    revision=st.integers(0, 2**63),
    garbage_collectable=st.booleans(),
    aliases=st.booleans(),
    name=st.from_regex(r"[a-z0-9.-]{1,60}", fullmatch=True),
    certificate=hash_values,
    history=st.none() | hash_values,
    published_unix_s=st.integers(0, 2**40),
    metainfo=st.none() | hash_values,
    reflog=st.none() | hash_values,
)


@given(manifests)
def test_parse_inverts_encode(manifest: Manifest) -> None:
    assert Manifest.parse(manifest.encode()) == manifest


@given(st.binary(max_size=256))
def test_no_bytes_raise_anything_but_errors_of_ours(envelope: bytes) -> None:
    with suppress(FsError):
        Manifest.parse(envelope)
    with suppress(FsError):
        Whitelist.parse(envelope)
    with suppress(FsError):
        SignedText.parse(envelope)


def test_a_missing_root_catalog_is_named_in_the_error() -> None:
    text = Manifest(root_catalog=NOBODY, revision=1, name=NAME, certificate=NOBODY).encode().partition(b"\n")[2]

    with pytest.raises(ManifestError) as caught:
        Manifest.parse(text)

    assert caught.value.field == "C"


def test_unknown_fields_are_ignored_and_the_last_of_a_field_wins() -> None:
    text = Manifest(root_catalog=NOBODY, revision=1, name=NAME, certificate=NOBODY).encode()

    assert Manifest.parse(text + b"Qnew\n\nS7\n").revision == 7


class Signer:
    """A repository's keys, made once for the module."""

    def __init__(self) -> None:
        self.master = KeySigner(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
        builder = x509.CertificateBuilder(subject, subject, self.key.public_key(), 1, NOW, NOW + timedelta(days=1))
        self.certificate = builder.sign(self.key, digests.SHA256())
        self.pem = self.certificate.public_bytes(Encoding.PEM)
        public = self.master.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public_keys = load_public_keys(public)

    def whitelist(self, *, name: str = NAME, hours: int = 24, listed: bool = True) -> bytes:
        known = Hash.of(self.certificate.public_bytes(Encoding.DER)) if listed else NOBODY
        text = Whitelist(issued=NOW, expires=NOW + timedelta(hours=hours), name=name, fingerprints=(known,)).encode()
        return sign_text(text, lambda data: self.master.sign(data, Digest.NONE), Algorithm.SHA1)

    def manifest(self, *, name: str = NAME) -> bytes:
        text = Manifest(root_catalog=NOBODY, revision=3, name=name, certificate=NOBODY).encode()
        return sign_text(text, lambda data: KeySigner(self.key).sign(data, Digest.SHA1), Algorithm.SHA1)


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


def verified(signer: Signer, whitelist: bytes, *, now: datetime = NOW) -> TrustedWhitelist:
    return TrustedWhitelist.verify(whitelist, name=NAME, keys=signer.public_keys, now=now)


def test_the_whole_chain_holds(signer: Signer) -> None:
    certificate = verified(signer, signer.whitelist()).certificate(signer.pem)

    assert certificate.manifest(signer.manifest()).revision == 3


def test_a_whitelist_dies_at_the_beginning_of_its_last_hour(signer: Signer) -> None:
    whitelist = signer.whitelist(hours=1)  # until 04:30

    verified(signer, whitelist, now=NOW.replace(minute=59))
    with pytest.raises(NotTrustedError, match="expired"):
        verified(signer, whitelist, now=NOW.replace(hour=4, minute=0))


def test_what_another_key_signed_is_not_trusted(signer: Signer) -> None:
    stranger = Signer()
    certificate = verified(signer, signer.whitelist()).certificate(signer.pem)

    with pytest.raises(NotTrustedError, match="public keys"):
        verified(signer, stranger.whitelist())
    with pytest.raises(NotTrustedError, match="signature"):
        certificate.manifest(stranger.manifest())
    with pytest.raises(NotTrustedError, match="not on the whitelist"):
        verified(signer, signer.whitelist(listed=False)).certificate(signer.pem)


def test_the_name_must_be_the_repositorys_own_in_both_files(signer: Signer) -> None:
    certificate = verified(signer, signer.whitelist()).certificate(signer.pem)

    with pytest.raises(NotTrustedError, match=r"other\.example\.org"):
        verified(signer, signer.whitelist(name="other.example.org"))
    with pytest.raises(NotTrustedError, match=r"other\.example\.org"):
        certificate.manifest(signer.manifest(name="other.example.org"))


def test_a_changed_byte_anywhere_is_noticed(signer: Signer) -> None:
    envelope = signer.manifest()
    certificate = verified(signer, signer.whitelist()).certificate(signer.pem)

    for position in range(0, len(envelope), 7):
        changed = bytearray(envelope)
        changed[position] ^= 1
        with pytest.raises(FsError):
            certificate.manifest(bytes(changed))


def test_a_certificate_that_is_none_is_malformed_whatever_is_wrong_with_it(signer: Signer) -> None:
    body = bytearray(signer.certificate.public_bytes(Encoding.DER))
    trusted = verified(signer, signer.whitelist())
    for position in range(0, len(body), 3):
        changed = bytearray(body)
        changed[position] ^= 1
        pem = b"-----BEGIN CERTIFICATE-----\n" + encodebytes(changed) + b"-----END CERTIFICATE-----\n"
        with pytest.raises(FsError):
            trusted.certificate(pem)
