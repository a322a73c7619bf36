"""The queue between watcher and workers: which address, which options, and the one that is brought along.

The queue is never trusted with anything: a message is the number of a job, and the job database decides what it means.
So a broker may lose everything and may deliver twice.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from converter.errors import BrokerError

_SCHEMES = ("redis", "rediss", "redis+socket", "amqp", "amqps", "filesystem")
_CONNECT_TIMEOUT_S = 5
_SOCKET_TIMEOUT_S = 30
_POLLING_INTERVAL_S = 0.05
_MAX_SOCKET_PATH = 100  # of 107 bytes that Linux allows; redis makes a temporary name beside it


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """What Celery needs to know to reach a broker."""

    url: str
    options: dict[str, object]


def broker_address(url: str, *, deadline_s: float) -> BrokerAddress:
    """Address and transport options of the broker at *url*.

    Redis gives a message out again when it was not acknowledged for the visibility time-out. That time is longer than
    any conversion may take, so that nothing runs twice for nothing; lost workers are found by their heartbeat instead.
    The sweep that looks for such messages runs every second instead of every hundred.

    Args:
        url: ``filesystem:///DIRECTORY`` keeps the queue in files of one machine; the rest is as Celery has it.
        deadline_s: longest time of one conversion.

    Raises:
        BrokerError: the scheme is not known, or the directory cannot be made.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise BrokerError(f"the broker's address starts with {scheme!r}; known are {', '.join(_SCHEMES)}")
    if scheme == "filesystem":
        return BrokerAddress("filesystem://", _folders(Path(rest)))
    if scheme.startswith("redis"):
        options: dict[str, object] = {
            "visibility_timeout": int(deadline_s) + 600,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            "socket_timeout": _SOCKET_TIMEOUT_S,
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        }
        return BrokerAddress(url, options)
    return BrokerAddress(url, {"confirm_publish": True})


def _folders(directory: Path) -> dict[str, object]:
    queue, control = directory / "queue", directory / "control"
    try:
        for folder in (queue, control):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerError(f"the queue's directory {directory} cannot be made: {error}") from error
    return {
        "data_folder_in": str(queue),
        "data_folder_out": str(queue),
        "control_folder": str(control),
        "polling_interval": _POLLING_INTERVAL_S,
    }


@dataclass(frozen=True, slots=True)
class EmbeddedBroker:
    """A broker for one machine: a private redis-server, or files where that program is not installed."""

    url: str
    command: tuple[str, ...] | None = None  # what has to run; None for files
    socket: Path | None = None
    temporary: Path | None = None  # a directory to remove at the end

    def remove(self) -> None:
        """Remove what was made for this run."""
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        if self.temporary is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)


def embedded_broker(directory: Path, *, program: str = "redis-server") -> EmbeddedBroker:
    """The broker that is brought along, with its files in *directory*.

    Redis listens on a unix socket in a directory that nobody else can enter, and on no port. It keeps nothing: after a
    restart the jobs are sent again from the database.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    redis = shutil.which(program)
    if redis is None:
        return EmbeddedBroker(f"filesystem://{directory.absolute()}")
    for old in directory.glob("redis.*.sock"):
        old.unlink(missing_ok=True)
    temporary = None
    socket = directory.absolute() / f"redis.{os.getpid()}.sock"  # an older server may still be ending, and remove its
    if len(bytes(socket)) > _MAX_SOCKET_PATH:
        temporary = Path(tempfile.mkdtemp(prefix="unpackd-"))
        socket = temporary / "redis.sock"
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--dir": str(directory.absolute()),
        "--save": "",
        "--appendonly": "no",
        "--daemonize": "no",
        "--loglevel": "warning",
        "--logfile": str(directory.absolute() / "redis.log"),
    }
    command = (redis, *(word for option in options.items() for word in option))
    return EmbeddedBroker(f"redis+socket://{socket}", command, socket, temporary)
