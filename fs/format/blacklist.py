"""A blacklist: certificates that may sign nothing any more, and revisions that must not be shown any more.

Lines are fingerprints of certificates, as in whitelists, or ``<NAME N``: revisions of repository NAME below N are
forbidden. ``#`` begins a comment. Source: CernVM-FS 2.12, crypto/signature.cc, mountpoint.cc; CVMFS_BLACKLIST.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from fs.errors import BlacklistedError
from fs.format.hashes import Hash
from fs.format.whitelist import parse_fingerprint

_REVISION = re.compile(r"<([A-Za-z0-9._-]+)[ \t]+(\d+)[ \t]*")


@dataclass(frozen=True, slots=True)
class Blacklist:
    """What is forbidden."""

    fingerprints: frozenset[Hash] = frozenset()
    least_revisions: Mapping[str, int] = field(default_factory=dict)  # by the repository's name
    unknown_lines: tuple[str, ...] = ()  # neither; whoever meant to revoke something should know

    @classmethod
    def parse(cls, texts: Iterable[bytes]) -> Self:
        """Everything that the files *texts* forbid together."""
        fingerprints: set[Hash] = set()
        least: dict[str, int] = {}
        unknown: list[str] = []
        for line in (line for text in texts for line in text.decode("utf-8", "replace").splitlines()):
            content = line.split("#", 1)[0].strip()
            fingerprint = parse_fingerprint(content)
            revision = _REVISION.fullmatch(content)
            if fingerprint is not None:
                fingerprints.add(fingerprint)
            elif revision is not None:
                least[revision[1]] = max(int(revision[2]), least.get(revision[1], 0))
            elif content:
                unknown.append(line)
        return cls(frozenset(fingerprints), least, tuple(unknown))

    def check_certificate(self, certificate_der: bytes) -> None:
        """Raises BlacklistedError if the certificate is forbidden."""
        for one in self.fingerprints:
            if Hash.of(certificate_der, one.algorithm) == one:
                raise BlacklistedError(f"the certificate {one} is on the blacklist")

    def check_revision(self, name: str, revision: int) -> None:
        """Raises BlacklistedError if *revision* of repository *name* is forbidden."""
        least = self.least_revisions.get(name, 0)
        if revision < least:
            raise BlacklistedError(f"revision {revision} of {name} is on the blacklist: those below {least} are")
