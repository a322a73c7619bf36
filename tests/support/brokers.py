"""Real brokers on ports of 127.0.0.1."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import free_port, listens, require_tool, running, wait_until

_RABBITMQ_START_S = 60.0


@contextmanager
def rabbitmq(folder: Path, port: int) -> Iterator[str]:
    """A private rabbitmq-server on *port*; gives its URL. Skips where it is not installed.

    The distribution's wrapper changes to a user of its own, so the server script of the versioned folder is run. Both
    Erlang's port mapper and its own port listen at 127.0.0.1 only.
    """
    require_tool("epmd")
    scripts = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
    if not scripts:
        pytest.skip("needs rabbitmq-server, which is not installed")
    folder.mkdir(exist_ok=True)
    mapper_port = free_port()
    settings = folder / "rabbitmq.conf"
    settings.write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n")
    environment = {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(mapper_port),
        "RABBITMQ_NODENAME": f"unpackd{port}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONFIG_FILE": str(settings),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(folder / "flags"),
    }
    mapper = ["epmd", "-port", str(mapper_port), "-address", "127.0.0.1"]
    with (
        running(mapper, folder / "epmd.log"),  # else the server leaves one behind
        running([scripts[-1]], folder / "server.log", environment=environment) as server,
    ):
        wait_until(lambda: listens(mapper_port), "the start of epmd")
        started = f"the start of rabbitmq-server (log: {folder / 'server.log'})"
        wait_until(lambda: listens(port) or server.poll() is not None, started, _RABBITMQ_START_S)
        yield f"amqp://guest:guest@127.0.0.1:{port}//"


@contextmanager
def redis_over_tcp(folder: Path, address: str = "127.0.0.1") -> Iterator[str]:
    """A private redis-server at a port of *address*; gives its URL. Skips where it is not installed."""
    require_tool("redis-server")
    folder.mkdir()
    port = free_port(address)
    command = ["redis-server", "--bind", address, "--port", str(port), "--save", "", "--dir", str(folder)]
    # from other machines it is reached without a password: the network is the test's own
    with running([*command, "--protected-mode", "no"], folder / "server.log"):
        wait_until(lambda: listens(port, address), "the start of redis-server")
        yield f"redis://{address}:{port}/0"
