"""The API: JSON in, JSON out. An error is ``{"error": "a sentence"}``."""

import json
import re
from dataclasses import asdict
from http import HTTPStatus

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from converter.errors import (
    JobAbsentError,
    UploadError,
    UploadTooLargeError,
    WishlistError,
    WishSyntaxError,
)
from converter.job_rules import JobState
from converter.names import written_repository
from converter.web.access import content_type, read_body, require_writer
from converter.web.services import Services
from converter.web.uploads import spool_of
from converter.wish import Wish
from converter.wishes import apply_text
from converter.wishlist import SIZE_LIMIT_BYTES
from registry_proxy.errors import ProxyError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.reference import Reference

_MAX_REQUEST_BYTES = 16 << 10
_MAX_LIMIT = 100_000
_WISHLIST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Api:
    """Handlers below ``/api/v1``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def routes(self) -> list[Route]:
        """Where each handler is."""
        return [
            Route("/api/v1/images", self.images),
            Route("/api/v1/images/{reference:path}", self.image),
            Route("/api/v1/wishes", self.wishes),
            Route("/api/v1/wishlists/{name}", self.apply_wishlist, methods=["PUT"]),
            Route("/api/v1/jobs", self.jobs),
            Route("/api/v1/conversions", self.request_conversion, methods=["POST"]),
        ]

    def images(self, request: Request) -> Response:
        """All images, or those that hold ``q``; at most ``limit``."""
        search = request.query_params.get("q", "")
        found = self._services.views.images(search=search, limit=_limit(request, 10_000))
        return JSONResponse({"repository": self._services.repository, "images": [asdict(image) for image in found]})

    def image(self, request: Request) -> Response:
        """One image, with the digests that its tag named."""
        image = self._services.views.image(request.path_params["reference"])
        changes = [asdict(change) for change in self._services.views.tag_history(image)]
        return JSONResponse({**asdict(image), "history": changes})

    def wishes(self, _request: Request) -> Response:
        """Wishlists as applied, and how reading their registries went."""
        wishlists = [
            {
                "name": each.name,
                "repository": each.repository,
                "applied_unix_s": each.applied_at,
                "wishes": [wish.reference for wish in each.wishes],
                "terms": [
                    {"policy": wish.terms.policy.value, "platforms": wish.terms.platforms} for wish in each.wishes
                ],
            }
            for each in self._services.wishes.wishlists()
        ]
        sources = [
            {
                "registry": state.source.registry,
                "repository": state.source.repository,
                "checked_unix_s": state.checked_at,
                "read_unix_s": state.read_at,
                "error": state.error,
            }
            for state in self._services.wishes.source_states()
        ]
        return JSONResponse({"wishlists": wishlists, "sources": sources})

    def jobs(self, request: Request) -> Response:
        """Conversions, the newest first; those in ``state``, at most ``limit``."""
        text = request.query_params.get("state")
        try:
            state = None if text is None else JobState(text)
        except ValueError as error:
            raise HTTPException(400, f"state is one of {', '.join(JobState)}") from error
        found = self._services.views.jobs(state=state, limit=_limit(request, 200))
        return JSONResponse({"jobs": [asdict(job) for job in found]})

    async def apply_wishlist(self, request: Request) -> Response:
        """Replace a wishlist by the YAML in the body."""
        require_writer(request, self._services.api_token)
        name: str = request.path_params["name"]
        if _WISHLIST_NAME.fullmatch(name) is None:
            raise HTTPException(400, "a wishlist's name has letters, digits and . _ -, at most 100")
        body = await read_body(request, SIZE_LIMIT_BYTES)
        services = self._services
        changed = await anyio.to_thread.run_sync(apply_text, services.wishes, services.repository, name, body)
        return JSONResponse({"name": name, "changed": changed})

    async def request_conversion(self, request: Request) -> Response:
        """Convert an image now: ``{"reference": "registry/repository:tag"}``.

        With ``"manifest": "sha256:…"`` it is the one that was sent under that digest; 409 names what is missing of it.
        """
        require_writer(request, self._services.api_token)
        if content_type(request) != "application/json":
            raise HTTPException(415, "the body is JSON, with that content type")
        document = _document(await read_body(request, _MAX_REQUEST_BYTES))
        wish, manifest = _requested(document), document.get("manifest")
        if manifest is None:
            await anyio.to_thread.run_sync(self._services.jobs.request, self._services.repository, wish)
        else:
            missing = await anyio.to_thread.run_sync(self._take_upload, wish, Digest.parse(str(manifest)))
            if missing:
                sentence = f"not sent yet: {', '.join(missing)}"
                return JSONResponse({"error": sentence, "missing": missing}, HTTPStatus.CONFLICT)
        answer = {"reference": wish.reference, "name": wish.simple_name}
        return JSONResponse(answer, HTTPStatus.ACCEPTED, {"Location": f"/api/v1/images/{wish.simple_name}"})

    def _take_upload(self, wish: Wish, manifest: Digest) -> list[str]:
        """Make a job of an image that was sent, or tell what is missing of it."""
        spool = spool_of(self._services)
        if wish.digest is not None or wish.tag is None:
            raise HTTPException(400, "an image that was sent gets a name with a tag and without a digest")
        if self._services.views.is_wished(wish):
            raise HTTPException(409, f"{wish.simple_name} is wished from its registry")
        missing = [str(digest) for digest in spool.missing(manifest)]
        if not missing:
            spool.seal(manifest)
            self._services.jobs.request_digest(self._services.repository, wish, str(manifest))
        return missing


def error_response(_request: Request, error: Exception) -> Response:
    """One table for all errors that a handler may raise."""
    match error:
        case HTTPException():
            return JSONResponse({"error": error.detail}, error.status_code, error.headers)
        case WishlistError():
            mistakes = [asdict(mistake) for mistake in error.mistakes]
            return JSONResponse({"error": str(error), "mistakes": mistakes}, HTTPStatus.UNPROCESSABLE_ENTITY)
        case JobAbsentError():
            return JSONResponse({"error": str(error)}, HTTPStatus.NOT_FOUND)
        case UploadTooLargeError():
            return JSONResponse({"error": str(error)}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        case WishSyntaxError() | ProxyError() | UploadError():
            return JSONResponse({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        case _:
            return JSONResponse({"error": "the job database cannot be used now"}, HTTPStatus.SERVICE_UNAVAILABLE)


def _document(body: bytes) -> dict[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error
    return document if isinstance(document, dict) else {}


def _requested(document: dict[str, object]) -> Wish:
    """The image that *document* asks for, written as docker does; a pattern is no image."""
    text = document.get("reference")
    if not isinstance(text, str):
        raise HTTPException(400, 'the body is {"reference": "registry/repository:tag"}')
    reference = Reference.parse(text)
    registry, repository = written_repository(text)
    digest = None if reference.digest is None else str(reference.digest)
    wish = Wish(registry, repository, reference.tag, digest, reference.scheme)
    return Wish.parse(wish.reference)  # what is stored must be readable by the rules of wishlists too


def _limit(request: Request, default: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not (text.isascii() and text.isdigit() and len(text) < len(str(_MAX_LIMIT)) + 1):
        raise HTTPException(400, f"limit is a number up to {_MAX_LIMIT}")
    return min(int(text), _MAX_LIMIT)
