"""The life of a job, with a clock of our own and a database in memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from converter.farm_database import FarmDatabase
from converter.farm_views import FarmViews, ImageView
from converter.job_rules import ImageState, JobState, Rules
from converter.jobs import Claim, JobStore, Outcome
from converter.wish import Source, Wish
from converter.wishes import WishStore
from converter.wishlist import Wishlist, parse_wishlist

REPOSITORY = "unpacked.example.org"
WISH = Wish.parse("https://r.example/group/tool:1")
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
RULES = Rules(max_attempts=3, stale_after_s=30, resend_after_s=10, first_pause_s=2, revive_after_s=300)


@dataclass
class Farm:
    database: FarmDatabase
    now: float = 1000.0
    dead: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.jobs = JobStore(self.database, rules=RULES, clock=lambda: self.now, jitter=lambda: 1.0)
        self.wishes = WishStore(self.database, clock=lambda: self.now)
        self.views = FarmViews(self.database, clock=lambda: self.now)

    def observe(self, digest: str = A) -> bool:
        return self.jobs.observe(REPOSITORY, {WISH: digest}) == 1

    def claim(self, job_id: int = 1, owner: str = "one") -> Claim | None:
        return self.jobs.claim(job_id, owner, self.dead.__contains__)

    def must_claim(self, job_id: int = 1, owner: str = "one") -> Claim:
        claim = self.claim(job_id, owner)
        assert claim is not None
        return claim

    def sweep(self) -> list[int]:
        return self.jobs.sweep(self.dead.__contains__)

    def due(self, *, queue_is_empty: bool = False) -> list[int]:
        return self.jobs.to_send(queue_is_empty=queue_is_empty)

    def image(self) -> ImageView:
        return self.views.image(WISH.reference)

    def job(self) -> JobState:
        return self.views.jobs()[0].state


@pytest.fixture
def farm() -> Iterator[Farm]:
    database = FarmDatabase("sqlite://")
    yield Farm(database)
    database.close()


def outcome(*, changed: bool = True, revision: int = 7) -> Outcome:
    return Outcome(
        changed=changed, public_path="/r.example/group/tool:1", flat_path="/.flat/aa", revision=revision, details={}
    )


def test_a_wish_becomes_a_job_and_the_job_an_image(farm: Farm) -> None:
    farm.jobs.expect(REPOSITORY, [WISH])
    assert farm.image().state is ImageState.WANTED

    assert farm.observe()
    assert farm.image().state is ImageState.QUEUED
    assert farm.due() == [1]
    farm.jobs.sent([1])
    assert farm.due() == []

    claim = farm.must_claim()
    assert claim.pinned == f"https://r.example/group/tool:1@{A}"
    assert farm.jobs.beat(claim, {"layers_done": 1})
    assert farm.image().state is ImageState.RUNNING
    assert farm.image().progress == {"layers_done": 1}

    farm.now += 4
    assert farm.jobs.finish(claim, outcome())
    image = farm.image()
    assert (image.state, image.public_path, image.revision) == (ImageState.DONE, "/r.example/group/tool:1", 7)
    assert (image.published_digest, image.seconds) == (A, 4.0)


def test_the_same_digest_again_is_nothing_new(farm: Farm) -> None:
    assert farm.observe()
    assert not farm.observe()
    farm.jobs.finish(farm.must_claim(), outcome(changed=False))

    assert not farm.observe()
    assert farm.job() is JobState.UNCHANGED
    assert farm.image().state is ImageState.DONE


def test_the_second_delivery_of_a_message_finds_the_job_taken(farm: Farm) -> None:
    farm.observe()
    farm.must_claim(owner="one")

    assert farm.claim(owner="two") is None
    assert farm.views.jobs()[0].attempts == 1


def test_a_finished_job_is_not_done_again(farm: Farm) -> None:
    farm.observe()
    farm.jobs.finish(farm.must_claim(), outcome())

    assert farm.claim() is None


@pytest.mark.parametrize("how", ["process ended", "no heartbeat"])
def test_a_dead_owners_job_is_queued_again(farm: Farm, how: str) -> None:
    farm.observe()
    lost = farm.must_claim(owner="one")
    assert farm.sweep() == []

    if how == "process ended":
        farm.dead.add("one")
    else:
        farm.now += 31

    assert farm.sweep() == [1]
    assert farm.due() == [1]
    again = farm.must_claim(owner="two")
    assert again.attempt == 2
    assert not farm.jobs.beat(lost, None)
    assert not farm.jobs.finish(lost, outcome())  # the fenced owner changes nothing
    assert farm.jobs.finish(again, outcome())


def test_a_redelivered_message_takes_over_from_a_dead_owner_at_once(farm: Farm) -> None:
    farm.observe()
    farm.must_claim(owner="one")
    farm.dead.add("one")

    assert farm.must_claim(owner="two").attempt == 2


def test_a_job_that_kills_its_workers_fails_in_the_end(farm: Farm) -> None:
    farm.observe()
    for attempt in range(1, RULES.max_attempts + 1):
        owner = f"worker {attempt}"
        farm.must_claim(owner=owner)
        farm.dead.add(owner)
        farm.sweep()

    assert farm.job() is JobState.FAILED
    assert farm.image().error == "the worker died or lost its connection in each of 3 tries"
    assert farm.claim() is None
    assert not farm.observe()


def test_transient_errors_are_tried_again_after_growing_pauses(farm: Farm) -> None:
    farm.observe()
    farm.jobs.fail(farm.must_claim(), "the registry does not answer", transient=True)
    assert farm.due() == []
    assert farm.image().error == "the registry does not answer"
    farm.now += 2
    assert farm.due() == [1]
    farm.jobs.fail(farm.must_claim(), "the registry does not answer", transient=True)
    farm.now += 7.9
    assert farm.due() == []
    farm.now += 0.1
    farm.jobs.fail(farm.must_claim(), "the registry does not answer", transient=True)

    assert farm.job() is JobState.FAILED


def test_a_job_that_failed_because_of_an_outage_is_tried_again_when_it_is_over(farm: Farm) -> None:
    farm.observe()
    for _ in range(RULES.max_attempts):
        farm.jobs.fail(farm.must_claim(), "the registry does not answer", transient=True)
    assert not farm.observe()

    farm.now += 301
    assert farm.observe()
    assert farm.must_claim().attempt == 1


def test_an_error_for_good_is_not_tried_again_until_somebody_asks(farm: Farm) -> None:
    farm.observe()
    farm.jobs.fail(farm.must_claim(), "the layer is hostile", transient=False)
    farm.now += 10_000
    assert farm.image().state is ImageState.FAILED
    assert not farm.observe()

    farm.jobs.request(REPOSITORY, WISH)
    assert farm.observe()
    assert farm.image().state is ImageState.QUEUED


def test_a_clean_stop_does_not_count_as_a_try(farm: Farm) -> None:
    farm.observe()
    farm.jobs.release(farm.must_claim())

    assert farm.due() == [1]
    assert farm.must_claim().attempt == 1


def test_a_lost_message_is_sent_again_when_the_queue_is_empty(farm: Farm) -> None:
    farm.observe()
    farm.jobs.sent([1])
    farm.now += 5
    assert farm.due(queue_is_empty=True) == []
    farm.now += 5

    assert farm.due(queue_is_empty=False) == []
    assert farm.due(queue_is_empty=True) == [1]


def test_the_newest_digest_wins(farm: Farm) -> None:
    farm.observe(A)
    farm.observe(B)

    assert [job.state for job in farm.views.jobs()] == [JobState.QUEUED, JobState.SUPERSEDED]
    assert farm.claim(1) is None
    assert farm.must_claim(2).digest == B
    assert [change.digest for change in farm.views.tag_history(farm.image())] == [B, A]


def test_one_image_is_converted_by_one_worker_at_a_time(farm: Farm) -> None:
    farm.observe(A)
    first = farm.must_claim(1)
    farm.observe(B)

    assert farm.claim(2, "two") is None
    farm.now += 1
    assert farm.due() == [2]
    farm.jobs.finish(first, outcome())
    farm.jobs.finish(farm.must_claim(2, "two"), outcome(revision=8))

    assert farm.image().published_digest == B


def test_a_tag_that_moves_back_is_published_again(farm: Farm) -> None:
    for job_id, digest in ((1, A), (2, B), (1, A)):
        assert farm.observe(digest)
        farm.jobs.finish(farm.must_claim(job_id), outcome())

    assert farm.image().published_digest == A


def test_a_registry_that_cannot_be_read_removes_nothing(farm: Farm) -> None:
    farm.observe()
    farm.jobs.finish(farm.must_claim(), outcome())

    farm.jobs.observe_trouble(REPOSITORY, WISH, "r.example does not answer", is_absent=False)

    image = farm.image()
    assert (image.state, image.error) == (ImageState.DONE, "r.example does not answer")
    assert image.public_path is not None


def wishlist(*references: str) -> Wishlist:
    return Wishlist(REPOSITORY, tuple(map(Wish.parse, references)))


def test_applying_a_wishlist_again_changes_nothing(farm: Farm) -> None:
    assert farm.wishes.apply("physics", wishlist("r.example/a:1"), "body")
    assert not farm.wishes.apply("physics", wishlist("r.example/a:1"), "body")
    assert farm.wishes.take_hints() == [Source("r.example", "a")]


def test_images_of_a_removed_line_stay_but_are_not_wished(farm: Farm) -> None:
    farm.wishes.apply("physics", wishlist(WISH.reference), "one")
    farm.jobs.expect(REPOSITORY, [WISH])
    farm.jobs.set_wished(REPOSITORY, WISH.source, [WISH.simple_name])
    assert farm.image().wished
    farm.wishes.apply("physics", wishlist("r.example/other:1"), "two")

    assert not farm.image().wished


def test_hints_count_for_wished_repositories_only_and_once(farm: Farm) -> None:
    farm.wishes.apply("physics", wishlist("r.example/a:*", "s.example/b:1", "t.example/b:1"), "body")
    farm.wishes.take_hints()

    assert farm.wishes.add_hints([Source("r.example", "a"), Source("r.example", "unknown")], "test") == 1
    assert farm.wishes.add_hints([Source("r.example", "a")], "test") == 1
    assert farm.wishes.take_hints(except_for=[Source("r.example", "a")]) == []
    assert farm.wishes.take_hints() == [Source("r.example", "a")]
    assert farm.wishes.take_hints() == []


def test_a_registry_with_another_name_for_itself_is_understood(farm: Farm) -> None:
    farm.wishes.apply("physics", wishlist("s.example/b:1", "t.example/b:1"), "body")
    farm.wishes.take_hints()

    assert farm.wishes.add_hints([Source("10.0.0.1:5000", "b")], "test") == 2
    farm.wishes.take_hints()
    assert farm.wishes.add_hints([Source("s.example", "b")], "test") == 1


def test_what_somebody_asked_for_is_known_beside_the_wishes(farm: Farm) -> None:
    text = b"cvmfs_repo: unpacked.example.org\ninput: ['r.example/group/tool:*']\n"
    farm.wishes.apply("physics", parse_wishlist(text), text.decode())
    farm.jobs.request(REPOSITORY, WISH)

    assert farm.wishes.sources() == [WISH.source]
    assert farm.wishes.wished(WISH.source) == [Wish.parse("r.example/group/tool:*")]
    assert farm.wishes.requested(WISH.source) == [WISH]


def test_images_are_found_by_any_way_of_writing_them(farm: Farm) -> None:
    farm.jobs.expect(REPOSITORY, [WISH])

    for text in (WISH.reference, WISH.simple_name, f"http://{WISH.simple_name}", f"{WISH.simple_name}@{A}"):
        assert farm.views.image(text).name == WISH.simple_name
    assert [image.name for image in farm.views.images(search="%")] == []
