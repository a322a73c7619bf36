"""The Celery application: how messages are written, acknowledged and lost."""

from celery import Celery
from kombu.exceptions import OperationalError

from converter.broker import broker_address

QUEUE = "unpackd"
CONVERT = "unpackd.convert"
_DEADLINE_MARGIN_S = 60
_CONNECT_TIMEOUT_S = 5
_LOST_WAIT_S = 1.0  # until the job of a pool process that was killed is given back; Celery's own default is 10


def make_app(broker_url: str, *, deadline_s: float) -> Celery:
    """The application; nothing is connected yet.

    Messages are JSON in both directions, acknowledged after the work, given back if the process that works on them is
    killed, and carry no result: results are in the job database.

    Raises:
        BrokerError: *broker_url* cannot be used.
    """
    address = broker_address(broker_url, deadline_s=deadline_s)
    app = Celery("unpackd", broker=address.url, set_as_current=False)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_default_queue=QUEUE,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_soft_time_limit=deadline_s,
        task_time_limit=deadline_s + _DEADLINE_MARGIN_S,
        worker_prefetch_multiplier=1,
        worker_lost_wait=_LOST_WAIT_S,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_transport_options=address.options,
        broker_connection_timeout=_CONNECT_TIMEOUT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    return app


class Queue:
    """The sender's side of the queue. Used by one thread at a time."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send(self, job_id: int) -> None:
        """Put *job_id* into the queue. Raises OSError or ``kombu.exceptions.OperationalError``; nothing is retried."""
        self._app.send_task(CONVERT, args=[job_id], retry=False)

    def is_empty(self) -> bool:
        """True if no message waits; messages that a worker has taken do not count. Raises as ``send``."""
        with self._app.connection_for_write() as connection:
            try:
                with connection.channel() as channel:
                    return int(channel.queue_declare(QUEUE, passive=True).message_count) == 0
            except connection.channel_errors:  # the queue does not exist while nothing is in it
                return True
            except connection.connection_errors as error:  # each broker's library has its own
                raise OperationalError(str(error)) from error
