"""Leases for writers on several machines, in a Redis server.

Each step is one Lua script, which the server runs alone, by its own clock: those of the machines may be wrong. Two keys
a repository, in one hash slot: the last token, and a hash from token to lease. Neither ever expires, so that tokens
only grow. A server that loses its data begins at token 1 again; what keeps the repository safe then is, as always, that
the manifest is swapped and not replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import redis
from redis.exceptions import RedisError

from fs.errors import RefusedError, UnreachableError
from fs.publish.leases import Lease, lost, refuse

_PREFIX = "unpackd:leases:"
_TIMEOUT_S = 10.0

# KEYS: last token, leases. A lease is kept as "<expiry> <bytes of path> <path><owner>".
# Below: what all scripts begin with; expired leases go first.
_BEGIN = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local held = {}
local rows = redis.call('HGETALL', KEYS[2])
for i = 1, #rows, 2 do
  local expiry, size, rest = string.match(rows[i + 1], '^(%S+) (%d+) (.*)$')
  if tonumber(expiry) <= now then
    redis.call('HDEL', KEYS[2], rows[i])
  else
    local n = tonumber(size)
    held[#held + 1] = {rows[i], expiry, string.sub(rest, 1, n), string.sub(rest, n + 1)}
  end
end
local function entry(expiry, path, owner) return expiry .. ' ' .. #path .. ' ' .. path .. owner end
local function expiry(lifetime) return string.format('%.6f', now + tonumber(lifetime)) end
"""

# ARGV: path, owner, lifetime. Gives who is in the way, or the new lease.
_ACQUIRE = (
    _BEGIN
    + """
local function below(path, above) return path == above or string.sub(path, 1, #above + 1) == above .. '/' end
for _, row in ipairs(held) do
  if below(row[3], ARGV[1]) or below(ARGV[1], row[3]) then return {'held', row[1], row[2], row[3], row[4]} end
end
local token, until_s = tostring(redis.call('INCR', KEYS[1])), expiry(ARGV[3])
redis.call('HSET', KEYS[2], token, entry(until_s, ARGV[1], ARGV[2]))
return {'given', token, until_s, ARGV[1], ARGV[2]}
"""
)

# ARGV: token, lifetime. Gives the new expiry, or nothing.
_RENEW = (
    _BEGIN
    + """
for _, row in ipairs(held) do
  if row[1] == ARGV[1] then
    local until_s = expiry(ARGV[2])
    redis.call('HSET', KEYS[2], row[1], entry(until_s, row[3], row[4]))
    return until_s
  end
end
return false
"""
)

_LIST = _BEGIN + "return held"


class RedisLeases:
    """A LeaseKeeper in a Redis server."""

    def __init__(self, client: "redis.Redis") -> None:
        """Use *client*, which must not decode answers."""
        self._client = client
        # without a reply nobody knows if it was done, and a lease that was given twice is in its own way
        self._acquire = client.register_script(_ACQUIRE)
        self._renew = client.register_script(_RENEW)
        self._list = client.register_script(_LIST)

    @classmethod
    def open(cls, url: str) -> "RedisLeases":
        """A keeper in the server at *url*: ``redis://``, ``rediss://`` (TLS) or ``unix://``.

        Raises:
            RefusedError: it is no such URL.
            UnreachableError: the server does not answer.
        """
        try:
            client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        except ValueError as error:
            raise RefusedError(f"this is not the URL of a Redis server: {error}") from error
        keeper = cls(client)
        with keeper._errors():
            client.ping()
        return keeper

    def acquire(self, repository: str, path: bytes, owner: str, lifetime_s: float) -> Lease:
        """See LeaseKeeper.acquire."""
        with self._errors():
            answer = self._acquire(keys=_keys(repository), args=[path, owner, lifetime_s])
        status, *row = cast("list[bytes]", answer)
        found = _lease(repository, row)
        if status == b"held":
            raise refuse(path, found)
        return found

    def renew(self, lease: Lease, lifetime_s: float) -> Lease:
        """See LeaseKeeper.renew."""
        with self._errors():
            answer = self._renew(keys=_keys(lease.repository), args=[lease.token, lifetime_s])
        if answer is None:
            raise lost(lease)
        return Lease(lease.repository, lease.path, lease.owner, lease.token, float(cast("bytes", answer)))

    def release(self, lease: Lease) -> None:
        """See LeaseKeeper.release."""
        with self._errors():
            self._client.hdel(_keys(lease.repository)[1], str(lease.token))

    def leases(self, repository: str) -> list[Lease]:
        """See LeaseKeeper.leases."""
        with self._errors():
            rows = cast("list[list[bytes]]", self._list(keys=_keys(repository)))
        return sorted((_lease(repository, row) for row in rows), key=lambda lease: lease.token)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            where: dict[str, Any] = self._client.connection_pool.connection_kwargs
            shown = where.get("path") or f"{where.get('host')}:{where.get('port')}"
            raise UnreachableError(f"the leases in the Redis server {shown} cannot be used: {error}") from error


def _keys(repository: str) -> list[str]:
    return [f"{_PREFIX}{{{repository}}}:token", f"{_PREFIX}{{{repository}}}:held"]


def _lease(repository: str, row: list[bytes]) -> Lease:
    token, expires, path, owner = row
    return Lease(repository, path, owner.decode("utf-8", "replace"), int(token), float(expires))
