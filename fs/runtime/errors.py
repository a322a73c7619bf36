"""The root of every package's errors.

A package derives one class for each thing a caller can act on (malformed, not trusted, absent, corrupt, refused,
unreachable, locked) and sets the two class attributes; nothing else decides about retries or exit codes.
"""

from typing import ClassVar

from fs.runtime.exits import Exit


class UnpackdError(Exception):
    """An error with a clear message for a person, an exit code, and a word about retries."""

    exit: ClassVar[Exit] = Exit.FAILED
    transient: ClassVar[bool] = False
    """True if trying the same again, later, can help. Retry code asks nothing else."""


class UsageError(UnpackdError):
    """What the user asked for makes no sense; the message says what would."""

    exit = Exit.USAGE
