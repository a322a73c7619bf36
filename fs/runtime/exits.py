"""Exit codes: the contract of the command line with scripts."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit status says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PARTIAL = 3
    ABSENT = 10
    LOCKED = 11
    CORRUPT = 12
    UNREACHABLE = 13
    INTERRUPTED = 130
