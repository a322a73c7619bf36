"""The published tree is what ``umoci unpack`` makes of the same image, attribute by attribute."""

import gzip
import json
import os
import random
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from converter.conversion import ConversionRequest
from converter.pipeline import convert_image
from converter.placement import chain_ids, chain_path
from converter.sources import parse_source
from converter.verify import published_digests
from fs.publish.repository import Repository
from tests.support.images import Layout, Member, digest, directory, hardlink, make_layout, symlink
from tests.support.materialise import materialise
from tests.support.processes import require_tool
from tests.support.trees import Described, describe, differences

pytestmark = pytest.mark.root

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
ODD = [
    [
        directory("./", 0o751),
        directory("d", 0o2750),
        directory("sticky", 0o1777),
        Member("d/file", b"content", uid=1000, gid=2000, mtime=1.123456789),
        Member("d/old", b"o", mtime=-1.5),
        Member("suid", b"s", mode=0o6755, uid=7),
        Member("secret", b"", mode=0),
        Member("café", b"utf-8"),
        Member("new\nline", b"n"),
        Member("n" * 255, b"long"),
        Member("p" * 200 + "/" + "q" * 200, b"longer"),
        symlink("up", "../../../../etc/passwd"),
        symlink("long", "t" * 300),
        symlink("lib", "d"),
        hardlink("hard", "d/file"),
        hardlink("harder", "hard"),
        hardlink("lib/through", "suid"),
        hardlink("to-symlink", "up"),
        Member("fifo", kind=tarfile.FIFOTYPE, mode=0o600),
        Member("null", kind=tarfile.CHRTYPE, mode=0o666, device=(1, 3)),
        Member("disk", kind=tarfile.BLKTYPE, mode=0o660, device=(259, 70000)),
        Member("tagged", b"x", pax={"SCHILY.xattr.user.hello": "world"}),
        directory("keep/me"),
        Member("implicit/dirs/file", b"i"),
    ],
    [
        directory("d", 0o700),
        Member("d/.wh.file", b""),
        Member("sticky/new", b"n", mtime=5),
        Member("lib/other", b"through a symlink of the lower layer"),
        hardlink("again", "hard"),
        Member("suid", b"replaced"),
        Member("keep/.wh..wh..opq", b""),
        Member("keep/only", b"o"),
    ],
    [
        symlink("d", "sticky"),
        directory("lib"),
        Member("up", b"now a file"),
        Member(".wh.secret", b""),
        Member("implicit/.wh.dirs", b""),
        Member("implicit/dirs/other", b"o"),
    ],
]


def unpacked_by_umoci(layout: Layout, bundle: Path) -> dict[bytes, Described] | None:
    """The tree that umoci makes; None if it refuses."""
    require_tool("umoci")
    command = ["umoci", "unpack", "--image", f"{layout.path}:{layout.tag}", bundle]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=60)
    return describe(bundle / "rootfs") if ended.returncode == 0 else None


def published(layout: Layout, repository: Repository, target: Path) -> dict[bytes, Described]:
    request = ConversionRequest(source=parse_source(layout.source))
    result = anyio.run(convert_image, request, repository)
    view = repository.view()
    materialise(view, result.flat_path.encode(), target)
    assert len(published_digests(view, result.config_digest)) == 1, "containers and users get the same"
    return describe(target)


def without_the_clock(
    expected: dict[bytes, Described], found: dict[bytes, Described], started_ns: int
) -> dict[bytes, Described]:
    """*expected*, with our time where umoci took the clock's: directories that have no entry."""
    return {
        path: replace(described, mtime_ns=found[path].mtime_ns)
        if described.mtime_ns >= started_ns and path in found
        else described
        for path, described in expected.items()
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("repository")
    return Repository.create("umoci.test", str(folder / "storage"), folder / "keys", durable=False)


def compare(layout: Layout, repository: Repository, folder: Path) -> bool:
    """Compare both trees; False if umoci refuses the image."""
    started_ns = time.time_ns() - 10**9
    expected = unpacked_by_umoci(layout, folder / "bundle")
    if expected is None:
        return False
    found = published(layout, repository, folder / "tree")
    assert differences(without_the_clock(expected, found, started_ns), found) == []
    return True


def test_odd_image(repository: Repository, tmp_path: Path) -> None:
    assert compare(make_layout(tmp_path / "odd", ODD), repository, tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=posix", "--xattrs", "--xattrs-include=*"],
        ["--format=gnu", "--numeric-owner"],
        ["--format=v7"],
        ["--format=ustar"],
    ],
    ids=" ".join,
)
def test_what_gnu_tar_writes(repository: Repository, tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    with (source / "sparse").open("wb") as stream:
        for part in range(30):  # more parts than one header holds
            stream.seek(part * 200_000)
            stream.write(b"data %d" % part * 1000)
        stream.truncate(8_000_000)
    (source / "sub" / "small").write_bytes(b"small")
    os.link(source / "sub" / "small", source / "linked")
    os.chown(source / "sub" / "small", 5_000_000 if "v7" not in options[0] and "ustar" not in options[0] else 5, 6)
    if "--xattrs" in options:
        os.setxattr(source / "sub" / "small", "user.note", b"\0binary\xff")
        os.setxattr(source / "linked", "security.capability", CAPABILITY)
    packed = subprocess.run(["tar", "-C", source, *options, "-c", "."], check=True, capture_output=True, timeout=60)

    layout = layout_of_tar(tmp_path / "layout", packed.stdout)
    if options == ["--format=gnu", "--sparse"]:  # which umoci cannot read
        found = published(layout, repository, tmp_path / "tree")
        expected = describe(source)
        whole_seconds = {path: replace(one, mtime_ns=found[path].mtime_ns) for path, one in expected.items()}
        assert differences(whole_seconds, found) == []
    else:
        assert compare(layout, repository, tmp_path)


def layout_of_tar(path: Path, tar: bytes) -> Layout:
    """An image whose one layer is *tar*."""
    layout = make_layout(path, [[]])
    blob = gzip.compress(tar, 1, mtime=0)
    config = json.loads(layout.config)
    config["rootfs"]["diff_ids"] = [digest(tar)]
    config_bytes = json.dumps(config).encode()
    manifest = json.loads(layout.manifest)
    manifest["layers"][0] |= {"digest": digest(blob), "size": len(blob)}
    manifest["config"] |= {"digest": digest(config_bytes), "size": len(config_bytes)}
    manifest_bytes = json.dumps(manifest).encode()
    index = json.loads((path / "index.json").read_text())
    index["manifests"][0] |= {"digest": digest(manifest_bytes), "size": len(manifest_bytes)}
    for data in (blob, config_bytes, manifest_bytes):
        (path / "blobs" / "sha256" / digest(data).removeprefix("sha256:")).write_bytes(data)
    (path / "index.json").write_text(json.dumps(index))
    return Layout(path, layout.tag, manifest_bytes, config_bytes, (blob,))


def test_layers_of_the_chain_stacked_by_the_kernel_are_the_flat_tree(repository: Repository, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "stack", [*ODD, [Member(".wh..wh..opq"), directory("d", 0o711), Member("d/last")]])
    flat = published(layout, repository, tmp_path / "flat")
    view = repository.view()
    stack = []
    for number, chain in enumerate(chain_ids(json.loads(layout.config)["rootfs"]["diff_ids"])):
        folder = tmp_path / f"layer-{number}"
        link = chain_path(chain) + b"/layer"
        materialise(view, os.path.normpath(os.path.join(os.path.dirname(link), view.readlink(link))), folder)
        stack.insert(0, str(folder))
    merged = tmp_path / "merged"
    merged.mkdir()
    command = ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={':'.join(stack)}", merged]
    subprocess.run(command, check=True, timeout=30)
    try:
        found = describe(merged)
    finally:
        subprocess.run(["umount", merged], check=True, timeout=30)

    # a link that leads into a lower layer is a copy in an overlay, so link counts cannot be compared
    assert differences(without_links(flat), without_links(found)) == []


def without_links(tree: dict[bytes, Described]) -> dict[bytes, Described]:
    return {path: replace(described, nlink=1, same_inode_as=None) for path, described in tree.items()}


def random_layers(seed: int) -> list[list[Member]]:
    """A stack of small layers that get in each other's way. Whiteouts come first, as tools write them."""
    choose = random.Random(seed)
    files = ["a"]

    def path() -> str:
        letters = choose.choice(["pqr", "pqr", "pqr", "abc"])  # mostly directories and files with names of their own
        parents = [choose.choice(letters) for _ in range(choose.randint(0, 2))]
        return "/".join([*parents, choose.choice("abc" if choose.random() < 0.8 else "pqr")])

    def member() -> Member:
        kind = choose.choice("fffddslx")
        name, mode = path(), choose.choice([0o644, 0o755, 0o4711])
        if kind == "d":
            name = name.translate(str.maketrans("abc", "pqr"))
            return replace(directory(name, mode), mtime=choose.randint(1, 10**9), uid=choose.randint(0, 9))
        if kind == "s":
            return symlink(name, choose.choice(["p", "../q", "/r", "/p/q", "..", "x/y", "."]))
        if kind == "l":
            return hardlink(name, choose.choice(files))
        files.append(name)
        pax = {"SCHILY.xattr.user.k": name} if kind == "x" else {}
        return Member(name, name.encode() * choose.randint(0, 5), mode=mode, mtime=choose.randint(1, 10**9), pax=pax)

    def removal() -> Member:
        parent, _, last = path().rpartition("/")
        return Member(f"{parent}/{choose.choice(['.wh.' + last, '.wh.' + last, '.wh..wh..opq'])}".lstrip("/"))

    return [
        ([removal() for _ in range(choose.randint(0, 2))] if number else [])
        + [member() for _ in range(choose.randint(1, 6))]
        for number in range(choose.randint(2, 4))
    ]


@pytest.mark.parametrize("batch", range(int(os.environ.get("UMOCI_BATCHES", "6"))))
def test_random_images(repository: Repository, tmp_path: Path, batch: int) -> None:
    compared = 0
    for seed in range(batch * 8, batch * 8 + 8):
        folder = tmp_path / str(seed)
        compared += compare(make_layout(folder / "layout", random_layers(seed)), repository, folder)

    assert compared > 0  # umoci refuses some of them
