"""Exchanging the key that signs revisions, while clients go on trusting."""

from datetime import UTC, datetime
from pathlib import Path

from fs.errors import MalformedError
from fs.publish.keys import adopt_next, is_rotating, load_keys, next_keys
from fs.publish.repository import Repository, Settings


def rotate_key(
    name: str, storage: str, folder: Path, *, settings: Settings | None = None, durable: bool = True
) -> Repository:
    """Exchange the key that signs revisions, and sign the newest one with the new key.

    May be killed at any moment; running it again completes it, or exchanges the key once more. Clients believe the old
    key until the whitelist is signed again (``Repository.resign``).

    Args:
        name: of the repository.
        storage: where it is.
        folder: of its keys; the new ones are left there.
        settings: how it is written.
        durable: as for ``Repository.open``.

    Raises:
        AbsentError: the master key is not in *folder*.
    """
    try:
        load_keys(folder, name)
    except MalformedError:
        if not is_rotating(folder, name):
            raise
        adopt_next(folder, name)  # killed between the files of the new pair: the whitelist has it already
    old = Repository.open(name, storage, folder, settings=settings, durable=durable)
    old.allow_certificate(next_keys(folder, name, datetime.now(UTC)))
    adopt_next(folder, name)
    new = Repository.open(name, storage, folder, settings=settings, durable=durable)
    new.sign_again()
    return new
