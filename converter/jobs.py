"""Every image and the state of every conversion, in SQL. The queue may be lost; this may not."""

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from converter.farm_database import FarmDatabase
from converter.farm_schema import hints, history, image_terms, images, jobs, vanished
from converter.job_rules import OPEN, SUCCESSFUL, JobState, Rules
from converter.terms import USUAL, Policy, Terms
from converter.wish import Source, Wish

_MAX_ERROR_LENGTH = 2000
_LONG_AGO = 0.0


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a job. It is lost when the heartbeat stops and somebody else takes over."""

    job_id: int
    repository: str
    name: str
    reference: str  # as wished: with scheme, tag, and digest if one was written
    digest: str  # what the tag named when the job was made
    attempt: int
    owner: str
    terms: Terms = USUAL

    @property
    def pinned(self) -> str:
        """The reference with exactly this digest."""
        return f"{self.reference.partition('@')[0]}@{self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a conversion gave; *details* is everything else it wants to tell, as JSON."""

    changed: bool
    public_path: str
    flat_path: str
    revision: int
    details: dict[str, object]


class JobStore:
    """Images and jobs. All methods are short transactions; threads may share one store."""

    def __init__(
        self,
        database: FarmDatabase,
        *,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._rules = rules or Rules()
        self._clock = clock
        self._jitter = jitter

    # What registries say

    def expect(self, repository: str, wishes: Iterable[Wish]) -> None:
        """Make the images of *wishes* known before their registry was asked, so that people find them."""
        with self._database.write() as connection:
            for wish in wishes:
                self._image_id(connection, repository, wish)

    def request(self, repository: str, wish: Wish) -> None:
        """Somebody asks for the image of *wish* now: its registry is asked, and a failed job is tried again."""
        with self._database.write() as connection:
            image_id = self._image_id(connection, repository, wish)
            connection.execute(sa.update(images).where(images.c.id == image_id).values(requested=True))
            connection.execute(
                self._database.insert(hints)
                .values(
                    registry=wish.registry,
                    image_repository=wish.repository,
                    source="request",
                    received_at=self._clock(),
                )
                .on_conflict_do_nothing()
            )

    def request_digest(self, repository: str, wish: Wish, digest: str) -> None:
        """Somebody asks for exactly *digest* under the name of *wish*, which no registry has to confirm."""
        with self._database.write() as connection:
            image_id = self._image_id(connection, repository, wish)
            connection.execute(sa.update(images).where(images.c.id == image_id).values(requested=True))
            self._observe(connection, repository, wish, digest)

    def observe(self, repository: str, digests: Mapping[Wish, str]) -> int:
        """The registry says what the tags of the wishes name; gives how many jobs that makes.

        Nothing happens for a digest that is published, under way, or has failed for good. Older digests of the same
        image that nobody started yet are superseded: the newest wins.
        """
        with self._database.write() as connection:
            return sum(self._observe(connection, repository, wish, digest) for wish, digest in digests.items())

    def checked(self, repository: str, source: Source) -> dict[str, float | None]:
        """When each tag of *source* was looked up last, by the image's name; None if it may be another one since.

        What is distrusted from now on, while the registry is being asked, stays distrusted.
        """
        known = (*_of(repository, source), images.c.digest.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(sa.select(images.c.id, images.c.name, images.c.checked_at).where(*known)).all()
        asked_now = [row.id for row in rows if row.checked_at is None]
        if asked_now:
            with self._database.write() as connection:
                connection.execute(sa.update(images).where(images.c.id.in_(asked_now)).values(checked_at=_LONG_AGO))
        return {row.name: row.checked_at for row in rows}

    def note_tags(self, repository: str, source: Source, tags: Iterable[str]) -> int:
        """*source* has exactly *tags* now: remember which of the wished images' are gone, and which are back.

        Nothing else happens to them: what is published stays. Gives how many have gone now.
        """
        present = {Wish(source.registry, source.repository, tag).simple_name for tag in tags}
        query = (
            sa.select(images.c.id, images.c.name, images.c.wished, vanished.c.seen_at)
            .outerjoin(vanished, vanished.c.image_id == images.c.id)
            .where(*_of(repository, source), images.c.digest.is_not(None), ~images.c.name.contains("@"))
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        gone = [row.id for row in rows if row.wished and row.seen_at is None and row.name not in present]
        back = [row.id for row in rows if row.seen_at is not None and row.name in present]
        if gone or back:
            with self._database.write() as connection:
                self._set_vanished(connection, gone)
                connection.execute(sa.delete(vanished).where(vanished.c.image_id.in_(back)))
        return len(gone)

    def _set_vanished(self, connection: sa.Connection, image_ids: Iterable[int]) -> None:
        rows = [{"image_id": image_id, "seen_at": self._clock()} for image_id in image_ids]
        if rows:
            connection.execute(self._database.insert(vanished).on_conflict_do_nothing(), rows)

    def _observe(self, connection: sa.Connection, repository: str, wish: Wish, digest: str) -> bool:
        now = self._clock()
        image_id = self._image_id(connection, repository, wish)
        image = connection.execute(sa.select(images).where(images.c.id == image_id)).one()
        distrusted = image.digest is not None and image.checked_at is None  # since the registry was asked
        checked_at = None if distrusted else now
        values = {"digest": digest, "error": None, "checked_at": checked_at, "requested": False}
        connection.execute(sa.update(images).where(images.c.id == image_id).values(**values))
        connection.execute(sa.delete(vanished).where(vanished.c.image_id == image_id))
        if image.digest != digest:
            connection.execute(sa.insert(history).values(image_id=image_id, digest=digest, seen_at=now))
            connection.execute(
                sa.update(jobs)
                .where(jobs.c.image_id == image_id, jobs.c.digest != digest, jobs.c.state == JobState.QUEUED)
                .values(state=JobState.SUPERSEDED, finished_at=now)
            )
        return self._want(connection, image, digest)

    def _want(self, connection: sa.Connection, image: sa.Row[tuple[object, ...]], digest: str) -> bool:
        """Make a job for *digest*, or revive the one that is there; False if there is nothing to do."""
        now = self._clock()
        job = connection.execute(
            sa.select(jobs).where(jobs.c.image_id == image.id, jobs.c.digest == digest)
        ).one_or_none()
        if job is None:
            fresh = {"state": JobState.QUEUED, "attempts": 0, "created_at": now, "queued_at": now, "transient": False}
            made = self._database.insert(jobs).values(image_id=image.id, digest=digest, **fresh)
            made_by_us = made.on_conflict_do_nothing().returning(jobs.c.id)  # another watcher may be quicker
            return connection.execute(made_by_us).one_or_none() is not None
        state = JobState(job.state)
        if state in OPEN:
            return False
        if state in SUCCESSFUL:
            wanted = image.published_digest != digest or image.requested
        elif state is JobState.FAILED:
            outage_over = job.transient and now - job.finished_at > self._rules.revive_after_s
            wanted = image.requested or outage_over or image.digest != digest
        else:
            wanted = True
        if wanted:
            again = {"state": JobState.QUEUED, "attempts": 0, "queued_at": now, "sent_at": None, "next_try_at": None}
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**again, progress=None, error=None))
        return bool(wanted)

    def observe_trouble(self, repository: str, wish: Wish, error: str, *, is_absent: bool) -> None:
        """The registry could not say what the tag of *wish* names. Nothing that is published is touched.

        With *is_absent* it said that there is none; then a request for the image is answered.
        """
        values: dict[str, object] = {"error": error[:_MAX_ERROR_LENGTH], "checked_at": self._clock()}
        if is_absent:
            values["requested"] = False
        with self._database.write() as connection:
            image_id = self._image_id(connection, repository, wish)
            connection.execute(sa.update(images).where(images.c.id == image_id).values(**values))
            known = sa.select(images.c.digest).where(images.c.id == image_id)
            if is_absent and connection.execute(known).scalar() is not None:
                self._set_vanished(connection, [image_id])

    def set_wished(self, repository: str, source: Source, names: Iterable[str]) -> None:
        """Of one source, exactly the images *names* are wished now."""
        mine = _of(repository, source)
        wanted = set(names)
        with self._database.write() as connection:
            for row in connection.execute(sa.select(images.c.id, images.c.name, images.c.wished).where(*mine)).all():
                if row.wished != (row.name in wanted):
                    change = sa.update(images).where(images.c.id == row.id).values(wished=not row.wished)
                    connection.execute(change)

    def set_terms(self, repository: str, terms: Mapping[str, Terms]) -> int:
        """How the images with these names are kept from now on; gives for how many of them that is new.

        Those are converted again, though the registry has nothing new: there are platforms to add, or pins to set.
        """
        known = _kept().where(images.c.repository == repository, images.c.name.in_(list(terms)))
        with self._database.read() as connection:
            rows = connection.execute(known).all()
        changed = {row.id: terms[row.name] for row in rows if _terms_of(row) != terms[row.name]}
        if changed:
            with self._database.write() as connection:
                for image_id, wanted in changed.items():
                    policy, platforms = wanted.encode()
                    values = {"policy": policy, "platforms": platforms}
                    connection.execute(
                        self._database.insert(image_terms)
                        .values(image_id=image_id, **values)
                        .on_conflict_do_update(index_elements=["image_id"], set_=values)
                    )
                again = sa.update(images).where(images.c.id.in_(list(changed)))
                connection.execute(again.values(requested=True, checked_at=None))
        return len(changed)

    def held(self, repository: str, source: Source) -> dict[str, str]:
        """The digests that pinned images of *source* stay with, by the image's name."""
        query = _kept().where(
            *_of(repository, source), image_terms.c.policy == Policy.PIN.value, images.c.digest.is_not(None)
        )
        with self._database.read() as connection:
            return {row.name: str(row.digest) for row in connection.execute(query)}

    @staticmethod
    def _terms(connection: sa.Connection, image_id: int) -> Terms:
        return _terms_of(connection.execute(_kept().where(images.c.id == image_id)).one())

    def _image_id(self, connection: sa.Connection, repository: str, wish: Wish) -> int:
        same = (images.c.repository == repository, images.c.name == wish.simple_name)
        found = connection.execute(sa.select(images.c.id, images.c.reference).where(*same)).one_or_none()
        if found is not None:
            if found.reference != wish.reference:
                connection.execute(sa.update(images).where(images.c.id == found.id).values(reference=wish.reference))
            return int(found.id)
        connection.execute(
            self._database.insert(images)
            .values(
                repository=repository,
                name=wish.simple_name,
                reference=wish.reference,
                registry=wish.registry,
                image_repository=wish.repository,
                wished=False,
                requested=False,
                created_at=self._clock(),
            )
            .on_conflict_do_nothing()
        )
        return int(connection.execute(sa.select(images.c.id).where(*same)).scalar_one())

    # Sending

    def to_send(self, *, queue_is_empty: bool, limit: int = 500) -> list[int]:
        """Jobs that have to be put into the queue now, oldest first.

        Args:
            queue_is_empty: then jobs whose message was sent a while ago are due again: it was lost, or a worker holds
                it back, and then the second message finds the job taken.
            limit: how many at most.
        """
        now = self._clock()
        due = sa.and_(jobs.c.sent_at.is_(None), sa.or_(jobs.c.next_try_at.is_(None), jobs.c.next_try_at <= now))
        if queue_is_empty:
            due = sa.or_(due, jobs.c.sent_at <= now - self._rules.resend_after_s)
        query = sa.select(jobs.c.id).where(jobs.c.state == JobState.QUEUED, due).order_by(jobs.c.queued_at, jobs.c.id)
        with self._database.read() as connection:
            return list(connection.execute(query.limit(limit)).scalars())

    def sent(self, job_ids: Iterable[int]) -> None:
        """The messages of *job_ids* were accepted by the broker."""
        ids = list(job_ids)
        if ids:
            with self._database.write() as connection:
                connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(sent_at=self._clock()))

    # Running

    def claim(self, job_id: int, owner: str, is_dead: Callable[[str], bool]) -> Claim | None:
        """Take job *job_id*; None if it is finished, or somebody who lives works on it or on its image.

        Args:
            job_id: from the message.
            owner: who asks.
            is_dead: tells of another owner whether it is known to have ended.
        """
        now = self._clock()
        with self._database.write() as connection:
            job = connection.execute(
                sa.select(jobs, images.c.repository, images.c.name, images.c.reference)
                .join(images, images.c.id == jobs.c.image_id)
                .where(jobs.c.id == job_id)
                .with_for_update()  # the image's row too: one conversion of an image at a time
            ).one_or_none()
            if job is None or JobState(job.state) not in OPEN or not self._is_free(job, is_dead):
                return None
            if job.attempts >= self._rules.max_attempts:
                self._give_up(connection, job)
                return None
            others = connection.execute(
                sa.select(jobs).where(
                    jobs.c.image_id == job.image_id, jobs.c.id != job.id, jobs.c.state == JobState.RUNNING
                )
            ).all()
            if not all(self._is_free(other, is_dead) for other in others):
                later = {"sent_at": None, "next_try_at": now + self._rules.put_off_s}
                connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**later))
                return None
            values = {
                "state": JobState.RUNNING,
                "attempts": job.attempts + 1,
                "owner": owner,
                "heartbeat_at": now,
                "started_at": now,
                "progress": None,
            }
            connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))
            terms = self._terms(connection, job.image_id)
        return Claim(job.id, job.repository, job.name, job.reference, job.digest, job.attempts + 1, owner, terms)

    def beat(self, claim: Claim, progress: dict[str, object] | None) -> bool:
        """Say that *claim* is being worked on; False if it was lost."""
        values: dict[str, object] = {"heartbeat_at": self._clock()}
        if progress is not None:
            values["progress"] = json.dumps(progress)
        with self._database.write() as connection:
            return self._update_claimed(connection, claim, values)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """The conversion succeeded; False if the claim was lost meanwhile (then its next owner finds it done)."""
        now = self._clock()
        state = JobState.DONE if outcome.changed else JobState.UNCHANGED
        values = {
            "state": state,
            "finished_at": now,
            "error": None,
            "owner": None,
            "transient": False,
            "result": json.dumps(outcome.details, default=str),
        }
        published = {
            "published_digest": claim.digest,
            "public_path": outcome.public_path,
            "flat_path": outcome.flat_path,
            "revision": outcome.revision,
            "published_at": now,
        }
        with self._database.write() as connection:
            if not self._update_claimed(connection, claim, values):
                return False
            same = (images.c.repository == claim.repository, images.c.name == claim.name)
            connection.execute(sa.update(images).where(*same).values(**published))
            if _terms_of(connection.execute(_kept().where(*same)).one()) != claim.terms:  # they changed meanwhile
                again = {"state": JobState.QUEUED, "attempts": 0, "queued_at": now, "sent_at": None}
                connection.execute(sa.update(jobs).where(jobs.c.id == claim.job_id).values(**again))
        return True

    def fail(self, claim: Claim, error: str, *, transient: bool) -> bool:
        """The try ended with *error*; tried again after a pause if it is *transient* and was not the last try."""
        now = self._clock()
        values: dict[str, object] = {"error": error[:_MAX_ERROR_LENGTH], "transient": transient, "owner": None}
        if transient and claim.attempt < self._rules.max_attempts:
            pause = self._rules.pause_s(claim.attempt, self._jitter)
            values |= {"state": JobState.QUEUED, "sent_at": None, "next_try_at": now + pause}
        else:
            values |= {"state": JobState.FAILED, "finished_at": now}
        with self._database.write() as connection:
            return self._update_claimed(connection, claim, values)

    def release(self, claim: Claim) -> None:
        """The owner has to stop before the end, through no fault of the job: it does not count as a try."""
        values: dict[str, object] = {
            "state": JobState.QUEUED,
            "attempts": claim.attempt - 1,
            "owner": None,
            "sent_at": None,
            "next_try_at": None,
        }
        with self._database.write() as connection:
            self._update_claimed(connection, claim, values)

    def sweep(self, is_dead: Callable[[str], bool]) -> list[int]:
        """Queue what has no live owner any more, or give it up after the last try; gives the jobs' numbers."""
        swept = []
        running = sa.select(jobs).where(jobs.c.state == JobState.RUNNING)
        with self._database.read() as connection:
            lost = [job.id for job in connection.execute(running) if self._is_free(job, is_dead)]
        if not lost:
            return []
        with self._database.write() as connection:
            for job in connection.execute(running.where(jobs.c.id.in_(lost)).with_for_update()).all():
                if not self._is_free(job, is_dead):
                    continue
                swept.append(job.id)
                if job.attempts >= self._rules.max_attempts:
                    self._give_up(connection, job)
                else:
                    values = {"state": JobState.QUEUED, "owner": None, "sent_at": None, "next_try_at": None}
                    connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))
        return swept

    def _give_up(self, connection: sa.Connection, job: sa.Row[tuple[object, ...]]) -> None:
        last = f" (before that: {job.error})" if job.error else ""
        error = f"the worker died or lost its connection in each of {job.attempts} tries{last}"
        values = {"state": JobState.FAILED, "owner": None, "finished_at": self._clock(), "error": error}
        connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values, transient=False))

    def _is_free(self, job: sa.Row[tuple[object, ...]], is_dead: Callable[[str], bool]) -> bool:
        if JobState(job.state) is not JobState.RUNNING:
            return True
        silent_s = self._clock() - (job.heartbeat_at or 0.0)
        return silent_s > self._rules.stale_after_s or is_dead(job.owner or "")

    def _update_claimed(self, connection: sa.Connection, claim: Claim, values: dict[str, object]) -> bool:
        mine = (
            jobs.c.id == claim.job_id,
            jobs.c.state == JobState.RUNNING,
            jobs.c.owner == claim.owner,
            jobs.c.attempts == claim.attempt,
        )
        return connection.execute(sa.update(jobs).where(*mine).values(**values)).rowcount == 1


def _kept() -> sa.Select[tuple[object, ...]]:
    """Images with the terms of those that have any of their own."""
    selected: sa.Select[tuple[object, ...]] = sa.select(
        images.c.id, images.c.name, images.c.digest, image_terms.c.policy, image_terms.c.platforms
    )
    return selected.select_from(images.outerjoin(image_terms, image_terms.c.image_id == images.c.id))


def _terms_of(row: sa.Row[tuple[object, ...]]) -> Terms:
    return Terms.decode(row.policy, row.platforms)


def _of(repository: str, source: Source) -> tuple[sa.ColumnElement[bool], ...]:
    """The images of *source*."""
    return (
        images.c.repository == repository,
        images.c.registry == source.registry,
        images.c.image_repository == source.repository,
    )
