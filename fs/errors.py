"""Every error of the package.

Messages are whole sentences a person can act on; data is carried in attributes.
"""

from fs.runtime.errors import UnpackdError
from fs.runtime.exits import Exit


class FsError(UnpackdError):
    """Root of the package's errors."""


class MalformedError(FsError):
    """Bytes that are not what the format says."""

    exit = Exit.CORRUPT


class HashSyntaxError(MalformedError):
    """Text that is not the name of an object."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not an object hash")
        self.text = text


class ManifestError(MalformedError):
    """A manifest (``.cvmfspublished``) that lacks a field or has a malformed one."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"manifest field {field!r}: {reason}")
        self.field = field


class WhitelistError(MalformedError):
    """A whitelist (``.cvmfswhitelist``) that cannot be parsed."""


class CatalogError(MalformedError):
    """A file catalog that is not one, or lacks what every catalog must have."""


class NotTrustedError(FsError):
    """A signature, fingerprint, name or expiry that does not hold."""

    exit = Exit.CORRUPT


class BlacklistedError(NotTrustedError):
    """A certificate that was revoked, or a revision that must not be shown any more."""


class RollbackError(NotTrustedError):
    """A revision older than one that was seen before."""


class AbsentError(FsError):
    """An object, path, tag or repository that is not there."""

    exit = Exit.ABSENT


class CorruptError(FsError):
    """An object whose bytes do not hash to its name, or do not decompress to its size."""

    exit = Exit.CORRUPT

    def __init__(self, name: str, reason: str = "its bytes do not match its hash") -> None:
        super().__init__(f"object {name} is corrupt: {reason}")
        self.name = name


class RefusedError(FsError):
    """A request that breaks a rule of the format or a limit; the message names both."""


class MountingError(FsError):
    """The kernel refuses a mount, or what is mounted does not work."""


class UnreachableError(FsError):
    """A store that does not answer, or not in time."""

    exit = Exit.UNREACHABLE
    transient = True


class LockedError(FsError):
    """Somebody else holds the repository's lock or lease."""

    exit = Exit.LOCKED
    transient = True


class OvertakenError(FsError):
    """Somebody else changed, meanwhile, what this was built on; beginning anew helps."""

    exit = Exit.LOCKED
    transient = True


class ChangedError(OvertakenError):
    """A file that was to be put back changed after it was read; reading it again is enough."""
