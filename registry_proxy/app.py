"""The proxy's HTTP side: requests are parsed, one call is made, its outcome is translated.

Source: OCI distribution-spec, "Endpoints", the pull side.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import assert_never
from urllib.parse import urlencode

import anyio
import httpx
import structlog
from anyio import to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as PathRoute

from registry_proxy.answers import PartsResponse, answer_for, error_answer, warning_header
from registry_proxy.blob_service import BlobAnswer, Blobs
from registry_proxy.cache import Cache
from registry_proxy.config import ProxySettings
from registry_proxy.downloads import Downloads
from registry_proxy.errors import ProxyError
from registry_proxy.manifests import Manifests, Served
from registry_proxy.metrics import Metrics
from registry_proxy.oci.codes import Code
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.media_types import OCTET_STREAM
from registry_proxy.oci.reference import is_repository, is_tag
from registry_proxy.paths import Endpoint, Target, parse_path
from registry_proxy.ranges import AskedRange, UnsatisfiableRangeError
from registry_proxy.tag_lists import TagLists
from registry_proxy.transfer import Patience
from registry_proxy.upstream import PATIENCE, Upstream, open_upstream
from registry_proxy.upstreams import AmbiguousUpstreamError, Route, Routes, UnknownUpstreamError

_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}
_FOREVER = "max-age=31536000, immutable"
_READERS = ("GET", "HEAD")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, understood."""

    target: Target
    route: Route[Upstream]
    request: Request

    @property
    def repository(self) -> str:
        return self.route.repository

    @property
    def upstream(self) -> Upstream:
        return self.route.upstream

    @property
    def is_head(self) -> bool:
        return self.request.method == "HEAD"

    def digest(self) -> Digest:
        """The digest that is asked for. Raises DigestSyntaxError."""
        return Digest.parse(self.target.item)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """All that answers requests, put together by open_proxy."""

    routes: Routes[Upstream]
    upstreams: list[Upstream]
    cache: Cache
    counters: Metrics
    manifests: Manifests
    blobs: Blobs
    downloads: Downloads
    tag_lists: TagLists

    async def health(self, request: Request) -> Response:
        """``/healthz``: 200 as long as requests can be answered."""
        del request
        return PlainTextResponse("ok\n")

    async def metrics(self, request: Request) -> Response:
        """``/metrics``."""
        del request
        gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {
            ("cache_bytes", ()): self.cache.total_bytes,
            ("downloads", ()): len(self.downloads),
        }
        for upstream in self.upstreams:
            limit = upstream.client.rate_limit(upstream.reference("any/name"))
            if limit is not None:
                gauges["rate_limit_remaining", (("upstream", upstream.name),)] = limit.remaining
        return PlainTextResponse(self.counters.text(gauges), media_type="text/plain; version=0.0.4")

    async def api(self, request: Request) -> Response:
        """Everything below ``/v2/``."""
        began_s = time.monotonic()
        target = parse_path(request.url.path)
        answer = await self._answer(request, target)
        answer.headers.update(_VERSION)
        kind = target.endpoint.value if target is not None else "other"
        self.counters.count("requests_total", kind=kind, status=str(int(answer.status_code)))
        _log.info(
            "request",
            method=request.method,
            kind=kind,
            name=target.name[:255] if target is not None else "",
            item=target.item[:255] if target is not None else "",
            status=int(answer.status_code),
            seconds=round(time.monotonic() - began_s, 4),
        )
        return answer

    async def _answer(self, request: Request, target: Target | None) -> Response:
        if request.method not in _READERS:
            message = "this is a read-only proxy: push to the registry itself"
            return error_answer(Code.UNSUPPORTED, message, headers={"Allow": ", ".join(_READERS)})
        if target is None:
            return error_answer(Code.NAME_UNKNOWN, "there is nothing at this path")
        if target.endpoint is Endpoint.ROOT:
            return Response(b"{}", media_type="application/json")
        try:
            route = self.routes.find(target.name, request.query_params.get("ns"))
        except (UnknownUpstreamError, AmbiguousUpstreamError) as error:
            return answer_for(error, Code.NAME_UNKNOWN, is_anonymous=True)
        if not is_repository(route.repository):
            answer = error_answer(Code.NAME_INVALID, "this is not the name of a repository")
        elif not route.upstream.settings.allows(route.repository):
            answer = error_answer(Code.NAME_UNKNOWN, "this repository is not offered by this proxy")
        else:
            answer = await self._dispatch(_Asked(target, route, request))
        if route.is_by_namespace:
            answer.headers["OCI-Namespace"] = route.upstream.registry
        return answer

    async def _dispatch(self, asked: _Asked) -> Response:
        absent = _ABSENT[asked.target.endpoint]
        try:
            match asked.target.endpoint:
                case Endpoint.MANIFEST:
                    answer = await self._manifest(asked)
                case Endpoint.BLOB:
                    answer = await self._blob(asked)
                case Endpoint.TAGS:
                    answer = await self._tags(asked)
                case Endpoint.REFERRERS | Endpoint.ROOT:
                    # clients then look for a tag named after the digest, which is answered like any other
                    answer = error_answer(Code.UNSUPPORTED, "referrers are not offered", status=HTTPStatus.NOT_FOUND)
                case _:
                    assert_never(asked.target.endpoint)
        except (ProxyError, UnsatisfiableRangeError) as error:
            return answer_for(error, absent, is_anonymous=asked.upstream.settings.credentials is None)
        return answer

    async def _manifest(self, asked: _Asked) -> Response:
        item = asked.target.item
        if ":" in item:
            digest = asked.digest()
            if not digest.is_verifiable:
                return error_answer(Code.MANIFEST_UNKNOWN, f"digests of {digest.algorithm} cannot be verified here")
            served = await self.manifests.by_digest(asked.upstream, asked.repository, digest)
        elif is_tag(item):
            served = await self.manifests.by_tag(asked.upstream, asked.repository, item)
        else:
            return error_answer(Code.MANIFEST_UNKNOWN, "this is not a tag")
        return self._send_manifest(asked, served)

    def _send_manifest(self, asked: _Asked, served: Served) -> Response:
        manifest = served.manifest
        is_fixed = ":" in asked.target.item
        headers = {
            **_identity(manifest.digest),
            "Content-Type": manifest.media_type,
            "Cache-Control": _immutable(asked.upstream) if is_fixed else "no-cache",
        }
        if served.age_s:
            headers["Age"] = str(served.age_s)
        if served.warning:
            headers["Warning"] = warning_header(served.warning)
        if _is_not_modified(asked.request, manifest.digest):
            return Response(b"", HTTPStatus.NOT_MODIFIED, headers)
        headers["Content-Length"] = str(len(manifest.body))
        self.counters.count("sent_bytes_total", 0 if asked.is_head else len(manifest.body), kind="manifest")
        return Response(b"" if asked.is_head else manifest.body, HTTPStatus.OK, headers)

    async def _blob(self, asked: _Asked) -> Response:
        digest = asked.digest()
        if not digest.is_verifiable:
            return error_answer(Code.BLOB_UNKNOWN, f"digests of {digest.algorithm} cannot be verified here")
        if asked.is_head:
            return _blob_head(asked, digest, await self.blobs.head(asked.upstream, asked.repository, digest))
        wanted = AskedRange.parse(asked.request.headers.get("Range"))
        if asked.request.headers.get("If-Range", f'"{digest}"') != f'"{digest}"':
            wanted = None
        answer = await self.blobs.get(asked.upstream, asked.repository, digest, wanted)
        headers = _blob_headers(asked, digest, len(answer.part))
        status = HTTPStatus.OK
        if wanted is not None:
            status = HTTPStatus.PARTIAL_CONTENT
            last = answer.part.stop - 1
            headers["Content-Range"] = f"bytes {answer.part.start}-{last}/{answer.size_bytes}"
        if _is_not_modified(asked.request, digest):
            if answer.parts is not None:
                await answer.parts.aclose()
            return Response(b"", HTTPStatus.NOT_MODIFIED, headers)
        parts = answer.parts or _nothing()
        # the status is sent only when the first bytes are there: until then a failure can still be said
        first = await anext(parts, b"")
        return PartsResponse(
            first,
            parts,
            status=status,
            headers=headers,
            sent=lambda count: self.counters.count("sent_bytes_total", count, kind="blob"),
        )

    async def _tags(self, asked: _Asked) -> Response:
        query = asked.request.query_params
        limit = query.get("n", "")
        if limit and not limit.isdecimal():
            return error_answer(Code.UNSUPPORTED, "n is not a number", status=HTTPStatus.BAD_REQUEST)
        page = await self.tag_lists.page(
            asked.upstream, asked.repository, after=query.get("last", ""), limit=int(limit[:9]) if limit else None
        )
        headers = {"Cache-Control": "no-cache"}
        if page.is_followed and page.tags:
            following = urlencode({"n": limit, "last": page.tags[-1], **({"ns": query["ns"]} if "ns" in query else {})})
            headers["Link"] = f'</v2/{asked.target.name}/tags/list?{following}>; rel="next"'
        return Response(page.body(asked.target.name), HTTPStatus.OK, headers, media_type="application/json")


_ABSENT = {
    Endpoint.ROOT: Code.NAME_UNKNOWN,
    Endpoint.MANIFEST: Code.MANIFEST_UNKNOWN,
    Endpoint.BLOB: Code.BLOB_UNKNOWN,
    Endpoint.TAGS: Code.NAME_UNKNOWN,
    Endpoint.REFERRERS: Code.NAME_UNKNOWN,
}


def _identity(digest: Digest) -> dict[str, str]:
    return {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"'}


def _immutable(upstream: Upstream) -> str:
    return _FOREVER if upstream.settings.credentials is None else f"private, {_FOREVER}"


def _is_not_modified(request: Request, digest: Digest) -> bool:
    asked = [one.strip().removeprefix("W/") for one in request.headers.get("If-None-Match", "").split(",")]
    return "*" in asked or f'"{digest}"' in asked


def _blob_headers(asked: _Asked, digest: Digest, length: int) -> dict[str, str]:
    return {
        **_identity(digest),
        "Content-Type": OCTET_STREAM,
        "Content-Length": str(length),
        "Accept-Ranges": "bytes",
        "Cache-Control": _immutable(asked.upstream),
    }


def _blob_head(asked: _Asked, digest: Digest, answer: BlobAnswer) -> Response:
    return Response(b"", HTTPStatus.OK, _blob_headers(asked, digest, answer.size_bytes))


async def _nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


@asynccontextmanager
async def open_proxy(
    settings: ProxySettings, *, patience: Patience = PATIENCE, transport: httpx.AsyncBaseTransport | None = None
) -> AsyncIterator[Starlette]:
    """The ASGI application of *settings*, working for as long as the block. Downloads end with it and are resumable.

    Raises:
        CacheError: the cache directory cannot be used.
    """
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        cache = await to_thread.run_sync(
            lambda: Cache(settings.directory, max_bytes=settings.max_bytes, low_mark=settings.low_mark)
        )
        stack.callback(cache.close)
        upstreams = [
            await stack.enter_async_context(open_upstream(one, patience=patience, transport=transport))
            for one in settings.upstreams
        ]
        group = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(group.cancel_scope.cancel)
        downloads = Downloads(
            cache,
            metrics,
            group,
            verify_first_bytes=settings.verify_first_bytes,
            unread_limit_bytes=settings.unread_limit_bytes,
        )
        proxy = Proxy(
            routes=Routes(upstreams, settings.default),
            upstreams=upstreams,
            cache=cache,
            counters=metrics,
            manifests=Manifests(cache, metrics, tag_ttl_s=settings.tag_ttl_s, stale_limit_s=settings.stale_limit_s),
            blobs=Blobs(cache, downloads, metrics),
            downloads=downloads,
            tag_lists=TagLists(metrics, ttl_s=settings.tag_ttl_s),
        )
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        yield Starlette(
            routes=[
                PathRoute("/healthz", proxy.health),
                PathRoute("/metrics", proxy.metrics),
                PathRoute("/v2", proxy.api, methods=methods),
                PathRoute("/v2/{rest:path}", proxy.api, methods=methods),
            ]
        )
