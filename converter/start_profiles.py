"""Start profiles of images: what a start reads, published with the root file system for those who start it next.

A profile that a mount recorded (``unpackd mountctl … profile --json``) names everything that was read since the mount
began, of whatever image. What is published is the part of it that belongs to one image: files of its tree, and its
metadata image. It lies beside the ``flat`` of the chain, since that is what nodes know.

Most of what a start reads is small files, and each costs a node two messages of the kernel, one after the other. So the
metadata image is published anew with their contents in it: one object instead of a thousand, and the kernel reads them
by itself. What it does not hold is a second, shorter profile, for nodes that mount it. See
``docs/decisions/0017-what-starts-read-is-in-the-metadata-image.md``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from converter import placement
from converter.errors import ImageRefusedError
from converter.image_records import LayerRecord
from converter.image_trees import root_image, stored_tree
from fs.client.content_view import real_path
from fs.client.profile import Read, parse_profile, profile_document
from fs.publish.operations import Operation, PutFile, Remove, Require
from fs.publish.repository import Repository
from fs.publish.view import View
from fs.rootfs.erofs import LARGEST_HELD_BYTES

_HELD_BYTES = 64 << 20  # by one image


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


def top_chain(layers: Sequence[LayerRecord]) -> str:
    """The ChainID of the whole stack; empty without layers."""
    return next(reversed(placement.chain_ids([layer.diff_id for layer in layers])), "")


def publish_profile(repository: Repository, layers: Sequence[LayerRecord], recorded: bytes) -> tuple[int, int]:
    """Publish what *recorded* says of the image with *layers*; gives the number of reads, and the revision.

    What the metadata image held before is not seen by a mount; it stays in the profile.

    Raises:
        MalformedError: it is no profile.
        ImageRefusedError: the image has no root file system of its own, or nothing of it was read.
    """
    view = repository.view()
    chain = top_chain(layers)
    link = placement.chain_path(chain) + b"/flat" if chain else b""
    if not chain or view.lookup(link) is None:
        raise ImageRefusedError("no node starts this image from one tree, so a start profile has no use")
    rootfs = placement.linked_rootfs_path(view.readlink(link))
    recorded_reads = parse_profile(recorded)
    reads = reads_of_image([*_held_before(view, chain), *recorded_reads], chain, rootfs)
    if not reads_of_image(recorded_reads, chain, rootfs):
        raise ImageRefusedError("nothing in the profile belongs to this image; record it where the image was started")
    operations: list[Operation] = [
        Require(link),
        _put_profile(repository, placement.start_profile_path(chain), reads),
    ]
    held = _worth_holding(view, reads, rootfs) if view.lookup(placement.root_image_path(chain)) is not None else {}
    if held:
        operations.append(_put_image(repository, view, layers, rootfs, held))
        left = [read for read in reads if read.path[len(rootfs) :] not in held]
        operations.append(_put_profile(repository, placement.image_start_profile_path(chain), left))
    return len(reads), repository.commit(operations).revision


def remove_profile(repository: Repository, layers: Sequence[LayerRecord]) -> int:
    """Take the profile of the image with *layers* away, and what is held of it; gives the revision."""
    view = repository.view()
    operations: list[Operation] = []
    chain = top_chain(layers)
    if chain:
        operations.append(Remove(placement.start_profile_path(chain)))
        shorter = placement.image_start_profile_path(chain)
        if view.lookup(shorter) is not None:
            rootfs = placement.linked_rootfs_path(view.readlink(placement.chain_path(chain) + b"/flat"))
            operations += [Remove(shorter), _put_image(repository, view, layers, rootfs, {})]
    return repository.commit(operations).revision


def _held_before(view: View, chain: str) -> list[Read]:
    """What the metadata image of *chain* holds."""
    shorter = placement.image_start_profile_path(chain)
    if view.lookup(shorter) is None:
        return []
    left = set(parse_profile(view.read(shorter, placement.START_PROFILE_LIMIT_BYTES)))
    return [read for read in published_profile(view, chain) or [] if read not in left]


def _worth_holding(view: View, reads: Sequence[Read], rootfs: bytes) -> dict[bytes, bytes]:
    """The contents of the small files among *reads*, the first ones, by their paths below *rootfs*."""
    held: dict[bytes, bytes] = {}
    room = _HELD_BYTES
    for read in reads:
        entry = view.lookup(read.path) if read.path.startswith(rootfs + b"/") else None
        if entry is not None and entry.is_regular and 0 < entry.size <= min(LARGEST_HELD_BYTES, room):
            held[read.path[len(rootfs) :]] = view.read(read.path, LARGEST_HELD_BYTES)
            room -= entry.size
    return held


def _put_image(
    repository: Repository, view: View, layers: Sequence[LayerRecord], rootfs: bytes, held: Mapping[bytes, bytes]
) -> PutFile:
    tree = stored_tree(view, [layer.digest for layer in layers])
    path = placement.root_image_path(top_chain(layers))
    return PutFile(path, repository.ingester().add_bytes(root_image(tree, rootfs, held)))


def _put_profile(repository: Repository, path: bytes, reads: list[Read]) -> PutFile:
    document = profile_document(repository.name, repository.view().revision, reads)
    return PutFile(path, repository.ingester().add_bytes(json.dumps(document).encode()))
