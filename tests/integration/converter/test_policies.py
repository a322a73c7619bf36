"""Policies of images: what becomes of a name, and of what it led to, when its tag moves."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

import unpackd
from converter import inventory, placement
from converter.config import ConversionSettings
from converter.retention import RetentionOptions, collect
from converter.target import open_target
from fs.publish.repository import Repository
from tests.support.images import Layout, Member, digest, make_layout

NAME = "images.test"
OPTIONS = ["--repo", NAME, "--name", "r.test/app:1", "--json"]


class House:
    """A repository, and the command pointed at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository.create(NAME, str(folder / "storage"), folder / "keys", durable=False)

    def run(self, *arguments: str) -> Result:
        places = ["--storage", str(self.folder / "storage"), "--keys", str(self.folder / "keys")]
        return CliRunner().invoke(unpackd.app, ["convert", *arguments, *OPTIONS, *places])

    def convert(self, layout: Layout, policy: str) -> dict[str, Any]:
        ended = self.run(layout.source, "--policy", policy)
        assert ended.exit_code == 0, ended.output
        image: dict[str, Any] = json.loads(ended.stdout)["images"][0]
        return image

    def collect(self) -> None:
        collect(self.repository, RetentionOptions(keep_s=0, grace_s=0), lambda: 4e9)

    def kept(self) -> list[bool]:
        """Whether the trees of what the name led to are there, oldest first."""
        view = self.repository.view()
        events = inventory.history(view, "r.test/app:1")
        return [view.lookup(placement.flat_path(event.record.config)) is not None for event in events]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def layouts(tmp_path: Path) -> list[Layout]:
    return [make_layout(tmp_path / str(n), [[Member("which", b"%d" % n)]]) for n in range(3)]


def test_following_keeps_the_newest_and_archives_keep_all(house: House, layouts: list[Layout]) -> None:
    for layout in layouts:
        house.convert(layout, "follow")
    house.collect()
    assert house.kept() == [False, False, True]

    for layout in layouts:
        house.convert(layout, "archive")
    house.collect()

    assert house.kept() == [True] * 6
    pins = inventory.pins(house.repository.view())
    assert {pin.manifest for pin in pins} == {digest(layout.manifest) for layout in layouts}
    assert {pin.reason for pin in pins} == {"archive of r.test/app:1"}


def test_image_that_is_there_is_archived_without_being_read_again(house: House, layouts: list[Layout]) -> None:
    house.convert(layouts[0], "follow")

    archived = house.convert(layouts[0], "archive")
    again = house.convert(layouts[0], "archive")

    assert (archived["changed"], archived["bytes_fetched"]) == (True, 0)
    assert again["changed"] is False
    assert len(inventory.history(house.repository.view(), "r.test/app:1")) == 1


def test_pinned_name_stays_where_it_is(house: House, layouts: list[Layout]) -> None:
    house.convert(layouts[0], "pin")

    second = house.convert(layouts[1], "pin")

    assert (second["changed"], second["manifest_digest"]) == (False, digest(layouts[0].manifest))
    assert house.convert(layouts[1], "follow")["manifest_digest"] == digest(layouts[1].manifest)


def test_policy_that_is_none_is_refused(house: House, layouts: list[Layout]) -> None:
    ended = house.run(layouts[0].source, "--policy", "keep")

    assert ended.exit_code == 2
    assert "follow, pin, archive" in ended.stderr


def test_writers_of_several_machines_take_leases(house: House, layouts: list[Layout]) -> None:
    url = f"sqlite:///{house.folder}/leases.sqlite"
    places = ["--storage", str(house.folder / "storage"), "--keys", str(house.folder / "keys")]
    environment = {"UNPACKD_LEASES": url}

    converted = CliRunner().invoke(unpackd.app, ["convert", layouts[0].source, *OPTIONS, *places], env=environment)
    after_first = token(house)
    removed = CliRunner().invoke(unpackd.app, ["images", "rm", "r.test/app:1", *places], env=environment)

    assert (converted.exit_code, removed.exit_code) == (0, 0), converted.output + removed.output
    assert 0 < after_first < token(house)


def token(house: House) -> int:
    """The number that the newest lease had."""
    with closing(sqlite3.connect(house.folder / "leases.sqlite")) as connection:
        [(last,)] = connection.execute("SELECT last_token FROM unpackd_lease_tokens").fetchall()
    return int(last)


def test_machines_that_share_a_job_database_share_its_leases(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("fs.publish.sql_leases.SqlLeases.open", asked.append)
    settings = ConversionSettings(repo=NAME, storage=str(house.folder / "storage"), keys=house.folder / "keys")

    open_target(settings, farm_database_url="postgresql+psycopg://farm@db/jobs")
    open_target(settings, farm_database_url="sqlite:///farm.sqlite")
    others = settings.model_copy(update={"leases": SecretStr("mysql://x")})
    open_target(others, farm_database_url="postgresql+psycopg://db/jobs")

    assert asked == ["postgresql+psycopg://farm@db/jobs", "mysql://x"]
