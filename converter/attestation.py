"""From what is published to what its registry says of it: statements of provenance, pushed where that is configured."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import anyio.to_thread

from converter import placement
from converter.conversion import ConversionResult
from converter.errors import RecordError
from converter.inventory import STATEMENT_FILE
from converter.referrers import Subject, push_statement
from converter.sources import ImageSource
from fs.publish.view import View
from fs.runtime.errors import UnpackdError
from registry_proxy.oci.manifest import MAX_MANIFEST_BYTES, manifest_type
from registry_proxy.oci.reference import Reference


def is_wanted(reference: Reference, registries: Iterable[str]) -> bool:
    """True if *registries* (``host[:port][/path]``) have the repository of *reference*."""
    name = reference.name + "/"
    return any(name.startswith(entry.rstrip("/") + "/") for entry in registries)


async def attest(view: View, reference: Reference, manifest: str) -> str:
    """Push the signed provenance of the image *manifest* to the repository of *reference*; gives what it became.

    Raises:
        RecordError: the repository has no signed provenance of that image.
        ReferrerError, ReferrerRefusedError: the registry does not take it.
    """
    subject, statement = await anyio.to_thread.run_sync(_stored, view, manifest)
    return await push_statement(reference, subject, statement)


async def attest_result(
    view: View, source: ImageSource, result: ConversionResult, registries: Sequence[str]
) -> ConversionResult:
    """Do so for each image of *result*, if its registry is one of *registries*; a failure becomes a warning.

    The image is published whatever comes of this.
    """
    reference = source.reference
    if reference is None or not result.changed or not is_wanted(reference, registries):
        return result
    pushed: list[str] = []
    warnings: list[str] = []
    for manifest in [one.manifest for one in result.images] or [result.manifest_digest]:
        try:
            pushed.append(await attest(view, reference, manifest))
        except UnpackdError as error:
            warnings.append(f"its provenance is not in its registry: {error}")
    return replace(result, referrers=tuple(pushed), warnings=(*result.warnings, *warnings))


def _stored(view: View, manifest: str) -> tuple[Subject, bytes]:
    folder = placement.image_path(manifest)
    path = folder + b"/" + STATEMENT_FILE
    if view.lookup(path) is None:
        raise RecordError(f"{path.decode()} is missing; convert the image again")
    body = view.read(folder + b"/manifest.json", MAX_MANIFEST_BYTES)
    return Subject(manifest_type(body, None), manifest, len(body)), view.read(path, placement.RECORD_LIMIT_BYTES)
