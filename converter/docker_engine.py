"""Images of a running Docker engine, as ``docker save`` gives them."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread

from converter.errors import EngineUnreachableError, SourceAbsentError

_TIMEOUT_S = 600


@asynccontextmanager
async def saved_image(reference: str) -> AsyncIterator[Path]:
    """The archive of the image that the engine knows as *reference*; it goes when the context ends.

    The engine is the one that ``DOCKER_HOST`` names, else that of the machine. It gives an archive from its beginning
    to its end only, with the description of the layers last, so the archive is put into the directory for temporary
    files.

    Raises:
        SourceAbsentError: the engine has no such image.
        EngineUnreachableError: no engine answers.
    """
    with tempfile.TemporaryDirectory(prefix="unpackd-") as folder:
        archive = Path(folder) / "image.tar"
        await anyio.to_thread.run_sync(_save, reference, archive)
        yield archive


def _save(reference: str, archive: Path) -> None:
    import docker  # noqa: PLC0415  # a large package that no other source needs
    from docker.errors import DockerException, ImageNotFound  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        try:
            with archive.open("wb") as stream:
                for piece in client.images.get(reference).save(named=True):
                    stream.write(piece)
        finally:
            client.close()
    except ImageNotFound as error:
        raise SourceAbsentError(f"the Docker engine has no image {reference}") from error
    except (DockerException, RequestException) as error:
        raise EngineUnreachableError(f"the Docker engine does not give {reference}: {error}") from error
