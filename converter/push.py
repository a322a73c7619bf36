"""``unpackd push``: conversion by a service, for users who cannot write to the repository themselves."""

import platform as machine
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import anyio

from converter.errors import ConversionFailedError, FarmUnreachableError, FarmUsageError
from converter.farm_access import FarmAccess
from converter.names import published_name
from converter.sources import ImageSource, OpenSource
from registry_proxy.oci.digest import Digest
from registry_proxy.oci.manifest import Descriptor, Platform

_POLL_S = 0.3
_SILENCE_S = 60.0
_SENT_AT_ONCE = 3

Tell = Callable[[str], None]


async def push(  # noqa: PLR0913  # what the command says, all by name
    farm: FarmAccess, source: ImageSource, *, name: str | None, platform: Platform | None, timeout_s: float, tell: Tell
) -> dict[str, Any]:
    """Let *farm* publish the image and wait; gives the image as the API shows it.

    Args:
        farm: the service.
        source: an image in a registry, which the service fetches itself, or in files, which are sent.
        name: the name in the repository: needed for files, and what a registry's image has anyway.
        platform: which image of several in files; None for this machine's.
        timeout_s: how long to wait for the conversion.
        tell: told what happens, a line each.

    Raises:
        UnpackdError: the image cannot be read, is refused, or is not published in time.
    """
    if source.reference is not None:
        if name is not None and published_name(name) != published_name(source.text):
            raise FarmUsageError(f"an image of a registry keeps its name, {published_name(source.text)}")
        asked = await farm.convert(source.text)
    elif name is None:
        raise FarmUsageError(f"which name shall {source} have? Give registry/repository:tag as second argument")
    else:
        manifest = await _send(farm, source, platform or Platform.parse(f"linux/{machine.machine()}"), tell)
        asked = await farm.convert(published_name(name), manifest=str(manifest))
    return await _wait(farm, str(asked["name"]), timeout_s, tell)


async def _send(farm: FarmAccess, source: ImageSource, platform: Platform, tell: Tell) -> Digest:
    """Send what the service does not have yet; gives the digest of the manifest."""
    async with source.open() as opened:
        found = await opened.find(await opened.resolve(), platform)
        slots = anyio.CapacityLimiter(_SENT_AT_ONCE)

        async def send(layer: Descriptor) -> None:
            async with slots:
                if not await farm.has_blob(str(layer.digest)):
                    tell(f"sending {layer.digest}, {layer.size_bytes} bytes")
                    async with aclosing(_pieces(opened, layer)) as pieces:
                        await farm.send_blob(str(layer.digest), layer.size_bytes, pieces)

        async with anyio.create_task_group() as tasks:
            for layer in {one.digest: one for one in found.manifest.layers}.values():
                tasks.start_soon(send, layer)
        config = await opened.config(found.manifest.config)
        for digest, body in ((found.manifest.config.digest, config), (found.manifest_digest, found.manifest_bytes)):
            if not await farm.has_blob(str(digest)):
                await farm.send_blob(str(digest), len(body), body)
    return found.manifest_digest


async def _pieces(opened: OpenSource, layer: Descriptor) -> AsyncGenerator[bytes]:
    async with opened.blob(layer) as pieces:
        async for piece in pieces:
            yield piece


async def _wait(farm: FarmAccess, name: str, timeout_s: float, tell: Tell) -> dict[str, Any]:
    """Wait until the image *name*, which was asked for, is published."""
    deadline = time.monotonic() + timeout_s
    patience = time.monotonic() + _SILENCE_S
    shown = ""
    while time.monotonic() < deadline:
        try:
            image = await farm.image(name)
        except FarmUnreachableError:  # it may be starting again, and forgets nothing
            if time.monotonic() > patience:
                raise
            await anyio.sleep(_POLL_S)
            continue
        patience = time.monotonic() + _SILENCE_S
        state, error = str(image["state"]), image["error"]
        if state != shown:
            tell(f"{name}: {state}" + (f" ({error})" if error else ""))
            shown = state
        if not image["requested"]:  # else its registry was not asked yet, or could not be
            if state == "failed" or (error and state in ("wanted", "done")):
                raise ConversionFailedError(f"{name}: {error}")
            if state == "done":
                return image
        await anyio.sleep(_POLL_S)
    raise FarmUnreachableError(f"{name} is not converted after {timeout_s:.0f} s; it goes on without us")
