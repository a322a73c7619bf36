"""``unpackd repo …``: make, serve, look at and look after a repository that lies in a directory."""

import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from fs.format.entries import Entry
    from fs.format.history import Tag
    from fs.format.manifest import Manifest
    from fs.publish.check import Verdict
    from fs.store.base import ReadStore, TendedStore

_PERCENT = 100.0
_STOP_AFTER_S = 2

app = typer.Typer(no_args_is_help=True, help="Make, serve, look at and look after a repository.")

_STORAGE_HELP = "Where the repository is stored: a directory, or s3://BUCKET/PREFIX?endpoint=URL&region=NAME."
Storage = Annotated[str, typer.Option(help=_STORAGE_HELP)]
AnyStorage = Annotated[str | None, typer.Option(help=_STORAGE_HELP)]
Url = Annotated[list[str] | None, typer.Option("--url", help="Or its URL; several with commas or repeated.")]
Pubkey = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Public key of the repository; needed with --url.")
]
KeysDirectory = Annotated[Path, typer.Option(help="Directory of the repository's keys.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
TagName = Annotated[str | None, typer.Option("--tag", help="Look at the revision of this name, not at the newest.")]
Leases = Annotated[
    str | None,
    typer.Option(
        help="Keeper of leases, if several machines publish: redis://HOST/0, or the SQLAlchemy URL of a database."
    ),
]
Inside = Annotated[str, typer.Argument(help="Path in the repository.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Fully qualified name, such as unpacked.example.org.")],
    storage: Storage,
    keys: KeysDirectory,
    ttl: Annotated[int, typer.Option(min=1, help="Seconds after which clients look for a new revision.")] = 240,
    as_json: Json = False,
) -> None:
    """Make a repository: keys, whitelist, first revision. Clients need KEYS/NAME.pub.

    Example: unpackd repo create unpacked.example.org --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from fs.publish.repository import Repository, Settings

    with command_errors(as_json=as_json):
        log_to_stderr()
        made = Repository.create(name, storage, keys, settings=Settings(ttl_s=ttl))
        facts = {"name": name, "revision": made.revision, "storage": storage, "pubkey": str(keys / f"{name}.pub")}
        if as_json:
            print_json(facts)
        else:
            say(f"{name} is at revision {made.revision}; clients need {facts['pubkey']}")


@app.command()
def serve(
    storage: Storage,
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen at; port 0 takes a free one.")] = "127.0.0.1:8000",
) -> None:
    """Serve a repository over HTTP until interrupted.

    Example: unpackd repo serve --storage /srv/unpacked --listen 0.0.0.0:8000
    """
    import uvicorn

    from fs.origin import origin_app
    from fs.publish.published import read_manifest
    from fs.runtime.logs import configure_logging
    from fs.runtime.serving import listening_socket
    from fs.store.local import LocalStore

    with command_errors():
        host, port = _address(listen)
        store = _store(storage)
        if not isinstance(store, LocalStore):
            raise UsageError(f"{storage} is served by its own server; this command serves directories")
        name = read_manifest(store).name
        configure_logging()
        config = uvicorn.Config(
            origin_app(store.root, name),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_STOP_AFTER_S,  # streams of events never end by themselves
        )
        listener = listening_socket(host, port)
        bound = listener.getsockname()
        say(f"serving http://{bound[0]}:{bound[1]}/cvmfs/{name}")
        uvicorn.Server(config).run(sockets=[listener])


@app.command()
def info(storage: AnyStorage = None, url: Url = None, pubkey: Pubkey = None, as_json: Json = False) -> None:
    """What a repository is: revision, hashes, times, numbers of entries.

    Example: unpackd repo info --storage /srv/unpacked --json
    """
    with command_errors(as_json=as_json), opened_source(storage, url, pubkey) as (store, manifest):
        facts = _facts(store, manifest)
        if as_json:
            print_json(facts)
        else:
            for key, value in facts.items():
                typer.echo(f"{key}: {value}")


@app.command("ls")
def list_directory(
    path: Inside = "/",
    storage: AnyStorage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    tag: TagName = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="With type, owner, size and time.")] = False,
    as_json: Json = False,
) -> None:
    """List a directory of a repository, or say what a path is.

    Example: unpackd repo ls --storage /srv/unpacked -l /.flat
    """
    from fs.errors import AbsentError
    from fs.format.paths import canonical
    from fs.publish.revisions import view_of

    with command_errors(as_json=as_json), opened_source(storage, url, pubkey) as (store, manifest):
        view = view_of(store, manifest, tag)
        where = canonical(path)
        found = view.lookup(where)
        if found is None:
            raise AbsentError(f"there is no {path} in the repository")
        entries = view.list(where) if found.is_directory else [found]
        if as_json:
            print_json([_entry_facts(entry) for entry in entries])
            return
        for entry in entries:
            typer.echo(_entry_line(entry) if long else _shown(entry.name))


@app.command("cat")
def print_file(
    path: Inside, storage: AnyStorage = None, url: Url = None, pubkey: Pubkey = None, tag: TagName = None
) -> None:
    """Print a file of a repository, verified.

    Example: unpackd repo cat --storage /srv/unpacked /.metadata/registry/image:tag/manifest.json
    """
    from fs.format.paths import canonical
    from fs.publish.revisions import view_of
    from fs.publish.view import read_parts

    with command_errors(), opened_source(storage, url, pubkey) as (store, manifest):
        content = view_of(store, manifest, tag).content(canonical(path))
        for part in read_parts(store, content):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


@app.command()
def check(
    storage: AnyStorage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    sample: Annotated[str, typer.Option(help="Share of the objects whose bytes are read, such as 10%.")] = "100%",
    threads: Annotated[int, typer.Option(min=1, max=64, help="Objects read at once.")] = 2,
    as_json: Json = False,
) -> None:
    """Verify every signature, catalog, counter, link, chunk and object. Exit 12 if anything is wrong.

    Example: unpackd repo check --storage /srv/unpacked --pubkey unpacked.example.org.pub
    """
    from fs.format.trust import load_public_keys
    from fs.publish.check import CheckOptions, check_repository

    with command_errors(as_json=as_json):
        share = _share(sample)
        with _place(storage, url) as store, progress_bar("check", quiet=as_json) as report:
            options = CheckOptions(
                keys=load_public_keys(pubkey.read_bytes()) if pubkey is not None else (),
                now=datetime.now(UTC),
                sample=share,
                threads=threads,
                report=report,
            )
            verdict = check_repository(store, options)
        _print_verdict(verdict, as_json=as_json)
    if not verdict.is_good:
        raise typer.Exit(Exit.CORRUPT)


@app.command("tag")
def name_revision(
    name: Annotated[str | None, typer.Argument(help="Name to set or remove; without it all names are listed.")] = None,
    storage: AnyStorage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    keys: Annotated[Path | None, typer.Option(help="Directory of the keys; needed for changes.")] = None,
    revision: Annotated[int | None, typer.Option(help="Revision to name; default is the newest.")] = None,
    description: Annotated[str, typer.Option(help="What the name is for.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the name.")] = False,
    leases: Leases = None,
    as_json: Json = False,
) -> None:
    """List, set or remove names of revisions.

    Example: unpackd repo tag --storage /srv/unpacked --keys /etc/unpackd/keys before-cleaning
    """
    from fs.publish.keepers import keeper_of
    from fs.publish.published import read_tags
    from fs.publish.repository import Repository, Settings

    with command_errors(as_json=as_json), opened_source(storage, url, pubkey) as (store, manifest):
        if name is None:
            _print_tags(read_tags(store, manifest), as_json=as_json)
            return
        if keys is None or storage is None:
            raise UsageError("tags are signed: give --storage and --keys, or no name to list them")
        repository = Repository.open(manifest.name, storage, keys, settings=Settings(leases=keeper_of(leases)))
        if remove:
            repository.remove_tag(name)
        else:
            repository.set_tag(_tag(store, manifest, name, revision, description))


@app.command()
def history(
    storage: AnyStorage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    limit: Annotated[int, typer.Option(min=1, help="How many revisions at most.")] = 20,
    as_json: Json = False,
) -> None:
    """List revisions, newest first, with their names.

    Example: unpackd repo history --storage /srv/unpacked --limit 5
    """
    from itertools import islice

    from fs.publish.published import read_tags
    from fs.publish.revisions import revisions

    with command_errors(as_json=as_json), opened_source(storage, url, pubkey) as (store, manifest):
        tags = read_tags(store, manifest)
        rows: list[dict[str, Any]] = [
            {
                "revision": revision.number,
                "root": str(revision.root_catalog),
                "published": _time(revision.published_unix_s),
                "tags": [tag.name for tag in tags if tag.root_catalog == revision.root_catalog],
            }
            for revision in islice(revisions(store, manifest), limit)
        ]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            typer.echo(f"{row['revision']:>8}  {row['published']}  {row['root']}  {' '.join(row['tags'])}".rstrip())


@contextmanager
def progress_bar(label: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal; gives the function to call with done and total."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def log_to_stderr() -> None:
    """Warnings of what is underneath are talk, not data."""
    from fs.runtime.logs import configure_logging

    configure_logging("warning")


@contextmanager
def _place(storage: str | None, url: list[str] | None) -> "Iterator[ReadStore]":
    """The store that the options name."""
    log_to_stderr()
    if (storage is None) == (not url):
        raise UsageError("give either --storage or --url")
    if storage is not None:
        yield _store(storage)
        return
    from fs.store.remote import open_remote

    with open_remote([one for part in url or () for one in part.split(",") if one]) as store:
        yield store


@contextmanager
def opened_source(
    storage: str | None, url: list[str] | None, pubkey: Path | None
) -> "Iterator[tuple[ReadStore, Manifest]]":
    """The store that the options name, and its newest manifest; verified if it is remote, or if there is a key."""
    from fs.format.trust import load_public_keys
    from fs.publish.published import read_manifest
    from fs.publish.revisions import verified_manifest

    if url and pubkey is None:
        raise UsageError("what a server says is only believed with --pubkey")
    with _place(storage, url) as store:
        if pubkey is None:
            yield store, read_manifest(store)
        else:
            yield store, verified_manifest(store, load_public_keys(pubkey.read_bytes()), datetime.now(UTC))


def _store(storage: str) -> "TendedStore":
    from fs.store.places import open_storage

    return open_storage(storage).store


def _address(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"{listen!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _share(sample: str) -> float:
    try:
        share = float(sample.removesuffix("%"))
    except ValueError as error:
        raise UsageError(f"{sample!r} is not a percentage such as 10%") from error
    if not 0 < share <= _PERCENT:
        raise UsageError(f"{sample!r} is not between 0% and 100%")
    return share / _PERCENT


def _time(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _facts(store: "ReadStore", manifest: "Manifest") -> dict[str, Any]:
    from contextlib import closing

    from fs.format.catalog import Catalog
    from fs.format.databases import connect_bytes
    from fs.publish.published import read_tags, read_whitelist
    from fs.publish.signing import expiry_warnings, published_certificate_expires
    from fs.publish.view import CatalogCache

    with closing(connect_bytes(CatalogCache(store).fetch(manifest.root_catalog))) as connection:
        totals = Catalog(connection).counters().total
    whitelist_expires = read_whitelist(store).expires
    certificate_expires = published_certificate_expires(store, manifest)
    return {
        "name": manifest.name,
        "revision": manifest.revision,
        "root": str(manifest.root_catalog),
        "published": _time(manifest.published_unix_s),
        "ttl_s": manifest.ttl_s,
        "garbage_collectable": manifest.garbage_collectable,
        "whitelist_expires": _time(int(whitelist_expires.timestamp())),
        "certificate_expires": certificate_expires and _time(int(certificate_expires.timestamp())),
        "warnings": expiry_warnings(whitelist_expires, certificate_expires, datetime.now(UTC)),
        "tags": len(read_tags(store, manifest)),
        "counters": totals,
    }


def _entry_facts(entry: "Entry") -> dict[str, Any]:
    from fs.format.symlinks import decode_literal

    facts: dict[str, Any] = {
        "name": _shown(entry.name),
        "mode": f"{entry.mode:06o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "linkcount": entry.linkcount,
        "hash": None if entry.hash is None else str(entry.hash),
    }
    if entry.is_symlink:
        facts["target"] = _shown(decode_literal(entry.target))
    return facts


def _entry_line(entry: "Entry") -> str:
    facts = _entry_facts(entry)
    arrow = f" -> {facts['target']}" if entry.is_symlink else ""
    time = _time(entry.mtime_ns // 1_000_000_000)
    kind = stat.filemode(entry.mode)
    return f"{kind} {entry.linkcount:>3} {entry.uid:>5} {entry.gid:>5} {entry.size:>12} {time} {facts['name']}{arrow}"


def _print_tags(tags: "list[Tag]", *, as_json: bool) -> None:
    rows = [
        {
            "name": tag.name,
            "revision": tag.revision,
            "root": str(tag.root_catalog),
            "published": _time(tag.published_unix_s),
            "description": tag.description,
        }
        for tag in tags
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['revision']:>8}  {row['published']}  {row['name']}  {row['description']}".rstrip())


def _tag(store: "ReadStore", manifest: "Manifest", name: str, number: int | None, description: str) -> "Tag":
    from fs.format.history import Tag
    from fs.publish.revisions import find_revision

    revision = find_revision(store, manifest, manifest.revision if number is None else number)
    return Tag(
        name=name,
        root_catalog=revision.root_catalog,
        revision=revision.number,
        published_unix_s=revision.published_unix_s,
        size=revision.size,
        description=description,
    )


def _print_verdict(verdict: "Verdict", *, as_json: bool) -> None:
    if as_json:
        document = {
            "good": verdict.is_good,
            "name": verdict.name,
            "revision": verdict.revision,
            "catalogs": verdict.catalogs,
            "entries": verdict.entries,
            "objects": verdict.objects,
            "objects_read": verdict.objects_read,
            "bytes_read": verdict.bytes_read,
            "findings": [
                {"kind": found.kind, "where": found.where, "message": found.message, "note": found.is_note}
                for found in verdict.findings
            ],
        }
        print_json(document)
        return
    for found in verdict.findings:
        typer.echo(f"{'note' if found.is_note else 'WRONG'}  {found.kind}  {found.where}: {found.message}")
    say(
        f"{verdict.name} revision {verdict.revision}: {verdict.catalogs} catalogs, {verdict.entries} entries, "
        f"{verdict.objects_read} of {verdict.objects} objects read; {'good' if verdict.is_good else 'NOT good'}"
    )
