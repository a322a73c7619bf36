"""Every error of the package. ``statuses.py`` holds what each one is on the wire."""

from fs.runtime.errors import UnpackdError
from fs.runtime.exits import Exit


class SnapshotterError(UnpackdError):
    """Root of the package's errors."""


class SnapshotNotFoundError(SnapshotterError):
    """A key, name or parent that no snapshot has."""

    exit = Exit.ABSENT

    def __init__(self, name: str, *, role: str = "snapshot") -> None:
        super().__init__(f"{role} {name!r} does not exist")
        self.name = name


class SnapshotExistsError(SnapshotterError):
    """A key or name that is in use."""

    def __init__(self, name: str) -> None:
        super().__init__(f"snapshot {name!r} exists already")
        self.name = name


class TargetAvailableError(SnapshotterError):
    """The good answer to Prepare for a layer that is served from the repository: nothing needs to be fetched."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"target snapshot {reference!r} is available")
        self.reference = reference


class WrongKindError(SnapshotterError):
    """An operation that this kind of snapshot does not have."""


class HasChildrenError(SnapshotterError):
    """Removal of a snapshot on which others stand."""

    def __init__(self, name: str) -> None:
        super().__init__(f"cannot remove snapshot {name!r}: it is the parent of another one")
        self.name = name


class InvalidRequestError(SnapshotterError):
    """A request that no state of the snapshotter could fulfil."""

    exit = Exit.USAGE


class FilterSyntaxError(InvalidRequestError):
    """Text that is not a filter."""

    def __init__(self, text: str, reason: str, position: int) -> None:
        super().__init__(f"filter {text!r}: {reason} at character {position}")
        self.position = position


class LayerUnavailableError(SnapshotterError):
    """A layer in the repository that cannot be read now."""

    exit = Exit.UNREACHABLE
    transient = True

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"layer {path} cannot be read from the repository: {reason}")
        self.path = path
        self.reason = reason


class CannotMapError(SnapshotterError):
    """A container with mapped IDs over a file system whose owners cannot be mapped."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the container's IDs cannot be mapped: {reason}; mount the repository with --frontend wire on Linux 6.12"
            " or newer, or take the capability remap-ids out of containerd's configuration",
        )


class StateError(SnapshotterError):
    """The snapshotter's own directory is not in a state in which it may be used."""


class StateLockedError(SnapshotterError):
    """Another snapshotter uses the directory or the socket."""

    exit = Exit.LOCKED


class ConfigurationError(SnapshotterError):
    """A configuration file or setting that cannot be used."""

    exit = Exit.USAGE


class ContainerdError(SnapshotterError):
    """containerd refused a call."""


class ContainerdAbsentError(ContainerdError):
    """containerd does not have what was asked for."""

    exit = Exit.ABSENT


class ContainerdUnreachableError(ContainerdError):
    """No containerd answers at the socket, or not in time."""

    exit = Exit.UNREACHABLE
    transient = True


class PullError(SnapshotterError):
    """An image that cannot be pulled as it is."""


class LayerMismatchError(PullError):
    """A layer that does not unpack to what the image's config says."""

    exit = Exit.CORRUPT
