"""A second opinion on a repository: the reference checker's rules, written without any code of the project.

Only the standard library and `cryptography` are used, so a mistake that writer and reader share shows here. The rules
are those that the format's specification says the reference checker enforces: counters, link counts, link groups,
transition entries, markers, chunks, sizes, names, hashes, signatures, tag database and reflog.
"""

import hashlib
import sqlite3
import stat
import struct
import tempfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

DIRECTORY, NESTED, FILE, LINK, SPECIAL, ROOT, CHUNKED, EXTERNAL = 1, 2, 4, 8, 16, 32, 64, 128
BIND, HIDDEN, DIRECT = 0x4000, 0x8000, 0x10000
SUFFIXES = {0: "", 1: "-rmd160", 2: "-shake128"}
EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"
COUNTERS = (
    "regular",
    "symlink",
    "special",
    "dir",
    "nested",
    "chunked",
    "chunks",
    "file_size",
    "chunked_size",
    "xattr",
    "external",
    "external_file_size",
)


def digest_of(data: bytes, text: str) -> str:
    """The hash of *data* by the algorithm that hash *text* names, as text."""
    if text.endswith("-rmd160"):
        return hashlib.new("ripemd160", data).hexdigest() + "-rmd160"
    if text.endswith("-shake128"):
        return hashlib.shake_128(data).hexdigest(20) + "-shake128"
    return hashlib.sha1(data).hexdigest()


def path_md5(path: bytes) -> tuple[int, int]:
    first, second = struct.unpack("<qq", hashlib.md5(path).digest())
    return first, second


@dataclass(slots=True)
class Row:
    path: bytes
    group: int
    links: int
    digest: bytes | None
    size: int
    mode: int
    flags: int
    rest: tuple[object, ...]  # what transition entries must share besides: times, owners, attributes

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(slots=True)
class Checker:
    """Collects findings; ``run`` fills them."""

    storage: Path
    public_key: bytes
    findings: list[str] = field(default_factory=list)
    entries: int = 0
    catalogs: int = 0

    def run(self) -> "Checker":
        manifest = self.manifest()
        root = self.object(manifest["C"], "C")
        if root is not None:
            self.require(len(root) == int(manifest["B"]), "manifest: B is not the root catalog's size")
            self.catalog(b"", root, None)
        self.history(manifest)
        self.reflog(manifest)
        return self

    def require(self, holds: bool, finding: str) -> bool:
        if not holds:
            self.findings.append(finding)
        return holds

    def object(self, text: str, letter: str, *, compressed: bool = True) -> bytes | None:
        digits, dash, tag = text.partition("-")
        path = self.storage / "data" / digits[:2] / (digits[2:] + dash + tag + letter)
        if not self.require(path.is_file(), f"object {text}{letter} is missing"):
            return None
        stored = path.read_bytes()
        if not self.require(digest_of(stored, text) == text, f"object {text}{letter} has another hash"):
            return None
        return zlib.decompress(stored) if compressed else stored

    # trust ----------------------------------------------------------------------------------------------------------

    def signed(self, name: str) -> tuple[bytes, bytes, bytes]:
        envelope = (self.storage / name).read_bytes()
        text, _, rest = envelope.partition(b"\n--\n")
        line, _, signature = rest.partition(b"\n")
        text += b"\n"
        self.require(digest_of(text, line.decode()) == line.decode(), f"{name}: the hash line is wrong")
        return text, line, signature

    def manifest(self) -> dict[str, str]:
        text, line, signature = self.signed(".cvmfspublished")
        fields = {row[:1].decode(): row[1:].decode() for row in text.splitlines()}
        self.require(fields["R"] == EMPTY_MD5, "manifest: R")
        self.require([row[:1] for row in text.splitlines()] == sorted_fields(text), "manifest: order of fields")
        self.require(int(fields["S"]) > 0, "manifest: revision 0")
        pem = self.object(fields["X"], "X")
        if pem is None:
            return fields
        stored_name = hashlib.sha1(zlib.compress(pem, 6)).hexdigest()
        if "-" not in fields["X"]:
            self.require(stored_name == fields["X"], "the certificate is not compressed by classic zlib")
        certificate = x509.load_pem_x509_certificate(pem)
        key = certificate.public_key()
        key.verify(signature, line, padding.PKCS1v15(), hashes.SHA1())  # type: ignore[union-attr, call-arg, arg-type]
        self.whitelist(fields["N"], certificate.public_bytes(Encoding.DER))
        return fields

    def whitelist(self, name: str, certificate: bytes) -> None:
        text, line, signature = self.signed(".cvmfswhitelist")
        numbers = load_pem_public_key(self.public_key).public_numbers()  # type: ignore[union-attr]
        length = (numbers.n.bit_length() + 7) // 8  # type: ignore[union-attr]
        recovered = pow(int.from_bytes(signature), numbers.e, numbers.n).to_bytes(length)  # type: ignore[union-attr]
        padded = b"\0\1" + b"\xff" * (length - len(line) - 3) + b"\0" + line
        self.require(recovered == padded, "whitelist: not signed by the master key")
        lines = text.decode().splitlines()
        self.require(len(lines[0]) == 14 and lines[1][0] == "E" and lines[2] == f"N{name}", "whitelist: header")
        listed = {row.split("#")[0].strip().replace(":", "").lower() for row in lines[3:]}
        known = {digest_of(certificate, suffix) for suffix in SUFFIXES.values()}
        self.require(bool(listed & known), "whitelist: the certificate is not listed")

    # catalogs -------------------------------------------------------------------------------------------------------

    def catalog(self, mountpoint: bytes, database: bytes, transition: Row | None) -> tuple[Counter[str], Counter[str]]:
        self.catalogs += 1
        where = f"catalog {mountpoint!r}"
        connection = open_database(database)
        try:
            own = self.rows(connection, mountpoint, where, transition)
            subtree: Counter[str] = Counter()
            below = self.nested(connection, mountpoint, where)
            own["nested"] = len(below)
            for path, child_text, size, row in below:
                data = self.object(child_text, "C")
                if data is None:
                    continue
                self.require(size in (0, len(data)), f"{where}: {path!r} is listed with another size")
                child_own, child_subtree = self.catalog(path, data, row)
                subtree.update(child_own)
                subtree.update(child_subtree)
            stated = {name.decode(): value for name, value in connection.execute("SELECT * FROM statistics")}
            for name in COUNTERS:
                found = (stated.get(f"self_{name}"), stated.get(f"subtree_{name}"))
                self.require(found == (own[name], subtree[name]), f"{where}: counter {name} is {found}")
            self.require(len(stated) == 2 * len(COUNTERS), f"{where}: {len(stated)} counters")
        finally:
            connection.close()
        return own, subtree

    def rows(
        self, connection: sqlite3.Connection, mountpoint: bytes, where: str, transition: Row | None
    ) -> Counter[str]:
        properties = {key.decode(): value for key, value in connection.execute("SELECT * FROM properties")}
        self.require(properties.get("schema") == b"2.5", f"{where}: schema")
        self.require(properties.get("root_prefix", b"") == mountpoint, f"{where}: root_prefix")
        self.require(int(properties.get("revision", b"0")) > 0, f"{where}: revision")
        self.require((b"TTL" in [key.encode() for key in properties]) or mountpoint != b"", f"{where}: TTL")
        wal = connection.execute("PRAGMA journal_mode").fetchone()[0]
        self.require(wal != b"wal", f"{where}: WAL mode")
        children: dict[tuple[int, int], list[tuple[tuple[int, int], bytes, Row]]] = defaultdict(list)
        found: dict[tuple[int, int], Row] = {}
        statement = (
            "SELECT md5path_1, md5path_2, parent_1, parent_2, hardlinks, hash, size, mode, mtime, mtimens, flags,"
            " name, symlink, uid, gid, xattr, typeof(name), typeof(symlink), typeof(hash) FROM catalog"
        )
        own: Counter[str] = Counter()
        for record in connection.execute(statement):
            row = self.row(record, where, own)
            found[record[0], record[1]] = row
            children[record[2], record[3]].append(((record[0], record[1]), record[11], row))
        self.entries += len(found)
        root = found.get(path_md5(mountpoint))
        if not self.require(root is not None, f"{where}: no root entry") or root is None:
            return own
        expected = DIRECTORY | (ROOT if mountpoint else 0)
        self.require(root.flags & ~HIDDEN == expected, f"{where}: flags of the root entry are {root.flags}")
        if transition is not None:
            same = (transition.mode, transition.size, transition.links, transition.rest)
            self.require((root.mode, root.size, root.links, root.rest) == same, f"{where}: transition entries differ")
        marker = mountpoint + b"/.cvmfscatalog"
        has_marker = path_md5(marker) in found
        self.require(has_marker == bool(mountpoint), f"{where}: marker in the wrong place or missing")
        reached = self.descend(mountpoint, children, where, {path_md5(mountpoint)})
        self.require(reached == set(found), f"{where}: {len(found) - len(reached)} dangling entries")
        self.chunks(connection, found, own, where)
        return own

    def descend(
        self,
        mountpoint: bytes,
        children: dict[tuple[int, int], list[tuple[tuple[int, int], bytes, Row]]],
        where: str,
        reached: set[tuple[int, int]],
    ) -> set[tuple[int, int]]:
        pending = [(mountpoint, None)]
        while pending:
            path, row = pending.pop()
            groups: dict[int, list[Row]] = defaultdict(list)
            directories = 0
            for key, name, child in children.get(path_md5(path), []):
                if child is row or key == path_md5(path):
                    continue
                child.path = path + b"/" + name
                self.require(name not in (b"", b".", b"..") and b"/" not in name, f"{where}: name {name!r}")
                self.require(path_md5(child.path) == key, f"{where}: {child.path!r} has another path's key")
                self.require(name != b".cvmfscatalog" or path == mountpoint, f"{where}: marker at {child.path!r}")
                reached.add(key)
                directories += child.is_directory
                if child.group:
                    groups[child.group].append(child)
                self.require(child.links > 0, f"{where}: {child.path!r} has link count 0")
                if child.links > 1 and not child.is_directory:
                    self.require(child.group > 0, f"{where}: {child.path!r} has links but no group")
                if child.is_directory and not child.flags & (NESTED | BIND):
                    pending.append((child.path, child))  # type: ignore[arg-type]
            for group, members in groups.items():
                same = {(row.mode, row.size, row.digest, row.links, row.rest) for row in members}
                self.require(len(same) == 1, f"{where}: group {group} in {path!r} is of several minds")
                self.require(members[0].links == len(members), f"{where}: group {group} in {path!r} is incomplete")
            if row is not None:
                self.require(row.links == 2 + directories, f"{where}: {path!r} has link count {row.links}")
        return reached

    def row(self, record: tuple, where: str, own: Counter[str]) -> Row:  # type: ignore[type-arg]
        links, digest, size, mode, flags, name, symlink, xattr = (
            record[index] for index in (4, 5, 6, 7, 10, 11, 12, 15)
        )
        row = Row(b"", links >> 32, links & 0xFFFFFFFF, digest, size, mode, flags, (*record[8:10], *record[13:16]))
        self.require(record[16] == record[17] == b"text", f"{where}: {name!r} is not text")
        self.require(digest is None or (record[18] == b"blob" and len(digest) == 20), f"{where}: hash of {name!r}")
        self.require(not row.is_directory or row.group == 0, f"{where}: directory {name!r} in a link group")
        own["xattr"] += xattr is not None
        kind = flags & (DIRECTORY | FILE | LINK | SPECIAL)
        if stat.S_ISDIR(mode):
            self.require(kind == DIRECTORY and digest is None, f"{where}: flags or hash of directory {name!r}")
            own["dir"] += 1
        elif stat.S_ISLNK(mode):
            self.require(kind == FILE | LINK and digest is None, f"{where}: flags or hash of link {name!r}")
            self.require(size in (0, len(symlink)), f"{where}: link {name!r} has another size")  # 0: ingested tars
            own["symlink"] += 1
        elif stat.S_ISREG(mode):
            self.require(kind == FILE, f"{where}: flags of file {name!r}")
            self.require((digest is None) == bool(flags & CHUNKED), f"{where}: file {name!r} has no content")
            own["regular"] += 1
            own["file_size"] += size
            if flags & CHUNKED:
                own["chunked"] += 1
                own["chunked_size"] += size
            if flags & EXTERNAL:
                own["external"] += 1
                own["external_file_size"] += size
            if digest is not None and not flags & EXTERNAL:
                self.content(digest, size, flags, "", f"{where}: {name!r}")
        else:
            self.require(kind == FILE | SPECIAL and digest is None, f"{where}: flags or hash of {name!r}")
            is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
            self.require(is_device or size == 0, f"{where}: size of {name!r}")
            own["special"] += 1
        if not stat.S_ISREG(mode):
            self.require(not flags & (EXTERNAL | DIRECT | CHUNKED), f"{where}: file bits on {name!r}")
        return row

    def chunks(
        self, connection: sqlite3.Connection, found: dict[tuple[int, int], Row], own: Counter[str], where: str
    ) -> None:
        ends: dict[tuple[int, int], int] = defaultdict(int)
        statement = "SELECT md5path_1, md5path_2, offset, size, hash FROM chunks ORDER BY 1, 2, 3"
        for first, second, offset, size, digest in connection.execute(statement):
            own["chunks"] += 1
            row = found.get((first, second))
            if not self.require(row is not None, f"{where}: chunk of no file") or row is None:
                continue
            self.require(offset == ends[first, second], f"{where}: gap in the chunks of {row.path!r}")
            ends[first, second] += size
            if not row.flags & EXTERNAL:
                self.content(digest, size, row.flags, "P", f"{where}: chunk of {row.path!r}")
        for key, row in found.items():
            if row.flags & CHUNKED:
                self.require(ends.get(key) == row.size, f"{where}: the chunks of {row.path!r} do not cover it")

    def content(self, digest: bytes, size: int, flags: int, letter: str, what: str) -> None:
        algorithm, uncompressed = flags >> 8 & 7, flags >> 11 & 7
        data = self.object(digest.hex() + SUFFIXES[algorithm], letter, compressed=not uncompressed)
        self.require(data is None or len(data) == size, f"{what}: the content has another size")

    def nested(
        self, connection: sqlite3.Connection, mountpoint: bytes, where: str
    ) -> list[tuple[bytes, str, int, Row]]:
        result = []
        listed = connection.execute("SELECT path, sha1, size FROM nested_catalogs").fetchall()
        count = connection.execute("SELECT count(*) FROM catalog WHERE flags & 2").fetchone()[0]
        self.require(count == len(listed), f"{where}: {count} mount points, {len(listed)} rows of nested catalogs")
        for path, text, size in listed:
            record = connection.execute(
                "SELECT hardlinks, hash, size, mode, mtime, mtimens, flags, uid, gid, xattr FROM catalog"
                " WHERE md5path_1 = ? AND md5path_2 = ?",
                path_md5(path),
            ).fetchone()
            if not self.require(record is not None, f"{where}: {path!r} is listed but has no entry"):
                continue
            rest = (*record[4:6], *record[7:10])
            row = Row(path, 0, record[0] & 0xFFFFFFFF, record[1], record[2], record[3], record[6], rest)
            self.require(row.flags & ~HIDDEN == DIRECTORY | NESTED, f"{where}: flags of mount point {path!r}")
            below = path_md5(path)
            inside = connection.execute(
                "SELECT count(*) FROM catalog WHERE parent_1 = ? AND parent_2 = ?", below
            ).fetchone()[0]
            self.require(inside == 0, f"{where}: entries below the mount point {path!r}")
            self.require(path.startswith(mountpoint + b"/"), f"{where}: {path!r} lies elsewhere")
            result.append((path, text.decode(), size or 0, row))
        return result

    # databases beside the catalogs ----------------------------------------------------------------------------------

    def history(self, manifest: dict[str, str]) -> None:
        if "H" not in manifest:
            return
        data = self.object(manifest["H"], "H")
        if data is None:
            return
        connection = open_database(data)
        names = {name.decode() for (name,) in connection.execute("SELECT branch FROM branches")}
        self.require("" in names, "history: no main branch")
        for name, text, revision, branch in connection.execute("SELECT name, hash, revision, branch FROM tags"):
            self.require(branch.decode() in names, f"history: tag {name!r} on an unknown branch")
            self.require(revision <= int(manifest["S"]), f"history: tag {name!r} of the future")
            self.object(text.decode(), "C")
        connection.close()

    def reflog(self, manifest: dict[str, str]) -> None:
        path = self.storage / ".cvmfsreflog"
        if not path.exists():
            return
        data = path.read_bytes()
        if "Y" in manifest:
            self.require(digest_of(data, manifest["Y"]) == manifest["Y"], "reflog: not the one the manifest names")
        connection = open_database(data)
        known = {(text.decode(), kind) for text, kind in connection.execute("SELECT hash, type FROM refs")}
        for letter, kind in (("C", 0), ("X", 1), ("H", 2), ("M", 3)):
            if letter in manifest:
                self.require((manifest[letter], kind) in known, f"reflog: lacks the manifest's {letter}")
        connection.close()


def sorted_fields(text: bytes) -> list[bytes]:
    """The fields of a manifest in the order in which the reference writes them."""
    order = b"CBRDSGALNXHTMYZ"
    return sorted((row[:1] for row in text.splitlines()), key=order.index)


def open_database(data: bytes) -> sqlite3.Connection:
    """The database *data*, opened as a file that nobody else sees."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(data)
    connection = sqlite3.connect(file.name)
    connection.text_factory = bytes
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    Path(file.name).unlink()
    return connection


def findings(storage: Path, public_key: Path) -> list[str]:
    """What is wrong with the repository in *storage*; empty if nothing is."""
    return Checker(storage, public_key.read_bytes()).run().findings
