"""Whitelists in PKCS#7 form, publishers that authorities certify, and blacklists."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import BlacklistedError, FsError, MalformedError, NotTrustedError
from fs.format.authorities import Authorities
from fs.format.blacklist import Blacklist
from fs.format.hashes import Algorithm, Hash
from fs.format.pkcs7 import SignedMessage
from fs.format.signature import sign_text
from fs.format.trust import TrustedWhitelist
from fs.format.whitelist import Whitelist, encode_fingerprint
from fs.publish.signers import Digest, KeySigner
from tests.support.authorities import NOW, Certified, authority

NAME = "sw.example.org"


@dataclass
class Makers:
    """Who certifies whom, made once for the module."""

    root: Certified
    middle: Certified
    signer: Certified  # for the whitelist of NAME
    publisher: Certified

    def authorities(self, *lists: bytes) -> Authorities:
        return Authorities.parse([self.root.pem, *lists])

    def whitelist(self, *, lines: str = "Vpkcs7\n", hours: int = 24, name: str = NAME) -> bytes:
        known = Hash.of(self.publisher.der)
        text = Whitelist(issued=NOW, expires=NOW + timedelta(hours=hours), name=name, fingerprints=(known,)).encode()
        head, body = text.split(f"N{name}\n".encode())
        return head + f"N{name}\n{lines}".encode() + body

    def verify(self, pkcs7: bytes, authorities: Authorities | None = None) -> TrustedWhitelist:
        believed = self.authorities() if authorities is None else authorities
        unsigned = self.whitelist() + b"--\n"
        return TrustedWhitelist.verify(unsigned, name=NAME, keys=(), now=NOW, authorities=believed, pkcs7=pkcs7)


@pytest.fixture(scope="module")
def makers() -> Makers:
    root = authority()
    middle = root.certify("Middle", is_authority=True)
    return Makers(root, middle, middle.certify("Signer", uri=f"cvmfs:{NAME}"), middle.certify("Publisher"))


def test_a_whitelist_that_is_enclosed_and_certified_for_the_repository_holds(makers: Makers) -> None:
    message = makers.signer.enclose(makers.whitelist(), others=[makers.middle.certificate])

    assert makers.verify(message).certificate(makers.publisher.pem).name == NAME


def test_a_message_without_its_text_is_none(makers: Makers) -> None:
    with pytest.raises(MalformedError, match="enclose"):
        makers.verify(makers.signer.enclose(makers.whitelist(), whole=False))


def test_an_enclosed_whitelist_is_checked_like_any_other(makers: Makers) -> None:
    others = [makers.middle.certificate]
    with pytest.raises(NotTrustedError, match="expired"):
        makers.verify(makers.signer.enclose(makers.whitelist(hours=-1), others=others))
    with pytest.raises(NotTrustedError, match=r"of other\.example\.org"):
        makers.verify(makers.signer.enclose(makers.whitelist(name="other.example.org"), others=others))


def test_nobody_is_believed_unless_it_was_said_whom(makers: Makers) -> None:
    with pytest.raises(NotTrustedError, match="--ca-dir"):
        makers.verify(makers.signer.enclose(makers.whitelist()), Authorities())


def test_a_signer_must_be_certified_by_who_is_believed(makers: Makers) -> None:
    message = makers.signer.enclose(makers.whitelist(), others=[makers.middle.certificate])
    with pytest.raises(NotTrustedError, match="not certified"):
        makers.verify(message, Authorities.parse([authority("Root").pem]))
    with pytest.raises(NotTrustedError, match="not certified"):
        makers.verify(makers.signer.enclose(makers.whitelist()))  # the one in the middle is not there


def test_a_signer_must_be_certified_for_this_repository(makers: Makers) -> None:
    others = [makers.middle.certificate]
    for uri in (None, "cvmfs:other.example.org", f"cvmfs:{NAME}.evil", f"https:{NAME}"):
        signer = makers.middle.certify("Signer", uri=uri, key=makers.signer.key)
        with pytest.raises(NotTrustedError, match=f"cvmfs:{NAME}"):
            makers.verify(signer.enclose(makers.whitelist(), others=others))


def test_who_may_not_certify_cannot(makers: Makers) -> None:
    user = makers.middle.certify("User", key=makers.publisher.key)
    signer = user.certify("Signer", uri=f"cvmfs:{NAME}", key=makers.signer.key)
    message = signer.enclose(makers.whitelist(), others=[user.certificate, makers.middle.certificate])

    with pytest.raises(NotTrustedError, match="not certified"):
        makers.verify(message)


def test_who_has_expired_signs_nothing(makers: Makers) -> None:
    signer = makers.middle.certify("Signer", uri=f"cvmfs:{NAME}", key=makers.signer.key, days=-1)

    with pytest.raises(NotTrustedError, match="not certified"):
        makers.verify(signer.enclose(makers.whitelist(), others=[makers.middle.certificate]))


def test_revocation_lists_are_obeyed_in_every_place_of_the_chain(makers: Makers) -> None:
    message = makers.signer.enclose(makers.whitelist(), others=[makers.middle.certificate])
    of_others = makers.middle.revoke(makers.publisher.certificate)
    makers.verify(message, makers.authorities(of_others, makers.root.revoke()))

    with pytest.raises(NotTrustedError, match="CN=Signer is revoked"):
        makers.verify(message, makers.authorities(makers.middle.revoke(makers.signer.certificate)))
    with pytest.raises(NotTrustedError, match="CN=Middle is revoked"):
        makers.verify(message, makers.authorities(makers.root.revoke(makers.middle.certificate)))
    with pytest.raises(NotTrustedError, match="run out"):
        makers.verify(message, makers.authorities(makers.root.revoke(until=NOW - timedelta(hours=1))))


def test_a_revocation_list_of_somebody_else_under_that_name_is_none(makers: Makers) -> None:
    message = makers.signer.enclose(makers.whitelist(), others=[makers.middle.certificate])
    forged = Certified(makers.publisher.key, makers.root.certificate).revoke(makers.middle.certificate)

    makers.verify(message, makers.authorities(forged))


def test_a_bit_that_changes_anywhere_in_a_message_is_noticed(makers: Makers) -> None:
    import base64

    message = makers.signer.enclose(makers.whitelist(), others=[makers.middle.certificate])
    begin, end = b"-----BEGIN PKCS7-----\n", b"-----END PKCS7-----\n"
    body = base64.b64decode(message.removeprefix(begin).removesuffix(end))
    certificates = body.index(makers.middle.der), body.index(makers.signer.der)
    accepted: list[int] = []
    for position in range(0, len(body), 5):
        changed = bytearray(body)
        changed[position] ^= 1
        with suppress(FsError):
            makers.verify(begin + base64.encodebytes(bytes(changed)) + end)
            accepted.append(position)
    # what nobody signed, and decides nothing: version numbers and the list of digests that are used
    assert all(position < min(certificates) for position in accepted if position < max(certificates)), accepted
    assert len(accepted) < 12, accepted


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_errors_of_ours(body: bytes) -> None:
    import base64

    with pytest.raises(FsError):
        SignedMessage.verify(b"-----BEGIN PKCS7-----\n" + base64.encodebytes(body) + b"-----END PKCS7-----\n")
    with pytest.raises(FsError):
        SignedMessage.verify(body)
    Blacklist.parse([body])
    Authorities.parse([body])


def signed(text: bytes, key: rsa.RSAPrivateKey) -> bytes:
    """A whitelist as the owner of a master key makes it."""
    return sign_text(text, lambda data: KeySigner(key).sign(data, Digest.NONE), Algorithm.SHA1)


@pytest.fixture(scope="module")
def master() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_a_key_that_is_believed_needs_no_authority(makers: Makers, master: rsa.RSAPrivateKey) -> None:
    envelope = signed(makers.whitelist(), master)

    TrustedWhitelist.verify(envelope, name=NAME, keys=[master.public_key()], now=NOW)
    with pytest.raises(NotTrustedError, match="--ca-dir"):
        TrustedWhitelist.verify(envelope, name=NAME, keys=[makers.root.key.public_key()], now=NOW)
    with pytest.raises(MalformedError):  # authorities are asked for, and the other form is not there
        TrustedWhitelist.verify(
            envelope, name=NAME, keys=[master.public_key()], now=NOW, authorities=makers.authorities()
        )


def test_a_publisher_is_certified_where_the_whitelist_demands_it(makers: Makers, master: rsa.RSAPrivateKey) -> None:
    envelope = signed(makers.whitelist(lines="Wcachain\n"), master)

    def trusted(*files: bytes) -> TrustedWhitelist:
        return TrustedWhitelist.verify(
            envelope, name=NAME, keys=[master.public_key()], now=NOW, authorities=Authorities.parse(files)
        )

    assert trusted(makers.root.pem, makers.middle.pem).certificate(makers.publisher.pem).name == NAME
    with pytest.raises(NotTrustedError, match="--ca-dir"):
        trusted().certificate(makers.publisher.pem)
    with pytest.raises(NotTrustedError, match="not certified"):
        trusted(makers.root.pem).certificate(makers.publisher.pem)
    revoked = makers.middle.revoke(makers.publisher.certificate)
    with pytest.raises(NotTrustedError, match="is revoked"):
        trusted(makers.root.pem, makers.middle.pem, revoked).certificate(makers.publisher.pem)


def test_a_certificate_on_the_blacklist_is_refused_whatever_the_whitelist_says(
    makers: Makers, master: rsa.RSAPrivateKey
) -> None:
    envelope = signed(makers.whitelist(lines=""), master)
    trusted = TrustedWhitelist.verify(envelope, name=NAME, keys=[master.public_key()], now=NOW)
    for algorithm in Algorithm:
        line = encode_fingerprint(Hash.of(makers.publisher.der, algorithm)) + " # stolen\n"
        with pytest.raises(BlacklistedError):
            trusted.certificate(makers.publisher.pem, Blacklist.parse([line.encode()]))
    trusted.certificate(makers.publisher.pem, Blacklist.parse([encode_fingerprint(Hash(bytes(20))).encode()]))


def test_revisions_on_the_blacklist() -> None:
    blacklist = Blacklist.parse([b"<a.example.org 7\n<b.example.org\t9 # broken\n", b"\n# \n<a.example.org 5\n< c 3\n"])

    blacklist.check_revision("a.example.org", 7)
    blacklist.check_revision("other.example.org", 0)
    for name, revision in (("a.example.org", 6), ("b.example.org", 8)):
        with pytest.raises(BlacklistedError, match=str(revision)):
            blacklist.check_revision(name, revision)
    assert blacklist.unknown_lines == ("< c 3",)
