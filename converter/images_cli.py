"""``unpackd images …``: what a repository holds, where it came from, and if it is what it should be."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from converter import images_care_cli
from converter.images_access_cli import (
    Config,
    Image,
    Json,
    OnePlatform,
    Opened,
    Pubkey,
    Storage,
    Url,
    conversion_settings,
    reading,
)
from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from converter.image_records import Provenance
    from converter.verify import Finding, Recomputed

_MOST_FINDINGS = 1000

app = typer.Typer(no_args_is_help=True, help="Look at and look after the images of a repository.")


def register(parent: typer.Typer) -> None:
    """Add the commands to *parent*."""
    parent.add_typer(app, name="images")


@app.command("ls")
def list_images(
    storage: Storage = None, url: Url = None, pubkey: Pubkey = None, config: Config = None, as_json: Json = False
) -> None:
    """List the images: name, digest, platform, time of conversion, size.

    Example: unpackd images ls --storage /srv/unpacked
    """
    from converter import inventory
    from converter.image_rows import image_row, shown_bytes

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
        rows = [image_row(opened.view, name) for name in inventory.names(opened.view)]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            for image in row["images"]:
                typer.echo(
                    f"{row['name']}  {image['manifest']}  {image['platform']}  {row['converted'] or '-'}  "
                    f"{shown_bytes(image['size'])}"
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
    from converter import inventory
    from converter.image_rows import image_document, print_image

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
        name, one = inventory.chosen(opened.view, image, platform)
        sizes: Any = opened.store if hasattr(opened.store, "describe") else None
        document = image_document(opened.view, name, one, sizes)
        if as_json:
            print_json(document)
            return
        print_image(document)


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

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
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


@app.command()
def diff(
    image: Image,
    other: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGE]", help="The newer one; without it, IMAGE now is compared with IMAGE before."),
    ] = None,
    times: Annotated[bool, typer.Option("--times", help="Name paths too that differ in their times only.")] = False,
    platform: OnePlatform = None,
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What tells two images apart: paths added, removed and changed, layers in common, settings of the config.

    An image is a name, NAME@sha256:… for what the name led to once, or sha256:… of a manifest. With one name, what it
    led to before is compared with what it leads to now.

    Example: unpackd images diff docker.io/library/debian:12 docker.io/library/debian:13 --storage /srv/unpacked
    """
    from converter import inventory
    from converter.image_diff import differences
    from converter.image_rows import print_differences

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
        if other is None:
            before, after = inventory.last_two(opened.view, image, platform)
        else:
            before, after = (inventory.chosen(opened.view, one, platform) for one in (image, other))
        found = differences(opened.view, before, after, with_times=times)
        if as_json:
            print_json(found)
        else:
            print_differences(found)


images_care_cli.register(app)


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
    registry: Annotated[
        bool, typer.Option("--registry", help="The signed provenance must be in the image's registry as well.")
    ] = False,
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
    from converter.verify import published_digests, signed_provenance

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
        if offline and (source is not None or deep is not None or registry):
            raise UsageError("--offline fetches nothing, so --source, --deep and --registry say nothing with it")
        name, one = inventory.chosen(opened.view, image, platform)
        known = signed_provenance(opened.view, one.manifest, opened.fingerprints)
        digests = published_digests(opened.view, known.config)
        document: dict[str, Any] = {
            "name": name,
            "manifest": known.manifest,
            "signed": True,
            "tree": known.tree,
            "tree_as_signed": digests == {known.tree},
            "compared": "catalogs" if offline else "image",
            "differences": [],
        }
        if not offline:
            expected = _recompute(source or _pinned(known), known, config)
            findings = _differences(expected, opened, known, deep)
            document["fetched_bytes"] = expected.fetched_bytes
            document["differences"] = [asdict(one) for one in findings[:_MOST_FINDINGS]]
            document["compared"] = "image and mount" if deep is not None else "image"
        if registry:
            document["referrers"] = _referrers(opened, known)
            document["differences"] += [] if document["referrers"] else [{"path": "", "what": "no provenance there"}]
        good = bool(document["tree_as_signed"]) and not document["differences"]
        document["good"] = good
        _print_verdict(document, as_json=as_json)
    if not good:
        raise typer.Exit(Exit.CORRUPT)


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
    from fs.publish.packing import Codec

    limits = conversion_settings(None, None, config).limits.limits()

    async def run() -> "Recomputed":
        return await recompute(parse_source(source), known, limits=limits, codec=Codec())

    return anyio.run(run)


def _referrers(opened: Opened, known: "Provenance") -> int:
    """How many statements in the image's registry are signed by the repository and say what is published."""
    import anyio

    from converter.errors import NotTheImageError, RecordError
    from converter.referrers import read_statements
    from converter.sources import parse_source
    from converter.verify import verified_provenance
    from registry_proxy.client import open_client

    reference = parse_source(known.source).reference
    if reference is None:
        raise UsageError(f"{known.source} is in no registry")

    async def run() -> list[bytes]:
        async with open_client() as client:
            return await read_statements(client, reference, known.manifest)

    count = 0
    for statement in anyio.run(run):
        try:
            found = verified_provenance(statement, known.manifest, opened.fingerprints)
        except (NotTheImageError, RecordError) as error:
            say(f"in the registry: {error}")
            continue
        count += found.tree == known.tree
    return count


def _differences(expected: "Recomputed", opened: Opened, known: "Provenance", deep: Path | None) -> "list[Finding]":
    from converter import placement
    from converter.verify import compare_mounted, compare_published

    findings = list(compare_published(expected, opened.view, known.config, opened.store))
    if deep is not None:
        top = deep / placement.flat_path(known.config).decode().lstrip("/")
        if not top.is_dir():
            raise UsageError(f"{top} is not there: {deep} is no mount of this repository at its newest revision")
        findings += compare_mounted(expected, top)
    return findings


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
