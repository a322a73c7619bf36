"""What starts read: recorded, published as start profiles, and added up."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.start.prepare import NAME, name_of, sources
from benchmarks.start.ways import Distance, Way, started
from converter import inventory
from converter.image_records import LayerRecord
from converter.start_profiles import publish_profile, published_profile, top_chain
from fs.format.hashes import Suffix
from fs.publish.repository import Repository
from fs.publish.view import View


def record(work: Path, commands: Mapping[str, tuple[str, ...]]) -> None:
    """Start each image once by its command, and publish what that read."""
    repository = Repository.open(NAME, str(work / "storage"), work / "keys", durable=False)
    with sources(work) as given:
        for image, command in commands.items():
            with started(Way.EROFS, given, image, Distance(0)) as start:
                start.pull()
                start.run("record", *command)
                recorded = json.dumps(start.profile()).encode()
            count, _ = publish_profile(repository, _layers(repository.view(), image), recorded)
            print(f"{image}: a start profile of {count} files", file=sys.stderr)


def read_bytes(work: Path, image: str) -> dict[str, float]:
    """Files that a start reads; MB of their contents, of large files the chunks that are touched; MB as stored."""
    view = Repository.open(NAME, str(work / "storage"), work / "keys", durable=False).view()
    objects: dict[str, int] = {}
    reads = published_profile(view, top_chain(_layers(view, image))) or []
    for read in reads:
        content = view.content(read.path)
        if content.hash is not None:
            objects[content.hash.object_path()] = content.size
        for number in read.chunks:
            chunk = content.chunks[number]
            objects[chunk.hash.object_path(Suffix.CHUNK)] = chunk.size
    stored = sum((work / "storage" / path).stat().st_size for path in objects)
    return {"files": len(reads), "read MB": sum(objects.values()) / 1e6, "stored MB": stored / 1e6}


def _layers(view: View, image: str) -> Sequence[LayerRecord]:
    _, one = inventory.chosen(view, name_of(image))
    known = inventory.provenance(view, one.manifest)
    if known is None:
        raise RuntimeError(f"{image} was not converted")
    return known.layers
