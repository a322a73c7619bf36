"""Errors as gRPC statuses: the whole table.

containerd maps the codes to its own error classes; the text is shown to users.
"""

import errno
import sqlite3

import grpc

from snapshotter.errors import (
    CannotMapError,
    HasChildrenError,
    InvalidRequestError,
    LayerUnavailableError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotterError,
    TargetAvailableError,
    WrongKindError,
)

_CODES: tuple[tuple[type[SnapshotterError], grpc.StatusCode], ...] = (
    (SnapshotNotFoundError, grpc.StatusCode.NOT_FOUND),
    (SnapshotExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (TargetAvailableError, grpc.StatusCode.ALREADY_EXISTS),
    (WrongKindError, grpc.StatusCode.FAILED_PRECONDITION),
    (CannotMapError, grpc.StatusCode.FAILED_PRECONDITION),
    (HasChildrenError, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (LayerUnavailableError, grpc.StatusCode.UNAVAILABLE),
)


def status_of(error: SnapshotterError) -> grpc.StatusCode:
    """The status code that tells *error* to containerd; INTERNAL for what is wrong on this side."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def status_of_fault(error: Exception) -> grpc.StatusCode:
    """The status code of an error that is none of ours: RESOURCE_EXHAUSTED if the disk is full, else INTERNAL."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return grpc.StatusCode.INTERNAL
