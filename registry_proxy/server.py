"""The proxy as a process: a socket, a server, an end on SIGTERM and SIGINT."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import structlog
import uvicorn

from fs.runtime.serving import listening_socket
from registry_proxy.app import open_proxy
from registry_proxy.config import ProxySettings

_GRACE_S = 5

_log = structlog.get_logger()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process before the cache is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: ProxySettings) -> None:
    """Answer requests until a signal comes.

    Raises:
        UsageError: the address cannot be listened on.
        CacheError: the cache directory cannot be used.
    """
    listener = listening_socket(*settings.address)
    async with open_proxy(settings) as app:
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",  # requests are logged by the application; broken-off bodies on purpose
                access_log=False,
                lifespan="off",
                server_header=False,
                date_header=True,
                ws="none",
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        async with anyio.create_task_group() as group:
            group.start_soon(_stop_on_signal, server)
            _log.info("proxy_started", listen=settings.listen, upstreams=[one.registry for one in settings.upstreams])
            await server.serve(sockets=[listener])
            group.cancel_scope.cancel()
    _log.info("proxy_stopped")


async def _stop_on_signal(server: uvicorn.Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.should_exit = True
