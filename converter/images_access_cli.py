"""How the commands for images open a repository: their options, and what they get."""

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from converter.config import ConversionSettings
    from fs.format.hashes import Hash
    from fs.publish.repository import Repository
    from fs.publish.view import View
    from fs.store.base import ReadStore

Image = Annotated[str, typer.Argument(metavar="IMAGE", help="registry/repo:tag, or sha256:… of a manifest.")]
Storage = Annotated[str | None, typer.Option(help="Where the repository is stored (UNPACKD_STORAGE).")]
Url = Annotated[list[str] | None, typer.Option("--url", help="Or its URL; several with commas or repeated.")]
Pubkey = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Public key of the repository; needed with --url.")
]
Keys = Annotated[Path | None, typer.Option(help="Directory of the repository's keys (UNPACKD_KEYS).")]
Config = Annotated[Path | None, typer.Option(help="Configuration file (/etc/unpackd/config.toml).")]
OnePlatform = Annotated[
    str | None, typer.Option("--platform", help="os/architecture[/variant], if the image has several.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@dataclass(frozen=True, slots=True)
class Opened:
    """A repository to read."""

    store: "ReadStore"
    view: "View"
    fingerprints: "tuple[Hash, ...]"  # of the certificates that may sign


@contextmanager
def reading(storage: str | None, url: list[str] | None, pubkey: Path | None, config: Path | None) -> "Iterator[Opened]":
    """The repository that options, variables or the configuration name."""
    from fs.format.trust import TrustedWhitelist, load_public_keys
    from fs.format.whitelist import MAX_WHITELIST_BYTES
    from fs.publish.published import read_whitelist
    from fs.publish.revisions import view_of
    from fs.publish.signing import WHITELIST
    from fs.repo_cli import opened_source

    if storage is None and not url:
        storage = conversion_settings(None, None, config).storage
    with opened_source(storage, url, pubkey) as (store, manifest):
        if pubkey is None:
            whitelist = read_whitelist(store)
        else:
            trusted = TrustedWhitelist.verify(
                store.read_named(WHITELIST, limit_bytes=MAX_WHITELIST_BYTES),
                name=manifest.name,
                keys=load_public_keys(pubkey.read_bytes()),
                now=datetime.now(UTC),
            )
            whitelist = trusted.whitelist
        yield Opened(store, view_of(store, manifest), whitelist.fingerprints)


def conversion_settings(storage: str | None, keys: Path | None, config: Path | None) -> "ConversionSettings":
    """The settings of conversions, with what the options say."""
    from converter.config import load_settings

    return load_settings(config, flags={"storage": storage, "keys": keys})


def writer(storage: str | None, keys: Path | None, config: Path | None) -> "Repository":
    """The repository that options, variables or the configuration name, to publish into. Raises UsageError."""
    from converter.target import open_target

    settings = conversion_settings(storage, keys, config)
    return open_target(settings.model_copy(update={"repo": None}))  # whatever is in that storage
