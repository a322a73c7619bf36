"""The watcher over a registry that does what the test says, a real database and no queue."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from converter.farm_config import sqlite_url
from converter.farm_database import FarmDatabase
from converter.farm_views import FarmViews
from converter.job_rules import ImageState
from converter.jobs import Claim, JobStore, Outcome
from converter.terms import Policy, Terms
from converter.watch import Watcher, WatchSettings
from converter.wish import Source, Wish
from converter.wishes import WishStore, apply_text
from registry_proxy.errors import AbsentError, RateLimitedError, UnreachableError
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor
from registry_proxy.oci.reference import Reference

REPOSITORY = "unpacked.test.local"
TOOL = Source("r.example", "group/tool")


def digest(letter: str) -> str:
    return "sha256:" + letter * 64


@dataclass
class FakeRegistry:
    tagged: dict[str, str] = field(default_factory=dict)  # "repository:tag" -> letter
    error: Exception | None = None
    asked: list[str] = field(default_factory=list)

    async def resolve(self, reference: Reference) -> Descriptor:
        name = f"{reference.repository}:{reference.tag}"
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        if name not in self.tagged:
            raise AbsentError(f"{name} is not there")
        return Descriptor(media_type="", digest=Digest.parse(digest(self.tagged[name])), size_bytes=1)

    async def tags(self, reference: Reference) -> list[str]:
        self.asked.append(reference.repository)
        if self.error is not None:
            raise self.error
        return [name.partition(":")[2] for name in self.tagged if name.startswith(reference.repository + ":")]


class NoQueue:
    def tick(self) -> int:
        return 0


@dataclass
class Farm:
    database: FarmDatabase
    registry: FakeRegistry = field(default_factory=FakeRegistry)

    def __post_init__(self) -> None:
        self.wishes = WishStore(self.database)
        self.jobs = JobStore(self.database)
        self.views = FarmViews(self.database)

    def wish(self, *references: str) -> None:
        lines = "".join(f"  - {reference}\n" for reference in references)
        apply_text(self.wishes, REPOSITORY, "physics", f"cvmfs_repo: {REPOSITORY}\ninput:\n{lines}".encode())

    def states(self) -> dict[str, tuple[str, str | None]]:
        return {
            image.name.partition("/")[2]: (image.state.value, image.digest and image.digest[7])
            for image in self.views.images()
        }

    @asynccontextmanager
    async def watching(
        self, *, poll_s: float = 60, wishlist: Path | None = None, tags_per_look: int = 100
    ) -> AsyncIterator[None]:
        settings = WatchSettings(
            repository=REPOSITORY,
            poll_interval_s=poll_s,
            collapse_s=0.2,
            registry_connections=4,
            tags_per_look=tags_per_look,
            wishlist=wishlist,
        )
        watcher = Watcher(settings, self.wishes, self.jobs, NoQueue(), self.registry)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watcher.run)
            yield
            tasks.cancel_scope.cancel()

    async def until(self, ready: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not ready():  # noqa: ASYNC110  # a database has no event
                await anyio.sleep(0.02)


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(FarmDatabase(sqlite_url(tmp_path / "farm.sqlite")))


def run(test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test)


def test_wishes_become_jobs(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:v1.0": "a", "group/tool:v1.1": "b", "group/tool:v2": "c", "other:1": "d"}
    farm.wish("r.example/group/tool:v1.*", "r.example/other:1", "r.example/other:absent", f"r.example/x@{digest('e')}")

    async def check() -> None:
        async with farm.watching():
            await farm.until(lambda: len(farm.views.jobs()) == 4 and "other:absent" in farm.states())

    run(check)
    assert farm.states() == {
        "group/tool:v1.0": ("queued", "a"),
        "group/tool:v1.1": ("queued", "b"),
        "other:1": ("queued", "d"),
        "other:absent": ("wanted", None),
        f"x:{digest('e')}": ("queued", "e"),
    }
    assert farm.views.image("r.example/other:absent").error == "other:absent is not there"
    assert not any(name.startswith("x:") for name in farm.registry.asked)  # a digest names itself


def test_a_hint_is_followed_at_once_and_many_are_one(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a"}
    farm.wish("r.example/group/tool:*")

    async def check() -> None:
        async with farm.watching():
            await farm.until(lambda: len(farm.views.jobs()) == 1)
            await anyio.sleep(0.8)  # so that the moment in which hints are collected is over
            farm.registry.asked.clear()
            farm.registry.tagged["group/tool:2"] = "b"
            before = time.monotonic()
            farm.wishes.add_hints([TOOL], "test")
            await farm.until(lambda: len(farm.views.jobs()) == 2)
            print(f"hint to job: {time.monotonic() - before:.2f} s")
            farm.registry.tagged["group/tool:2"] = "c"
            for _ in range(20):
                farm.wishes.add_hints([TOOL], "test")
                await anyio.sleep(0.01)
            await farm.until(lambda: farm.states()["group/tool:2"][1] == "c")

    run(check)
    assert farm.registry.asked.count("group/tool") == 2


def test_polling_finds_what_no_notification_told(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a"}
    farm.wish("r.example/group/tool:1")

    async def check() -> None:
        async with farm.watching(poll_s=0.3):
            await farm.until(lambda: farm.states().get("group/tool:1") == ("queued", "a"))
            farm.registry.tagged["group/tool:1"] = "b"
            await farm.until(lambda: farm.states()["group/tool:1"] == ("queued", "b"))

    run(check)


@pytest.mark.parametrize("error", [UnreachableError("r.example does not answer"), RuntimeError("a bug")])
def test_a_registry_that_cannot_be_read_removes_nothing(farm: Farm, error: Exception) -> None:
    farm.registry.tagged = {"group/tool:1": "a", "group/tool:2": "b"}
    farm.wish("r.example/group/tool:*")

    async def check() -> None:
        async with farm.watching(poll_s=0.2):
            await farm.until(lambda: len(farm.views.jobs()) == 2)
            claim = farm.jobs.claim(1, "me", lambda _: False)
            assert claim is not None
            done = Outcome(changed=True, public_path="/tool", flat_path="/flat", revision=2, details={})
            farm.jobs.finish(claim, done)
            farm.registry.error = error
            await farm.until(lambda: any(state.error for state in farm.wishes.source_states()))
            image = farm.views.image("r.example/group/tool:1")
            assert (image.state, image.wished, image.public_path) == (ImageState.DONE, True, "/tool")
            farm.registry.error = None
            farm.registry.tagged["group/tool:3"] = "c"
            await farm.until(lambda: "group/tool:3" in farm.states())
            await farm.until(lambda: farm.wishes.source_states()[0].error is None)

    run(check)


def test_a_registry_that_wants_to_be_left_alone_is(farm: Farm) -> None:
    farm.registry.error = RateLimitedError("r.example asks to come back later", 3600)
    farm.wish("r.example/group/tool:1")

    async def check() -> None:
        async with farm.watching(poll_s=0.1):
            await farm.until(lambda: len(farm.wishes.source_states()) == 1)
            farm.registry.asked.clear()
            await anyio.sleep(1)

    run(check)
    assert len(farm.registry.asked) <= 1  # the look that was under way for the new wishlist


def test_a_large_repository_costs_a_list_and_a_few_questions(farm: Farm) -> None:
    farm.registry.tagged = {f"group/tool:{number}": "a" for number in range(60)}
    farm.wish("r.example/group/tool:*")
    farm.wishes.take_hints()  # so that the first look is that of polling, and no other follows it

    async def look() -> list[str]:
        farm.registry.asked.clear()
        before = farm.wishes.source_states()[0].read_at
        farm.wishes.add_hints([TOOL], "test")
        await farm.until(lambda: farm.wishes.source_states()[0].read_at != before)
        return sorted(farm.registry.asked)

    async def check() -> None:
        async with farm.watching(tags_per_look=5):
            await farm.until(lambda: len(farm.views.jobs()) == 60)  # all are new
            await farm.until(lambda: len(farm.wishes.source_states()) == 1)
            first, second = await look(), await look()
            assert (len(first), len(second), set(first) & set(second)) == (6, 6, {"group/tool"})
            farm.registry.tagged |= {"group/tool:new": "b", "group/tool:59": "c"}
            farm.wishes.distrust("group/tool", "59")
            third = await look()
            assert (len(third), {"group/tool:new", "group/tool:59"} <= set(third)) == (8, True)
            assert farm.states()["group/tool:59"] == ("queued", "c")
            farm.wishes.distrust("group/tool", None)
            assert len(await look()) == 62

    run(check)


def test_what_is_distrusted_while_the_registry_is_asked_is_asked_for_again(farm: Farm) -> None:
    wish = Wish.parse("r.example/group/tool:1")
    farm.jobs.observe(REPOSITORY, {wish: digest("a")})
    farm.wishes.distrust("group/tool", "1")
    assert farm.jobs.checked(REPOSITORY, TOOL) == {wish.simple_name: None}

    farm.wishes.distrust("group/tool", "1")
    farm.jobs.observe(REPOSITORY, {wish: digest("a")})  # an answer from before the second one

    assert farm.jobs.checked(REPOSITORY, TOOL) == {wish.simple_name: None}
    farm.jobs.observe(REPOSITORY, {wish: digest("b")})
    assert farm.jobs.checked(REPOSITORY, TOOL)[wish.simple_name] is not None


def test_tags_that_vanish_are_shown_and_nothing_is_removed(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a", "group/tool:2": "b", "other:1": "c"}
    farm.wish("r.example/group/tool:*", "r.example/other:1")

    def gone(name: str) -> bool:
        return farm.views.image(f"r.example/{name}").vanished_unix_s is not None

    async def check() -> None:
        async with farm.watching(poll_s=0.2):
            await farm.until(lambda: len(farm.views.jobs()) == 3)
            claim = farm.jobs.claim(1, "me", lambda _: False)
            assert claim is not None
            done = Outcome(changed=True, public_path="/tool", flat_path="/flat", revision=2, details={})
            farm.jobs.finish(claim, done)
            tag = claim.name.removeprefix("r.example/")
            kept = {name: letter for name, letter in farm.registry.tagged.items() if "tool" in name and name != tag}
            before, farm.registry.tagged = farm.registry.tagged, kept
            await farm.until(lambda: gone(tag) and gone("other:1"))
            image = farm.views.image(claim.name)
            assert (image.state, image.public_path, gone(next(iter(kept)))) == (ImageState.DONE, "/tool", False)
            farm.registry.tagged = before
            await farm.until(lambda: not gone(tag) and not gone("other:1"))

    run(check)


def test_an_image_that_is_asked_for_is_looked_up_although_it_is_not_wished(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a"}
    wish = Wish.parse("r.example/group/tool:1")

    async def check() -> None:
        async with farm.watching():
            farm.jobs.request(REPOSITORY, wish)
            await farm.until(lambda: len(farm.views.jobs()) == 1)

    run(check)
    assert not farm.views.image(wish.reference).wished


def test_the_file_is_applied_again_when_it_changes_and_mistakes_change_nothing(farm: Farm, tmp_path: Path) -> None:
    farm.registry.tagged = {"group/tool:1": "a", "group/tool:2": "b"}
    file = tmp_path / "physics.yaml"
    text = f"cvmfs_repo: {REPOSITORY}\ninput:\n  - r.example/group/tool:1\n"
    file.write_text(text)

    async def check() -> None:
        async with farm.watching(wishlist=file):
            await farm.until(lambda: len(farm.views.jobs()) == 1)
            file.write_text(text + "  - nonsense\n")
            await anyio.sleep(1.3)
            assert [wish.reference for wish in farm.wishes.wishlists()[0].wishes] == ["r.example/group/tool:1"]
            file.write_text(text + "  - r.example/group/tool:2\n")
            await farm.until(lambda: len(farm.views.jobs()) == 2)

    run(check)


# --- policies and platforms


def wish_with(farm: Farm, text: str) -> None:
    body = f"version: 2\nrepository: {REPOSITORY}\nimages:\n{text}"
    apply_text(farm.wishes, REPOSITORY, "physics", body.encode())


def convert(farm: Farm) -> list[Claim]:
    """Do every job that waits; gives what the worker was told."""
    done = []
    for job_id in farm.jobs.to_send(queue_is_empty=True):
        claim = farm.jobs.claim(job_id, "worker", lambda _: False)
        assert claim is not None
        outcome = Outcome(changed=True, public_path=f"/{claim.name}", flat_path="/f", revision=2, details={})
        assert farm.jobs.finish(claim, outcome)
        done.append(claim)
    return done


def test_pinned_image_stays_and_nobody_is_asked_until_it_is_to_follow(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a", "group/tool:2": "a"}
    wish_with(farm, "  - {image: r.example/group/tool:1, policy: pin}\n  - r.example/group/tool:2\n")

    async def check() -> None:
        async with farm.watching(poll_s=0.3):
            await farm.until(lambda: len(farm.views.jobs()) == 2)
            assert [claim.terms.policy for claim in sorted(convert(farm), key=lambda one: one.name)] == [
                "pin",
                "follow",
            ]
            farm.registry.asked.clear()
            farm.registry.tagged = {"group/tool:1": "b", "group/tool:2": "b"}
            await farm.until(lambda: farm.states()["group/tool:2"][1] == "b")
            await anyio.sleep(0.7)
            assert farm.states()["group/tool:1"] == ("done", "a")
            assert "group/tool:1" not in farm.registry.asked
            wish_with(farm, "  - r.example/group/tool:1\n  - r.example/group/tool:2\n")
            await farm.until(lambda: farm.states()["group/tool:1"] == ("queued", "b"))

    run(check)


def test_new_platforms_are_a_job_though_the_registry_has_nothing_new(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a"}
    wish_with(farm, "  - r.example/group/tool:1\n")
    seen: list[Claim] = []

    async def check() -> None:
        async with farm.watching():
            await farm.until(lambda: len(farm.views.jobs()) == 1)
            seen.extend(convert(farm))
            wish_with(farm, "  - {image: r.example/group/tool:1, platforms: [linux/amd64, linux/arm64]}\n")
            await farm.until(lambda: farm.states()["group/tool:1"] == ("queued", "a"))
            seen.extend(convert(farm))
            await anyio.sleep(0.5)

    run(check)
    assert [claim.terms.platforms for claim in seen] == [(), ("linux/amd64", "linux/arm64")]
    assert farm.states()["group/tool:1"] == ("done", "a")
    assert farm.views.image("r.example/group/tool:1").platforms == ("linux/amd64", "linux/arm64")


def test_terms_that_change_while_a_conversion_runs_make_another_one(farm: Farm) -> None:
    wish = Wish.parse("r.example/group/tool:1")
    farm.jobs.observe(REPOSITORY, {wish: digest("a")})
    claim = farm.jobs.claim(farm.views.jobs()[0].id, "worker", lambda _: False)
    assert claim is not None

    farm.jobs.set_terms(REPOSITORY, {wish.simple_name: Terms(Policy.ARCHIVE)})
    farm.jobs.observe(REPOSITORY, {wish: digest("a")})
    farm.jobs.finish(claim, Outcome(changed=True, public_path="/p", flat_path="/f", revision=2, details={}))

    [again] = convert(farm)
    assert again.terms.policy is Policy.ARCHIVE
    assert farm.states()["group/tool:1"] == ("done", "a")


def test_what_is_said_of_a_tag_wins_over_its_pattern_and_wishlists_are_joined(farm: Farm) -> None:
    farm.registry.tagged = {"group/tool:1": "a", "group/tool:2": "b"}
    wish_with(farm, "  - {image: 'r.example/group/tool:*', policy: archive}\n  - r.example/group/tool:1\n")
    other = f"version: 2\nrepository: {REPOSITORY}\nimages: [{{image: 'r.example/group/tool:1', policy: pin}}]\n"
    apply_text(farm.wishes, REPOSITORY, "other", other.encode())

    async def check() -> None:
        async with farm.watching():
            await farm.until(lambda: len(farm.views.jobs()) == 2)

    run(check)
    assert {image.name[-1]: image.policy for image in farm.views.images()} == {"1": "follow", "2": "archive"}


def test_a_wishlist_that_cannot_be_read_takes_nothing_away(farm: Farm, tmp_path: Path) -> None:
    farm.registry.tagged = {"group/tool:1": "a"}
    file = tmp_path / "physics.yaml"
    file.write_text(f"cvmfs_repo: {REPOSITORY}\ninput:\n  - r.example/group/tool:1\n")

    async def check() -> None:
        async with farm.watching(poll_s=0.3, wishlist=file):
            await farm.until(lambda: len(farm.views.jobs()) == 1)
            convert(farm)
            for broken in (b"", b"\xff\xfe", b"cvmfs_repo: other.example\ninput: []\n", None):
                file.unlink() if broken is None else file.write_bytes(broken)
                await anyio.sleep(1.2)
                image = farm.views.image("r.example/group/tool:1")
                assert (image.state, image.wished, image.public_path) == (
                    ImageState.DONE,
                    True,
                    "/r.example/group/tool:1",
                )

    run(check)
