"""A store in a bucket of any server that speaks S3.

Keys are the prefix and then the same paths as in a directory, so a bucket that may be read by everybody is an origin.
Only what all servers have is used: path-style addresses, whole and multipart PUT, GET, HEAD, DELETE, listings, and
conditional PUT (``If-Match``, ``If-None-Match: *``), without which publishing would not be safe; ``prepare`` insists on
it. Source: Amazon S3 API reference, PutObject, CopyObject, UploadPart.
"""

import base64
import functools
import hashlib
import io
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound
from urllib3.exceptions import HTTPError

from fs.errors import AbsentError, CorruptError, FsError, OvertakenError, RefusedError, UnreachableError
from fs.format.hashes import Hash, Suffix
from fs.store.base import REFRESH_AFTER_S, Buffer, StoredObject
from fs.store.names import parse_object_path
from fs.store.s3_place import S3Limits, S3Place

T = TypeVar("T")

_FOR_EVER = "public, max-age=31536000, immutable"
_ONE_MINUTE = "public, max-age=61"
_OBJECT_TYPE = "application/octet-stream"
_NAMED_TYPE = "application/x-cvmfs"
_PROBE = ".unpackd_conditional_writes"
_SWAP_ATTEMPTS = 4
_MOST_REMEMBERED = 1_000_000
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_BAD_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, ProfileNotFound)


_sessions = threading.Lock()
"""Sessions are no good for two threads; the clients they make are."""


class _ConditionError(FsError):
    """The condition of a conditional PUT does not hold, or another one was under way."""


class S3Store:
    """A Store in a bucket."""

    def __init__(
        self, place: S3Place, limits: S3Limits | None = None, *, clock: Callable[[], float] | None = None
    ) -> None:
        """Connect lazily: nothing is asked before the first call.

        Credentials come from where boto3 looks for them: environment, configuration files, the machine's role.

        Args:
            place: bucket, prefix, server.
            limits: times, attempts and sizes.
            clock: Unix seconds as the server counts them; None takes them from its answers.
        """
        self.place = place
        self._limits = limits or S3Limits()
        self._clock = clock or self._server_time
        self._ahead_s = 0.0  # of this machine's clock, the server's; ages are the server's matter
        self._guard = threading.Lock()
        self._seen: dict[tuple[Hash, Suffix], tuple[int, float]] = {}  # size and time of objects that were seen
        self._refreshed: set[tuple[Hash, Suffix]] = set()  # since the last settle
        with self._asking(place.shown):
            self._client: Any = _connect(place, self._limits)  # Any: boto3 makes its methods while it runs

    def prepare(self) -> None:
        """See TendedStore.prepare.

        Raises:
            AbsentError: the bucket is not there.
            RefusedError: the server does not know conditional writes, or refuses access.
        """
        for _ in range(2):  # the first may make it, the second must not
            try:
                self._put_named(_PROBE, b"this server refuses to replace what is there\n", IfNoneMatch="*")
            except _ConditionError:
                return
        raise RefusedError(f"{self.place.shown}: the server ignores conditional writes; publishing would not be safe")

    def get(self, name: Hash, suffix: Suffix, *, limit_bytes: int) -> bytes:
        """See ObjectReader.get."""
        stored, _ = self._read(name.object_path(suffix), limit_bytes)
        if Hash.of(stored, name.algorithm) != name:
            raise CorruptError(f"{name}{suffix.value}")
        return stored

    def has(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectReader.has; what was seen lately is not asked for again."""
        size = self._seen_size(name, suffix)
        if size is None:
            found = self.describe(name, suffix)
            size = None if found is None else found.size_bytes
        return size is not None and stored_bytes in (None, size)

    def open(self, name: Hash, suffix: Suffix) -> BinaryIO:
        """See ObjectReader.open."""
        path = name.object_path(suffix)
        with self._asking(path):
            answer = self._client.get_object(Bucket=self.place.bucket, Key=self._key(path))
        return io.BufferedReader(_Body(self, path, answer["Body"]), 1 << 20)

    def put(self, name: Hash, suffix: Suffix, stored: Buffer) -> bool:
        """See ObjectWriter.put."""
        if self.claim(name, suffix, stored_bytes=len(stored)):
            return False
        path = name.object_path(suffix)
        if len(stored) > self._limits.part_bytes:
            self._put_parts(path, memoryview(stored))
        else:
            self._put(path, stored, _OBJECT_TYPE, _FOR_EVER)
        self._remember(name, suffix, len(stored), self._clock())
        with self._guard:
            self._refreshed.discard((name, suffix))
        return True

    def claim(self, name: Hash, suffix: Suffix, *, stored_bytes: int | None = None) -> bool:
        """See ObjectWriter.claim."""
        size = self._seen_size(name, suffix)
        if size is not None:
            return stored_bytes in (None, size)
        found = self.describe(name, suffix)
        if found is None or stored_bytes not in (None, found.size_bytes):
            return False
        if found.modified_unix_s < self._clock() - REFRESH_AFTER_S:
            try:
                self._refresh(name, suffix)
            except AbsentError:
                return False
            self._remember(name, suffix, found.size_bytes, self._clock())
        return True

    def settle(self) -> None:
        """See ObjectWriter.settle; an answered PUT is durable."""
        with self._guard:
            refreshed = frozenset(self._refreshed)
        for name, suffix in refreshed:  # few: a revision builds mostly on what is new
            if self.describe(name, suffix) is None:  # and it stays in the set until somebody puts it again
                raise OvertakenError(f"object {name}{suffix.value} was collected as garbage while it was needed again")
        with self._guard:
            self._refreshed -= refreshed

    def read_named(self, name: str, *, limit_bytes: int) -> bytes:
        """See NamedFiles.read_named."""
        content, _ = self._read(name, limit_bytes)
        return content

    def replace_named(self, name: str, content: bytes) -> None:
        """See NamedFiles.replace_named."""
        self._put_named(name, content)

    def swap_named(self, name: str, content: bytes, *, expected: bytes | None) -> None:
        """See NamedFiles.swap_named.

        A reply may be lost after the server has done its work, and the repeated request then fails for its own first
        half; so a failure is believed only when the file turns out not to hold *content*.
        """
        for attempt in range(_SWAP_ATTEMPTS):
            self._pause(attempt)
            current, tag = self._current(name, max(len(content), len(expected or b"")))
            if attempt and current == content:
                return
            if current != expected:
                break
            with suppress(_ConditionError):
                self._swap(name, content, tag)
                return
        raise OvertakenError(f"{name} in {self.place.shown} was replaced by another writer")

    def remove_named(self, name: str) -> None:
        """See NamedFiles.remove_named."""
        with self._asking(name):
            self._client.delete_object(Bucket=self.place.bucket, Key=self._key(name))

    def objects(self) -> Iterator[StoredObject]:
        """See ObjectReaper.objects."""
        start = self._key("data/")
        with self._asking("data/"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=start):
                for row in page.get("Contents", ()):
                    parsed = parse_object_path("data/" + row["Key"][len(start) :])
                    if parsed is not None:
                        yield StoredObject(*parsed, row["Size"], _unix_s(row["LastModified"]))

    def describe(self, name: Hash, suffix: Suffix) -> StoredObject | None:
        """See ObjectReaper.describe: one HEAD request."""
        path = name.object_path(suffix)
        try:
            with self._asking(path):
                answer = self._client.head_object(Bucket=self.place.bucket, Key=self._key(path))
        except AbsentError:
            with self._guard:
                self._seen.pop((name, suffix), None)
            return None
        self._note_time(answer)
        found = StoredObject(name, suffix, answer["ContentLength"], _unix_s(answer["LastModified"]))
        self._remember(name, suffix, found.size_bytes, found.modified_unix_s)
        return found

    def survey(self, objects: Sequence[StoredObject]) -> list[StoredObject | None]:
        """See ObjectReaper.survey."""
        with ThreadPoolExecutor(self._limits.connections) as pool:
            return list(pool.map(lambda each: self.describe(each.name, each.suffix), objects))

    def now_unix_s(self) -> float:
        """See ObjectReaper.now_unix_s."""
        with self._asking("its time"):
            self._note_time(self._client.list_objects_v2(Bucket=self.place.bucket, MaxKeys=1))
        return self._clock()

    def remove(self, objects: Sequence[StoredObject]) -> None:
        """See ObjectReaper.remove; one request each, as not every server knows how to delete many at once."""
        with ThreadPoolExecutor(self._limits.connections) as pool:
            list(pool.map(self._remove, objects))

    def remove_leftovers(self, before_unix_s: float) -> int:
        """See ObjectReaper.remove_leftovers: uploads in parts that were never completed."""
        count = 0
        with self._asking("unfinished uploads"):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.place.bucket, Prefix=self._key("data/")):
                for row in page.get("Uploads", ()):
                    if _unix_s(row["Initiated"]) < before_unix_s:
                        self._abort(row["Key"], row["UploadId"])
                        count += 1
        return count

    def _server_time(self) -> float:
        return time.time() + self._ahead_s

    def _note_time(self, answer: Mapping[str, Any]) -> None:
        """Learn from an answer what time it is at the server."""
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is not None:
            with suppress(ValueError, TypeError):
                self._ahead_s = parsedate_to_datetime(date).timestamp() - time.time()

    def _key(self, path: str) -> str:
        return f"{self.place.prefix}/{path}" if self.place.prefix else path

    def _seen_size(self, name: Hash, suffix: Suffix) -> int | None:
        """The size of an object that was seen and is too young to be collected."""
        with self._guard:
            seen = self._seen.get((name, suffix))
        return seen[0] if seen is not None and seen[1] >= self._clock() - REFRESH_AFTER_S else None

    def _remember(self, name: Hash, suffix: Suffix, size_bytes: int, modified_unix_s: float) -> None:
        with self._guard:
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen.clear()
            self._seen[name, suffix] = (size_bytes, modified_unix_s)

    def _refresh(self, name: Hash, suffix: Suffix) -> None:
        """Give an object a new time by copying it onto itself inside the server."""
        path = name.object_path(suffix)
        source = {"Bucket": self.place.bucket, "Key": self._key(path)}
        with self._asking(path):
            self._client.copy_object(
                Bucket=self.place.bucket,
                Key=self._key(path),
                CopySource=source,
                MetadataDirective="REPLACE",  # a copy onto itself has to change something
                ContentType=_OBJECT_TYPE,
                CacheControl=_FOR_EVER,
            )
        with self._guard:
            self._refreshed.add((name, suffix))

    def _remove(self, each: StoredObject) -> None:
        path = each.name.object_path(each.suffix)
        with self._asking(path):
            self._client.delete_object(Bucket=self.place.bucket, Key=self._key(path))
        with self._guard:
            self._seen.pop((each.name, each.suffix), None)

    def _read(self, path: str, limit_bytes: int) -> tuple[bytes, str]:
        """A whole file and its entity tag; begun anew when the connection breaks half-way."""

        def read() -> tuple[bytes, str]:
            with self._asking(path):
                answer = self._client.get_object(Bucket=self.place.bucket, Key=self._key(path))
                with answer["Body"] as body:
                    if answer["ContentLength"] > limit_bytes:
                        raise RefusedError(f"{path} in {self.place.shown} is larger than {limit_bytes} bytes")
                    return body.read(), answer["ETag"]

        return self._patiently(read)

    def _current(self, name: str, limit_bytes: int) -> tuple[bytes | None, str]:
        try:
            return self._read(name, limit_bytes)
        except AbsentError:
            return None, ""
        except RefusedError:  # longer than both contents that are of interest
            return b"", ""

    def _swap(self, name: str, content: bytes, tag: str) -> None:
        try:
            self._put_named(name, content, **({"IfMatch": tag} if tag else {"IfNoneMatch": "*"}))
        except UnreachableError:
            # done or not done: the file itself knows
            if self._current(name, len(content))[0] != content:
                raise

    def _put_named(self, name: str, content: bytes, **condition: str) -> None:
        self._put(name, content, _NAMED_TYPE, _ONE_MINUTE, **condition)

    def _put(self, path: str, content: Buffer, kind: str, cached: str, **condition: str) -> None:
        with self._asking(path):
            self._client.put_object(
                Bucket=self.place.bucket,
                Key=self._key(path),
                Body=bytes(content),
                ContentType=kind,
                CacheControl=cached,
                ContentMD5=_md5(content),
                **condition,
            )

    def _put_parts(self, path: str, stored: memoryview) -> None:
        """A large object becomes visible when its last part has arrived and been put together."""
        key, size = self._key(path), self._limits.part_bytes
        target = {"Bucket": self.place.bucket, "Key": key}
        with self._asking(path):
            begun = self._client.create_multipart_upload(**target, ContentType=_OBJECT_TYPE, CacheControl=_FOR_EVER)
            upload = begun["UploadId"]
            try:
                parts = []
                for number, start in enumerate(range(0, len(stored), size), 1):
                    part = bytes(stored[start : start + size])
                    put = self._client.upload_part(
                        **target, UploadId=upload, PartNumber=number, Body=part, ContentMD5=_md5(part)
                    )
                    parts.append({"PartNumber": number, "ETag": put["ETag"]})
                self._client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
            except BaseException:
                with suppress(FsError):
                    self._abort(key, upload)
                if not self._is_complete(key, len(stored)):  # the last reply may be all that was lost
                    raise

    def _is_complete(self, key: str, size: int) -> bool:
        try:
            answer = self._client.head_object(Bucket=self.place.bucket, Key=key)
        except (ClientError, BotoCoreError):
            return False
        return bool(answer["ContentLength"] == size)

    def _abort(self, key: str, upload: str) -> None:
        try:
            with self._asking(key):
                self._client.abort_multipart_upload(Bucket=self.place.bucket, Key=key, UploadId=upload)
        except AbsentError:
            return  # it is over already

    def _patiently(self, work: Callable[[], T]) -> T:
        for attempt in range(self._limits.attempts - 1):
            try:
                return work()
            except UnreachableError:
                self._pause(attempt + 1)
        return work()

    def _pause(self, failures: int) -> None:
        if failures:
            time.sleep(random.uniform(0.5, 1) * self._limits.backoff_s * 2 ** (failures - 1))  # noqa: S311  # jitter

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Around requests: the errors of the library become ours."""
        try:
            yield
        except ClientError as error:
            raise _meaning(error, f"{what} in {self.place.shown}") from error
        except _BAD_CREDENTIALS as error:
            raise RefusedError(f"{self.place.shown}: {error}") from error
        except (BotoCoreError, HTTPError, OSError) as error:  # bodies raise what the layer below raises
            raise UnreachableError(f"{self.place.shown} does not answer for {what}: {error}") from error


class _Body(io.RawIOBase):
    """The body of an answer as a file whose errors are ours."""

    def __init__(self, store: S3Store, path: str, body: Any) -> None:  # noqa: ANN401  # boto3's stream has no type
        self._store = store
        self._path = path
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  # as in the base class
        with self._store._asking(self._path):  # noqa: SLF001  # one table of errors
            piece: bytes = self._body.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._body.close()
        super().close()


def _connect(place: S3Place, limits: S3Limits) -> Any:  # noqa: ANN401  # boto3 makes its classes while it runs
    with _sessions:
        session = _session(place.profile)
        return _client(session, place, limits)


@functools.cache
def _session(profile: str | None) -> Any:  # noqa: ANN401  # as above
    """Reads the library's descriptions of its services, which takes longer than most requests."""
    return boto3.session.Session(profile_name=profile)


def _client(session: Any, place: S3Place, limits: S3Limits) -> Any:  # noqa: ANN401  # as above
    return session.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region or session.region_name or "us-east-1",  # servers of one's own seldom have regions
        config=Config(
            connect_timeout=limits.connect_timeout_s,
            read_timeout=limits.idle_timeout_s,
            max_pool_connections=limits.connections,
            retries={"mode": "standard", "total_max_attempts": limits.attempts},  # backs off with jitter
            s3={"addressing_style": "path"},
            # MD5 is sent with every body; the newer checksums are unknown to many servers
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _meaning(error: ClientError, where: str) -> FsError:
    """The whole table of what answers mean."""
    answer = error.response
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(answer.get("Error", {}).get("Code", ""))
    match status:
        case HTTPStatus.NOT_FOUND if code == "NoSuchBucket":
            return AbsentError(f"{where} is not there: make the bucket first")
        case HTTPStatus.NOT_FOUND:
            return AbsentError(f"{where} is not there ({code})")
        case HTTPStatus.PRECONDITION_FAILED | HTTPStatus.CONFLICT:
            return _ConditionError(f"{where}: {code}")
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return RefusedError(f"{where}: the server refuses access ({code}); check the credentials and the policy")
    if status in _PASSING or not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnreachableError(f"{where} cannot be had now (HTTP {status} {code})")
    return RefusedError(f"{where} is refused (HTTP {status} {code})")


def _md5(content: Buffer) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _unix_s(time_stamp: datetime) -> float:
    return time_stamp.timestamp()
