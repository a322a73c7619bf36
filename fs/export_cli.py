"""``unpackd repo cp`` and ``unpackd repo export``: parts of a repository, written out without a mount."""

import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fs.client.export import ExportCounts
    from fs.client.library import OpenRepository

Inside = Annotated[str, typer.Argument(help="Path in the repository.")]
Storage = Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Directory of the repository.")]
Url = Annotated[list[str] | None, typer.Option("--url", help="Or its URL; several with commas or repeated.")]
Pubkey = Annotated[
    list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Public key; needed with --url; repeatable.")
]
TagName = Annotated[str | None, typer.Option("--tag", help="The revision of this name, not the newest.")]
Cache = Annotated[Path | None, typer.Option(file_okay=False, help="Keep objects there for the next time.")]
Proxy = Annotated[str | None, typer.Option("--proxy", help="HTTP proxies, as 'http://p1|http://p2;DIRECT'.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add cp and export to *app*."""
    app.command("cp")(copy)
    app.command("export")(export)


def copy(
    path: Inside,
    target: Annotated[Path, typer.Argument(help="File or directory to write; into it, if it is a directory.")],
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    tag: TagName = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories too.")] = False,
    cache: Cache = None,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Copy a file, or with -r a directory: contents, permissions and times, owned by you.

    Example: unpackd repo cp --storage /srv/unpacked /.flat/ab/etc/os-release .
    """
    with command_errors(as_json=as_json):
        from fs.client.export import Kept, export_directory

        with _opened(storage, url, pubkey, (tag, cache, proxy)) as repository:
            if not recursive and _is_directory(repository, path):
                raise UsageError(f"{path} is a directory; say -r to copy it with everything below")
            place = target / (path.strip("/").rpartition("/")[2] or repository.name) if target.is_dir() else target
            counts = export_directory(repository, path, place, kept=Kept(owners=False, xattrs=False))
        _report(counts, as_json=as_json)


def export(
    path: Inside,
    target: Annotated[str, typer.Argument(help="New directory, FILE.tar, or - for a tar on stdout.")],
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    tag: TagName = None,
    cache: Cache = None,
    proxy: Proxy = None,
    as_json: Json = False,
) -> None:
    """Write a directory out with owners, permissions, times, extended attributes and hard links.

    Example: unpackd repo export --storage /srv/unpacked /.flat/ab rootfs.tar
    """
    with command_errors(as_json=as_json):
        from fs.client.export import export_directory, export_tar

        if target == "-" and as_json:
            raise UsageError("stdout takes either the tar or --json")
        with _opened(storage, url, pubkey, (tag, cache, proxy)) as repository:
            if target == "-":
                counts = export_tar(repository, path, sys.stdout.buffer)
            elif target.endswith(".tar"):
                counts = _to_file(repository, path, Path(target))
            else:
                counts = export_directory(repository, path, Path(target))
        _report(counts, as_json=as_json)


def _to_file(repository: "OpenRepository", path: str, target: Path) -> "ExportCounts":
    """The tar appears when it is whole."""
    from fs.client.export import export_tar
    from fs.errors import RefusedError

    partial = target.with_name(f".{target.name}.partial")
    try:
        with partial.open("wb") as output:
            counts = export_tar(repository, path, output)
        partial.replace(target)
    except OSError as error:
        raise RefusedError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return counts


def _report(counts: "ExportCounts", *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(counts))
    else:
        for skipped in counts.skipped:
            say(f"left out: {skipped}")
        say(f"{counts.files} files, {counts.directories} directories, {counts.links} links, {counts.bytes} bytes")
    if counts.skipped:
        raise typer.Exit(Exit.PARTIAL)


def _is_directory(repository: "OpenRepository", path: str) -> bool:
    from fs.errors import AbsentError

    try:
        return repository.stat(path).is_directory
    except OSError as error:
        raise AbsentError(f"{path}: {error.strerror}") from error


@contextmanager
def _opened(
    storage: Path | None,
    url: list[str] | None,
    pubkey: list[Path] | None,
    more: tuple[str | None, Path | None, str | None],
) -> "Iterator[OpenRepository]":
    """The repository that the options name. A directory is believed without a key, as its owner's."""
    from fs.client.library import Options, open_repository
    from fs.client.repository import Selection
    from fs.publish.published import read_manifest, read_tags
    from fs.runtime.logs import configure_logging
    from fs.store.proxies import ProxyGroups
    from fs.store.remote import open_remote

    configure_logging("warning")
    tag, cache, proxy = more
    if (storage is None) == (not url):
        raise UsageError("give either --storage or --url")
    if url and not pubkey:
        raise UsageError("what a server says is only believed with --pubkey")
    urls = [one for part in url or () for one in part.split(",") if one]
    if storage is not None:
        urls = [storage.absolute().as_uri()]
    proxies = ProxyGroups.parse(proxy or "")
    with open_remote(urls, proxies=proxies) as store:
        manifest = read_manifest(store)
        selection = Selection(tag=tag)
        if not pubkey:
            roots = {one.name: one.root_catalog for one in read_tags(store, manifest)} if tag else {}
            if tag and tag not in roots:
                raise UsageError(f"there is no tag {tag} in {manifest.name}")
            selection = Selection(root_hash=roots.get(tag or "", manifest.root_catalog))
    options = Options(selection=selection, proxies=proxies)
    with open_repository(urls, manifest.name, pubkey or [], cache, options=options) as repository:
        yield repository
