"""Images of several platforms: one commit, a name each, and a public name that leads everybody to their own."""

import json
import platform
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import unpackd
from fs.publish.repository import Repository
from registry_proxy.oci.manifest import Platform
from tests.support.flaky_origin import flaky_origin
from tests.support.images import Layout, Member, digest, make_layout
from tests.support.mounts import mounted

NAME = "images.test"
INDEX = "application/vnd.oci.image.index.v1+json"
PLATFORMS = {"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "arm"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def repository(tmp_path: Path, keys: Path) -> Repository:
    return Repository.create(NAME, str(tmp_path / "storage"), keys, durable=False)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A layout whose only tag leads to an index of three platforms and one that is not Linux."""
    images = {
        name: make_layout(
            tmp_path / "multi", [[Member("common", b"all")], [Member("which", name.encode())]],
            architecture=architecture, tag=architecture,
        )
        for name, architecture in PLATFORMS.items()
    }  # fmt: skip
    manifests = [described(image.manifest, name) for name, image in images.items()]
    manifests.append(described(b"never read", "windows/amd64"))
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    first = images["linux/amd64"]
    (first.path / "blobs/sha256" / digest(index).removeprefix("sha256:")).write_bytes(index)
    entry = {"mediaType": INDEX, "digest": digest(index), "size": len(index)}
    entry |= {"annotations": {"org.opencontainers.image.ref.name": "r.test/lib/app:1"}}
    (first.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return first


def described(manifest: bytes, name: str) -> dict[str, object]:
    system, architecture, *variant = name.split("/")
    return {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(manifest),
        "size": len(manifest),
        "platform": {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})},
    }


def convert(repository: Repository, keys: Path, tmp_path: Path, layout: Layout, *options: str) -> Result:
    where = ["--repo", repository.name, "--storage", str(tmp_path / "storage"), "--keys", str(keys)]
    return CliRunner().invoke(unpackd.app, ["convert", f"oci:{layout.path}", *options, *where])


def read(repository: Repository, link: str) -> bytes:
    """What the file ``which`` says at the end of the symlink *link*."""
    view = repository.view()
    target = view.readlink(link.encode())
    return view.read(target[target.index(b"/.flat/") :] + b"/which", 100)


def test_all_platforms_come_in_one_commit(repository: Repository, keys: Path, tmp_path: Path, layout: Layout) -> None:
    revision = repository.revision

    ended = convert(repository, keys, tmp_path, layout, "--platform", "all", "--json")
    again = convert(repository, keys, tmp_path, layout, "--platform", "all", "--json")

    assert ended.exit_code == 0, ended.output
    assert "windows" in ended.stderr
    [result] = json.loads(ended.stdout)["images"]
    assert repository.revision == result["revision"] == revision + 1
    assert [one["platform"] for one in result["images"]] == list(PLATFORMS)
    for directory, which in {"amd64": b"linux/amd64", "arm64:v8": b"linux/arm64", "arm:v7": b"linux/arm/v7"}.items():
        assert read(repository, f"/.multiarch/{directory}/r.test/lib/app:1") == which
    public = repository.view().lookup(b"/r.test/lib/app:1")
    assert public is not None
    assert public.target == b"../../.multiarch/$(CVMFS_ARCH:-amd64)/r.test/lib/app:1"
    assert not json.loads(again.stdout)["images"][0]["changed"]
    # who asks for this machine's image only has it already
    assert not json.loads(convert(repository, keys, tmp_path, layout, "--json").stdout)["images"][0]["changed"]


def test_chosen_platforms_only_and_names_of_the_others_go(
    repository: Repository, keys: Path, tmp_path: Path, layout: Layout
) -> None:
    convert(repository, keys, tmp_path, layout, "--platform", "all")

    ended = convert(repository, keys, tmp_path, layout, "--platform", "linux/arm64,linux/arm/v7")

    assert ended.exit_code == 0, ended.output
    view = repository.view()
    assert view.lookup(b"/.multiarch/amd64/r.test/lib/app:1") is None
    assert view.lookup(b"/.multiarch/arm:v7/r.test/lib/app:1") is not None
    options = ["--storage", str(tmp_path / "storage"), "--json"]
    listed = CliRunner().invoke(unpackd.app, ["images", "ls", *options])
    assert [one["platform"] for one in json.loads(listed.stdout)[0]["images"]] == ["linux/arm64", "linux/arm/v7"]
    verified = CliRunner().invoke(
        unpackd.app, ["images", "verify", "r.test/lib/app:1", "--platform", "linux/arm/v7", *options]
    )
    assert verified.exit_code == 0, verified.output


def test_removed_image_has_no_name_left(repository: Repository, keys: Path, tmp_path: Path, layout: Layout) -> None:
    convert(repository, keys, tmp_path, layout, "--platform", "all")
    where = ["--storage", str(tmp_path / "storage"), "--keys", str(keys)]

    ended = CliRunner().invoke(unpackd.app, ["images", "rm", "r.test/lib/app:1", *where])

    assert ended.exit_code == 0, ended.output
    for link in (b"/r.test/lib/app:1", b"/.multiarch/amd64/r.test/lib/app:1", b"/.multiarch/arm:v7/r.test/lib/app:1"):
        assert repository.view().lookup(link) is None


@pytest.mark.root
def test_public_name_leads_to_the_image_of_the_machine(
    repository: Repository, keys: Path, tmp_path: Path, layout: Layout
) -> None:
    convert(repository, keys, tmp_path, layout, "--platform", "all")
    public_key = keys / f"{NAME}.pub"

    with flaky_origin(tmp_path / "storage") as origin, mounted(NAME, [origin.url], public_key, tmp_path) as mount:
        own = Platform.parse(f"linux/{platform.machine()}")
        assert (mount.path / "r.test/lib/app:1/which").read_text() == str(own)
        for machine, which in (("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7")):
            assert (mount.path / ".multiarch" / machine / "r.test/lib/app:1/which").read_text() == which
