"""The content view: the repository a second time, below ``/.unpackd/content``, for overlays that need files' data only.

Paths are those of the repository, and so are directories. Regular files are numbered by their content alone: files of
any path, owner and time that have the same bytes are one inode, so the kernel keeps their pages once, whatever image
they are read through. That would be wrong in a tree that people see: an overlay with a writable layer takes files with
one inode for one file and shows what is written to one in all of them. Below a layer whose names are not seen (a
data-only layer) nothing but the data matters; attributes are the same for all: 0444, root, 1970.

The view is in no listing and in no catalog; it is there whenever the repository has a directory ``/.unpackd``.
"""

import hashlib
import stat

from fs.client.catalogs import Found
from fs.client.inodes import KEY_BYTES
from fs.client.repository import Placed
from fs.format.entries import Entry

VIEW = b"/.unpackd/content"
_BELOW = VIEW + b"/"
DATA_MODE = stat.S_IFREG | 0o444


def real_path(path: bytes) -> bytes:
    """The repository's path of *path*, which may be in the view."""
    return path[len(VIEW) :] if path == VIEW or path.startswith(_BELOW) else path


def is_data(found: Found) -> bool:
    """True for a regular file of the view."""
    return found.path.startswith(_BELOW) and found.entry.is_regular


def data_key(placed: Placed, entry: Entry) -> bytes:
    """What identifies a file of the view: its bytes, as far as objects name them."""
    content = placed.content
    objects = [content.hash] if content.hash is not None else [chunk.hash for chunk in content.chunks]
    parts = [b"c", entry.size.to_bytes(8, "little"), (placed.external or "").encode()]
    parts += [str(name).encode() for name in objects]
    hasher = hashlib.blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hasher.update(len(part).to_bytes(4, "little") + part)
    return hasher.digest()
