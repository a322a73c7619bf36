"""``unpackd up``: the whole service on one machine, as processes that one supervisor keeps running."""

import fcntl
import http.client
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import structlog

from converter.broker import EmbeddedBroker, embedded_broker
from converter.config import FILE_VARIABLE
from converter.errors import FarmUsageError, StackError, StackRunningError, WishlistError
from converter.farm_config import FarmSettings, sqlite_url
from converter.farm_database import FarmDatabase
from converter.processes import ChildProgram, Supervisor, wait_for
from converter.wishlist import parse_wishlist
from converter.wishlist_file import read_wishlist
from fs.errors import AbsentError
from fs.publish.published import read_manifest
from fs.publish.repository import Repository
from fs.store.local import LocalStore

_log = structlog.get_logger()

DEFAULT_NAME = "unpacked.local"
DATABASE = "farm.sqlite"
STORAGE, KEYS, UPLOADS = "storage", "keys", "uploads"
_LOCK, _BROKER = "lock", "broker"
_POLL_INTERVAL_S = "15"
_START_TIMEOUT_S = 60.0
_LOOK_INTERVAL_S = 0.2
_RESIGN_INTERVAL_S = 86400.0  # a whitelist is valid for thirty days
_PREFIX = "UNPACKD_CONVERTER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Where everything of a stack is."""

    directory: Path
    name: str
    url: str

    @property
    def repository_url(self) -> str:
        """What clients mount."""
        return f"{self.url}/cvmfs/{self.name}"

    @property
    def public_key(self) -> Path:
        """What clients trust."""
        return self.directory / KEYS / f"{self.name}.pub"

    @property
    def mount_command(self) -> str:
        """Ready to be pasted."""
        where = f"/cvmfs/{self.name}"
        return (
            f"mkdir -p {where} && unpackd mount {self.name} {where} --url {self.repository_url} "
            f"--pubkey {shlex.quote(str(self.public_key))}"
        )

    def as_json(self) -> dict[str, str]:
        """The facts by name."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "url": self.url,
            "api": f"{self.url}/api/v1/images",
            "repository": self.repository_url,
            "hook_distribution": f"{self.url}/hooks/distribution",
            "hook_harbor": f"{self.url}/hooks/harbor",
            "public_key": str(self.public_key),
            "mount_command": self.mount_command,
        }


def default_directory() -> Path:
    """Where a stack is if nobody says otherwise."""
    return Path("/var/lib/unpackd") if os.geteuid() == 0 else Path("~/.local/share/unpackd").expanduser()


def repository_name(directory: Path) -> str | None:
    """Name of the repository in a stack's directory; None if there is none yet."""
    try:
        return read_manifest(LocalStore(directory / STORAGE)).name
    except AbsentError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What the command line says, and the settings of the farm. Its repository is in the directory."""

    directory: Path
    name: str | None
    farm: FarmSettings
    config: Path | None = None  # for the processes that are started


class Up:
    """One run. The lock is held from the first line to the last."""

    def __init__(self, options: UpOptions) -> None:
        self._options = options
        self._directory = options.directory.absolute()
        self._farm = options.farm
        self._told_to_stop = False

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """The stack, running and answering; ended when the block ends.

        Raises:
            WishlistError: the wishlist has mistakes, or is for another repository.
            StackRunningError: the directory is in use.
            StackError: the address is taken, or a part does not start.
            JobStoreError: the job database cannot be used.
        """
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        with ExitStack() as blocks:
            blocks.enter_context(_locked(self._directory / _LOCK))
            name = self._choose_name()
            bound = blocks.enter_context(listener(self._farm.listen))
            repository = self._repository(name)
            blocks.enter_context(self._signals())
            broker = self._broker()
            if broker is not None:
                blocks.callback(broker.remove)
            is_set = "database_url" in self._farm.model_fields_set
            FarmDatabase(self._farm.database_url if is_set else sqlite_url(self._directory / DATABASE)).close()
            supervisor = Supervisor()
            blocks.callback(supervisor.stop)
            stack = Stack(directory=self._directory, name=name, url=_url(self._farm.listen, bound))
            self._start(supervisor, stack, broker, bound)
            self._supervisor, self._repository_open = supervisor, repository
            self._wait_until_it_answers(supervisor, bound)
            yield stack

    def run(self) -> None:
        """Keep the running stack running until SIGINT, SIGTERM or SIGHUP."""
        next_signature = time.monotonic() + _RESIGN_INTERVAL_S
        while not self._told_to_stop:
            self._supervisor.look_after()
            if time.monotonic() > next_signature:
                next_signature += _RESIGN_INTERVAL_S
                self._repository_open.resign()
            time.sleep(_LOOK_INTERVAL_S)

    def _choose_name(self) -> str:
        """That of the repository that is there; else what was asked for, what the wishlist says, or the default."""
        existing, asked = repository_name(self._directory), self._options.name
        if existing is not None and asked is not None and existing != asked:
            raise FarmUsageError(f"the repository in {self._directory} is {existing}, not {asked}")
        wished = None
        if self._farm.wishlist is not None:
            wished = parse_wishlist(read_wishlist(self._farm.wishlist)).repository
        name = existing or asked or wished or DEFAULT_NAME
        if wished is not None and wished != name:
            raise WishlistError.for_other_repository(wished, name)
        return name

    def _repository(self, name: str) -> Repository:
        storage, keys = self._directory / STORAGE, self._directory / KEYS
        if repository_name(self._directory) is None:
            _log.info("repository created", repository=name, storage=str(storage))
            return Repository.create(name, str(storage), keys)
        repository = Repository.open(name, str(storage), keys)
        repository.resign()
        return repository

    def _broker(self) -> EmbeddedBroker | None:
        """The one that is brought along, unless the settings name another."""
        return None if "broker_url" in self._farm.model_fields_set else embedded_broker(self._directory / _BROKER)

    def _start(self, supervisor: Supervisor, stack: Stack, broker: EmbeddedBroker | None, bound: socket.socket) -> None:
        environment = {
            "UNPACKD_REPO": stack.name,
            "UNPACKD_STORAGE": str(self._directory / STORAGE),
            "UNPACKD_KEYS": str(self._directory / KEYS),
            **self._unless_set("database_url", sqlite_url(self._directory / DATABASE)),
            **self._unless_set("poll_interval_s", _POLL_INTERVAL_S),
            **self._unless_set("upload_directory", str(self._directory / UPLOADS)),
        }
        if self._options.config is not None:
            environment[FILE_VARIABLE] = str(self._options.config.absolute())
        if broker is not None:
            environment[f"{_PREFIX}BROKER_URL"] = broker.url
            if broker.command is not None and broker.socket is not None:
                supervisor.start(ChildProgram(name="redis", command=broker.command))
                if not wait_for(broker.socket, _START_TIMEOUT_S):
                    raise StackError(f"{broker.command[0]} did not start; see {self._directory / _BROKER}/redis.log")
        wishlist = () if self._farm.wishlist is None else ("--wishlist", str(self._farm.wishlist.absolute()))
        web = _program("web", "--listen", f"fd://{bound.fileno()}")
        supervisor.start(ChildProgram(name="web", command=web, environment=environment, descriptors=(bound.fileno(),)))
        supervisor.start(
            ChildProgram(name="worker", command=_program("worker"), environment=environment, stop_signal=signal.SIGQUIT)
        )
        supervisor.start(ChildProgram(name="watch", command=_program("watch", *wishlist), environment=environment))

    def _unless_set(self, key: str, value: str) -> dict[str, str]:
        return {} if key in self._farm.model_fields_set else {_PREFIX + key.upper(): value}

    def _wait_until_it_answers(self, supervisor: Supervisor, bound: socket.socket) -> None:
        host, port = bound.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # what it listens at is the user's choice
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _answers(host, port):
            gone = supervisor.has_failed()
            if self._told_to_stop:
                raise KeyboardInterrupt
            if gone is not None or time.monotonic() > deadline:
                raise StackError(f"{gone or 'the web process'} does not run; its words are above")
            time.sleep(_LOOK_INTERVAL_S / 2)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def told(_number: int, _frame: FrameType | None) -> None:
            self._told_to_stop = True

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, told) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The directory is ours; the file says whose it is. The lock ends with this process, however it ends."""
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            owner = stream.read(32).strip() or "unknown"
            raise StackRunningError(f"{path.parent} is in use by another unpackd up (pid {owner})") from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


@contextmanager
def listener(listen: str) -> Iterator[socket.socket]:
    """A socket bound to *listen*; the web process starts to listen, so that nobody is kept waiting before."""
    host, port = parse_listen(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StackError(f"cannot listen at {listen}: {error.strerror or error}") from error
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as error:
            raise StackError(f"cannot listen at {listen}: {error.strerror}") from error
        yield bound


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[ADDRESS]:PORT``.

    Raises:
        FarmUsageError: it is of another form.
    """
    host, colon, port = listen.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_number = port.isascii() and port.isdigit() and int(port) < 1 << 16
    if not (colon and bare and is_number) or (":" in host and bare == host):
        raise FarmUsageError(f"{listen!r} is no address to listen at: write HOST:PORT")
    return bare, int(port)


def _url(listen: str, bound: socket.socket) -> str:
    """The address as other programs write it: with the port that was taken, and a name instead of "everywhere"."""
    host = listen.rpartition(":")[0]
    if host in ("0.0.0.0", "[::]"):  # noqa: S104  # what it listens at is the user's choice
        host = socket.gethostname()
    return f"http://{host}:{bound.getsockname()[1]}"


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def _program(*words: str) -> list[str]:
    """This command in a process of its own; ``-P`` keeps the working directory out of Python's path."""
    return [sys.executable, "-P", "-m", "unpackd", *words]
