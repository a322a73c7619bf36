"""Trees that have broken publishers, made in any size: what a file system can hold and a catalog has to say."""

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fs.format.chunking import DEFAULT_SIZES, ChunkSizes

_TIME_NS = 1_600_000_000_123_456_789


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the trees are."""

    deep: int = 1000
    wide: int = 200_000
    many: tuple[int, int] = (1000, 1000)  # directories, files in each
    sparse_bytes: int = 10 << 30
    chunks: ChunkSizes = DEFAULT_SIZES


FULL = Scale()
SMALL = Scale(
    deep=300, wide=3000, many=(40, 100), sparse_bytes=300 << 20, chunks=ChunkSizes(64 << 10, 128 << 10, 256 << 10)
)


def make(name: str, root: Path, scale: Scale) -> None:
    """Make the tree *name* in the new directory *root*. Needs root for device nodes and owners."""
    root.mkdir()
    TREES[name](os.fsencode(root), scale)
    os.utime(root, ns=(_TIME_NS, _TIME_NS))


def _write(path: bytes, content: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(content)


def _empty(_root: bytes, _scale: Scale) -> None:
    """Nothing but the directory."""


def _deep(root: bytes, scale: Scale) -> None:
    """Directories in directories, as far as a path goes, a file in each hundredth."""
    here = root
    for number in range(scale.deep):
        here += b"/d"
        os.mkdir(here)
        if number % 100 == 0:
            _write(here + b"/file", b"at depth %d" % number)


def _wide(root: bytes, scale: Scale) -> None:
    """One directory with very many files."""
    os.mkdir(root + b"/wide")
    for number in range(scale.wide):
        _write(root + b"/wide/file-%06d" % number, b"content %d" % (number % 5000))


def _many(root: bytes, scale: Scale) -> None:
    """Very many entries in many directories."""
    directories, files = scale.many
    for number in range(directories):
        here = root + b"/%02d/%04d" % (number % 32, number)
        os.makedirs(here)
        for index in range(files):
            if index % 50 == 49:
                os.symlink(b"../%04d/f%04d" % (number, index - 1), here + b"/f%04d" % index)
            else:
                _write(here + b"/f%04d" % index, b"content %d" % ((number * 7 + index) % 9000))


def _odd(root: bytes, _scale: Scale) -> None:
    """Hard links of both kinds, devices, names, attributes, owners, modes, times and targets that are not usual."""
    for name in (b"links", b"links/below", b"nodes", b"names", b"attributes", b"times", b"targets"):
        os.mkdir(root + b"/" + name)
    _write(root + b"/links/one", b"linked in one directory")
    for number in range(5):
        os.link(root + b"/links/one", root + b"/links/same-%d" % number)
    _write(root + b"/links/far", b"linked over directories")
    os.link(root + b"/links/far", root + b"/links/below/near")
    os.link(root + b"/links/far", root + b"/names/away")
    os.symlink(b"far", root + b"/links/symbolic")
    os.link(root + b"/links/symbolic", root + b"/links/below/symbolic", follow_symlinks=False)
    os.mknod(root + b"/nodes/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root + b"/nodes/large", stat.S_IFBLK | 0o600, os.makedev(259, 70_000))
    os.mkfifo(root + b"/nodes/pipe")
    os.mknod(root + b"/nodes/socket", stat.S_IFSOCK | 0o700)
    for name in _NAMES:
        _write(root + b"/names/" + name, b"called " + name)
    for mode in (0o0, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o6711):
        _write(root + b"/attributes/mode-%04o" % mode, b"mode")
        os.chmod(root + b"/attributes/mode-%04o" % mode, mode)
    for uid in (0, 1, 65_534, 100_000, 2**32 - 2):
        _write(root + b"/attributes/owner-%d" % uid, b"owner")
        os.chown(root + b"/attributes/owner-%d" % uid, uid, 2**32 - 2 - uid)
    for number, (key, value) in enumerate(_XATTRS):
        _write(root + b"/attributes/x%d" % number, b"x")
        os.setxattr(root + b"/attributes/x%d" % number, key, value)
    os.setxattr(root + b"/attributes", "user.of-a-directory", b"value")
    for number, time_ns in enumerate((0, 1, -1, -(10**18), 2**31 * 10**9, 4 * 10**18, _TIME_NS)):
        _write(root + b"/times/%d" % number, b"time")
        os.utime(root + b"/times/%d" % number, ns=(time_ns, time_ns))
    for number, target in enumerate((b"a", b"/", b"..", b"../$(HOME)/x", b"$(", b"x" * 4000, b"\xff\n")):
        os.symlink(target, root + b"/targets/%d" % number)


_NAMES = [
    b" ",
    b"\n",
    b"\\",
    b"'\"`$(x)",
    b"-rf",
    b"*?[a]",
    b"\xff\xfe not text",
    b"\x01\x7f",
    b"n" * 255,
    b"%41 %00",
    b".hidden",
    b"...",
    b".wh.whiteout",
    "ö".encode(),
    "o\u0308".encode(),
    b"ABC",
    b"abc",
]
_XATTRS = [
    ("user.empty", b""),
    ("user.zeros", bytes(255)),
    ("security.capability", bytes.fromhex("0100000200040000000000000000000000000000")),
    ("user." + "k" * 200, b"long name"),
]


def _sparse(root: bytes, scale: Scale) -> None:
    """One huge file that is nearly all holes, with islands of data, and one that is only a hole."""
    chance = random.Random(1)
    with open(root + b"/islands", "xb") as stream:
        stream.truncate(scale.sparse_bytes)
        for part in range(8):
            stream.seek(scale.sparse_bytes * part // 8 + part * 4097)
            stream.write(chance.randbytes(100_000))
    with open(root + b"/hole", "xb") as stream:
        stream.truncate(scale.sparse_bytes // 20 + 1)


def _borders(root: bytes, scale: Scale) -> None:
    """Files that end right before, at and behind every border of chunks: of zeros, of noise, and of text."""
    sizes, chance = scale.chunks, random.Random(2)
    borders = (0, sizes.least, sizes.average, sizes.most, sizes.least + sizes.most, 2 * sizes.most)
    noise = chance.randbytes(2 * sizes.most + 1)
    text = b"".join(b"line %d\n" % number for number in range(2 * sizes.most // 10))[: 2 * sizes.most + 1]
    for kind, data in ((b"zeros", bytes(2 * sizes.most + 1)), (b"noise", noise), (b"text", text)):
        for border in borders:
            for length in {max(border - 1, 0), border, border + 1}:
                _write(root + b"/%s-%d" % (kind, length), data[:length])


TREES: dict[str, Callable[[bytes, Scale], None]] = {
    "empty": _empty,
    "deep": _deep,
    "wide": _wide,
    "many": _many,
    "odd": _odd,
    "sparse": _sparse,
    "borders": _borders,
}
