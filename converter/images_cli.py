"""``unpackd images …``: what a repository holds, where it came from, what can go, and if it is what it should be."""

import json
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from converter.config import ConversionSettings
    from converter.image_records import PlatformImage, Provenance
    from converter.retention import RetentionReport
    from converter.verify import Finding, Recomputed
    from fs.format.hashes import Hash
    from fs.publish.operations import Operation
    from fs.publish.repository import Repository
    from fs.publish.view import View
    from fs.store.base import ReadStore

DAY_S = 86_400
_MOST_FINDINGS = 1000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024

app = typer.Typer(no_args_is_help=True, help="Look at and look after the images of a repository.")

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


def register(parent: typer.Typer) -> None:
    """Add the commands to *parent*."""
    parent.add_typer(app, name="images")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A repository to read."""

    store: "ReadStore"
    view: "View"
    fingerprints: "tuple[Hash, ...]"  # of the certificates that may sign


@app.command("ls")
def list_images(
    storage: Storage = None, url: Url = None, pubkey: Pubkey = None, config: Config = None, as_json: Json = False
) -> None:
    """List the images: name, digest, platform, time of conversion, size.

    Example: unpackd images ls --storage /srv/unpacked
    """
    from converter import inventory

    with command_errors(as_json=as_json), _reading(storage, url, pubkey, config) as opened:
        rows = [_row(opened.view, name) for name in inventory.names(opened.view)]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            for image in row["images"]:
                typer.echo(
                    f"{row['name']}  {image['manifest']}  {image['platform']}  {row['converted'] or '-'}  "
                    f"{_bytes(image['size'])}"
                )
            if row["error"]:
                typer.echo(f"{row['name']}  {row['error']}")


@app.command()
def show(
    image: Image,
    platform: OnePlatform = None,
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show an image: sizes, layers, files, what it shares with others, where it came from, how long each step took.

    Example: unpackd images show docker.io/library/debian:12 --storage /srv/unpacked
    """
    from converter import inventory, placement
    from converter.footprint import footprint

    with command_errors(as_json=as_json), _reading(storage, url, pubkey, config) as opened:
        name, one = inventory.chosen(opened.view, image, platform)
        known = _provenance(opened.view, one)
        sizes: Any = opened.store if hasattr(opened.store, "describe") else None
        taken = footprint(opened.view, known.config, sizes)
        chains = placement.chain_ids([layer.diff_id for layer in known.layers])
        document = {
            "name": name,
            "names": [named for named in inventory.names(opened.view) if _leads_to(opened.view, named, one)],
            "platform": known.platform,
            "manifest": known.manifest,
            "config": known.config,
            "resolved": known.resolved,
            "source": known.source,
            "converted": known.converted.isoformat(),
            "tool": known.tool,
            "tree": known.tree,
            "size": known.size,
            "compressed_size": known.compressed_size,
            "files": known.files,
            "entries": known.entries,
            "layers": [asdict(layer) for layer in known.layers],
            "chains": chains,
            "flat_path": placement.flat_path(known.config).decode(),
            "content_bytes": taken.content_bytes,
            "shared_content_bytes": taken.shared_content_bytes,
            "stored_bytes": taken.stored_bytes,
            "shared_stored_bytes": taken.shared_stored_bytes,
            "seconds": dict(known.seconds or {}),
        }
        if as_json:
            print_json(document)
            return
        _print_image(document)


@app.command()
def history(
    image: Image,
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What a name led to, newest first: time, digest at the registry, manifest, platform, and if it is still there.

    Example: unpackd images history docker.io/library/debian:12 --storage /srv/unpacked
    """
    from converter import inventory, placement

    with command_errors(as_json=as_json), _reading(storage, url, pubkey, config) as opened:
        name = inventory.known_name(opened.view, image)
        rows = [
            {
                "converted": event.converted.isoformat(),
                "resolved": event.record.resolved,
                "manifest": one.manifest,
                "config": one.config,
                "platform": one.platform,
                "kept": opened.view.lookup(placement.flat_path(one.config)) is not None,
                "flat_path": placement.flat_path(one.config).decode(),
            }
            for event in reversed(inventory.history(opened.view, name))
            for one in event.record.all_images
        ]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            state = "" if row["kept"] else "  (removed)"
            typer.echo(f"{row['converted']}  {row['resolved']}  {row['manifest']}  {row['platform']}{state}")


@app.command("rm")
def remove(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names as `images ls` prints them.")],
    storage: Storage = None,
    keys: Keys = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove names, all in one commit. Trees and layers stay until `unpackd images gc`.

    Example: unpackd images rm docker.io/library/debian:11 --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from converter import inventory
    from converter.retention import removal

    with command_errors(as_json=as_json):
        repository = _writer(storage, keys, config)
        view = repository.view()
        names = list(dict.fromkeys(inventory.known_name(view, image) for image in images))
        operations: list[Operation] = [operation for name in names for operation in removal(view, name)]
        commit = repository.commit(operations)
        if as_json:
            print_json({"removed": names, "revision": commit.revision})
        else:
            say(f"revision {commit.revision} has {', '.join(names)} no more")


@app.command()
def pin(
    image: Image,
    reason: Annotated[str, typer.Option(help="Why it is kept.")] = "",
    remove_pin: Annotated[bool, typer.Option("--remove", help="Let it go again.")] = False,
    platform: OnePlatform = None,
    storage: Storage = None,
    keys: Keys = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Keep an image, as it is now, whatever becomes of its names.

    Example: unpackd images pin docker.io/library/debian:12 --reason "analysis of run 3"
    """
    from converter import inventory, placement
    from converter.image_records import Pin
    from fs.publish.operations import PutFile, Remove, Require

    with command_errors(as_json=as_json):
        repository = _writer(storage, keys, config)
        _, one = inventory.chosen(repository.view(), image, platform)
        path = placement.pin_path(one.manifest)
        mark = Pin(one.manifest, reason or "no reason given", datetime.now(UTC))
        if remove_pin:
            commit = repository.commit([Remove(path)])
        else:
            content = repository.ingester().add_bytes(mark.encode())
            commit = repository.commit([Require(placement.image_path(one.manifest)), PutFile(path, content)])
        if as_json:
            print_json({"manifest": one.manifest, "pinned": not remove_pin, "revision": commit.revision})
        else:
            say(f"{one.manifest} is {'not pinned any more' if remove_pin else 'pinned'}, revision {commit.revision}")


@app.command("gc")
def collect_garbage(
    keep_days: Annotated[float, typer.Option(min=0, help="What a name led to stays for so many days.")] = 30,
    grace_days: Annotated[float, typer.Option(min=0, help="What is not needed stays for so many days more.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    storage: Storage = None,
    keys: Keys = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Remove trees, layers, chains and change sets that no name, pin or retention time keeps.

    If a record cannot be read, nothing goes. `unpackd repo gc` frees the space when no kept revision has them any more.

    Example: unpackd images gc --dry-run --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from converter.retention import RetentionOptions, collect

    with command_errors(as_json=as_json):
        options = RetentionOptions(keep_s=int(keep_days * DAY_S), grace_s=int(grace_days * DAY_S), dry_run=dry_run)
        report = collect(_writer(storage, keys, config), options, time.time)
        _print_report(report, dry_run=dry_run, as_json=as_json)


@app.command()
def verify(
    image: Image,
    source: Annotated[
        str | None, typer.Option(help="Where to read the image instead: docker://…, oci:DIR[:TAG], oci-archive:FILE, …")
    ] = None,
    deep: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Compare what this mount of the repository shows, every byte."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Only compare the catalogs with the signed digest of the tree.")
    ] = False,
    platform: OnePlatform = None,
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Prove that a published tree is the image: fetch it again, unpack it, compare. Exit 12 if anything differs.

    Example: unpackd images verify docker.io/library/debian:12 --storage /srv/unpacked
    """
    from converter import inventory
    from converter.verify import published_digest, signed_provenance

    with command_errors(as_json=as_json), _reading(storage, url, pubkey, config) as opened:
        if offline and (source is not None or deep is not None):
            raise UsageError("--offline fetches nothing, so --source and --deep say nothing with it")
        name, one = inventory.chosen(opened.view, image, platform)
        known = signed_provenance(opened.view, one.manifest, opened.fingerprints)
        digest = published_digest(opened.view, known.config)
        document: dict[str, Any] = {
            "name": name,
            "manifest": known.manifest,
            "signed": True,
            "tree": digest,
            "tree_as_signed": digest == known.tree,
            "compared": "catalogs" if offline else "image",
            "differences": [],
        }
        if not offline:
            expected = _recompute(source or _pinned(known), known, config)
            findings = _differences(expected, opened, known, deep)
            document["fetched_bytes"] = expected.fetched_bytes
            document["differences"] = [asdict(one) for one in findings[:_MOST_FINDINGS]]
            document["compared"] = "image and mount" if deep is not None else "image"
        good = bool(document["tree_as_signed"]) and not document["differences"]
        document["good"] = good
        _print_verdict(document, as_json=as_json)
    if not good:
        raise typer.Exit(Exit.CORRUPT)


# --- opening


@contextmanager
def _reading(
    storage: str | None, url: list[str] | None, pubkey: Path | None, config: Path | None
) -> "Iterator[_Opened]":
    """The repository that options, variables or the configuration name."""
    from fs.format.trust import TrustedWhitelist, load_public_keys
    from fs.format.whitelist import MAX_WHITELIST_BYTES
    from fs.publish.repository import read_whitelist
    from fs.publish.revisions import view_of
    from fs.publish.signing import WHITELIST
    from fs.repo_cli import opened_source

    if storage is None and not url:
        storage = _settings(None, None, config).storage
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
        yield _Opened(store, view_of(store, manifest), whitelist.fingerprints)


def _settings(storage: str | None, keys: Path | None, config: Path | None) -> "ConversionSettings":
    from converter.config import load_settings

    return load_settings(config, flags={"storage": storage, "keys": keys})


def _writer(storage: str | None, keys: Path | None, config: Path | None) -> "Repository":
    from fs.publish.repository import Repository, read_manifest
    from fs.repo_cli import log_to_stderr
    from fs.store.places import open_storage

    log_to_stderr()
    settings = _settings(storage, keys, config)
    if settings.storage is None or settings.keys is None:
        raise UsageError("changes are signed: give --storage and --keys, or UNPACKD_STORAGE and UNPACKD_KEYS")
    name = read_manifest(open_storage(settings.storage).store).name
    return Repository.open(name, settings.storage, settings.keys, settings=settings.writing())


# --- facts


def _provenance(view: "View", image: "PlatformImage") -> "Provenance":
    from converter import inventory
    from converter.errors import RecordError

    found = inventory.provenance(view, image.manifest)
    if found is None:
        raise RecordError(f"the records of the image {image.manifest} are missing")
    return found


def _row(view: "View", name: str) -> dict[str, Any]:
    """What is listed of a name; a record that cannot be read is said so and hides nothing else."""
    from converter import inventory
    from converter.errors import RecordError

    row: dict[str, Any] = {"name": name, "path": f"/{name}", "converted": "", "resolved": "", "images": [], "error": ""}
    try:
        image = inventory.named_image(view, name)
        if image.record is None:
            row["error"] = "published by another program"
            return row
        row["resolved"] = image.record.resolved
        row["images"] = [_image_row(view, one) for one in image.record.all_images]
        row["converted"] = image.record.converted or next((one["converted"] for one in row["images"]), "")
    except RecordError as error:
        row["error"] = str(error)
    return row


def _image_row(view: "View", image: "PlatformImage") -> dict[str, Any]:
    known = _provenance(view, image)
    return {
        "platform": image.platform,
        "manifest": image.manifest,
        "config": image.config,
        "size": known.size,
        "compressed_size": known.compressed_size,
        "files": known.files,
        "layers": len(known.layers),
        "converted": known.converted.isoformat(),
    }


def _leads_to(view: "View", name: str, image: "PlatformImage") -> bool:
    from converter import inventory
    from converter.errors import RecordError

    try:
        record = inventory.named_image(view, name).record
    except RecordError:
        return False
    return record is not None and image.manifest in {one.manifest for one in record.all_images}


def _pinned(known: "Provenance") -> str:
    """The source of an image, by digest where it has one, so that a tag that moved does not matter."""
    from converter.sources import parse_source
    from registry_proxy.oci.digest import Digest

    source = parse_source(known.source)
    if source.reference is None:
        return known.source
    return str(source.reference.with_digest(Digest.parse(known.manifest)))


def _recompute(source: str, known: "Provenance", config: Path | None) -> "Recomputed":
    import anyio

    from converter.sources import parse_source
    from converter.verify import recompute
    from fs.publish.ingest import Codec

    limits = _settings(None, None, config).limits.limits()

    async def run() -> "Recomputed":
        return await recompute(parse_source(source), known, limits=limits, codec=Codec())

    return anyio.run(run)


def _differences(expected: "Recomputed", opened: _Opened, known: "Provenance", deep: Path | None) -> "list[Finding]":
    from converter import placement
    from converter.verify import compare_mounted, compare_published

    findings = list(compare_published(expected, opened.view, known.config, opened.store))
    if deep is not None:
        top = deep / placement.flat_path(known.config).decode().lstrip("/")
        if not top.is_dir():
            raise UsageError(f"{top} is not there: {deep} is no mount of this repository at its newest revision")
        findings += compare_mounted(expected, top)
    return findings


# --- printing


def _bytes(count: int | None) -> str:
    if count is None or count < 0:
        return "unknown"
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def _print_image(document: dict[str, Any]) -> None:
    sizes = ("size", "compressed_size", "content_bytes", "shared_content_bytes", "stored_bytes", "shared_stored_bytes")
    for key, value in document.items():
        match value:
            case list():
                typer.echo(f"{key}: {len(value)}")
                for one in value:
                    typer.echo(f"  {json.dumps(one) if isinstance(one, dict) else one}")
            case dict():
                typer.echo(f"{key}: {', '.join(f'{step} {seconds} s' for step, seconds in value.items())}")
            case _:
                typer.echo(f"{key}: {_bytes(value) if key in sizes else value}")


def _print_report(report: "RetentionReport", *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "dry_run": dry_run, "removed": report.removed})
        return
    for one in report.unneeded:
        since = datetime.fromtimestamp(one.since_unix_s, UTC)
        fate = ("would go" if dry_run else "removed") if one.goes else "later"
        typer.echo(f"{fate}  {one.kind}  {one.path}  {one.reason}; noticed {since:%Y-%m-%dT%H:%MZ}")
    verb = "would be removed" if dry_run else "removed"
    say(
        f"{report.removed} {verb}, {len(report.unneeded) - report.removed} later; kept for {report.names} names: "
        f"{report.kept_images} images, {report.kept_trees} trees, {report.kept_layers} layers; "
        f"revision {report.revision}"
    )


def _print_verdict(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for finding in document["differences"]:
        typer.echo(f"{finding['what']}  {finding['path']}")
    if not document["tree_as_signed"]:
        typer.echo("the published tree has another digest than the signed provenance says")
    verdict = "is the image" if document["good"] else "is NOT the image"
    say(f"{document['manifest']}: the published tree {verdict} (compared: {document['compared']})")
