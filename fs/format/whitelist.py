"""The whitelist, ``.cvmfswhitelist``: which certificates may sign a repository's manifest, and until when."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from fs.errors import HashSyntaxError, WhitelistError
from fs.format.hashes import Hash

MAX_WHITELIST_BYTES = 1 << 20
_TIME = "%Y%m%d%H%M%S"
_TIME_LENGTH = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitelist:
    """What the whitelist says."""

    issued: datetime
    expires: datetime  # UTC; the format compares whole hours
    name: str
    fingerprints: tuple[Hash, ...]  # of the DER form of certificates
    uses_pkcs7: bool = False
    demands_ca_chain: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Parse the signed text of a whitelist; lines that are no fingerprints are skipped.

        Source: CernVM-FS 2.12, whitelist.cc.

        Raises:
            WhitelistError: a time or the name is missing or malformed.
        """
        lines = text.decode("utf-8", "replace").split("\n")
        try:
            issued_text, expires_text, name_text = lines[:3]
        except ValueError as error:
            raise WhitelistError("the whitelist is shorter than its header") from error
        if expires_text[:1] != "E" or name_text[:1] != "N":
            raise WhitelistError("the whitelist's expiry or name is missing")
        found = (parse_fingerprint(line) for line in lines[3:])
        return cls(
            issued=_time(issued_text),
            expires=_time(expires_text[1:]),
            name=name_text[1:],
            fingerprints=tuple(fingerprint for fingerprint in found if fingerprint is not None),
            uses_pkcs7="Vpkcs7" in lines,
            demands_ca_chain="Wcachain" in lines,
        )

    def encode(self) -> bytes:
        """The text that is signed."""
        lines = [self.issued.strftime(_TIME), "E" + self.expires.strftime(_TIME), "N" + self.name]
        lines += [encode_fingerprint(fingerprint) for fingerprint in self.fingerprints]
        return "".join(line + "\n" for line in lines).encode()

    def is_expired(self, now: datetime) -> bool:
        """True from the beginning of the expiry's hour on; minutes and seconds do not count."""
        return _hour(now.astimezone(UTC)) >= _hour(self.expires)

    def lists(self, certificate_der: bytes) -> bool:
        """True if the fingerprint of the certificate is on the list."""
        return any(Hash.of(certificate_der, known.algorithm) == known for known in self.fingerprints)


def encode_fingerprint(fingerprint: Hash) -> str:
    """The upper-case form with colons."""
    return fingerprint.digest.hex(":").upper() + fingerprint.algorithm.value.upper()


def parse_fingerprint(line: str) -> Hash | None:
    """The fingerprint at the beginning of *line*, or None."""
    text = line.split("#", 1)[0].strip().split(" ", 1)[0].split("\t", 1)[0]
    try:
        return Hash.parse(text.replace(":", "").lower())
    except HashSyntaxError:
        return None


def _time(text: str) -> datetime:
    if len(text) != _TIME_LENGTH:
        raise WhitelistError(f"{text!r} is not a time of 14 digits")
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError as error:
        raise WhitelistError(f"{text!r} is not a time") from error


def _hour(time: datetime) -> tuple[int, int, int, int]:
    return time.year, time.month, time.day, time.hour
