"""What the farm shows of itself: images, jobs, numbers. Read only."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from converter.errors import JobAbsentError
from converter.farm_database import FarmDatabase
from converter.farm_schema import history, image_terms, images, jobs, vanished, wishes
from converter.job_rules import ImageState, JobState, image_state
from converter.terms import Terms
from converter.wish import Wish


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """One image as people see it. Field names are those of the API."""

    reference: str
    name: str
    repository: str
    state: ImageState
    wished: bool
    requested: bool  # somebody asks for it now, and the registry did not answer yet
    digest: str | None
    published_digest: str | None
    public_path: str | None
    flat_path: str | None
    revision: int | None
    error: str | None
    attempts: int
    progress: object
    seconds: float | None  # of the last conversion
    created_unix_s: float
    checked_unix_s: float | None
    published_unix_s: float | None
    policy: str
    platforms: tuple[str, ...]  # none: that of the worker's machine
    vanished_unix_s: float | None  # its registry has no such tag any more, since then


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """One conversion."""

    id: int
    reference: str
    digest: str
    state: JobState
    attempts: int
    owner: str | None
    error: str | None
    progress: object
    result: object
    queued_unix_s: float
    started_unix_s: float | None
    heartbeat_unix_s: float | None
    finished_unix_s: float | None


@dataclass(frozen=True, slots=True)
class TagChange:
    """A digest that a tag was seen to name, from then on."""

    digest: str
    seen_unix_s: float


class FarmViews:
    """Looks at the database."""

    def __init__(self, database: FarmDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def images(self, *, search: str = "", limit: int = 10_000) -> list[ImageView]:
        """Images by name; those whose reference holds *search*."""
        query = _image_query().order_by(images.c.name).limit(limit)
        if search:
            query = query.where(images.c.reference.contains(search, autoescape=True))
        with self._database.read() as connection:
            return [_image(row) for row in connection.execute(query)]

    def image(self, reference: str) -> ImageView:
        """The image with that reference or name, written with or without scheme or digest.

        Raises:
            JobAbsentError: the farm knows no such image.
        """
        name = reference.partition("://")[2] or reference
        candidates = [reference, name, name.partition("@")[0]]
        query = _image_query().where(sa.or_(images.c.reference.in_(candidates), images.c.name.in_(candidates)))
        with self._database.read() as connection:
            row = connection.execute(query.limit(1)).one_or_none()
        if row is None:
            raise JobAbsentError(f"the farm knows no image {reference}; unpackd wish ls shows what is wished")
        return _image(row)

    def is_wished(self, wish: Wish) -> bool:
        """True if a wishlist names the image of *wish*, or a pattern that it matches."""
        query = sa.select(wishes.c.reference).where(
            wishes.c.registry == wish.registry, wishes.c.image_repository == wish.repository
        )
        with self._database.read() as connection:
            listed = [Wish.parse(text) for text in connection.execute(query).scalars()]
        return any(one.tag == wish.tag or one.matches(wish.tag or "") for one in listed)

    def tag_history(self, image: ImageView) -> list[TagChange]:
        """The digests that the image's tag named, newest first."""
        query = (
            sa.select(history.c.digest, history.c.seen_at)
            .join(images, images.c.id == history.c.image_id)
            .where(images.c.name == image.name, images.c.repository == image.repository)
            .order_by(history.c.id.desc())
            .limit(100)
        )
        with self._database.read() as connection:
            return [TagChange(row.digest, row.seen_at) for row in connection.execute(query)]

    def jobs(self, *, state: JobState | None = None, limit: int = 200) -> list[JobView]:
        """Jobs, the newest first."""
        query = (
            sa.select(jobs, images.c.reference)
            .join(images, images.c.id == jobs.c.image_id)
            .order_by(jobs.c.queued_at.desc(), jobs.c.id.desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(jobs.c.state == state)
        with self._database.read() as connection:
            return [_job(row) for row in connection.execute(query)]

    def job_counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
            found = {JobState(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def oldest_queued_s(self) -> float:
        """For how long the job that waits longest has been waiting; 0 if none does."""
        query = sa.select(sa.func.min(jobs.c.queued_at)).where(jobs.c.state == JobState.QUEUED)
        with self._database.read() as connection:
            oldest = connection.execute(query).scalar()
        return 0.0 if oldest is None else max(0.0, self._clock() - oldest)


def _image_query() -> sa.Select[tuple[object, ...]]:
    wanted = ("state", "attempts", "progress", "started_at", "finished_at")
    columns = [jobs.c[name].label(f"job_{name}") for name in wanted]
    current = sa.and_(jobs.c.image_id == images.c.id, jobs.c.digest == images.c.digest)
    columns += [jobs.c.error.label("job_error"), vanished.c.seen_at.label("vanished_at")]
    columns += [image_terms.c[name].label(name) for name in ("policy", "platforms")]
    query: sa.Select[tuple[object, ...]] = sa.select(images, *columns)
    joined = images.outerjoin(jobs, current).outerjoin(vanished, vanished.c.image_id == images.c.id)
    return query.select_from(joined.outerjoin(image_terms, image_terms.c.image_id == images.c.id))


def _image(row: sa.Row[tuple[object, ...]]) -> ImageView:
    state = image_state(None if row.job_state is None else JobState(row.job_state))
    finished = state is ImageState.DONE and row.job_finished_at is not None and row.job_started_at is not None
    terms = Terms.decode(row.policy, row.platforms)
    return ImageView(
        policy=terms.policy.value,
        platforms=terms.platforms,
        reference=row.reference,
        name=row.name,
        repository=row.repository,
        state=state,
        wished=row.wished,
        requested=row.requested,
        digest=row.digest,
        published_digest=row.published_digest,
        public_path=row.public_path,
        flat_path=row.flat_path,
        revision=row.revision,
        error=(row.job_error if state is not ImageState.DONE else None) or row.error,
        attempts=row.job_attempts or 0,
        progress=_json(row.job_progress) if state is ImageState.RUNNING else None,
        seconds=row.job_finished_at - row.job_started_at if finished else None,
        created_unix_s=row.created_at,
        checked_unix_s=row.checked_at or None,
        published_unix_s=row.published_at,
        vanished_unix_s=row.vanished_at,
    )


def _job(row: sa.Row[tuple[object, ...]]) -> JobView:
    return JobView(
        id=row.id,
        reference=row.reference,
        digest=row.digest,
        state=JobState(row.state),
        attempts=row.attempts,
        owner=row.owner,
        error=row.error,
        progress=_json(row.progress),
        result=_json(row.result),
        queued_unix_s=row.queued_at,
        started_unix_s=row.started_at,
        heartbeat_unix_s=row.heartbeat_at,
        finished_unix_s=row.finished_at,
    )


def _json(text: str | None) -> object:
    document: object = None if text is None else json.loads(text)
    return document
