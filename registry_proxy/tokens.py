"""Bearer tokens and Basic credentials: what a registry's challenge asks for, kept until it expires.

Source: distribution, "Token Authentication Specification" and "OAuth2 Token Authentication".
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import anyio
import httpx

from registry_proxy.credentials import Credential, CredentialSource
from registry_proxy.errors import BadAnswerError, DeniedError, UnreachableError
from registry_proxy.oci.challenge import Challenge
from registry_proxy.oci.codes import error_text
from registry_proxy.transfer import Origin, Patience, address, is_inward, read_bounded, retrying, translated

_MAX_TOKEN_BYTES = 64 << 10
_MIN_LIFETIME_S = 60.0  # shorter words are not taken seriously, as by every other client
_MAX_LIFETIME_S = 86_400.0
_MARGIN = 0.9  # of a token's lifetime is used
_MAX_ENTRIES = 4096
_CLIENT_ID = "unpackd"
# Second-level names under which strangers register: sharing them means nothing.
_PUBLIC_SECOND_LEVELS = frozenset({"ac", "co", "com", "edu", "go", "gob", "gov", "mil", "ne", "net", "or", "org"})


@dataclass(slots=True)
class _Entry:
    """What is known for one registry and scope. The lock is held while it is found out."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    header: str | None = None
    expires_s: float = 0.0


class Tokens:
    """``Authorization`` headers by registry and scope."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        credentials: CredentialSource,
        patience: Patience,
        *,
        realms: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._credentials = credentials
        self._patience = patience
        self._realms = realms  # hosts that may be given credentials although their domain is another
        self._clock = clock
        self._entries: dict[tuple[Origin, str], _Entry] = {}

    def known(self, origin: Origin, scope: str) -> str | None:
        """The header that worked before, or None."""
        entry = self._entries.get((origin, scope))
        return entry.header if entry is not None and self._clock() < entry.expires_s else None

    async def answer(self, origin: Origin, scope: str, challenges: Sequence[Challenge], refused: str | None) -> str:
        """A header that answers *challenges*; *refused* is the header that was sent and did not do.

        However many ask at once for the same, one request is made.

        Raises:
            DeniedError: there is no credential, or it is refused.
            BadAnswerError: the challenge cannot be answered safely.
            UnreachableError: the token server does not answer.
        """
        self._make_room()
        entry = self._entries.setdefault((origin, scope), _Entry())
        async with entry.lock:
            if entry.header is not None and entry.header != refused and self._clock() < entry.expires_s:
                return entry.header
            header, lifetime_s = await self._find(origin, scope, challenges)
            entry.header, entry.expires_s = header, self._clock() + lifetime_s
            return header

    def _make_room(self) -> None:
        if len(self._entries) < _MAX_ENTRIES:
            return
        now_s = self._clock()
        idle = [key for key, one in self._entries.items() if one.expires_s <= now_s and not one.lock.locked()]
        for key in idle or [key for key, one in self._entries.items() if not one.lock.locked()]:
            del self._entries[key]

    async def _find(self, origin: Origin, scope: str, challenges: Sequence[Challenge]) -> tuple[str, float]:
        credential = await self._credentials.find(origin.registry)
        bearer = next((one for one in challenges if one.scheme == "bearer" and one.parameters.get("realm")), None)
        if bearer is not None:
            return await self._bearer(origin, scope, bearer, credential)
        if not any(one.scheme == "basic" for one in challenges):
            raise DeniedError(f"{origin.registry} refuses access and does not say how to log in")
        if credential is None:
            raise DeniedError(f"{origin.registry} wants a login, and there is no credential for it")
        return credential.basic(), _MAX_LIFETIME_S

    async def _bearer(
        self, origin: Origin, scope: str, challenge: Challenge, credential: Credential | None
    ) -> tuple[str, float]:
        realm = self._checked_realm(origin, challenge.parameters["realm"], credential)
        service = challenge.parameters.get("service", "")

        async def attempt() -> tuple[str, float]:
            if credential is not None and credential.is_identity_token:
                reply = await self._post(realm, service, scope, credential)
                if reply is not None:
                    return reply
            return await self._get(realm, service, scope, credential)

        return await retrying(self._patience, attempt)

    def _checked_realm(self, origin: Origin, text: str, credential: Credential | None) -> httpx.URL:
        """The realm, if it may be asked.

        A registry names its token server itself, so a hostile one could collect credentials or make us ask
        addresses that only we can reach (CVE-2026-33540 and others).
        """
        try:
            realm = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise BadAnswerError(f"{origin.registry} names a token server that is no address") from error
        own = httpx.URL(origin.url)
        if realm.scheme not in ("http", "https") or not realm.host or realm.userinfo:
            raise BadAnswerError(f"{origin.registry} names a token server that is no address")
        if own.scheme == "https" and realm.scheme != "https":
            raise BadAnswerError(f"{origin.registry} names the token server {realm.host} without TLS, which is refused")
        if realm.host in self._realms or related(own.host, realm.host):
            return realm
        if is_inward(realm.host) or not getattr(address(realm.host), "is_global", True):
            raise BadAnswerError(f"{origin.registry} names the token server {realm.host}, which is a private address")
        if credential is not None:
            raise BadAnswerError(
                f"{origin.registry} names the token server {realm.host} of another domain; "
                "credentials are not sent there unless it is listed as a realm"
            )
        return realm

    async def _get(
        self, realm: httpx.URL, service: str, scope: str, credential: Credential | None
    ) -> tuple[str, float]:
        asked = [("service", service)] if service else []
        url = realm.copy_merge_params(httpx.QueryParams([*asked, ("scope", scope)]))
        headers = {"Authorization": credential.basic()} if credential is not None else {}
        request = self._http.build_request("GET", url, headers=headers)
        status, body = await self._exchange(request)
        _raise_for_status(realm.host, status, body)
        return _read_token(realm.host, body)

    async def _post(
        self, realm: httpx.URL, service: str, scope: str, credential: Credential
    ) -> tuple[str, float] | None:
        """The OAuth2 way; None where it is not known (registries answer 400, 401, 404 or 405 then)."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credential.secret,
            "service": service,
            "scope": scope,
            "client_id": _CLIENT_ID,
        }
        status, body = await self._exchange(self._http.build_request("POST", realm, data=form))
        if status in (
            HTTPStatus.BAD_REQUEST,
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.METHOD_NOT_ALLOWED,
        ):
            return None
        _raise_for_status(realm.host, status, body)
        return _read_token(realm.host, body)

    async def _exchange(self, request: httpx.Request) -> tuple[int, bytes]:
        """Send *request*; redirects are not followed, for it carries secrets."""
        with translated(request.url):
            reply = await self._http.send(request, stream=True)
        try:
            return reply.status_code, await read_bounded(reply, _MAX_TOKEN_BYTES, "a token")
        finally:
            with anyio.CancelScope(shield=True):
                await reply.aclose()


def related(registry: str, realm: str) -> bool:
    """True if host *realm* belongs to the same domain as host *registry*, as far as names can tell."""
    registry, realm = registry.lower(), realm.lower()
    if realm == registry or (is_inward(registry) and is_inward(realm)):
        return True
    if address(registry) is not None or address(realm) is not None:
        return False
    if realm.endswith("." + registry):
        return True
    domain = registry.partition(".")[2]
    labels = domain.split(".")
    if len(labels) < 2 or (len(labels) == 2 and labels[0] in _PUBLIC_SECOND_LEVELS):  # noqa: PLR2004  # "name.tld"
        return False
    return realm == domain or realm.endswith("." + domain)


def _raise_for_status(host: str, status: int, body: bytes) -> None:
    if status == HTTPStatus.OK:
        return
    said = error_text(body)
    because = f" ({said})" if said else ""
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise UnreachableError(f"the token server {host} answers with status {status}{because}")
    raise DeniedError(f"the token server {host} refuses the credentials with status {status}{because}")


def _read_token(host: str, body: bytes) -> tuple[str, float]:
    try:
        document = json.loads(body)
        token = document.get("token") or document.get("access_token")
        lifetime_s = float(document.get("expires_in") or _MIN_LIFETIME_S)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadAnswerError(f"the token server {host} gives something that is not a token") from error
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise BadAnswerError(f"the token server {host} gives something that is not a token")
    return f"Bearer {token}", _MARGIN * min(max(lifetime_s, _MIN_LIFETIME_S), _MAX_LIFETIME_S)
