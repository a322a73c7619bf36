"""Certificate authorities that a reader believes, and chains of certificates that end at one of them.

The files of a directory as grid middleware keeps it (``<hash>.0``, ``<hash>.r0``, ``*.pem``, ``*.crl``): certificates
and revocation lists, in PEM form, certificates also in DER. Paths are validated by the cryptography package (dates,
signatures, who may certify, how deep); names and usages of the certificates are the caller's concern. A revocation list
of an issuer in the chain is obeyed, and nothing is believed while the newest one has run out. Source: CernVM-FS 2.12,
crypto/signature.cc; CVMFS_TRUSTED_CERTS.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError

from fs.errors import NotTrustedError

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_REVOCATIONS = b"-----BEGIN X509 CRL-----"
_REVOCATIONS_END = b"-----END X509 CRL-----"
_LONGEST_CHAIN = 8

BAD_CERTIFICATE = (ValueError, x509.InvalidVersion, UnsupportedAlgorithm)
"""What reading hostile bytes as a certificate raises."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """Certificates that are believed beforehand, and what their owners revoked."""

    certificates: tuple[x509.Certificate, ...] = ()
    revocations: tuple[x509.CertificateRevocationList, ...] = ()

    @classmethod
    def parse(cls, files: Iterable[bytes]) -> Self:
        """What *files* hold; one that is neither certificates nor revocation lists is skipped."""
        certificates: list[x509.Certificate] = []
        revocations: list[x509.CertificateRevocationList] = []
        for content in files:
            try:
                if _CERTIFICATE in content:
                    certificates += x509.load_pem_x509_certificates(content)
                elif _REVOCATIONS in content:
                    blocks = content.split(_REVOCATIONS_END)[:-1]
                    revocations += [x509.load_pem_x509_crl(block + _REVOCATIONS_END + b"\n") for block in blocks]
                else:
                    certificates.append(x509.load_der_x509_certificate(content))
            except BAD_CERTIFICATE:
                continue
        return cls(tuple(dict.fromkeys(certificates)), tuple(revocations))

    def verify(
        self, certificate: x509.Certificate, others: Sequence[x509.Certificate], now: datetime, *, what: str
    ) -> None:
        """Check that a chain leads from *certificate* over some of *others* to an authority.

        Args:
            certificate: the one that signed.
            others: that may stand between, not believed.
            now: with a time zone.
            what: the subject of the sentence if it does not hold.

        Raises:
            NotTrustedError: there is no such chain, or a part of it is expired or revoked.
        """
        if not self.certificates:
            raise NotTrustedError(f"{what} is certified by authorities; say with --ca-dir whom to believe")
        policy = ExtensionPolicy.permit_all()
        of_authorities = policy.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _may_certify)
        verifier = (
            PolicyBuilder()
            .store(Store(list(self.certificates)))
            .time(now)
            .max_chain_depth(_LONGEST_CHAIN)
            .extension_policies(ca_policy=of_authorities, ee_policy=policy)
            .build_client_verifier()
        )
        try:
            chain = verifier.verify(certificate, list(others)).chain
        except (VerificationError, *BAD_CERTIFICATE) as error:
            reason = str(error).split("(", 1)[0].strip()
            raise NotTrustedError(f"{what} is not certified by an authority that is believed: {reason}") from error
        for one, issuer in pairwise(chain):
            self._check_revocation(one, issuer, now, what)

    def _check_revocation(
        self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime, what: str
    ) -> None:
        lists = [
            one
            for one in self.revocations
            if one.issuer == issuer.subject and one.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # of an issuer that was just used to verify
        ]
        if not lists:
            return
        newest = max(lists, key=lambda one: one.last_update_utc)
        if newest.next_update_utc is not None and newest.next_update_utc < now:
            name = issuer.subject.rfc4514_string()
            raise NotTrustedError(f"{what} cannot be believed now: the revocation list of {name} has run out")
        if newest.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise NotTrustedError(
                f"{what} is not certified any more: {certificate.subject.rfc4514_string()} is revoked"
            )


def _may_certify(_: object, __: object, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("a certificate in the chain may not certify others")
