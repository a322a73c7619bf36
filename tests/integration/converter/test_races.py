"""Conversions of one tag at the same moment, in processes of their own: no line of its history is lost."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from converter import inventory, placement
from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.progress import Progress
from converter.sources import parse_source
from fs.publish.repository import Repository
from tests.support.images import Layout, Member, digest, make_layout
from tests.support.registry import Registry

NAME = "images.test"
BASE = [Member("etc/os-release", b"ID=test\n")]
CONVERTERS = 6


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)


def layouts(tmp_path: Path) -> list[Layout]:
    """Images that share a layer and differ in another."""
    return [make_layout(tmp_path / f"l{n}", [BASE, [Member("which", b"%d" % n)]]) for n in range(CONVERTERS)]


def test_each_of_many_conversions_of_one_name_leaves_its_line(repository: Repository, tmp_path: Path) -> None:
    images = layouts(tmp_path)
    options = ["--repo", NAME, "--storage", str(tmp_path / "storage"), "--keys", str(tmp_path / "keys")]
    command = [sys.executable, "-m", "unpackd", "convert", "--json", "--name", "r.test/app:1", *options]

    started = [subprocess.Popen([*command, image.source], stdout=subprocess.PIPE, text=True) for image in images]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in started]

    assert [process.returncode for process in started] == [0] * CONVERTERS
    assert all(answer["images"][0]["changed"] for answer in answers)
    view = repository.view()
    events = inventory.history(view, "r.test/app:1")
    assert sorted(event.record.manifest for event in events) == sorted(digest(image.manifest) for image in images)
    last = inventory.named_image(view, "r.test/app:1").record
    assert last is not None
    assert last.manifest == events[-1].record.manifest
    assert view.readlink(b"/r.test/app:1").endswith(last.config.removeprefix("sha256:").encode())
    shared = json.loads(view.read(placement.origin_path(digest(images[0].layers[0])), 1 << 20))
    assert sorted(shared["origin"]) == sorted(digest(image.config) for image in images)
    assert repository.revision == 1 + CONVERTERS


def test_slow_conversion_does_not_take_a_tag_back(repository: Repository, registry: Registry, tmp_path: Path) -> None:
    old, new = layouts(tmp_path)[:2]
    reference = registry.push(old.source, "lib/moving:1")
    overtaken: list[ConversionResult] = []

    async def convert(report: Callable[[Progress], None]) -> ConversionResult:
        request = ConversionRequest(source=parse_source(reference))
        return await convert_image(request, repository, report)

    def overtake(progress: Progress) -> None:
        """The tag moves, and somebody else is quicker. The stage begins in a thread, which can have an event loop."""
        if progress.stage == "publishing" and not overtaken:
            registry.push(new.source, "lib/moving:1")
            overtaken.append(anyio.run(convert, lambda _: None))

    result = anyio.run(convert, overtake)

    assert overtaken[0].changed
    assert result.manifest_digest == digest(new.manifest)
    events = inventory.history(repository.view(), result.name)
    assert [event.record.manifest for event in events] == [digest(new.manifest)]
