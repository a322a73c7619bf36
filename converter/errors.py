"""Every error of the package.

Messages are whole sentences that name what is wrong (the image, the layer, the entry) and what to do; data is carried
in attributes. Names out of an image are shown escaped, so that no message can steer a terminal or forge a log line.
"""

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


class SettingsError(ConverterError):
    """A configuration file or variable that cannot be used; the message names the key and its line."""

    exit = Exit.USAGE
