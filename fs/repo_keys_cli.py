"""``unpackd repo resign | rotate-key``: looking after what makes a repository trusted."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from fs.repo_cli import Json, KeysDirectory, Leases, Storage, log_to_stderr
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from fs.publish.repository import Repository


def register(app: typer.Typer) -> None:
    """Add the commands to *app*, which is ``unpackd repo``."""
    app.command()(resign)
    app.command("rotate-key")(rotate)


def resign(storage: Storage, keys: KeysDirectory, as_json: Json = False) -> None:
    """Sign a new whitelist, valid for 30 days, that has the present key alone. Needs the master key.

    Example: unpackd repo resign --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from fs.publish.published import read_manifest
    from fs.publish.repository import Repository
    from fs.store.places import open_storage

    with command_errors(as_json=as_json):
        log_to_stderr()
        name = read_manifest(open_storage(storage).store).name
        repository = Repository.open(name, storage, keys)
        repository.resign()
        _tell(repository, as_json=as_json)


def rotate(storage: Storage, keys: KeysDirectory, leases: Leases = None, as_json: Json = False) -> None:
    """Make a new key and sign the newest revision, and all that come, with it. Needs the master key.

    Clients notice nothing. They believe the old key as well until the whitelist is signed again (repo resign).
    Example: unpackd repo rotate-key --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from fs.publish.keepers import keeper_of
    from fs.publish.published import read_manifest
    from fs.publish.repository import Settings
    from fs.publish.rotation import rotate_key
    from fs.store.places import open_storage

    with command_errors(as_json=as_json):
        log_to_stderr()
        name = read_manifest(open_storage(storage).store).name
        _tell(rotate_key(name, storage, keys, settings=Settings(leases=keeper_of(leases))), as_json=as_json)


def _tell(repository: "Repository", *, as_json: bool) -> None:
    whitelist, certificate = repository.whitelist_expires(), repository.certificate_expires
    if as_json:
        print_json(
            {
                "name": repository.name,
                "whitelist_expires": whitelist.isoformat(),
                "certificate_expires": certificate.isoformat(),
                "warnings": repository.expiry_warnings(),
            }
        )
        return
    say(f"the whitelist of {repository.name} is valid until {whitelist:%Y-%m-%d %H:00} UTC")
    days = (certificate - datetime.now(UTC)).days
    say(f"the certificate of the key is valid until {certificate:%Y-%m-%d} ({days} days)")
