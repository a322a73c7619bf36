"""Reading wishlists from files."""

from pathlib import Path

from converter.errors import SourceAbsentError
from converter.wishlist import SIZE_LIMIT_BYTES


def read_wishlist(path: Path) -> bytes:
    """The text of a wishlist; of a file that is too large, as much as shows that it is.

    Raises:
        SourceAbsentError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return stream.read(SIZE_LIMIT_BYTES + 1)
    except OSError as error:
        raise SourceAbsentError(f"{path}: {error.strerror}") from error
