"""Errors of the farm: wishlists, job database, broker, the stack of one machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from converter.errors import ConverterError
from fs.runtime.exits import Exit


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
