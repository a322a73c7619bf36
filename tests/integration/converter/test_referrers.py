"""Signed provenance in the image's registry: pushed, listed under the tag that older registries need, read back."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from typer.testing import CliRunner, Result

import unpackd
from converter.attestation import is_wanted
from converter.image_records import PROVENANCE_TYPE
from converter.referrers import Subject, push_statement
from fs.publish.repository import Repository
from registry_proxy.oci.reference import Reference
from tests.support.images import Layout, Member, digest, make_layout
from tests.support.registry import Registry

NAME = "images.test"
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True, slots=True)
class House:
    """A repository, and the commands pointed at it."""

    folder: Path
    registry: Registry
    repository: Repository

    def run(self, *arguments: str, **environment: str) -> Result:
        places = ["--storage", str(self.folder / "storage")]
        places += ["--keys", str(self.folder / "keys"), "--repo", NAME] if arguments[0] == "convert" else []
        return CliRunner().invoke(unpackd.app, [*arguments, *places, "--json"], env=environment)

    def convert(self, reference: str, *, pushes: bool) -> dict[str, Any]:
        allowed = {"UNPACKD_CONVERTER_PUSH_PROVENANCE": f"other.example,{self.registry.host}/lib"} if pushes else {}
        ended = self.run("convert", reference, **allowed)
        assert ended.exit_code == 0, ended.output
        image: dict[str, Any] = json.loads(ended.stdout)["images"][0]
        return image

    def listed(self, repository: str, manifest: str) -> list[dict[str, Any]]:
        """What the registry's tag for that manifest lists."""
        url = f"{self.registry.url}/v2/{repository}/manifests/{manifest.replace(':', '-')}"
        answer = httpx.get(url, headers={"Accept": INDEX})
        entries: list[dict[str, Any]] = answer.json()["manifests"] if answer.is_success else []
        return entries


@pytest.fixture
def house(tmp_path: Path, registry: Registry) -> House:
    repository = Repository.create(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
    return House(tmp_path, registry, repository)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path / "layout", [[Member("etc/hostname", tmp_path.name.encode())]])


def test_provenance_is_pushed_where_that_is_configured_and_verified_from_there(house: House, layout: Layout) -> None:
    reference = house.registry.push(layout.source, "lib/app:1")

    image = house.convert(reference, pushes=True)

    [entry] = house.listed("lib/app", digest(layout.manifest))
    assert image["referrers"] == [entry["digest"]]
    assert entry["artifactType"] == PROVENANCE_TYPE
    url = f"{house.registry.url}/v2/lib/app/manifests/{entry['digest']}"
    pushed = httpx.get(url, headers={"Accept": entry["mediaType"]}).json()
    assert pushed["subject"]["digest"] == digest(layout.manifest)
    statement = httpx.get(f"{house.registry.url}/v2/lib/app/blobs/{pushed['layers'][0]['digest']}").json()
    assert statement["signatures"]
    ended = house.run("images", "verify", reference, "--registry")
    verdict = json.loads(ended.stdout)
    assert (ended.exit_code, verdict["good"], verdict["referrers"]) == (0, True, 1), ended.output


def test_provenance_is_pushed_by_hand_and_twice_is_once(house: House, layout: Layout) -> None:
    reference = house.registry.push(layout.source, "lib/by-hand:1")
    assert house.convert(reference, pushes=False)["referrers"] == []
    missing = house.run("images", "verify", reference, "--registry")

    first = json.loads(house.run("images", "attest", reference).stdout)
    again = json.loads(house.run("images", "attest", reference).stdout)

    assert missing.exit_code == 12
    assert first == again
    assert [entry["digest"] for entry in house.listed("lib/by-hand", digest(layout.manifest))] == [first["referrer"]]
    assert house.run("images", "verify", reference, "--registry").exit_code == 0


def test_what_others_say_of_the_image_stays_listed_and_is_not_believed(house: House, layout: Layout) -> None:
    reference = house.registry.push(layout.source, "lib/contested:1")
    subject = Subject("application/vnd.oci.image.manifest.v1+json", digest(layout.manifest), len(layout.manifest))
    anyio.run(push_statement, Reference.parse(reference), subject, b'{"forged": true}')
    house.convert(reference, pushes=True)

    ended = house.run("images", "verify", reference, "--registry")

    assert len(house.listed("lib/contested", digest(layout.manifest))) == 2
    assert (ended.exit_code, json.loads(ended.stdout)["referrers"]) == (0, 1)
    assert "malformed" in ended.stderr


def test_registry_that_takes_nothing_costs_a_warning_only(house: House, layout: Layout, tmp_path: Path) -> None:
    reference = house.registry.push(layout.source, "lib/readonly:1")
    house.run("convert", reference)

    began = time.monotonic()
    ended = house.run("images", "attest", reference, "--to", "127.0.0.1:9/lib/x")

    assert time.monotonic() - began < 30  # not the minutes that oras would wait
    assert ended.exit_code == 13
    assert "127.0.0.1:9/lib/x does not take" in json.loads(ended.stderr)["error"]


@pytest.mark.parametrize(
    ("registries", "wanted"),
    [(["r.example"], True), (["r.example/lib"], True), (["r.example/li"], False), (["r"], False), ([], False)],
)
def test_registries_are_named_by_whole_components(registries: list[str], wanted: bool) -> None:
    assert is_wanted(Reference.parse("r.example/lib/app:1"), registries) is wanted
