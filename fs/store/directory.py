"""Reading a repository that lies in a directory of this machine (``file://`` URLs)."""

from pathlib import Path
from urllib.parse import unquote_to_bytes

import anyio
import anyio.to_thread

from fs.errors import AbsentError, UnreachableError
from fs.store.reading import Receiver, Request

_PIECE_BYTES = 1 << 20


class DirectoryReader:
    """A StorageReader over a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """See StorageReader.url."""
        return self._root.as_uri()

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read."""
        receiver.begin()
        path = self._root / unquote_to_bytes(request.path).decode("utf-8", "surrogateescape").lstrip("/")
        left = request.part.size if request.part is not None else None
        try:
            async with await anyio.open_file(path, "rb") as stream:
                if request.part is not None:
                    await stream.seek(request.part.offset)
                while left is None or left > 0:
                    piece = await stream.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
                    if not piece:
                        break
                    left = None if left is None else left - len(piece)
                    await receiver.feed(piece)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise AbsentError(f"{path} is not there") from error
        except OSError as error:
            raise UnreachableError(f"{path} cannot be read: {error.strerror}") from error
        await receiver.finish()
