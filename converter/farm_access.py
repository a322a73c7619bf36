"""How commands reach a farm: its API, over the network or straight over the database of this machine's stack."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import TypeAdapter, ValidationError

from converter.errors import (
    ConverterError,
    FarmUnreachableError,
    FarmUsageError,
    JobAbsentError,
    Mistake,
    RequestRefusedError,
    SourceAbsentError,
    WishlistError,
)

URL_VARIABLE, TOKEN_VARIABLE = "UNPACKD_URL", "UNPACKD_TOKEN"  # the name of a variable
_TIMEOUT_S = 30.0
_LOCAL = "http://localhost"
_JSON = {"Content-Type": "application/json"}
_MISTAKES = TypeAdapter(list[Mistake])


class FarmAccess:
    """A farm that answers. Use as an asynchronous context."""

    def __init__(self, base_url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._shown = base_url
        self._closing = ExitStack()
        self._client = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=_TIMEOUT_S, transport=transport)

    @classmethod
    def find(cls, url: str | None, directory: Path | None) -> Self:
        """The farm at *url* or ``UNPACKD_URL``; else that of the stack in *directory*, running or not.

        Raises:
            SourceAbsentError: there is no stack.
        """
        address = url or (os.environ.get(URL_VARIABLE) if directory is None else None)
        return cls(address.rstrip("/")) if address else cls._over_database(directory)

    @classmethod
    def _over_database(cls, directory: Path | None) -> Self:
        from converter.config import load_farm_settings  # noqa: PLC0415  # only here is a database
        from converter.farm_config import sqlite_url  # noqa: PLC0415
        from converter.farm_database import FarmDatabase  # noqa: PLC0415
        from converter.up import DATABASE, UPLOADS, default_directory, repository_name  # noqa: PLC0415
        from converter.web.app import web_app  # noqa: PLC0415
        from converter.web.services import Services  # noqa: PLC0415

        place = directory or default_directory()
        name = repository_name(place) if (place / DATABASE).exists() else None
        if name is None:
            raise SourceAbsentError(f"there is no stack in {place}: give --url or --dir, or start one with unpackd up")
        found = load_farm_settings()
        settings = found.model_copy(
            update={
                "database_url": sqlite_url(place / DATABASE),
                "api_token": None,
                "upload_directory": found.upload_directory or place.absolute() / UPLOADS,
            }
        )
        database = FarmDatabase(settings.database_url)
        app = web_app(Services.of(name, database, settings))
        made = cls(_LOCAL, transport=httpx.ASGITransport(app=app))
        made._closing.callback(database.close)
        return made

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()
        self._closing.close()

    async def images(self, search: str = "") -> dict[str, Any]:
        """See the API: ``GET /api/v1/images``."""
        return await self._ask("GET", "/api/v1/images", params={"q": search} if search else {})

    async def wishes(self) -> dict[str, Any]:
        """See the API: ``GET /api/v1/wishes``."""
        return await self._ask("GET", "/api/v1/wishes")

    async def apply(self, name: str, body: bytes) -> dict[str, Any]:
        """See the API: ``PUT /api/v1/wishlists/NAME``."""
        return await self._ask("PUT", f"/api/v1/wishlists/{name}", content=body)

    async def image(self, name: str) -> dict[str, Any]:
        """See the API: ``GET /api/v1/images/REFERENCE``."""
        return await self._ask("GET", f"/api/v1/images/{name}")

    async def convert(self, reference: str, *, manifest: str | None = None) -> dict[str, Any]:
        """See the API: ``POST /api/v1/conversions``."""
        body = {"reference": reference, **({} if manifest is None else {"manifest": manifest})}
        return await self._ask("POST", "/api/v1/conversions", content=json.dumps(body).encode(), headers=_JSON)

    async def has_blob(self, digest: str) -> bool:
        """See the API: ``HEAD /api/v1/uploads/DIGEST``."""
        try:
            answer = await self._client.head(f"/api/v1/uploads/{digest}")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FarmUnreachableError(f"{self._shown} does not answer: {error}") from error
        if answer.status_code not in (200, 404):
            sentence = f"{self._shown} does not take images (status {answer.status_code}); is {TOKEN_VARIABLE} right?"
            raise _error_of(answer.status_code, {"error": sentence})
        return answer.is_success

    async def send_blob(self, digest: str, size_bytes: int, content: bytes | AsyncIterator[bytes]) -> None:
        """See the API: ``PUT /api/v1/uploads/DIGEST``."""
        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        try:
            answer = await self._client.put(f"/api/v1/uploads/{digest}", content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FarmUnreachableError(f"{self._shown} does not take {digest}: {error}") from error
        if not answer.is_success:
            try:
                document = answer.json()
            except ValueError:
                document = None
            raise _error_of(answer.status_code, document if isinstance(document, dict) else {})

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        try:
            answer = await self._client.request(method, path, params=params, content=content, headers=headers)
            document = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FarmUnreachableError(f"{self._shown} does not answer: {error}") from error
        except ValueError as error:
            raise FarmUnreachableError(f"{self._shown} does not answer as unpackd does") from error
        if not isinstance(document, dict):
            raise FarmUnreachableError(f"{self._shown} does not answer as unpackd does")
        if not answer.is_success:
            raise _error_of(answer.status_code, document)
        return document


def _error_of(status: int, document: Mapping[str, Any]) -> ConverterError:
    """The error that an answer of the API stands for."""
    sentence = str(document.get("error", f"status {status}"))
    match status:
        case 404:
            return JobAbsentError(sentence)
        case 400 | 413 | 415:
            return FarmUsageError(sentence)
        case 401 | 403 | 409:
            return RequestRefusedError(sentence)
        case 422:
            try:
                return WishlistError(_MISTAKES.validate_python(document.get("mistakes", [])))
            except ValidationError:
                return FarmUsageError(sentence)
        case _:
            return FarmUnreachableError(sentence)
