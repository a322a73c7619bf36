"""Addresses of brokers and the options that go with them."""

import pytest

from converter.app import CONVERT, make_app
from converter.broker import broker_address
from converter.errors import BrokerError


@pytest.mark.parametrize("url", ["redis://queue:6379/0", "redis+socket:///run/redis.sock", "rediss://queue"])
def test_redis_gives_a_message_out_again_only_after_the_deadline(url: str) -> None:
    address = broker_address(url, deadline_s=7200)

    assert address.url == url
    assert address.options["visibility_timeout"] == 7800
    assert (address.options["unacked_restore_interval"], address.options["unacked_restore_throttle"]) == (1, 1)


@pytest.mark.parametrize("url", ["sqs://x", "memory://", "", "http://queue"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(BrokerError, match="known are redis"):
        broker_address(url, deadline_s=1)


def test_nothing_but_json_is_read_and_nothing_is_acknowledged_before_it_is_done() -> None:
    conf = make_app("amqp://queue", deadline_s=60).conf

    assert (conf.accept_content, conf.result_accept_content, conf.task_serializer) == (["json"], ["json"], "json")
    assert (conf.task_acks_late, conf.task_reject_on_worker_lost) == (True, True)
    assert conf.task_soft_time_limit < conf.task_time_limit
    assert CONVERT == "unpackd.convert"  # messages of an older version are understood
