"""``unpackd images``: what is listed, what is removed and when, and how a tree that is not the image is found out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner, Result

import unpackd
from converter import placement
from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.progress import Progress
from converter.retention import RetentionOptions, collect
from converter.sources import parse_source
from fs.format.entries import Entry
from fs.publish.operations import PutFile
from fs.publish.repository import Repository
from tests.support.flaky_origin import flaky_origin
from tests.support.images import Layout, Member, digest, directory, hardlink, make_layout, symlink
from tests.support.mounts import mounted

NAME = "images.test"
BASE = [directory("etc"), Member("etc/os-release", b"ID=test\n"), symlink("lib", "usr/lib"), directory("usr/lib")]
APP = [Member("app", b"#!/bin/sh\n", mode=0o4755), hardlink("etc/app", "app"), Member("lib/x.so", b"so" * 4000)]
OTHER = [Member("other", b"other content")]


@dataclass(frozen=True, slots=True)
class House:
    """A repository, and the command pointed at it."""

    repository: Repository
    storage: Path
    keys: Path

    def run(self, command: str, *arguments: str, writes: bool = False) -> Result:
        options = ["--storage", str(self.storage), *(["--keys", str(self.keys)] if writes else [])]
        return CliRunner().invoke(unpackd.app, ["images", command, *arguments, *options])

    def json(self, command: str, *arguments: str, writes: bool = False) -> Any:  # noqa: ANN401  # JSON
        ended = self.run(command, *arguments, "--json", writes=writes)
        assert ended.exit_code in {0, 12}, ended.output
        return json.loads(ended.stdout)

    def collect(self, **options: float) -> Any:  # noqa: ANN401  # JSON
        given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        return self.json("gc", *given, writes=True)

    def convert(self, layout: Layout, name: str) -> ConversionResult:
        async def run() -> ConversionResult:
            request = ConversionRequest(source=parse_source(layout.source), name=name)
            return await convert_image(request, self.repository)

        return anyio.run(run)

    def has(self, path: bytes) -> bool:
        return self.repository.view().lookup(path) is not None


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def house(tmp_path: Path, keys: Path) -> House:
    storage = tmp_path / "storage"
    return House(Repository.create(NAME, str(storage), keys, durable=False), storage, keys)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path / "layout", [BASE, APP])


def test_ls_and_show_say_what_there_is(house: House, layout: Layout, tmp_path: Path) -> None:
    house.convert(layout, "r.test/app:1")
    house.convert(make_layout(tmp_path / "other", [BASE, OTHER]), "r.test/other:1")

    rows = house.json("ls")
    shown = house.json("show", "r.test/app:1")
    ended = house.run("ls")

    assert [row["name"] for row in rows] == ["r.test/app:1", "r.test/other:1"]
    assert rows[0]["images"][0]["manifest"] == digest(layout.manifest)
    assert digest(layout.manifest) in ended.stdout
    sizes = [len(b"ID=test\n"), len(b"#!/bin/sh\n"), 8000]
    assert (shown["size"], shown["files"], len(shown["layers"])) == (sum(sizes), 3, 2)
    assert shown["compressed_size"] == sum(map(len, layout.layers))
    assert (shown["content_bytes"], shown["shared_content_bytes"]) == (sum(sizes), len(b"ID=test\n"))
    assert 0 < shown["shared_stored_bytes"] < shown["stored_bytes"]
    assert shown["names"] == ["r.test/app:1"]
    assert {"resolving", "layers", "flattening"} <= set(shown["seconds"])
    assert house.json("show", digest(layout.manifest))["config"] == digest(layout.config)
    assert "stored_bytes" in house.run("show", "r.test/app:1").stdout


def test_history_has_every_digest_newest_first(house: House, layout: Layout, tmp_path: Path) -> None:
    moved = make_layout(tmp_path / "moved", [BASE, OTHER])
    for one in (layout, layout, moved):
        house.convert(one, "r.test/app:1")

    rows = house.json("history", "r.test/app:1")

    assert [row["manifest"] for row in rows] == [digest(moved.manifest), digest(layout.manifest)]
    assert all(row["kept"] for row in rows)
    assert house.run("history", "r.test/app:2").exit_code == 10


def test_removed_name_is_gone_and_its_tree_stays_until_it_is_collected(house: House, layout: Layout) -> None:
    flat = house.convert(layout, "r.test/app:1").flat_path.encode()
    revision = house.repository.revision

    ended = house.run("rm", "r.test/app:1", writes=True)

    assert ended.exit_code == 0, ended.output
    assert house.repository.revision == revision + 1
    assert not house.has(b"/r.test/app:1")
    assert not house.has(b"/.metadata/r.test/app:1")
    assert house.has(flat)
    assert house.run("rm", "r.test/app:1", writes=True).exit_code == 10
    first = house.collect(grace_days=1)
    assert {one["kind"] for one in first["unneeded"]} == {
        "image", "flat tree", "root file system", "layer", "change set", "chain",
    }  # fmt: skip
    assert first["removed"] == 0
    assert house.has(flat)
    assert house.collect(grace_days=0)["removed"] == len(first["unneeded"])
    assert not house.has(flat)
    assert house.collect(grace_days=0)["unneeded"] == []


def test_what_other_images_need_stays(house: House, layout: Layout, tmp_path: Path) -> None:
    same_layers = make_layout(tmp_path / "same", [BASE, APP], settings={"Cmd": ["/app"]})
    first = house.convert(layout, "r.test/app:1")
    house.convert(same_layers, "r.test/same:1")
    house.convert(make_layout(tmp_path / "other", [BASE, OTHER]), "r.test/other:1")

    house.run("rm", "r.test/app:1", "r.test/other:1", writes=True)
    gone = {one["path"] for one in house.collect(grace_days=0)["unneeded"]}

    # the chain that both images have leads to the root file system of the first
    assert placement.rootfs_path(first.config_digest).decode() not in gone
    assert first.flat_path in gone
    assert placement.image_path(first.manifest_digest).decode() in gone
    layers = {path for path in gone if path.startswith("/.layers/")}
    assert len(layers) == 1
    assert house.json("verify", "r.test/same:1")["good"]


def test_old_digests_stay_for_the_retention_time_and_pinned_ones_for_ever(
    house: House, layout: Layout, tmp_path: Path
) -> None:
    old, older = layout, make_layout(tmp_path / "older", [BASE])
    chain = placement.chain_path(placement.chain_ids(json.loads(older.config)["rootfs"]["diff_ids"])[0])
    for one in (older, old, make_layout(tmp_path / "new", [BASE, OTHER])):
        house.convert(one, "r.test/app:1")

    assert house.collect(grace_days=0)["unneeded"] == []
    house.json("pin", digest(old.manifest), "--reason", "a paper", writes=True)
    gone = {one["path"] for one in house.collect(grace_days=0, keep_days=0)["unneeded"]}

    assert placement.flat_path(digest(older.config)).decode() in gone
    assert house.has(chain + b"/layer")
    assert not house.has(chain + b"/flat")
    assert placement.flat_path(digest(old.config)).decode() not in gone
    assert [row["kept"] for row in house.json("history", "r.test/app:1")] == [True, True, False]
    house.json("pin", digest(old.manifest), "--remove", writes=True)
    gone = {one["path"] for one in house.collect(grace_days=0, keep_days=0)["unneeded"]}
    assert placement.flat_path(digest(old.config)).decode() in gone


def test_dry_run_gives_reasons_and_changes_nothing(house: House, layout: Layout) -> None:
    house.convert(layout, "r.test/app:1")
    house.run("rm", "r.test/app:1", writes=True)
    revision = house.repository.revision

    ended = house.run("gc", "--dry-run", "--grace-days", "0", writes=True)

    assert house.repository.revision == revision
    assert "would go  layer" in ended.stdout
    assert "no image that is kept has this layer" in ended.stdout


@pytest.mark.parametrize("record", ["source.json", "history.json"])
def test_nothing_goes_if_a_record_cannot_be_read(house: House, layout: Layout, tmp_path: Path, record: str) -> None:
    flat = house.convert(layout, "r.test/app:1").flat_path.encode()
    house.convert(make_layout(tmp_path / "other", [OTHER]), "r.test/other:1")
    house.run("rm", "r.test/app:1", writes=True)
    content = house.repository.ingester().add_bytes(b'{"version":7}')
    house.repository.commit([PutFile(f"/.metadata/r.test/other:1/{record}".encode(), content)])

    ended = house.run("gc", "--grace-days", "0", writes=True)

    assert ended.exit_code == 12
    assert house.has(flat)
    assert house.run("ls").exit_code == 0


def test_conversion_beside_a_collection_begins_anew(house: House, layout: Layout, tmp_path: Path) -> None:
    house.convert(layout, "r.test/app:1")
    house.run("rm", "r.test/app:1", writes=True)
    collected: list[int] = []

    def collect_meanwhile(progress: Progress) -> None:
        if progress.stage == "publishing" and not collected:
            report = collect(house.repository, RetentionOptions(keep_s=0, grace_s=0), lambda: 2e9)
            collected.append(report.removed)

    async def convert() -> ConversionResult:
        request = ConversionRequest(source=parse_source(make_layout(tmp_path / "next", [BASE, OTHER]).source))
        return await convert_image(request, house.repository, collect_meanwhile)

    result = anyio.run(convert)

    assert collected[0] > 0
    assert house.has(result.flat_path.encode() + b"/etc/os-release")
    assert house.json("verify", result.name)["good"]


# --- verify


def test_published_image_is_the_image(house: House, layout: Layout) -> None:
    house.convert(layout, "r.test/app:1")

    whole, offline = house.json("verify", "r.test/app:1"), house.json("verify", "r.test/app:1", "--offline")

    assert (whole["good"], offline["good"]) == (True, True)
    assert whole["fetched_bytes"] == sum(map(len, layout.layers))
    assert whole["tree"] == offline["tree"]


def change(house: House, flat: str, name: str, content: bytes, **attributes: int) -> None:
    """Put another file into a published tree."""
    known = house.repository.view().lookup(f"{flat}/{name}".encode())
    facts = attributes if known is None else _attributes(known) | attributes
    stored = house.repository.ingester().add_bytes(content)
    house.repository.commit([PutFile(f"{flat}/{name}".encode(), stored, **facts)])  # type: ignore[arg-type]


def _attributes(entry: Entry) -> dict[str, int]:
    return {"mode": entry.mode & 0o7777, "uid": entry.uid, "gid": entry.gid, "mtime_ns": entry.mtime_ns}


@pytest.mark.parametrize(
    ("name", "content", "attributes", "found"),
    [
        ("etc/os-release", b"ID=evil\n", {}, {"path": "/etc/os-release", "what": "content"}),
        ("etc/os-release", b"ID=test\n", {"uid": 7}, {"path": "/etc/os-release", "what": "uid"}),
        ("etc/evil", b"", {"mtime_ns": 0}, {"path": "/etc/evil", "what": "unexpected"}),
    ],
)
def test_tree_that_was_changed_is_found_out(  # noqa: PLR0917  # fixtures and cases
    house: House, layout: Layout, name: str, content: bytes, attributes: dict[str, int], found: dict[str, str]
) -> None:
    flat = house.convert(layout, "r.test/app:1").flat_path
    change(house, flat, name, content, **attributes)

    ended = house.run("verify", "r.test/app:1", "--json")

    assert ended.exit_code == 12
    verdict = json.loads(ended.stdout)
    assert [one for one in verdict["differences"] if one["what"] != "mtime_ns"] == [found]
    assert not verdict["tree_as_signed"]
    assert house.run("verify", "r.test/app:1", "--offline").exit_code == 12


def test_forged_provenance_is_not_believed(house: House, layout: Layout, tmp_path: Path) -> None:
    result = house.convert(layout, "r.test/app:1")
    stranger = Repository.create("stranger.test", str(tmp_path / "theirs"), tmp_path / "their-keys", durable=False)
    theirs = House(stranger, tmp_path / "theirs", tmp_path / "their-keys")
    theirs.convert(layout, "r.test/app:1")
    path = placement.image_path(result.manifest_digest) + b"/provenance.dsse.json"
    forged = stranger.view().read(path, 1 << 20)
    house.repository.commit([PutFile(path, house.repository.ingester().add_bytes(forged))])

    ended = house.run("verify", "r.test/app:1", "--offline")

    assert ended.exit_code == 12
    assert "key" in ended.stderr


def test_copy_of_another_image_proves_nothing(house: House, layout: Layout, tmp_path: Path) -> None:
    house.convert(layout, "r.test/app:1")

    ended = house.run("verify", "r.test/app:1", "--source", make_layout(tmp_path / "other", [BASE]).source)

    assert ended.exit_code == 12
    assert digest(layout.manifest) in ended.stderr


@pytest.mark.root
def test_verify_through_a_server_and_a_mount(house: House, layout: Layout, tmp_path: Path) -> None:
    result = house.convert(layout, "r.test/app:1")
    public_key = house.keys / f"{NAME}.pub"
    with flaky_origin(house.storage) as origin, mounted(NAME, [origin.url], public_key, tmp_path) as mount:
        options = ["--url", origin.url, "--pubkey", str(public_key), "--json"]

        ended = CliRunner().invoke(unpackd.app, ["images", "verify", result.name, "--deep", str(mount.path), *options])

        verdict = json.loads(ended.stdout)
        assert (verdict["good"], verdict["compared"]) == (True, "image and mount"), verdict
        assert (mount.path / "r.test/app:1/.singularity.d/runscript").is_file()
        assert ".singularity.d" not in {one.name for one in (mount.path / "r.test/app:1").iterdir()}


# --- diff


def test_diff_names_paths_layers_and_settings(house: House, layout: Layout, tmp_path: Path) -> None:
    changed = [Member("etc/os-release", b"ID=test2\n"), Member("new", b"12345"), Member(".wh.lib")]
    later = make_layout(
        tmp_path / "later",
        [BASE, changed],
        settings={"Cmd": ["/new"], "Env": ["PATH=/bin", "A=b"], "Labels": {"x": "y"}},
    )
    house.convert(layout, "r.test/app:1")
    house.convert(later, "r.test/app:1")

    found = house.json("diff", "r.test/app:1")

    paths = {one["path"]: (one["change"], one["old_size"], one["new_size"]) for one in found["paths"]}
    assert paths["/etc/os-release"] == ("changed", 8, 9)
    assert paths["/new"] == ("added", None, 5)
    assert paths["/app"] == ("removed", 10, None)
    assert paths["/lib"] == ("removed", None, None)
    assert "/usr/lib" not in paths
    assert found["size_change"] == 1 + 5 - 2 * 10 - 8000  # /etc/app is the same inode as /app, and another path
    assert found["layers"]["shared"] == [digest(layout.layers[0])]
    assert found["layers"]["only_new"] == [digest(later.layers[1])]
    assert {one["key"]: (one["old"], one["new"]) for one in found["settings"]} == {
        "Cmd": (None, ["/new"]), "Env.PATH": (None, "/bin"), "Env.A": (None, "b"), "Labels.x": (None, "y"),
    }  # fmt: skip
    assert (found["old"]["manifest"], found["new"]["manifest"]) == (digest(layout.manifest), digest(later.manifest))
    text = house.run("diff", "r.test/app:1")
    assert "+ /new  (5 B)" in text.stdout
    assert "~ /etc/os-release  (content, 8 B → 9 B)" in text.stdout
    assert "1 layers shared" in text.stderr


def test_diff_of_digests_of_one_tag_and_of_one_image(house: House, layout: Layout, tmp_path: Path) -> None:
    later = make_layout(tmp_path / "later", [BASE, APP, OTHER])
    for one in (layout, later):
        house.convert(one, "r.test/app:1")

    by_history = house.json("diff", f"r.test/app:1@{digest(layout.manifest)}", "r.test/app:1")
    by_manifest = house.json("diff", digest(layout.manifest), digest(later.manifest))

    assert [one["path"] for one in by_history["paths"]] == ["/other"]
    assert by_manifest["paths"] == by_history["paths"]
    assert house.json("diff", "r.test/app:1", "r.test/app:1")["paths"] == []
    assert house.run("diff", "r.test/app:1", f"r.test/app:1@sha256:{'0' * 64}").exit_code == 10
    house.convert(make_layout(tmp_path / "only", [OTHER]), "r.test/only:1")
    assert house.run("diff", "r.test/only:1").exit_code == 10


def test_what_differs_in_its_time_only_is_named_if_asked_for(house: House, tmp_path: Path) -> None:
    house.convert(make_layout(tmp_path / "a", [[Member("f", b"x", mtime=1)]]), "r.test/a:1")
    house.convert(make_layout(tmp_path / "b", [[Member("f", b"x", mtime=2)]]), "r.test/b:1")

    assert house.json("diff", "r.test/a:1", "r.test/b:1")["paths"] == []
    [path] = house.json("diff", "r.test/a:1", "r.test/b:1", "--times")["paths"]
    assert (path["path"], path["what"]) == ("/f", ["mtime"])
