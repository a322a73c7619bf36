"""Where registries say that something changed: stored as a hint, then answered."""

from collections import Counter
from collections.abc import Callable
from http import HTTPStatus

import anyio.to_thread
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from converter.errors import HookError
from converter.web.access import content_type, has_secret, read_body
from converter.web.services import Services
from converter.webhooks import (
    ANY,
    DISTRIBUTION_TYPES,
    HARBOR_TYPES,
    MAX_BODY_BYTES,
    Hint,
    parse_distribution,
    parse_harbor,
)

_log = structlog.get_logger()


class Hooks:
    """Handlers below ``/hooks``. A registry repeats what is not answered with 2xx, and some stop until it is."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.received: Counter[tuple[str, str]] = Counter()  # by hook and outcome

    def routes(self) -> list[Route]:
        """Where each handler is."""
        return [
            Route("/hooks/distribution", self.distribution, methods=["POST"]),
            Route("/hooks/harbor", self.harbor, methods=["POST"]),
        ]

    async def distribution(self, request: Request) -> Response:
        """Notifications of the distribution registry."""
        return await self._take(request, "distribution", DISTRIBUTION_TYPES, parse_distribution)

    async def harbor(self, request: Request) -> Response:
        """Webhooks of Harbor, in either format."""
        return await self._take(request, "harbor", HARBOR_TYPES, parse_harbor)

    async def _take(
        self, request: Request, hook: str, types: frozenset[str], parse: Callable[[bytes], set[Hint]]
    ) -> Response:
        expected = self._services.webhook_authorization
        if expected is not None and not has_secret(request, expected.get_secret_value()):
            self.received[hook, "refused"] += 1
            raise HTTPException(401, "the header Authorization is not the one that was agreed on")
        if content_type(request) not in types:
            self.received[hook, "refused"] += 1
            raise HTTPException(415, f"the content type is one of {', '.join(sorted(types))}")
        body = await read_body(request, MAX_BODY_BYTES)
        try:
            hinted = parse(body)
        except HookError as error:
            self.received[hook, "malformed"] += 1
            raise HTTPException(400, str(error)) from error
        count = await anyio.to_thread.run_sync(self._remember, hinted, hook) if hinted else 0
        self.received[hook, "taken" if count else "of no interest"] += 1
        _log.debug("notification", hook=hook, hints=count)
        return JSONResponse({"hints": count}, HTTPStatus.ACCEPTED)

    def _remember(self, hinted: set[Hint], hook: str) -> int:
        wishes = self._services.wishes
        for hint in hinted:
            if hint.tag:
                wishes.distrust(hint.source.repository, None if hint.tag == ANY else hint.tag)
        return wishes.add_hints({hint.source for hint in hinted}, hook)
