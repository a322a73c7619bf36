"""Provenance beside the image in its registry: a signed statement that refers to the image's manifest.

Registries of the distribution specification 1.1 list what refers to a manifest; for older ones an index under the tag
``sha256-<hex>`` does, which whoever pushes has to keep. Pushing is oras' part, reading our own client's.

Source: OCI distribution specification 1.1, "Pushing Manifests with Subject", "Listing Referrers", "Referrers Tag
Schema".
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from converter.errors import ReferrerError, ReferrerRefusedError
from converter.image_records import PROVENANCE_TYPE, RECORD_LIMIT_BYTES
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, ImageIndex, ImageManifest
from registry_proxy.oci.reference import Reference, api_host
from registry_proxy.transfer import Origin

if TYPE_CHECKING:
    import requests

    from registry_proxy.client import RegistryClient

STATEMENT_TYPE = "application/vnd.dsse.envelope.v1+json"
_EMPTY = b"{}"
_TIMEOUT_S = 60.0
_RETRIES, _BACKOFF_S = 3, 0.5
_INDEX_TRIES = 5  # others may put an index of their own at the same moment
_INDEX_LIMIT_BYTES = 4 << 20
_MOST_STATEMENTS = 20  # of one image that are read


@dataclass(frozen=True, slots=True)
class Subject:
    """The manifest that a statement is about."""

    media_type: str
    digest: str
    size: int

    def as_json(self) -> dict[str, object]:
        """The descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


async def push_statement(reference: Reference, subject: Subject, statement: bytes) -> str:
    """Push the signed *statement* about *subject* to the repository of *reference*; gives its manifest's digest.

    Pushing the same again changes nothing. Credentials are those of docker's configuration file.

    Raises:
        ReferrerError: the registry does not answer, or not as it should.
        ReferrerRefusedError: it does not allow it.
    """
    return await anyio.to_thread.run_sync(partial(_Pushing(reference).push, subject, statement))


class _Pushing:
    """One repository that is pushed to. Blocks."""

    def __init__(self, reference: Reference) -> None:
        import oras.container  # noqa: PLC0415  # an HTTP stack of its own that nothing else needs
        import oras.provider  # noqa: PLC0415
        from requests.adapters import HTTPAdapter  # noqa: PLC0415
        from urllib3.util import Retry  # noqa: PLC0415

        origin = Origin.of(reference.registry, reference.scheme)
        self._shown = reference.name
        self._name = f"{api_host(reference.registry)}/{reference.repository}"
        self._base = f"{origin.url}/v2/{reference.repository}"
        self._provider = oras.provider.Registry(insecure=origin.scheme == "http")
        session = self._provider.session
        session.request = partial(session.request, timeout=_TIMEOUT_S)
        # oras' own retries sleep for more than two minutes in front of a registry that is not there
        self._provider.do_request = MethodType(self._provider.do_request.__wrapped__, self._provider)
        unavailable = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
        retries = Retry(_RETRIES, backoff_factor=_BACKOFF_S, status_forcelist=unavailable, allowed_methods=None)
        session.mount(f"{origin.scheme}://", HTTPAdapter(max_retries=retries))
        self._container = oras.container.Container(f"{self._name}:latest")
        self._provider.auth.load_configs(self._container)

    def push(self, subject: Subject, statement: bytes) -> str:
        import requests  # noqa: PLC0415

        try:
            layer, config = self._upload(statement, STATEMENT_TYPE), self._upload(_EMPTY, media_types.OCI_EMPTY)
            manifest = _encode(
                {
                    "schemaVersion": 2,
                    "mediaType": media_types.OCI_MANIFEST,
                    "artifactType": PROVENANCE_TYPE,
                    "config": config,
                    "layers": [layer],
                    "subject": subject.as_json(),
                }
            )
            digest = str(Digest.of(manifest))
            answer = self._put_manifest(digest, manifest, media_types.OCI_MANIFEST)
            if "OCI-Subject" not in answer.headers:
                entry = {**_described(manifest, media_types.OCI_MANIFEST), "artifactType": PROVENANCE_TYPE}
                self._list(subject.digest, entry)
        except (requests.RequestException, ValueError) as error:  # oras' own errors are ValueErrors
            raise ReferrerError(f"{self._shown} does not take the provenance of {subject.digest}: {error}") from error
        return digest

    def _upload(self, data: bytes, media_type: str) -> dict[str, object]:
        descriptor = _described(data, media_type)
        with tempfile.NamedTemporaryFile(prefix="unpackd-") as file:  # oras uploads files
            file.write(data)
            file.flush()
            answer = self._provider.upload_blob(str(Path(file.name)), self._container, descriptor)
        self._require(answer, "a blob")
        return descriptor

    def _put_manifest(self, target: str, body: bytes, media_type: str) -> "requests.Response":
        headers = {"Content-Type": media_type}
        url = f"{self._base}/manifests/{target}"
        answer: requests.Response = self._provider.do_request(url, "PUT", data=body, headers=headers)
        self._require(answer, f"the manifest {target}")
        return answer

    def _list(self, subject: str, entry: Mapping[str, object]) -> None:
        """Put *entry* into the index under the tag of *subject*, and look if it stayed there."""
        tag = referrers_tag(subject)
        for _ in range(_INDEX_TRIES):
            listed = self._listed(tag)
            if entry["digest"] in {one.get("digest") for one in listed}:
                return
            index = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [*listed, entry]}
            self._put_manifest(tag, _encode(index), media_types.OCI_INDEX)
        if entry["digest"] not in {one.get("digest") for one in self._listed(tag)}:
            raise ReferrerError(f"others change {self._shown}:{tag} all the time; try again")

    def _listed(self, tag: str) -> list[dict[str, Any]]:
        headers = {"Accept": media_types.OCI_INDEX}
        answer = self._provider.do_request(f"{self._base}/manifests/{tag}", "GET", headers=headers)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return []
        self._require(answer, tag)
        document = answer.json() if len(answer.content) <= _INDEX_LIMIT_BYTES else None
        if not isinstance(document, dict) or document.get("mediaType") != media_types.OCI_INDEX:
            raise ReferrerError(f"{self._shown}:{tag} is no index of what refers to a manifest")
        return [one for one in document.get("manifests", []) if isinstance(one, dict)]

    def _require(self, answer: "requests.Response", what: str) -> None:
        if answer.ok:
            return
        sentence = f"{self._shown} answers {answer.status_code} to {what}"
        if answer.status_code in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise ReferrerRefusedError(f"{sentence}: log in with the right to push there")
        raise ReferrerError(sentence)


def referrers_tag(digest: str) -> str:
    """The tag under which older registries list what refers to the manifest *digest*."""
    return digest.replace(":", "-")


async def read_statements(client: "RegistryClient", reference: Reference, manifest: str) -> list[bytes]:
    """The statements of provenance that refer to *manifest* in the repository of *reference*, as they are: unverified.

    Raises:
        ProxyError: the registry does not answer, or not as it should.
    """
    found = await client.referrers(reference.with_digest(Digest.parse(manifest)))
    ours = [one for one in found if one.artifact_type == PROVENANCE_TYPE]
    statements: list[bytes] = []
    for descriptor in ours[-_MOST_STATEMENTS:]:
        document = (await client.manifest(reference.with_digest(descriptor.digest), images_only=False)).document
        if isinstance(document, ImageIndex) or not _is_about(document, manifest):
            continue
        layers = [layer for layer in document.layers if layer.media_type == STATEMENT_TYPE]
        statements += [await client.blob_bytes(reference, layer, limit_bytes=RECORD_LIMIT_BYTES) for layer in layers]
    return statements


def _is_about(document: ImageManifest, manifest: str) -> bool:
    subject: Descriptor | None = document.subject
    return subject is not None and str(subject.digest) == manifest


def _described(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def _encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
