import grpc
import pytest

from snapshotter import errors
from snapshotter.statuses import status_of


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
