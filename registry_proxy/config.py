"""Settings of the proxy: flags, then ``UNPACKD_REGISTRY_PROXY_…``, then table ``[proxy]`` of a TOML file."""

import re
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from registry_proxy.errors import ConfigError
from registry_proxy.oci.reference import Scheme, canonical_registry, is_host, is_repository

_TABLE = "proxy"
_UPSTREAMS = "upstreams"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LISTEN = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})", re.ASCII)
_MAX_PORT = 65535


def _parse_size(value: object) -> object:
    """``"50G"`` and the like in bytes; numbers stay."""
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(float(match[1]) * _UNITS[match[2].upper()]) if match is not None else value


Size = Annotated[PositiveInt, BeforeValidator(_parse_size)]


class UpstreamSettings(BaseModel):
    """One registry that is asked on behalf of clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="First component of paths that mean this upstream: /v2/NAME/...")
    url: str = Field(description="http:// or https:// and host of the registry's API.")
    namespace: str = Field("", description="Host in image names (parameter ns); by default the host of url.")
    credentials: Path | None = Field(None, description="A docker config.json; without it requests are anonymous.")
    ca_file: Path | None = Field(None, description="Roots to trust for this upstream instead of the system's.")
    realms: frozenset[str] = Field(frozenset(), description="Token servers of other domains that get credentials.")
    allow: tuple[str, ...] = Field(("*",), description="Patterns of repositories that may be asked for.")
    tag_ttl_s: NonNegativeFloat | None = Field(None, description="See [proxy].")
    stale_limit_s: NonNegativeFloat | None = Field(None, description="See [proxy].")
    downloads: PositiveInt = Field(8, description="Blobs fetched from it at a time.")

    @field_validator("name")
    @classmethod
    def _one_component(cls, name: str) -> str:
        if "/" in name or not is_repository(name):
            raise ValueError("has to be one component of a repository name: lower case, digits, . _ -")
        return name

    @model_validator(mode="after")
    def _checked_url(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not is_host(parts.netloc) or parts.path.strip("/") or parts.query:
            raise ValueError("url has to be http://HOST[:PORT] or https://HOST[:PORT]")
        if self.namespace and not is_host(self.namespace):
            raise ValueError("namespace has to be a host with an optional port")
        return self

    @property
    def scheme(self) -> Scheme:
        """How it is spoken to."""
        return "http" if self.url.startswith("http:") else "https"

    @property
    def host(self) -> str:
        """Host and port of its API."""
        return urlsplit(self.url).netloc

    @property
    def registry(self) -> str:
        """The registry's canonical name in image names."""
        return canonical_registry(self.namespace or self.host)

    def allows(self, repository: str) -> bool:
        """True if *repository* may be asked for."""
        return any(fnmatchcase(repository, pattern) for pattern in self.allow)


class ProxySettings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="UNPACKD_REGISTRY_PROXY_", extra="forbid", frozen=True)

    listen: str = Field("127.0.0.1:5010", description="Address and port for clients.")
    directory: Path = Field(Path("/var/cache/unpackd/proxy"), description="Where the cache lies.")
    max_bytes: Size = Field(50 << 30, description='Size at which the least recently used goes: number or "50G".')
    low_mark: float = Field(0.9, gt=0, le=1, description="Part of max_bytes that is left after that.")
    tag_ttl_s: NonNegativeFloat = Field(60, description="How long a tag is believed without asking.")
    stale_limit_s: NonNegativeFloat = Field(
        7 * 86400, description="How old a tag may be when its upstream is not reachable."
    )
    verify_first_bytes: Size = Field(4 << 20, description="Blobs up to this size are verified before they are sent.")
    unread_limit_bytes: Size = Field(
        1 << 30, description="A download nobody reads any more goes on if no more than this is left of it."
    )
    default: str = Field("", description="Name of the upstream for requests that name none.")
    upstreams: tuple[UpstreamSettings, ...] = Field((), description="Tables [[proxy.upstreams]].")

    @field_validator("listen")
    @classmethod
    def _checked_listen(cls, listen: str) -> str:
        match = _LISTEN.fullmatch(listen)
        if match is None or int(match["port"]) > _MAX_PORT:
            raise ValueError("has to be ADDRESS:PORT")
        return listen

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.upstreams:
            raise ValueError("there is no table [[proxy.upstreams]]")
        for what in ("name", "registry"):
            values = [str(getattr(one, what)) for one in self.upstreams]
            if len(set(values)) < len(values):
                raise ValueError(f"two upstreams have the same {what}")
        if self.default and self.default not in {one.name for one in self.upstreams}:
            raise ValueError(f"default names {self.default!r}, which is no upstream")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Address and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, then what the file says, which is given as arguments."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings)


def load_settings(path: Path, *, listen: str | None = None) -> ProxySettings:
    """Settings from the environment and the file *path*; *listen* is what the command line says.

    Raises:
        ConfigError: the file cannot be read, has an unknown key, or a value is missing or wrong.
    """
    try:
        text = path.read_text()
        table = tomllib.loads(text).get(_TABLE, {})
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {_TABLE} is not a table")
    try:
        settings = ProxySettings(**table)
        return ProxySettings(**{**settings.model_dump(), "listen": listen}) if listen else settings
    except ValidationError as error:
        raise ConfigError(_explain(path, text, error)) from error


def _explain(path: Path, text: str, error: ValidationError) -> str:
    """The first mistake, with its line if its key stands in the file."""
    first = next(iter(error.errors()))
    location = first["loc"]
    number = next((part for part in location if isinstance(part, int)), None)
    names = [str(part) for part in location if isinstance(part, str) and part != _UPSTREAMS]
    key = names[0] if names else ""
    line = _line_of(text, key, number) if key else 0
    where = f"{path}:{line}" if line else str(path)
    table = f"[{_TABLE}]" if number is None else f"[[{_TABLE}.{_UPSTREAMS}]] number {number + 1}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r} in {table}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key} in {table}: {message}" if key else f"{where}: {table}: {message}"


def _line_of(text: str, key: str, upstream: int | None) -> int:
    """Number of the line on which *key* is set; 0 if it is written in some other form than ``key = ...``."""
    seen = -1
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        header = line.partition("#")[0].strip()
        if header.startswith("["):
            is_upstream = header.strip("[] ") == f"{_TABLE}.{_UPSTREAMS}"
            seen += is_upstream
            inside = header.strip("[] ") == _TABLE if upstream is None else is_upstream and seen == upstream
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return number
    return 0
