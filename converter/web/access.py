"""Who may change something, and how much they may send."""

import hmac
import ipaddress

import anyio
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_BODY_TIMEOUT_S = 10.0
_LOCAL_ONLY = (
    "this service has no token, so that only programs on its own machine may change something; "
    "set UNPACKD_CONVERTER_API_TOKEN there and UNPACKD_TOKEN here"
)


def require_writer(request: Request, token: SecretStr | None) -> None:
    """Refuse whoever may not change something.

    With a token, that token decides. Without one only this machine is served, and neither a page of another site in a
    browser here nor a name that was made to point to 127.0.0.1 counts as this machine.

    Raises:
        HTTPException: 401 or 403, with the reason.
    """
    if token is not None:
        if not has_secret(request, f"Bearer {token.get_secret_value()}"):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        return
    client = request.client.host if request.client else ""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if not (_is_loopback(client) and _is_loopback(_host_name(host))):
        raise HTTPException(403, _LOCAL_ONLY)
    if origin is not None and origin.partition("://")[2] != host:
        raise HTTPException(403, "requests from pages of other sites are not taken")


def has_secret(request: Request, expected: str) -> bool:
    """True if the header ``Authorization`` is *expected*; takes the same time wherever they differ."""
    return hmac.compare_digest(request.headers.get("authorization", "").encode("latin-1"), expected.encode())


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        HTTPException: 413, 408 or 400: too large, too slow, or cut off.
    """
    body = bytearray()
    try:
        with anyio.fail_after(_BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > limit_bytes:
                    raise HTTPException(413, f"the body is larger than {limit_bytes} bytes")
    except TimeoutError as error:
        raise HTTPException(408, "the body did not arrive in time") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the body was cut off") from error
    return bytes(body)


def content_type(request: Request) -> str:
    """The media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _host_name(host: str) -> str:
    """*host* without its port and, for IPv6, without the brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
