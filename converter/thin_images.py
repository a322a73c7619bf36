"""DUCC's thin images: images without files, whose only layer lists layers of a repository.

They were made for a Docker driver that is retired. Nothing here makes them, but they are still in registries, and are
recognised, so that nobody gets a root file system with one file in it.

Source: CernVM-FS 2.12, ducc/docker-api: the file ``thin.json``, the variable ``CVMFS_IMAGE``.
"""

import json

from converter.errors import ImageRefusedError, shown
from converter.layer_streams import unpacked
from converter.layer_tar import TarReader
from converter.limits import Limits
from converter.sources import OpenSource
from fs.runtime.errors import UnpackdError
from registry_proxy.oci.manifest import ImageConfig, ImageManifest

_LIST = "thin.json"
_VARIABLE = "CVMFS_IMAGE="
_LIMIT_BYTES = 1 << 20


async def refuse_thin(name: str, source: OpenSource, manifest: ImageManifest, config: ImageConfig) -> None:
    """Refuse a thin image, and say what it was made from.

    Raises:
        ImageRefusedError: it is one.
        UnpackdError: it may be one, and its layer cannot be read.
    """
    marked = any(variable.startswith(_VARIABLE) for variable in config.environment)
    if not marked or len(manifest.layers) != 1 or manifest.layers[0].size_bytes > _LIMIT_BYTES:
        return
    async with source.blob(manifest.layers[0]) as pieces:
        blob = b"".join([piece async for piece in pieces])
    try:
        listed = _list_in(blob)
    except UnpackdError:
        return  # what is wrong with the layer is told when it is read as one
    if listed is None:
        return
    try:
        document = json.loads(listed)
        origin, count = str(document["origin"]), len(document["layers"])
    except (ValueError, TypeError, KeyError, RecursionError):
        origin, count = "", 0
    made_of = f", made from {shown(origin.encode())} with {count} layers: convert that" if origin else ""
    raise ImageRefusedError(f"{name} is a thin image, which has a list of layers ({_LIST}) instead of files{made_of}")


def _list_in(blob: bytes) -> bytes | None:
    """The list, if it is all that the layer *blob* has."""
    pieces = unpacked([blob], None)
    reader = TarReader(lambda: next(pieces, b""), Limits(max_layer_bytes=_LIMIT_BYTES))
    found = None
    while (member := reader.next()) is not None:
        if found is not None or member.name.lstrip(b"./") != _LIST.encode() or member.size > _LIMIT_BYTES:
            return None
        found = reader.read(member.size)
    return found
