import errno
import sqlite3

import grpc
import pytest

from snapshotter import errors
from snapshotter.statuses import status_of, status_of_fault


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SnapshotNotFoundError("n"), grpc.StatusCode.NOT_FOUND),
        (errors.SnapshotExistsError("n"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.TargetAvailableError("n"), grpc.StatusCode.ALREADY_EXISTS),
        (errors.WrongKindError("n"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.HasChildrenError("n"), grpc.StatusCode.FAILED_PRECONDITION),
        (errors.InvalidRequestError("n"), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.FilterSyntaxError("n", "r", 1), grpc.StatusCode.INVALID_ARGUMENT),
        (errors.LayerUnavailableError("p", "r"), grpc.StatusCode.UNAVAILABLE),
        (errors.StateError("s"), grpc.StatusCode.INTERNAL),
    ],
)
def test_the_table(error: errors.SnapshotterError, code: grpc.StatusCode) -> None:
    assert status_of(error) is code


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_resource_exhausted(number: int) -> None:
    assert status_of_fault(OSError(number, "full")) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_full_database_is_resource_exhausted_and_other_faults_are_internal() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("CREATE TABLE t (x)")

    assert status_of_fault(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status_of_fault(OSError(errno.EIO, "broken")) is grpc.StatusCode.INTERNAL
    assert status_of_fault(ValueError()) is grpc.StatusCode.INTERNAL
