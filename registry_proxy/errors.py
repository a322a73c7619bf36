"""Every error of the package.

Messages are whole sentences a person can act on; hosts are named, secrets and signed queries never are.
"""

from fs.runtime.errors import UnpackdError, UsageError
from fs.runtime.exits import Exit


class ProxyError(UnpackdError):
    """Root of the package's errors."""


class ReferenceSyntaxError(ProxyError):
    """Text that is not the name of an image."""

    exit = Exit.USAGE

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text!r} is not an image reference: {reason}")
        self.text = text


class DigestSyntaxError(ProxyError):
    """Text that is not a digest."""

    exit = Exit.CORRUPT

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:200]!r} is not a digest such as sha256:<64 hex digits>")
        self.text = text


class PlatformSyntaxError(ProxyError):
    """Text that is not a platform."""

    exit = Exit.USAGE

    def __init__(self, text: str) -> None:
        super().__init__(f"{text!r} is not a platform such as linux/amd64")
        self.text = text


class ManifestError(ProxyError):
    """A manifest, index or config that is malformed, ambiguous or larger than its limit."""

    exit = Exit.CORRUPT


class UnsupportedManifestError(ProxyError):
    """Something a registry keeps that is not an image, or an image of a kind that is not supported."""


class UnreachableError(ProxyError):
    """A registry that does not answer, not in time, or says that it cannot answer now."""

    exit = Exit.UNREACHABLE
    transient = True


class RateLimitedError(UnreachableError):
    """A registry that wants fewer requests; ``retry_after_s`` is its own word, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AbsentError(ProxyError):
    """A repository, tag, manifest or blob that the registry does not have."""

    exit = Exit.ABSENT


class PlatformAbsentError(AbsentError):
    """An index without an image for the platform that was asked for."""


class DeniedError(ProxyError):
    """A registry that refuses: no credentials, wrong ones, or not enough rights."""


class BadAnswerError(ProxyError):
    """An answer that breaks the protocol or one of our limits: wrong encoding, unsafe redirect, too large."""

    exit = Exit.CORRUPT


class RangeError(BadAnswerError):
    """A registry that does not give the part of a blob that was asked for."""


class DigestMismatchError(ProxyError):
    """Bytes that are not what their digest says, or not as many as announced."""

    exit = Exit.CORRUPT


class CredentialsError(ProxyError):
    """A credential file or helper that cannot be used."""


class ConfigError(UsageError):
    """A configuration file with a mistake; the message says where."""


class CacheError(ProxyError):
    """A cache directory that cannot be used."""


class CacheLockedError(CacheError):
    """A cache directory that another process uses."""

    exit = Exit.LOCKED
    transient = True


class NoRoomError(ProxyError):
    """A blob that cannot be stored; it can still be passed through."""


class AbandonedError(ProxyError):
    """A download that nobody read any more."""

    transient = True
