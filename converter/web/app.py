"""The application: routes, headers, errors, figures; and the repository's origin beside it."""

import socket
from http import HTTPStatus

import structlog
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from converter.errors import ConverterError
from converter.web.api import Api, error_response
from converter.web.hooks import Hooks
from converter.web.pages import Pages
from converter.web.services import Services
from converter.web.uploads import Uploads
from registry_proxy.errors import ProxyError

_log = structlog.get_logger()
_GRACE_S = 1  # streams of events never end by themselves
_BACKLOG = 2048
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def web_app(services: Services, *, origin: ASGIApp | None = None) -> ASGIApp:
    """The application of the farm behind *services*; *origin* answers below ``/cvmfs/`` if it is given."""
    hooks = Hooks(services)
    figures = _Figures(services, hooks)
    routes = [
        *Pages(services).routes(),
        *Api(services).routes(),
        *Uploads(services).routes(),
        *hooks.routes(),
        Route("/healthz", figures.health),
        Route("/metrics", figures.metrics),
    ]
    farm = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: error_response,
            ConverterError: error_response,
            ProxyError: error_response,
            SQLAlchemyError: _database_error,
        },
        middleware=[Middleware(_SecureHeaders)],
    )
    return farm if origin is None else _Beside(farm, origin)


def _database_error(request: Request, error: Exception) -> Response:
    _log.error("job database unusable", error=str(error))
    return error_response(request, error)


class _Beside:
    """Two applications on one listener."""

    def __init__(self, farm: ASGIApp, origin: ASGIApp) -> None:
        self._farm = farm
        self._origin = origin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_origins = scope["type"] == "http" and scope["path"].startswith("/cvmfs/")
        await (self._origin if is_origins else self._farm)(scope, receive, send)


class _SecureHeaders:
    """Adds to every answer what keeps browsers from doing more than show it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Figures:
    """For machines that look after the farm."""

    def __init__(self, services: Services, hooks: Hooks) -> None:
        self._services = services
        self._hooks = hooks

    def health(self, _request: Request) -> Response:
        """200 if the database answers."""
        try:
            self._services.views.job_counts()
        except SQLAlchemyError:
            return JSONResponse({"status": "the job database cannot be used"}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ok"})

    def metrics(self, _request: Request) -> Response:
        """Prometheus' text format."""
        lines = ["# TYPE unpackd_jobs gauge"]
        counts = self._services.views.job_counts()
        lines += [f'unpackd_jobs{{state="{state}"}} {count}' for state, count in counts.items()]
        states = self._services.wishes.source_states()
        lines += [
            "# TYPE unpackd_oldest_queued_seconds gauge",
            f"unpackd_oldest_queued_seconds {self._services.views.oldest_queued_s():.3f}",
            "# TYPE unpackd_sources gauge",
            f'unpackd_sources{{readable="true"}} {sum(not state.error for state in states)}',
            f'unpackd_sources{{readable="false"}} {sum(bool(state.error) for state in states)}',
            "# TYPE unpackd_notifications_total counter",
        ]
        lines += [
            f'unpackd_notifications_total{{hook="{hook}",outcome="{outcome}"}} {count}'
            for (hook, outcome), count in sorted(self._hooks.received.items())
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Answer on *listener* until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[listener])
