"""``unpackd images profile``: what a start of an image reads, published with it."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from converter.images_access_cli import Config, Image, Json, Keys, OnePlatform, Storage, writer
from converter.images_cli import app
from fs.runtime.errors import UsageError
from fs.runtime.output import command_errors, print_json, say


def register() -> None:
    """Add the command to ``unpackd images``."""
    app.command()(profile)


def profile(
    image: Image,
    file: Annotated[
        Path | None,
        typer.Option("--set", exists=True, dir_okay=False, help="What a mount recorded: mountctl … profile --json."),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the profile away.")] = False,
    platform: OnePlatform = None,
    storage: Storage = None,
    keys: Keys = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show, publish or remove the start profile of an image: what nodes fetch at once when they are asked for it.

    Example: unpackd images profile docker.io/library/python:3 --set start.json --storage /srv/unpacked --keys /srv/keys
    """
    from converter import inventory
    from converter.errors import ImageAbsentError
    from converter.start_profiles import publish_profile, published_profile, remove_profile, top_chain

    with command_errors(as_json=as_json):
        if remove and file is not None:
            raise UsageError("either --set or --remove")
        repository = writer(storage, keys, config)
        view = repository.view()
        _, one = inventory.chosen(view, image, platform)
        known = inventory.provenance(view, one.manifest)
        if known is None:
            raise ImageAbsentError(f"{image} has no record of its layers; convert it again")
        if file is not None:
            count, revision = publish_profile(repository, known.layers, file.read_bytes())
            if as_json:
                print_json({"manifest": one.manifest, "reads": count, "revision": revision})
            else:
                say(f"revision {revision} has a start profile of {count} files for {image}")
        elif remove:
            revision = remove_profile(repository, known.layers)
            if as_json:
                print_json({"manifest": one.manifest, "reads": 0, "revision": revision})
            else:
                say(f"revision {revision} has no start profile for {image}")
        else:
            chain = top_chain(known.layers)
            reads = (published_profile(view, chain) if chain else None) or []
            if as_json:
                rows = [{"path": os.fsdecode(read.path), "chunks": list(read.chunks)} for read in reads]
                print_json({"manifest": one.manifest, "reads": rows})
            else:
                for read in reads:
                    sys.stdout.buffer.write(read.path + b"\n")
