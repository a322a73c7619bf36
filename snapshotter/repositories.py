"""LayerFilesystem over several repositories: each layer from the first that has it.

All are asked at once, so that one that hangs costs no more than its time limit, and nothing if one before it answers. A
repository that is meant for the image's registry comes before the others; which image it is, is said by a label that
others than containerd can set, so that decides about the order and nothing else: what is served under a ChainID is the
same in all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import anyio

from snapshotter.errors import LayerUnavailableError
from snapshotter.filesystem import FoundLayer, LayerFilesystem, RootImage
from snapshotter.labels import RootOwner, WantedLayer
from snapshotter.snapshots import LayerSource, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One repository."""

    name: str
    """What snapshots remember it by; empty for the one that was there before there were several."""
    mountpoint: Path
    layers: LayerFilesystem
    prefixes: tuple[str, ...] = ()
    """Beginnings of the names of images that it is meant for, as ``registry.example.org/team/``."""

    def length_of_match(self, image: str) -> int:
        """How many characters of *image* its longest fitting prefix has; -1 if none fits."""
        fitting = [len(prefix) for prefix in self.prefixes if fits(prefix, image)]
        return max(fitting, default=-1)


def fits(prefix: str, image: str) -> bool:
    """True if *image* begins with *prefix* and that ends between two parts of the name."""
    return image.startswith(prefix) and (prefix.endswith("/") or image[len(prefix) : len(prefix) + 1] in ("", *"/:@"))


class _Answers:
    """What repositories said, in their order."""

    def __init__(self, count: int) -> None:
        self._missing = dict.fromkeys(range(count))
        self._found: dict[int, FoundLayer] = {}
        self.failure: LayerUnavailableError | None = None

    def put(self, place: int, answer: FoundLayer | LayerUnavailableError | None) -> None:
        """The answer of the repository at *place*."""
        del self._missing[place]
        if isinstance(answer, LayerUnavailableError):
            self.failure = answer
        elif answer is not None:
            self._found[place] = answer

    @property
    def best(self) -> FoundLayer | None:
        """What the first one found that has the layer; None as long as one before it has not answered."""
        first = min(self._found, default=None)
        if first is None or any(place < first for place in self._missing):
            return None
        return self._found[first]


class Repositories:
    """The layers of *members*, in their order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._by_name = {member.name: member for member in members}

    async def find(self, wanted: WantedLayer) -> FoundLayer | None:
        """See LayerFilesystem.find."""
        ordered = sorted(self.members, key=lambda member: -member.length_of_match(wanted.image))
        answers = _Answers(len(ordered))
        async with anyio.create_task_group() as group:

            async def look(place: int, member: Member) -> None:
                try:
                    found = await member.layers.find(wanted)
                except LayerUnavailableError as error:
                    answers.put(place, error)
                else:
                    answers.put(place, None if found is None else _named(found, member.name))
                if answers.best is not None:
                    group.cancel_scope.cancel()

            for place, member in enumerate(ordered):
                group.start_soon(look, place, member)
        if answers.best is None and answers.failure is not None:
            raise answers.failure
        return answers.best

    async def check(self, sources: Sequence[LayerSource]) -> tuple[RootOwner, ...]:
        """See LayerFilesystem.check."""
        owners: dict[LayerSource, RootOwner] = {}
        for name in dict.fromkeys(source.repository for source in sources):
            its = [source for source in sources if source.repository == name]
            owners.update(zip(its, await self.member(its[0]).layers.check(its), strict=True))
        return tuple(owners[source] for source in sources)

    def path(self, source: LayerSource) -> PurePath:
        """See LayerFilesystem.path. Raises LayerUnavailableError for a repository that is not configured any more."""
        return self.member(source).layers.path(source)

    def root_image(self, source: LayerSource) -> RootImage | None:
        """See LayerFilesystem.root_image."""
        return self.member(source).layers.root_image(source)

    async def measure(self, source: LayerSource) -> Usage | None:
        """See LayerFilesystem.measure."""
        return await self.member(source).layers.measure(source)

    def member(self, source: LayerSource) -> Member:
        """The repository of *source*. Raises LayerUnavailableError."""
        member = self._by_name.get(source.repository)
        if member is None:
            raise LayerUnavailableError(str(source), f"no repository {source.repository!r} is configured")
        return member


def _named(found: FoundLayer, repository: str) -> FoundLayer:
    return replace(found, source=replace(found.source, repository=repository))
