"""Plain tars of root file systems, layers that may not be copied, and images without files."""

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard
from typer.testing import CliRunner, Result

import unpackd
from fs.publish.repository import Repository
from tests.support.images import Member, digest, directory, hardlink, make_layout, symlink, tar
from tests.support.registry import Registry

NAME = "images.test"
MEMBERS = [
    directory("./"), directory("./etc", 0o750), Member("./etc/hostname", b"box\n", uid=7, gid=8),
    Member("./su", b"x", 0o4755),
    hardlink("./su2", "./su"), symlink("./bin", "usr/bin"),
]  # fmt: skip
PACKED = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


class Target:
    """A repository, and the command pointed at it."""

    def __init__(self, folder: Path) -> None:
        self._places = ["--repo", NAME, "--storage", str(folder / "storage"), "--keys", str(folder / "keys")]
        self.repository = Repository.create(NAME, str(folder / "storage"), folder / "keys", durable=False)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(unpackd.app, ["convert", *arguments, *self._places])

    def image(self, *arguments: str) -> dict[str, Any]:
        ended = self.run(*arguments, "--json")
        assert ended.exit_code == 0, ended.output
        image: dict[str, Any] = json.loads(ended.stdout)["images"][0]
        return image

    def facts(self, image: dict[str, Any]) -> str:
        """The digest of the tree, as the provenance has it."""
        digits = image["manifest_digest"].removeprefix("sha256:")
        path = f"/.unpackd/images/{digits[:2]}/{digits}/provenance.json"
        tree: str = json.loads(self.repository.view().read(path.encode(), 1 << 20))["tree"]
        return tree


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path)


@pytest.mark.parametrize("suffix", PACKED)
def test_tarball_is_the_tree_that_an_image_of_that_layer_has(target: Target, tmp_path: Path, suffix: str) -> None:
    tarball = tmp_path / f"Root FS.tar{suffix}"
    tarball.write_bytes(PACKED[suffix](tar(MEMBERS)))
    same = target.image(make_layout(tmp_path / "layout", [MEMBERS]).source, "--name", "r.test/same:1")

    image = target.image(str(tarball), "--name", "r.test/box:1")

    assert image["public_path"] == "/r.test/box:1"
    assert target.facts(image) == target.facts(same)
    assert target.image(str(tarball), "--name", "r.test/box:1")["changed"] is False
    assert target.image(f"rootfs:{tarball}")["name"] == "localhost/root-fs:latest"


def test_what_is_no_tar_of_a_root_file_system_is_refused_by_its_name(target: Target, tmp_path: Path) -> None:
    cases = {"noise.tar": b"\x01" * 2048, "cut.tar.gz": gzip.compress(tar(MEMBERS))[:-20], "empty.tar": b"",
             "packed.tar": b"\xfd7zXZ" + bytes(100)}  # fmt: skip
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        ended = target.run(str(tmp_path / name))
        assert ended.exit_code == 12, (name, ended.output)
        assert name in ended.stderr
    assert target.run(f"rootfs:{tmp_path}/absent.tar").exit_code == 10
    assert target.repository.revision == 1


def test_tarball_has_the_platform_of_this_machine(target: Target, tmp_path: Path) -> None:
    (tmp_path / "box.tar").write_bytes(tar(MEMBERS))

    ended = target.run(str(tmp_path / "box.tar"), "--platform", "linux/s390x")

    assert ended.exit_code == 1
    assert "not for linux/s390x" in ended.stderr


@pytest.mark.parametrize("policy", ["refuse", "fetch"])
def test_foreign_layers_are_taken_from_the_registry_only_if_that_is_asked_for(
    target: Target, registry: Registry, tmp_path: Path, policy: str
) -> None:
    layout = make_layout(tmp_path / "layout", [MEMBERS])
    reference = registry.push(layout.source, f"lib/foreign-{policy}:1")
    manifest = json.loads(layout.manifest)
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    put(registry, f"lib/foreign-{policy}", json.dumps(manifest).encode())

    ended = target.run(reference, "--foreign-layers", policy)

    if policy == "refuse":
        assert (ended.exit_code, target.repository.revision) == (1, 1)
        assert digest(layout.layers[0]) in ended.stderr
        assert "--foreign-layers fetch" in ended.stderr
    else:
        assert (ended.exit_code, target.repository.revision) == (0, 2), ended.output


def put(registry: Registry, repository: str, manifest: bytes) -> None:
    """Let the tag 1 name another manifest."""
    headers = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    httpx.put(f"{registry.url}/v2/{repository}/manifests/1", content=manifest, headers=headers).raise_for_status()


def test_thin_image_is_refused_with_the_name_of_what_it_was_made_from(target: Target, tmp_path: Path) -> None:
    layer = {"digest": "ab" * 32, "url": "cvmfs://old.example.org/.layers/ab/" + "ab" * 32 + "/layerfs"}
    listed = {"version": "1.0", "origin": "https://r.example/team/app:1", "layers": [layer, layer]}
    settings: dict[str, object] = {"Env": ["CVMFS_IMAGE=true"]}
    thin = make_layout(tmp_path / "thin", [[Member("thin.json", json.dumps(listed).encode())]], settings=settings)
    whole = make_layout(tmp_path / "whole", [[*MEMBERS, Member("thin.json", b"{}")]], settings=settings)

    refused, taken = target.run(thin.source), target.run(whole.source)

    assert (refused.exit_code, taken.exit_code) == (1, 0), refused.output + taken.output
    assert "made from https://r.example/team/app:1 with 2 layers" in refused.stderr
