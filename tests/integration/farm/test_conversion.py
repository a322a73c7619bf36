"""What a worker makes of a claim: the terms of the wish reach the repository."""

from pathlib import Path

import pytest

from converter import inventory
from converter.config import ConversionSettings
from converter.errors import FarmUsageError
from converter.farm_config import FarmSettings
from converter.farm_conversion import PipelineConverter
from converter.jobs import Claim
from converter.terms import Policy, Terms
from fs.publish.repository import Repository
from tests.support.images import Member, digest, make_layout
from tests.support.registry import Registry

REPOSITORY = "unpacked.test.local"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(REPOSITORY, str(tmp_path / "storage"), tmp_path / "keys", durable=False)


def converter(folder: Path) -> PipelineConverter:
    settings = ConversionSettings(repo=REPOSITORY, storage=str(folder / "storage"), keys=folder / "keys")
    return PipelineConverter(settings, FarmSettings())


def claim(registry: Registry, manifest: bytes, terms: Terms) -> Claim:
    reference = f"http://{registry.host}/team/tool:1"
    return Claim(1, REPOSITORY, reference.partition("://")[2], reference, digest(manifest), 1, "me", terms)


def test_terms_of_a_wish_decide_about_pins_and_platforms(
    repository: Repository, registry: Registry, tmp_path: Path
) -> None:
    layout = make_layout(tmp_path / "layout", [[Member("etc/hostname", b"x")]])
    registry.push(layout.source, "team/tool:1")
    convert = converter(tmp_path)
    told: list[object] = []

    plain = convert(claim(registry, layout.manifest, Terms()), told.append)
    archived = convert(claim(registry, layout.manifest, Terms(Policy.ARCHIVE, ("all",))), told.append)
    again = convert(claim(registry, layout.manifest, Terms(Policy.ARCHIVE, ("all",))), told.append)

    assert (plain.changed, archived.changed, again.changed) == (True, True, False)
    view = repository.view()
    assert [pin.manifest for pin in inventory.pins(view)] == [digest(layout.manifest)]
    record = inventory.named_image(view, f"{registry.host}/team/tool:1").record
    assert record is not None
    assert (record.platform, [image.platform for image in record.images]) == ("all", ["linux/amd64"])
    assert told


def test_worker_without_a_repository_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(FarmUsageError, match="UNPACKD_STORAGE"):
        PipelineConverter(ConversionSettings(), FarmSettings())
