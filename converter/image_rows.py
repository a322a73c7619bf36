"""What the commands for images say of an image: rows and documents, and how people read them."""

import json
from dataclasses import asdict
from typing import Any

import typer

from converter import inventory, placement
from converter.errors import RecordError
from converter.footprint import Sizes, footprint
from converter.image_records import PlatformImage
from fs.publish.view import View
from fs.runtime.output import say

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024


def image_row(view: View, name: str) -> dict[str, Any]:
    """What is listed of a name; a record that cannot be read is said so and hides nothing else."""
    row: dict[str, Any] = {"name": name, "path": f"/{name}", "converted": "", "resolved": "", "images": [], "error": ""}
    try:
        image = inventory.named_image(view, name)
        if image.record is None:
            row["error"] = "published by another program"
            return row
        row["resolved"] = image.record.resolved
        row["images"] = [_platform_row(view, one) for one in image.record.all_images]
        row["converted"] = image.record.converted or next((one["converted"] for one in row["images"]), "")
    except RecordError as error:
        row["error"] = str(error)
    return row


def _platform_row(view: View, image: PlatformImage) -> dict[str, Any]:
    known = inventory.provenance_of(view, image)
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


def leads_to(view: View, name: str, image: PlatformImage) -> bool:
    """True if *name* leads to *image*, on some platform."""
    try:
        record = inventory.named_image(view, name).record
    except RecordError:
        return False
    return record is not None and image.manifest in {one.manifest for one in record.all_images}


def image_document(view: View, name: str | None, image: PlatformImage, sizes: Sizes | None) -> dict[str, Any]:
    """Everything about one image.

    Args:
        view: of the repository.
        name: that the user gave; None if it was a digest.
        image: which one.
        sizes: a store that knows what its objects take; None if it does not.

    Raises:
        RecordError: its records cannot be read.
    """
    known = inventory.provenance_of(view, image)
    taken = footprint(view, known.config, sizes)
    return {
        "name": name,
        "names": [named for named in inventory.names(view) if leads_to(view, named, image)],
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
        "chains": placement.chain_ids([layer.diff_id for layer in known.layers]),
        "flat_path": placement.flat_path(known.config).decode(),
        "content_bytes": taken.content_bytes,
        "shared_content_bytes": taken.shared_content_bytes,
        "stored_bytes": taken.stored_bytes,
        "shared_stored_bytes": taken.shared_stored_bytes,
        "seconds": dict(known.seconds or {}),
    }


def shown_bytes(count: int | None) -> str:
    """A number of bytes in the unit that suits it."""
    if count is None or count < 0:
        return "unknown"
    size, unit = float(count), 0
    while size >= _STEP and unit < len(_UNITS) - 1:
        size, unit = size / _STEP, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def print_image(document: dict[str, Any]) -> None:
    """Print what `image_document` gives, a line each."""
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
                typer.echo(f"{key}: {shown_bytes(value) if key in sizes else value}")


def print_differences(found: dict[str, Any]) -> None:
    """Print what ``image_diff.differences`` gives: a path a line, then what is not about paths."""
    marks = {"added": "+", "removed": "-", "changed": "~"}
    for path in found["paths"]:
        sizes = [shown_bytes(path[key]) for key in ("old_size", "new_size") if path[key] is not None]
        facts = ", ".join([*path["what"], " → ".join(dict.fromkeys(sizes))]).strip(", ")
        typer.echo(f"{marks[path['change']]} {path['path']}" + (f"  ({facts})" if facts else ""))
    for setting in found["settings"]:
        typer.echo(f"~ {setting['key']}: {json.dumps(setting['old'])} → {json.dumps(setting['new'])}")
    layers = found["layers"]
    say(
        f"{found['added']} paths added, {found['removed']} removed, {found['changed']} changed, "
        f"{shown_bytes(abs(found['size_change']))} {'more' if found['size_change'] >= 0 else 'less'}; "
        f"{len(layers['shared'])} layers shared ({shown_bytes(layers['shared_bytes'])} compressed), "
        f"{len(layers['only_old'])} only in the first, {len(layers['only_new'])} only in the second"
    )
