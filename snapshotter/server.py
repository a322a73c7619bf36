"""The snapshotter as a process: state directory, socket, signals."""

import os
import signal
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import anyio
import grpc
import structlog

from fs.client.metrics import Listener, listen_for_metrics, serve_metrics
from snapshotter._proto import snapshots_pb2_grpc as stubs
from snapshotter.config import RootForm, SnapshotterSettings
from snapshotter.cvmfs import CvmfsLayers
from snapshotter.directories import Directories
from snapshotter.errors import ConfigurationError, StateLockedError
from snapshotter.figures import Figures
from snapshotter.metastore import Metastore
from snapshotter.mounts import OverlayTraits
from snapshotter.operations import Snapshotter
from snapshotter.pinning import Pinner
from snapshotter.repositories import Member, Repositories
from snapshotter.root_images import RootImages, decide
from snapshotter.service import SnapshotsService
from snapshotter.snapshots import LayerSource
from snapshotter.start_profiles import ProfiledLayers

_log = structlog.get_logger()
MESSAGE_LIMIT_BYTES = 16 * 1024 * 1024  # containerd's own limit in both directions
_SOCKET_PATH_LIMIT = 107  # sun_path, with the byte that ends it
_CALLS_AT_ONCE = 1024
_GRACE_S = 5.0
_WHOLE_ID_RANGE = ["0", "0", str(2**32 - 1)]


async def serve(settings: SnapshotterSettings) -> None:
    """Serve until SIGTERM or SIGINT.

    The repository is not looked at: a snapshotter starts without it, and says UNAVAILABLE where it is needed.

    Raises:
        StateLockedError: another snapshotter uses the directory or the socket.
        StateError: the directory cannot be used as it is.
        ConfigurationError: a path cannot be used.
    """
    directories = Directories(settings.root)
    with directories.lock():
        metastore = Metastore(directories.metadata)
        try:
            traits = overlay_traits()
            decision = decide(settings.rootfs, directories.scratch, traits)
            layers = repositories_of(settings, decision.form)
            decision.store(directories.form)
            _log.info("root_file_systems", form=str(decision.form), reason=decision.reason)
            images = RootImages(directories, layers, clock=time.monotonic)
            native = decision.form is RootForm.EROFS
            with metastore.reading() as rows:
                images.restore(rows.roots_in_use() if native else ())
            figures = Figures()

            def in_use() -> Mapping[LayerSource, str]:
                with metastore.reading() as rows:
                    return rows.sources_in_use()

            pinner = Pinner(settings.root, layers, in_use)
            snapshotter = Snapshotter(
                directories=directories,
                metastore=metastore,
                layers=layers,
                traits=traits,
                now_ns=time.time_ns,
                images=images if native else None,
                pinner=pinner,
                figures=figures,
                count_served=settings.count_served,
            )

            async def text() -> str:
                return figures.exposition(
                    await pinner.reads(), mounted_images=images.count, doomed_trees=pinner.doomed_count
                )

            listener = await _metrics_listener(settings.metrics)
            async with anyio.create_task_group() as group:
                group.start_soon(pinner.run)
                if listener is not None:
                    group.start_soon(serve_metrics, listener, text)
                await _listen(SnapshotsService(snapshotter, figures), settings)
                group.cancel_scope.cancel()
        finally:
            metastore.close()


def repositories_of(settings: SnapshotterSettings, form: RootForm) -> Repositories:
    """The repositories that are configured, not looked at, for containers that get root file systems in *form*."""

    def member(name: str, mountpoint: Path, prefixes: tuple[str, ...], *, by_layer_digest: bool) -> Member:
        plain = CvmfsLayers(mountpoint, timeout_s=settings.layer_timeout_s, by_layer_digest=by_layer_digest)
        layers = ProfiledLayers(plain, mountpoint, form) if settings.start_profiles else plain
        return Member(name=name, mountpoint=mountpoint, layers=layers, prefixes=prefixes)

    members: list[Member] = []
    if settings.mountpoint is not None:
        members.append(member("", settings.mountpoint, (), by_layer_digest=settings.by_layer_digest))
    members += [
        member(one.label, one.mountpoint, one.prefixes, by_layer_digest=one.by_layer_digest)
        for one in settings.repositories
    ]
    return Repositories(members)


async def _metrics_listener(address: str) -> Listener | None:
    if not address:
        return None
    host, _, port = address.rpartition(":")
    return await listen_for_metrics(host.strip("[]"), int(port))


def overlay_traits() -> OverlayTraits:
    """What overlay mounts need on this machine."""
    ids = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
    return OverlayTraits(
        index_off=Path("/sys/module/overlay/parameters/index").exists(),
        userxattr=ids != _WHOLE_ID_RANGE,
    )


async def _listen(service: SnapshotsService, settings: SnapshotterSettings) -> None:
    address = settings.address
    make_way(address)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=_CALLS_AT_ONCE,
        options=(
            ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
            ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
        ),
    )
    stubs.add_SnapshotsServicer_to_server(service, server)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        mask = os.umask(0o177)  # the socket must not be open to others for an instant
        try:
            server.add_insecure_port(f"unix:{address}")
        finally:
            os.umask(mask)
        await server.start()
        _log.info(
            "snapshotter_listening",
            address=str(address),
            root=str(settings.root),
            mountpoints=[str(mountpoint) for mountpoint in settings.mountpoints],
        )
        async for received in signals:
            _log.info("snapshotter_stopping", signal=signal.Signals(received).name)
            break
        await server.stop(_GRACE_S)
        with suppress(FileNotFoundError):
            address.unlink()


def make_way(address: Path) -> None:
    """Make the socket's directory and remove a socket that nobody listens at.

    Raises:
        StateLockedError: somebody does.
        ConfigurationError: the path is too long or something else lies there.
    """
    if len(os.fsencode(address)) > _SOCKET_PATH_LIMIT:
        raise ConfigurationError(f"{address} is too long for a socket: more than {_SOCKET_PATH_LIMIT} bytes")
    address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(address.parent.stat().st_mode) & 0o022:
        raise ConfigurationError(f"{address.parent} can be written by others than its owner: use a directory of 0700")
    try:
        status = address.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigurationError(f"{address} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(address))
        except ConnectionRefusedError:
            address.unlink()
        except OSError as error:
            raise StateLockedError(f"{address} is in use: {error}") from error
        else:
            raise StateLockedError(f"a snapshotter listens at {address} already")
