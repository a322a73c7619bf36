"""``unpackd repo preload``: fill a cache that mounts then only read."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fs.export_cli import Json, Proxy, Pubkey, TagName, Url
from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

_EVERYTHING = 1 << 62  # bytes: nothing is removed to make room
_FILE_MODE, _FOLDER_MODE = 0o444, 0o755


def register(app: typer.Typer) -> None:
    """Add preload to *app*."""
    app.command("preload")(preload)


def preload(
    directory: Annotated[Path, typer.Argument(file_okay=False, help="Where; several repositories may lie there.")],
    path: Annotated[list[str] | None, typer.Argument(help="Files and directories; everything by default.")] = None,
    url: Url = None,
    pubkey: Pubkey = None,
    tag: TagName = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", exists=True, help="What a start read (mountctl … profile).")
    ] = None,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Fetch a repository, or parts of it, into a cache for ``unpackd mount --preloaded``. Exit 3 if parts are missing.

    Example: unpackd repo preload /media/disk /software/app --url http://origin/cvmfs/repo.example.org --pubkey repo.pub
    """
    with command_errors(as_json=as_json):
        from fs.client.library import Options, open_repository
        from fs.client.profile import read_profile
        from fs.client.repository import Selection
        from fs.publish.published import read_manifest
        from fs.runtime.logs import configure_logging
        from fs.store.proxies import ProxyGroups
        from fs.store.remote import open_remote

        configure_logging("warning")
        if not url or not pubkey:
            raise UsageError("give --url, and --pubkey to believe it")
        urls = [one for part in url for one in part.split(",") if one]
        proxies = ProxyGroups.parse(proxy or "")
        with open_remote(urls, proxies=proxies) as store:
            name = read_manifest(store).name  # believed only if the keys sign for it
        options = Options(selection=Selection(tag=tag), proxies=proxies, quota_bytes=_EVERYTHING)
        wanted = [*(path or ()), *(read_profile(profile) if profile is not None else ())] or ["/"]
        with open_repository(urls, name, pubkey, directory, options=options) as repository:
            progress = repository.prefetch(wanted)
            tags = len(repository.tags())
            facts = {"repository": name, "revision": repository.revision.number, "tags": tags, **asdict(progress)}
        _let_everybody_read(directory)
        if as_json:
            print_json(facts)
        else:
            say(
                f"{name} revision {facts['revision']}: {progress.files} files, {progress.fetched} objects fetched,"
                f" {progress.present} there before, {progress.failed + progress.missing} missing"
            )
        if progress.failed or progress.missing:
            raise typer.Exit(Exit.PARTIAL)


def _let_everybody_read(directory: Path) -> None:
    """Mounts of other users shall read it, and nobody shall change an object by mistake."""
    directory.chmod(_FOLDER_MODE)
    for top in ("objects", "mounts"):
        for folder, _, files in os.walk(directory / top):
            Path(folder).chmod(_FOLDER_MODE)
            for file in files:
                (Path(folder) / file).chmod(_FILE_MODE)
