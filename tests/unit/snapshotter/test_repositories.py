from collections.abc import Sequence
from pathlib import Path, PurePath

import anyio
import pytest

from snapshotter.cvmfs import usage_of_counters
from snapshotter.errors import LayerUnavailableError
from snapshotter.filesystem import FoundLayer, RootImage
from snapshotter.labels import RootOwner, WantedLayer
from snapshotter.repositories import Member, Repositories, fits
from snapshotter.snapshots import LayerSource, SourceKind, Usage

DIGITS = "a" * 64
SOURCE = LayerSource(SourceKind.CHAIN_FLAT, DIGITS)


class Layers:
    """A repository that answers after a while: with the layer, with nothing, or not at all."""

    def __init__(self, answer: str, *, delay_s: float = 0) -> None:
        self._answer = answer
        self._delay_s = delay_s

    async def find(self, wanted: WantedLayer) -> FoundLayer | None:
        assert wanted.chain_digits == DIGITS
        await anyio.sleep(self._delay_s)
        if self._answer == "fails":
            raise LayerUnavailableError("x", "y")
        return FoundLayer(source=SOURCE, parent_chain_id=None) if self._answer == "has" else None

    async def check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        return tuple(RootOwner(uid=int(self._delay_s), gid=0) for _ in sources)

    def path(self, source: LayerSource) -> PurePath:
        assert source.repository in "ab"
        return PurePath("/", self._answer)

    def root_image(self, source: LayerSource) -> RootImage | None:
        return RootImage(file=Path(source.hex), data=Path("/"), shared_data=Path("/"))

    async def measure(self, source: LayerSource) -> Usage | None:
        return Usage(size_bytes=len(source.hex), inodes=1)


def several(**members: Layers) -> Repositories:
    prefixes = {"lab": ("registry.lab.org/team", "registry.lab.org/other/")}
    return Repositories(
        [
            Member(name=name, mountpoint=Path("/cvmfs", name), layers=layers, prefixes=prefixes.get(name, ()))
            for name, layers in members.items()
        ]
    )


def found(repositories: Repositories, image: str = "") -> str | None:
    async def look() -> FoundLayer | None:
        wanted = WantedLayer(reference=f"sha256:{DIGITS}", chain_digits=DIGITS, layer_digits=None, image=image)
        with anyio.fail_after(2):
            return await repositories.find(wanted)

    layer = anyio.run(look)
    return None if layer is None else layer.source.repository


def test_the_first_that_has_it_serves_it() -> None:
    assert found(several(a=Layers("no"), b=Layers("has", delay_s=0.05), c=Layers("has"))) == "b"
    assert found(several(a=Layers("no"), b=Layers("no"))) is None


def test_one_that_hangs_matters_only_if_it_would_be_first() -> None:
    assert found(several(a=Layers("has"), b=Layers("has", delay_s=60))) == "a"
    assert found(several(a=Layers("fails"), b=Layers("has"))) == "b"
    with pytest.raises(LayerUnavailableError):
        found(several(a=Layers("fails"), b=Layers("no")))


def test_the_one_for_the_images_registry_comes_first() -> None:
    both = several(a=Layers("has"), lab=Layers("has"))
    assert found(both, "registry.lab.org/team/tool:1") == "lab"
    assert found(both, "registry.lab.org/teamwork:1") == "a"
    assert found(both) == "a"


@pytest.mark.parametrize(
    ("prefix", "image", "is_fitting"),
    [
        ("r.org", "r.org/a:1", True),
        ("r.org", "r.org.evil/a:1", False),
        ("r.org/", "r.org/a", True),
        ("r.org/a", "r.org/a@sha256:0", True),
        ("r.org/a", "r.org/ab", False),
        ("", "anything", False),
    ],
)
def test_prefixes_end_between_parts(prefix: str, image: str, is_fitting: bool) -> None:
    assert fits(prefix, image) == is_fitting


def test_sources_remember_their_repository() -> None:
    source = LayerSource(SourceKind.CHAIN_LAYER, DIGITS, "b")
    both = several(a=Layers("has"), b=Layers("no"))
    assert LayerSource.parse(str(source)) == source
    assert LayerSource.parse(f"chain-flat:{DIGITS}").repository == ""
    assert both.path(source) == PurePath("/no")
    with pytest.raises(LayerUnavailableError, match="no repository 'gone'"):
        both.path(LayerSource(SourceKind.CHAIN_LAYER, DIGITS, "gone"))


def test_owners_come_in_the_order_of_the_sources() -> None:
    both = several(a=Layers("has"), b=Layers("has", delay_s=1))
    sources = [LayerSource(SourceKind.CHAIN_LAYER, digit * 64, name) for digit, name in ("1b", "2a", "3b")]
    assert [owner.uid for owner in anyio.run(both.check, sources)] == [1, 0, 1]


def test_usage_is_that_of_the_catalog_that_begins_there() -> None:
    head = "catalog_hash: 00\ncatalog_mountpoint: /.layers/aa/b\n"
    text = head + "chunked,1\ndir,3\nfile_size,1000\nnested,1\nregular,5\nspecial,1\nsymlink,2\n"
    assert usage_of_counters(text, "/.layers/aa/b") == Usage(size_bytes=1000, inodes=10)
    assert usage_of_counters(text, "/.layers/aa/c") is None
    assert usage_of_counters("no counters", "/x") is None
