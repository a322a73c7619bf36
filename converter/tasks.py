"""The worker: takes the number of a job, converts, writes down what came of it."""

import os
import signal
import threading
import warnings
from collections.abc import Callable
from typing import Protocol

import structlog
from celery import Celery, signals
from celery.exceptions import SecurityWarning, SoftTimeLimitExceeded
from sqlalchemy.exc import SQLAlchemyError

from converter.app import CONVERT, make_app
from converter.farm_config import FarmSettings, farm_rules
from converter.farm_database import FarmDatabase
from converter.jobs import Claim, JobStore, Outcome
from converter.owners import Owner, is_dead
from converter.processes import end_with_parent
from fs.runtime.collecting import collect_rarely
from fs.runtime.errors import UnpackdError

_log = structlog.get_logger()
_TASKS_PER_CHILD = 500  # what a library leaks is gone then
_JOIN_TIMEOUT_S = 5.0


class Converter(Protocol):
    """What a worker is for. It may be called again for the same claim's digest after any interruption."""

    def __call__(self, claim: Claim, report: Callable[[dict[str, object]], None]) -> Outcome:
        """Convert the image of *claim*; *report* takes the progress as JSON, as often as one likes."""
        ...


class JobRunner:
    """Runs jobs in one process, one after the other."""

    def __init__(self, jobs: JobStore, convert: Converter, *, heartbeat_s: float, deadline_s: float) -> None:
        self._jobs = jobs
        self._convert = convert
        self._heartbeat_s = heartbeat_s
        self._deadline_s = deadline_s

    def run(self, job_id: int) -> bool:
        """Do job *job_id*; False if there is nothing to do, or somebody else does it."""
        claim = self._jobs.claim(job_id, str(Owner.current()), is_dead)
        if claim is None:
            return False
        log = _log.bind(job=claim.job_id, reference=claim.reference, digest=claim.digest, attempt=claim.attempt)
        log.info("conversion started")
        heart = _Heart(self._jobs, claim, self._heartbeat_s)
        try:
            with heart:
                outcome = self._convert(claim, heart.report)
        except (SystemExit, KeyboardInterrupt):  # the worker is being stopped
            self._jobs.release(claim)
            log.info("conversion put back")
            raise
        except SoftTimeLimitExceeded:
            log.warning("conversion too slow")
            self._jobs.fail(claim, f"took longer than {self._deadline_s:.0f} s", transient=False)
        except UnpackdError as error:
            self._note_failure(claim, error)
        except BaseExceptionGroup as group:
            self._note_failure(claim, _first(group))
        except Exception as error:  # noqa: BLE001  # the edge: whatever it is, the job must say so
            self._note_failure(claim, error)
        else:
            kept = self._jobs.finish(claim, outcome)
            log.info("conversion finished", changed=outcome.changed, revision=outcome.revision, kept=kept)
        return True

    def _note_failure(self, claim: Claim, error: BaseException) -> None:
        """Known errors say themselves whether a retry helps; an unknown one may, and the tries are counted."""
        known = isinstance(error, UnpackdError)
        transient = error.transient if isinstance(error, UnpackdError) else True
        text = str(error) if known else f"{type(error).__name__}: {error}"
        _log.warning(
            "conversion failed",
            job=claim.job_id,
            reference=claim.reference,
            digest=claim.digest,
            attempt=claim.attempt,
            error=text,
            transient=transient,
            exc_info=None if known else error,
        )
        self._jobs.fail(claim, text, transient=transient)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of *group* that decides: one that is known and for good, if there is any."""
    flat: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop(0)
        if isinstance(error, BaseExceptionGroup):
            rest = [*error.exceptions, *rest]
        else:
            flat.append(error)
    return min(flat, key=lambda error: error.transient if isinstance(error, UnpackdError) else 2)


class _Heart:
    """Says every few seconds that a claim is being worked on, with the newest progress."""

    def __init__(self, jobs: JobStore, claim: Claim, interval_s: float) -> None:
        self._jobs = jobs
        self._claim = claim
        self._interval_s = interval_s
        self._progress: dict[str, object] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def report(self, progress: dict[str, object]) -> None:
        """Remember *progress* for the next beat."""
        self._progress = progress

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def _beat(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                if not self._jobs.beat(self._claim, self._progress):
                    _log.warning("claim lost", job=self._claim.job_id)
            except SQLAlchemyError as error:  # the database may be back at the next beat
                _log.warning("heartbeat failed", job=self._claim.job_id, error=str(error))


def register_tasks(app: Celery, settings: FarmSettings, convert: Converter) -> None:
    """Give *app* the task that converts with *convert*; the database is opened by the process that runs it."""
    runner: JobRunner | None = None
    worker = os.getpid()

    def started_in_child(**_: object) -> None:
        nonlocal runner
        end_with_parent(signal.SIGKILL, worker)
        runner = None  # connections of the parent are not ours

    def convert_job(job_id: int) -> None:
        nonlocal runner
        if runner is None:
            jobs = JobStore(FarmDatabase(settings.database_url), rules=farm_rules(settings))
            runner = JobRunner(jobs, convert, heartbeat_s=settings.heartbeat_s, deadline_s=settings.deadline_s)
        runner.run(int(job_id))

    signals.worker_process_init.connect(started_in_child, weak=False)
    app.task(name=CONVERT)(convert_job)


def run_worker(settings: FarmSettings, convert: Converter) -> int:
    """Work until SIGTERM (what runs is finished) or SIGQUIT (what runs is put back); gives the exit code."""
    app = make_app(settings.broker_url, deadline_s=settings.deadline_s)
    register_tasks(app, settings, convert)
    app.conf.worker_max_tasks_per_child = _TASKS_PER_CHILD
    signals.setup_logging.connect(_keep_logging, weak=False)
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of root; messages are JSON and hold one number
    worker = app.Worker(
        concurrency=settings.concurrency,
        pool_cls="prefork",
        optimization="fair",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    collect_rarely()
    worker.start()
    return int(worker.exitcode or 0)


def _keep_logging(**_: object) -> None:
    """Celery leaves logging alone if somebody answers its signal."""
