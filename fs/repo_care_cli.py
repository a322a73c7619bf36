"""``unpackd repo gc | diff | rollback | replicate``: looking after a repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs.repo_cli import (
    AnyStorage,
    Json,
    KeysDirectory,
    Leases,
    Pubkey,
    Storage,
    Url,
    log_to_stderr,
    opened_source,
    progress_bar,
)
from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fs.publish.diff import Difference
    from fs.publish.gc import GcReport

_DAY_S = 86_400.0
_LETTERS = {"added": "A", "removed": "R", "changed": "C"}

RevisionName = Annotated[str, typer.Argument(help="Tag, number of a revision, or hash of its root catalog.")]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*, which is ``unpackd repo``."""
    for command in (gc, diff, rollback, replicate):
        app.command()(command)


def gc(
    storage: Storage,
    keys: Annotated[
        Path | None, typer.Option(help="Directory of the keys; with them the manifest names the new reflog at once.")
    ] = None,
    keep_revisions: Annotated[int, typer.Option(min=1, help="How many of the newest revisions stay.")] = 2,
    keep_days: Annotated[float, typer.Option(min=0, help="What was the newest since then stays as well.")] = 3,
    pin: Annotated[list[str] | None, typer.Option(help="Tag, number or hash of a further revision that stays.")] = None,
    grace_days: Annotated[float, typer.Option(min=0, help="Objects younger than this stay.")] = 3,
    alone: Annotated[
        bool, typer.Option("--alone", help="Nobody else writes meanwhile: allows a short grace period.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and why; remove nothing.")] = False,
    most: Annotated[int | None, typer.Option(min=1, help="Remove at most so many objects in this run.")] = None,
    leases: Leases = None,
    as_json: Json = False,
) -> None:
    """Remove what no kept revision needs. Others may go on publishing. Exit 3 if --most left something.

    Named revisions always stay. Example: unpackd repo gc --storage /srv/unpacked --keep-days 30 --dry-run
    """
    from fs.publish.gc import GcOptions, collect
    from fs.publish.keepers import keeper_of
    from fs.publish.keys import load_keys
    from fs.publish.published import read_manifest
    from fs.publish.revisions import named_revision
    from fs.store.places import open_storage

    with command_errors(as_json=as_json):
        log_to_stderr()
        place = open_storage(storage)
        manifest = read_manifest(place.store)
        place.prepare()
        with progress_bar("gc", quiet=as_json) as report_progress:
            options = GcOptions(
                keep_revisions=keep_revisions,
                keep_newer_s=keep_days * _DAY_S,
                pins=[named_revision(place.store, manifest, name).root_catalog for name in pin or ()],
                grace_s=grace_days * _DAY_S,
                is_alone=alone,
                dry_run=dry_run,
                most_objects=most,
                leases=keeper_of(leases),
                report=report_progress,
            )
            loaded = load_keys(keys, manifest.name) if keys is not None else None
            report = collect(place.store, place.private, options, loaded)
        _print_collection(report, as_json=as_json, dry_run=dry_run)
    if not dry_run and not report.is_complete:
        raise typer.Exit(Exit.PARTIAL)


def diff(
    before: RevisionName,
    after: Annotated[str, typer.Argument(help="The same of the other one; default is the newest.")] = "trunk",
    storage: AnyStorage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    as_json: Json = False,
) -> None:
    """List the paths that differ between two revisions: A added, R removed, C changed and what of it.

    Example: unpackd repo diff --storage /srv/unpacked before-cleaning
    """
    from fs.publish.diff import differences
    from fs.publish.revisions import named_revision

    with command_errors(as_json=as_json), opened_source(storage, url, pubkey) as (store, manifest):
        old, new = (named_revision(store, manifest, name).root_catalog for name in (before, after))
        _print_differences(differences(store, old, new), as_json=as_json)


def rollback(
    storage: Storage,
    keys: KeysDirectory,
    to: Annotated[str, typer.Argument(help="Tag, number or hash of the revision to return to.")] = "trunk-previous",
    leases: Leases = None,
    as_json: Json = False,
) -> None:
    """Publish an older revision again, as a new one; without an argument the last change is undone.

    Example: unpackd repo rollback --storage /srv/unpacked --keys /etc/unpackd/keys before-cleaning
    """
    from fs.publish.keepers import keeper_of
    from fs.publish.published import read_manifest
    from fs.publish.repository import Repository, Settings
    from fs.publish.revisions import named_revision
    from fs.store.places import open_storage

    with command_errors(as_json=as_json):
        log_to_stderr()
        store = open_storage(storage).store
        manifest = read_manifest(store)
        target = named_revision(store, manifest, to)
        repository = Repository.open(manifest.name, storage, keys, settings=Settings(leases=keeper_of(leases)))
        commit = repository.rollback(target.root_catalog)
        if as_json:
            facts = {"revision": commit.revision, "root": str(commit.root_hash), "changed": commit.changed}
            print_json(facts | {"content_of": target.number})
        elif commit.changed:
            say(f"revision {commit.revision} of {manifest.name} has the content of revision {target.number}")
        else:
            say(f"revision {commit.revision} of {manifest.name} is the newest already")


def replicate(
    url: Annotated[list[str], typer.Option(help="URL of the repository; several with commas or repeated.")],
    pubkey: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Public key of the repository.")],
    storage: Storage,
    name: Annotated[str | None, typer.Option(help="Name that the repository must have.")] = None,
    path: Annotated[list[str] | None, typer.Option(help="Mirror only what is at and below this path.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Only the newest revision, not those with names.")] = False,
    transfers: Annotated[int, typer.Option(min=1, max=256, help="Objects fetched at once.")] = 16,
    proxy: Annotated[str | None, typer.Option(help="URL of an HTTP proxy.")] = None,
    unasked: Annotated[
        bool, typer.Option("--unasked", help="Also if the source does not say that it may be replicated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a mirror of a repository, or bring it up to date. An interrupted run is taken up by the next one.

    Example: unpackd repo replicate --url http://origin/cvmfs/NAME --pubkey NAME.pub --storage /srv/mirror
    """
    from dataclasses import asdict

    from fs.format.paths import canonical
    from fs.format.trust import load_public_keys
    from fs.publish.replica_state import Scope
    from fs.publish.replicate import ReplicaOptions, replicate_from
    from fs.store.places import open_storage

    urls = [one for part in url for one in part.split(",") if one]
    with command_errors(as_json=as_json):
        if not urls:
            raise UsageError("give at least one --url")
        log_to_stderr()
        options = ReplicaOptions(
            name=name,
            keys=load_public_keys(pubkey.read_bytes()),
            scope=Scope(tuple(sorted({canonical(each) for each in path or ()} - {b""}))),
            with_tags=not no_tags,
            transfers=transfers,
            needs_consent=not unasked,
        )
        report = replicate_from(urls, open_storage(storage), options, proxy=proxy)
        if as_json:
            print_json(asdict(report))
        else:
            say(
                f"{report.name} is at revision {report.revision} (was {report.previous_revision}); "
                f"{report.objects} objects fetched, {report.stored_bytes} bytes"
            )


def _print_collection(report: "GcReport", *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        print_json(_collection_facts(report))
        return
    for garbage in report.garbage:
        name = f"{garbage.object.name}{garbage.object.suffix.value}"
        typer.echo(f"{garbage.object.size_bytes:>12}  {name}  {garbage.reason}")
    kept = f"{len(report.kept)} revisions and {report.kept_tags} names kept, {report.live_objects} objects needed"
    if dry_run:
        say(f"{report.name}: {kept}; {report.garbage_objects} would go, {report.garbage_bytes} bytes")
    else:
        say(
            f"{report.name}: {kept}; {report.removed_objects} of {report.garbage_objects} removed, "
            f"{report.removed_bytes} bytes; {report.young_objects} too young"
        )


def _collection_facts(report: "GcReport") -> dict[str, Any]:
    from dataclasses import asdict

    facts = asdict(report) | {"is_complete": report.is_complete}
    facts["garbage"] = [
        {
            "object": f"{garbage.object.name}{garbage.object.suffix.value}",
            "size_bytes": garbage.object.size_bytes,
            "modified_unix_s": garbage.object.modified_unix_s,
            "reason": garbage.reason,
        }
        for garbage in report.garbage
    ]
    return facts


def _print_differences(found: "Iterable[Difference]", *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"path": _shown(each.path), "change": each.change.value, "aspects": list(each.aspects)} for each in found
        ]
        print_json(rows)
        return
    for each in found:
        aspects = f"  {' '.join(each.aspects)}" if each.aspects else ""
        typer.echo(f"{_LETTERS[each.change.value]} {_shown(each.path)}{aspects}")


def _shown(path: bytes) -> str:
    return (path or b"/").decode("utf-8", "backslashreplace")
