"""Credentials for registries: from docker's ``config.json``, its helpers, or given outright.

Source: docker/cli, "config file properties"; docker-credential-helpers, "Development" (the protocol of helpers).
"""

import base64
import binascii
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import anyio

from registry_proxy.errors import CredentialsError
from registry_proxy.oci.reference import DEFAULT_REGISTRY, canonical_registry

_HELPER_TIMEOUT_S = 30.0
_MAX_CONFIG_BYTES = 1 << 20
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HELPER_NOT_FOUND = b"credentials not found"
_IDENTITY_TOKEN_USER = "<token>"  # noqa: S105  # a user name that says what follows
_DOCKER_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True)
class Credential:
    """User and password, or an identity token. Never shown by ``repr()``."""

    user: str
    secret: str = field(repr=False)
    is_identity_token: bool = False

    def basic(self) -> str:
        """Value of an ``Authorization`` header of the scheme Basic."""
        user = _IDENTITY_TOKEN_USER if self.is_identity_token else self.user
        return "Basic " + base64.b64encode(f"{user}:{self.secret}".encode()).decode()


class CredentialSource(Protocol):
    """Where credentials come from; asked again each time, for some live only for hours."""

    async def find(self, registry: str) -> Credential | None:
        """The credential for *registry* (``host[:port]``, Docker Hub is ``docker.io``), or None for anonymous.

        Raises:
            CredentialsError: the source is broken, which is not the same as having none.
        """
        ...


@dataclass(frozen=True, slots=True)
class GivenCredentials:
    """Credentials by registry; none at all by default."""

    by_registry: dict[str, Credential] = field(default_factory=dict)

    async def find(self, registry: str) -> Credential | None:
        """See CredentialSource.find."""
        return self.by_registry.get(registry)


def default_config_path() -> Path:
    """Where ``docker login`` and ``skopeo login`` keep what they were told."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    if named:
        return Path(named)
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path("~/.docker").expanduser()) / "config.json"


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """docker's ``config.json``: ``auths``, ``credHelpers``, ``credsStore``. A missing file holds no credentials."""

    path: Path

    async def find(self, registry: str) -> Credential | None:
        """See CredentialSource.find."""
        document = await anyio.to_thread.run_sync(self._load)
        helper = self._helper(document, registry)
        if helper is not None:
            found = await _ask_helper(helper, _keys(registry)[0])
            if found is not None:
                return found
        return self._stored(document, registry)

    def _load(self) -> dict[str, object]:
        try:
            with self.path.open("rb") as stream:
                document = json.loads(stream.read(_MAX_CONFIG_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise CredentialsError(f"the credential file {self.path} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise CredentialsError(f"the credential file {self.path} is not a JSON object")
        return document

    def _helper(self, document: dict[str, object], registry: str) -> str | None:
        helpers = document.get("credHelpers")
        by_host = helpers if isinstance(helpers, dict) else {}
        name = next((by_host[key] for key in _keys(registry) if key in by_host), None) or document.get("credsStore")
        if not name:
            return None
        if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
            raise CredentialsError(f"the credential file {self.path} names a helper that cannot be one")
        return name

    def _stored(self, document: dict[str, object], registry: str) -> Credential | None:
        auths = document.get("auths")
        if not isinstance(auths, dict):
            return None
        by_host = {_host_of(key): value for key, value in auths.items() if "/" not in _without_scheme(key).strip("/")}
        hub = next((auths[key] for key in _DOCKER_HUB_KEYS if key in auths), None)
        entry = hub if registry == DEFAULT_REGISTRY else by_host.get(registry)
        if not isinstance(entry, dict) or not entry:
            return None
        identity = entry.get("identitytoken")
        if isinstance(identity, str) and identity:
            return Credential("", identity, is_identity_token=True)
        encoded = entry.get("auth")
        if isinstance(encoded, str) and encoded:
            return self._decoded(encoded, registry)
        user, password = entry.get("username"), entry.get("password")
        return Credential(user, password) if isinstance(user, str) and isinstance(password, str) else None

    def _decoded(self, encoded: str, registry: str) -> Credential:
        try:
            user, colon, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as error:
            raise CredentialsError(f"{self.path}: auth of {registry} is not base64 of user:password") from error
        if not colon:
            raise CredentialsError(f"{self.path}: auth of {registry} is not base64 of user:password")
        return Credential(user, secret.rstrip("\0"))


def _keys(registry: str) -> tuple[str, ...]:
    """Names under which a registry may be known to a credential file, the usual one first."""
    return _DOCKER_HUB_KEYS if registry == DEFAULT_REGISTRY else (registry, f"https://{registry}")


def _without_scheme(key: str) -> str:
    return key.partition("://")[2] or key


def _host_of(key: str) -> str:
    return canonical_registry(_without_scheme(key).partition("/")[0])


async def _ask_helper(name: str, server: str) -> Credential | None:
    program = f"docker-credential-{name}"
    try:
        with anyio.fail_after(_HELPER_TIMEOUT_S):
            done = await anyio.run_process([program, "get"], input=server.encode(), check=False)
    except TimeoutError as error:
        raise CredentialsError(f"{program} did not answer within {_HELPER_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise CredentialsError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        if _HELPER_NOT_FOUND in done.stdout + done.stderr:
            return None
        raise CredentialsError(f"{program} failed with status {done.returncode} for {server}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, LookupError, TypeError) as error:
        raise CredentialsError(f"{program} gave something else than credentials for {server}") from error
    is_token = user in ("", _IDENTITY_TOKEN_USER)
    return Credential("" if is_token else user, secret, is_identity_token=is_token)
