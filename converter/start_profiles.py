"""Start profiles of images: what a start reads, published with the root file system for those who start it next.

A profile that a mount recorded (``unpackd mountctl … profile --json``) names everything that was read since the mount
began, of whatever image. What is published is the part of it that belongs to one image: files of its tree, and its
metadata image. It lies beside the ``flat`` of the chain, since that is what nodes know.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from converter import placement
from converter.errors import ImageRefusedError
from fs.client.content_view import real_path
from fs.client.profile import Read, parse_profile, profile_document
from fs.publish.operations import PutFile, Remove, Require
from fs.publish.repository import Repository
from fs.publish.view import View


def reads_of_image(reads: Sequence[Read], chain: str, rootfs: bytes) -> list[Read]:
    """Those of *reads* that belong to the root file system of *chain*, which is at *rootfs*, by their real paths."""
    own = placement.root_image_path(chain)
    real = [replace(read, path=real_path(read.path)) for read in reads]
    return [read for read in dict.fromkeys(real) if read.path == own or read.path.startswith(rootfs + b"/")]


def published_profile(view: View, chain: str) -> list[Read] | None:
    """The profile of *chain*; None if there is none. Raises MalformedError."""
    path = placement.start_profile_path(chain)
    if view.lookup(path) is None:
        return None
    return parse_profile(view.read(path, placement.START_PROFILE_LIMIT_BYTES))


def publish_profile(repository: Repository, chains: Sequence[str], recorded: bytes) -> tuple[int, int]:
    """Publish what *recorded* says of the image with *chains*; gives the number of reads, and the revision.

    Raises:
        MalformedError: it is no profile.
        ImageRefusedError: the image has no root file system of its own, or nothing of it was read.
    """
    view = repository.view()
    link = placement.chain_path(chains[-1]) + b"/flat" if chains else b""
    if not chains or view.lookup(link) is None:
        raise ImageRefusedError("no node starts this image from one tree, so a start profile has no use")
    rootfs = placement.linked_rootfs_path(view.readlink(link))
    reads = reads_of_image(parse_profile(recorded), chains[-1], rootfs)
    if not reads:
        raise ImageRefusedError("nothing in the profile belongs to this image; record it where the image was started")
    document = profile_document(repository.name, view.revision, reads)
    content = repository.ingester().add_bytes(json.dumps(document).encode())
    put = PutFile(placement.start_profile_path(chains[-1]), content)
    return len(reads), repository.commit([Require(link), put]).revision


def remove_profile(repository: Repository, chains: Sequence[str]) -> int:
    """Take the profile of the image with *chains* away; gives the revision."""
    return repository.commit([Remove(placement.start_profile_path(chain)) for chain in chains[-1:]]).revision
