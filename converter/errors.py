"""Every error of the package.

Messages are whole sentences that name what is wrong (the image, the layer, the entry) and what to do; data is carried
in attributes. Names out of an image are shown escaped, so that no message can steer a terminal or forge a log line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fs.runtime.errors import UnpackdError
from fs.runtime.exits import Exit

_SHOWN_CHARACTERS = 400


def shown(name: bytes) -> str:
    """*name* for a message: UTF-8 stays as it is, everything that does not print is escaped, long names are cut."""
    text = name.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


class ConverterError(UnpackdError):
    """Root of the package's errors."""

    where: str = ""
    """What the message begins with, as far as only a caller knows it: which layer of the image."""

    def __str__(self) -> str:
        return self.where + super().__str__()


class LayerError(ConverterError):
    """A layer with an entry that cannot be part of a file tree; the message names the entry."""

    def __init__(self, reason: str, entry: bytes | None = None) -> None:
        super().__init__(reason if entry is None else f"entry '{shown(entry)}': {reason}")
        self.reason = reason
        self.entry = entry


class LimitError(LayerError):
    """A layer that exceeds a limit; the message names the limit and the variable that raises it."""


class CorruptLayerError(ConverterError):
    """A layer whose bytes are not what the image says: digest, DiffID, size, or a broken compressed stream."""

    exit = Exit.CORRUPT


class ImageRefusedError(ConverterError):
    """An image of a kind that has no file tree (or none that may be published); the message says what it is."""


class ChangeSetError(ConverterError):
    """A stored change set that cannot be read."""

    exit = Exit.CORRUPT


class RecordError(ConverterError):
    """A record about an image that cannot be read; nothing may be concluded from it."""

    exit = Exit.CORRUPT


class ImageAbsentError(ConverterError):
    """An image that the repository does not have."""

    exit = Exit.ABSENT


class NotTheImageError(ConverterError):
    """A published tree, or what is said about it, that is not what the image says."""

    exit = Exit.CORRUPT


class SourceSyntaxError(ConverterError):
    """The name of an image that makes no sense."""

    exit = Exit.USAGE


class SourceAbsentError(ConverterError):
    """A layout, archive, tag or blob that is not there."""

    exit = Exit.ABSENT


class EngineUnreachableError(ConverterError):
    """A Docker engine that does not answer."""

    exit = Exit.UNREACHABLE
    transient = True


class SourceCorruptError(ConverterError):
    """A layout or archive whose files are not what their digests say, or no such thing at all."""

    exit = Exit.CORRUPT


class ReferrerError(ConverterError):
    """A registry that does not take what refers to an image."""

    exit = Exit.UNREACHABLE
    transient = True


class ReferrerRefusedError(ConverterError):
    """A registry that does not allow to push what refers to an image."""


class SettingsError(ConverterError):
    """A configuration file or variable that cannot be used; the message names the key and its line."""

    exit = Exit.USAGE


# --- the farm: wishlists, job database, broker, the stack of one machine


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """What is wrong at one place of a wishlist. Lines and columns count from 1, columns in characters."""

    line: int
    column: int
    text: str


class WishlistError(ConverterError):
    """A wishlist with mistakes: all of them, in the order of the text."""

    exit = Exit.USAGE

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes))
        super().__init__("; ".join(f"line {m.line}, column {m.column}: {m.text}" for m in self.mistakes))

    @classmethod
    def for_other_repository(cls, wished: str, ours: str) -> Self:
        """A wishlist without other mistakes that was given to the wrong farm."""
        return cls([Mistake(1, 1, f"cvmfs_repo is {wished}, but this farm publishes into {ours}")])


class WishSyntaxError(ConverterError):
    """A name of an image that a wishlist or a request cannot use."""

    exit = Exit.USAGE


class HookError(ConverterError):
    """A notification that is none: not JSON, or not of the shape its sender documents."""


class JobStoreError(ConverterError):
    """The database of jobs cannot be used."""


class JobAbsentError(ConverterError):
    """No such job, image or wish."""

    exit = Exit.ABSENT


class BrokerError(ConverterError):
    """The broker cannot be started or its address cannot be used."""


class FarmUnreachableError(ConverterError):
    """The service that was asked does not answer."""

    exit = Exit.UNREACHABLE
    transient = True


class StackRunningError(ConverterError):
    """Another process runs the stack of the same directory."""

    exit = Exit.LOCKED


class StackError(ConverterError):
    """The stack of this machine could not be started; the message says which part and why."""


class FarmUsageError(ConverterError):
    """What was asked of the farm makes no sense; the message says what would."""

    exit = Exit.USAGE


class UploadError(ConverterError):
    """What a user sent is not what it is said to be, or cannot be taken."""


class UploadTooLargeError(UploadError):
    """There is no room for what a user wants to send."""


class ConversionFailedError(ConverterError):
    """The service could not convert the image; the message is its reason."""


class RequestRefusedError(ConverterError):
    """The service refused what was asked, with its own words."""
