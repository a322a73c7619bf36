"""Which keeper of leases a URL names."""

from pathlib import Path
from urllib.parse import urlsplit

from fs.errors import RefusedError
from fs.publish.leases import LeaseKeeper

_REDIS = ("redis", "rediss", "unix")


def open_leases(url: str) -> LeaseKeeper:
    """The keeper at *url*.

    Args:
        url: ``redis://HOST/0``, ``rediss://…`` or ``unix://…`` for a Redis server, ``file:///DIRECTORY`` for the
            writers of one machine, else the SQLAlchemy URL of a database.

    Raises:
        RefusedError: nothing of that kind can keep leases.
        UnreachableError: it does not answer.
    """
    scheme, _, rest = url.partition("://")
    if not rest:
        raise RefusedError(f"{url!r} is not the URL of a keeper of leases: redis://…, file:///… or a database's")
    if scheme in _REDIS:
        from fs.publish.redis_leases import RedisLeases  # noqa: PLC0415  # only what is used is loaded

        return RedisLeases.open(url)
    if scheme == "file":
        from fs.publish.file_leases import FileLeases  # noqa: PLC0415  # only what is used is loaded

        folder = Path(urlsplit(url).path)
        if not folder.is_dir():
            raise RefusedError(f"leases cannot be kept in {folder}: it is not a directory")
        return FileLeases(folder)
    from fs.publish.sql_leases import SqlLeases  # noqa: PLC0415  # only what is used is loaded

    return SqlLeases.open(url)


def keeper_of(url: str | None) -> LeaseKeeper | None:
    """The keeper at *url*, if there is one. Raises as ``open_leases`` does."""
    return None if url is None else open_leases(url)
