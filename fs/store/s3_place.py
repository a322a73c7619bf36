"""``s3://`` URLs, without anything that needs the S3 library."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qs, urlsplit

from fs.errors import RefusedError

_OPTIONS = {"endpoint", "region", "profile"}


@dataclass(frozen=True, slots=True)
class S3Limits:
    """How long a server may take, and how much is sent at once."""

    connect_timeout_s: float = 5.0
    idle_timeout_s: float = 30.0
    attempts: int = 5  # of each request
    backoff_s: float = 0.2  # longest wait before the second reading of a broken body; it doubles
    connections: int = 16
    part_bytes: int = 16 << 20  # larger objects are sent in parts of this size, at least 5 MiB for most servers


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where a repository lies: ``s3://bucket/prefix?endpoint=…&region=…&profile=…``."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # None: Amazon's
    region: str | None = None
    profile: str | None = None  # section of the library's configuration files

    @classmethod
    def parse(cls, url: str) -> Self:
        """The place that *url* names. Raises RefusedError with what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.hostname or parts.hostname != parts.netloc:
            raise RefusedError(f"{url!r} is not s3://BUCKET/PREFIX; credentials are never part of it")
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        unknown = options.keys() - _OPTIONS
        if unknown or parts.fragment:
            raise RefusedError(f"{url!r}: {min(unknown, default='#')!r} is not known; endpoint, region and profile are")
        endpoint = options.get("endpoint")
        if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
            raise RefusedError(f"{url!r}: the endpoint {endpoint!r} is not an http or https URL")
        return cls(parts.netloc, parts.path.strip("/"), endpoint, options.get("region"), options.get("profile"))

    @property
    def shown(self) -> str:
        """For people and logs."""
        place = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        return f"{place} at {self.endpoint}" if self.endpoint else place
