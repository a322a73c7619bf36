"""A real S3 server (moto in a process of its own), and buckets in it."""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import free_port, listens, running, wait_until

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": "/dev/null"}


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server; plain HTTP on loopback; no credentials are checked."""

    port: int
    address: str = "127.0.0.1"
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def client(self) -> Any:  # noqa: ANN401  # boto3 makes its classes while it runs
        """A plain boto3 client, to look behind the store's back."""
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1")

    def new_bucket(self) -> str:
        """The name of a bucket that was just made."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name


@contextmanager
def run_s3(directory: Path, address: str = "127.0.0.1") -> Iterator[S3Server]:
    """A server at *address* of this machine, whose buckets live as long as it does."""
    port = free_port(address)
    log = directory / "s3.log"
    code = "from moto.server import main; main()"
    command = [sys.executable, "-c", code, "-H", address, "-p", str(port)]
    with running(command, log, environment=CREDENTIALS) as process:
        wait_until(lambda: listens(port, address) or process.poll() is not None, "the start of the S3 server")
        assert process.poll() is None, log.read_text()
        yield S3Server(port, address)
