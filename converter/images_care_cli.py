"""``unpackd images rm``, ``pin``, ``gc``: what may go, and what stays."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from converter.images_access_cli import (
    Config,
    Image,
    Json,
    Keys,
    OnePlatform,
    Pubkey,
    Storage,
    Url,
    reading,
    writer,
)
from fs.runtime.errors import UsageError
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from converter.retention import RetentionReport

_DAY_S = 86_400


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command("rm")(remove)
    app.command()(pin)
    app.command("podman")(store_for_podman)
    app.command("gc")(collect_garbage)
    app.command()(attest)


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
        repository = writer(storage, keys, config)
        view = repository.view()
        names = list(dict.fromkeys(inventory.known_name(view, image) for image in images))
        commit = repository.commit(removal(view, names, repository.ingester().add_bytes))
        if as_json:
            print_json({"removed": names, "revision": commit.revision})
        else:
            say(f"revision {commit.revision} has {', '.join(names)} no more")


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
        repository = writer(storage, keys, config)
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


def store_for_podman(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Names as `images ls` prints them.")],
    remove_names: Annotated[bool, typer.Option("--remove", help="Take them out of the store.")] = False,
    storage: Storage = None,
    keys: Keys = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Put images into /podmanStore, an additional image store for podman; from then on they follow their names.

    Example: unpackd images podman docker.io/library/debian:12 --storage /srv/unpacked --keys /etc/unpackd/keys
    """
    from converter import inventory
    from converter.podman_store import PodmanStore, published_image

    with command_errors(as_json=as_json):
        repository = writer(storage, keys, config)
        view = repository.view()
        store = PodmanStore.read(view)
        for image in images:
            if remove_names:
                store.remove(image)
                continue
            name, one = inventory.chosen(view, image)
            if name is None:
                raise UsageError(f"{image} is a digest; podman knows images by their names")
            store.put(name, published_image(view, one.manifest, inventory.provenance_of(view, one).layers))
        commit = repository.commit(list(store.operations(view, repository.ingester().add_bytes)))
        names = sorted(store.names())
        if as_json:
            print_json({"names": names, "revision": commit.revision})
        else:
            say(f"podman sees {', '.join(names) or 'no images'}, revision {commit.revision}")


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
        options = RetentionOptions(keep_s=int(keep_days * _DAY_S), grace_s=int(grace_days * _DAY_S), dry_run=dry_run)
        report = collect(writer(storage, keys, config), options, time.time)
        _print_report(report, dry_run=dry_run, as_json=as_json)


def attest(
    image: Image,
    to: Annotated[
        str | None, typer.Option(help="Repository of a registry. Default: the one that the image is from.")
    ] = None,
    platform: OnePlatform = None,
    storage: Storage = None,
    url: Url = None,
    pubkey: Pubkey = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Push the signed provenance of an image to its registry, as what refers to the image's manifest.

    `push_provenance` in the configuration does so at each conversion. `unpackd images verify --registry` reads it.

    Example: unpackd images attest registry.example.org/lib/app:1 --storage /srv/unpacked
    """
    import anyio

    from converter import attestation, inventory
    from converter.sources import parse_source

    with command_errors(as_json=as_json), reading(storage, url, pubkey, config) as opened:
        _, one = inventory.chosen(opened.view, image, platform)
        known = inventory.provenance_of(opened.view, one)
        reference = parse_source(to or known.source).reference
        if reference is None:
            raise UsageError(f"{known.source} is in no registry: say with --to which repository gets the provenance")
        digest = anyio.run(attestation.attest, opened.view, reference, known.manifest)
        if as_json:
            print_json({"manifest": known.manifest, "repository": reference.name, "referrer": digest})
        else:
            say(f"{reference.name} has the provenance of {known.manifest} as {digest}")


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
