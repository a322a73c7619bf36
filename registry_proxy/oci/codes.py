"""Error codes and bodies of the distribution protocol.

Source: OCI distribution-spec, "Error Codes".
"""

import json
from enum import StrEnum
from http import HTTPStatus
from typing import Any

_MAX_TEXT = 300


class Code(StrEnum):
    """Codes a registry's error body can carry, as far as they matter for pulling."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    DENIED = "DENIED"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAUTHORIZED = "UNAUTHORIZED"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"


STATUSES = {
    Code.BLOB_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.DENIED: HTTPStatus.FORBIDDEN,
    Code.DIGEST_INVALID: HTTPStatus.BAD_REQUEST,
    Code.MANIFEST_INVALID: HTTPStatus.BAD_GATEWAY,  # the upstream's manifest: clients push none
    Code.MANIFEST_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.NAME_INVALID: HTTPStatus.BAD_REQUEST,
    Code.NAME_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.TOOMANYREQUESTS: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNSUPPORTED: HTTPStatus.METHOD_NOT_ALLOWED,
}
"""Which status an answer with a code has here."""


def error_body(code: Code, message: str) -> bytes:
    """Body of an error answer."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def error_text(body: bytes) -> str:
    """What a registry's error *body* says, in one line: ``CODE: message``; empty if it says nothing readable."""
    try:
        document: Any = json.loads(body)
        first = document["errors"][0]
        parts = [str(first[key]) for key in ("code", "message") if first.get(key)]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    line = " ".join(": ".join(parts).split())
    return "".join(letter for letter in line if letter.isprintable())[:_MAX_TEXT]
