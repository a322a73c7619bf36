"""What a layer changes: names, whiteouts, what is left out, the stored form."""

import stat
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.changeset import Change, ChangeSet, canonical_name, decode, encode
from converter.errors import ChangeSetError, LayerError
from fs.format.compression import Compression
from fs.format.hashes import Hash
from fs.format.tree import Chunk, Content
from tests.support.tars import binary, changes, entry, header, pax

DIFF_ID = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"/a"),
        (b"./a/b/", b"/a/b"),
        (b"/etc//passwd", b"/etc/passwd"),
        (b"../../tmp/x", b"/tmp/x"),
        (b"a/./../b", b"/b"),
        (b".", b""),
        (b"./", b""),
        (b"/", b""),
        (b"a/..", b""),
        (b"..hidden/...", b"/..hidden/..."),
        (b"caf\xe9\\", b"/caf\xe9\\"),
    ],
)
def test_names_stay_below_the_root(name: bytes, path: bytes) -> None:
    assert canonical_name(name) == path


@given(st.binary(max_size=300).filter(lambda name: b"\0" not in name))
def test_no_name_leaves_the_root(name: bytes) -> None:
    with suppress(LayerError):
        path = canonical_name(name)
        assert path == b"" or path.startswith(b"/")
        assert not {b"", b".", b".."} & set(path.split(b"/")[1:])


@pytest.mark.parametrize("name", [b"n" * 256, b"d/" * 2100 + b"f"])
def test_too_long_names_are_refused_and_not_cut(name: bytes) -> None:
    with pytest.raises(LayerError, match="bytes"):
        canonical_name(name)


def test_whiteouts_are_no_entries() -> None:
    found = changes(entry(b"d/.wh.gone") + entry(b".wh.top") + entry(b"o/.wh..wh..opq") + entry(b"kept"))

    assert [change.path for change in found.entries] == [b"/kept"]
    assert found.whiteouts == (b"/d/gone", b"/top")
    assert found.opaque == (b"/o",)


@pytest.mark.parametrize("name", [b".wh.", b"a/.wh..", b".wh...", b".wh.dir/file"])
def test_whiteouts_that_cannot_be_are_refused(name: bytes) -> None:
    with pytest.raises(LayerError) as caught:
        changes(entry(name))

    assert caught.value.entry == name


@pytest.mark.parametrize(
    "archive",
    [
        entry(b".wh..wh.aufs"),
        entry(b".wh..wh.plnk/1.2"),
        entry(b"d/.cvmfscatalog"),
        entry(b".cvmfsdirtab", b"/*"),
        header(b"dev", b"3"),
    ],
)
def test_what_no_image_may_bring_is_left_out_with_a_warning(archive: bytes) -> None:
    found = changes(archive)

    assert found.entries == ()
    assert len(found.warnings) == 1


@pytest.mark.parametrize(
    ("key", "value", "is_kept"),
    [
        (b"user.a", b"v", True),
        (b"security.capability", b"\1\0", True),
        (b"system.posix_acl_access", b"\2", True),
        (b"user.big", b"v" * 255, True),
        (b"user.big", b"v" * 256, False),
        (b"trusted.overlay.opaque", b"y", False),
        (b"trusted.mine", b"y", False),
        (b"user.overlay.redirect", b"/etc", False),
        (b"security.selinux", b"label", False),
        (b"com.apple.quarantine", b"x", False),
    ],
)
def test_extended_attributes(key: bytes, value: bytes, is_kept: bool) -> None:
    found = changes(pax((b"SCHILY.xattr." + key, value)) + entry(b"file"))

    assert found.entries[0].xattrs == ({key: value} if is_kept else None)
    assert bool(found.warnings) is not is_kept


def test_modes_and_owners_are_kept() -> None:
    archive = entry(b"su", mode=0o6755, uid=7, gid=binary(4_000_000_000, 8)) + header(b"l", b"2", mode=0o640, link=b"t")

    file, link = changes(archive).entries

    assert (file.mode, file.uid, file.gid) == (stat.S_IFREG | 0o6755, 7, 4_000_000_000)
    assert link.mode == stat.S_IFLNK | 0o777


def test_repeated_path_is_warned_of() -> None:
    found = changes(entry(b"x", b"1") + entry(b"./x", b"2") + header(b"d/", b"5") + header(b"d/", b"5"))

    assert len(found.entries) == 4
    assert len(found.warnings) == 1
    assert "'x'" in found.warnings[0]


@pytest.mark.parametrize(
    "archive",
    [header(b"./", b"2", link=b"/tmp"), entry(b"."), header(b"l", b"2"), header(b"h", b"1", link=b"/")],
    ids=["root as symlink", "root as file", "symlink to nothing", "hard link to the root"],
)
def test_entries_that_make_no_sense_are_refused(archive: bytes) -> None:
    with pytest.raises(LayerError):
        changes(archive)


def test_warnings_cannot_steer_a_terminal_and_are_limited() -> None:
    found = changes(b"".join(entry(b"\x1b[31m%d/.cvmfscatalog" % number) for number in range(300)))

    assert "\x1b" not in "".join(found.warnings)
    assert len(found.warnings) == 201


# --- the stored form

names = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, ord("/")} & set(name))
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: b"/" + b"/".join(parts))
hashes = st.binary(min_size=20, max_size=20).map(Hash)
contents = st.one_of(
    st.builds(Content, st.integers(0, 1 << 40), hashes, st.just(()), st.sampled_from(Compression)),
    st.builds(
        Content,
        st.integers(0, 1 << 40),
        st.none(),
        st.lists(st.builds(Chunk, st.integers(0), st.integers(0), hashes)).map(tuple),
    ),
)
others = {"content": st.none(), "target": st.just(b""), "rdev": st.just(0), "link": st.none()}
attributes = {
    **others,
    "uid": st.integers(0, 1 << 32),
    "gid": st.integers(0, 1 << 32),
    "mtime_ns": st.integers(-(1 << 70), 1 << 70),
    "xattrs": st.one_of(st.none(), st.dictionaries(names, st.binary(max_size=9), min_size=1, max_size=3)),
}


def entry_of(file_type: int, path: st.SearchStrategy[bytes] = paths, **own: object) -> st.SearchStrategy[Change]:
    modes = st.integers(0, 0o7777).map(lambda mode: file_type | mode)
    return st.builds(Change, path, mode=modes, **{**attributes, **own})  # type: ignore[arg-type]


entries = st.one_of(
    entry_of(stat.S_IFREG, content=contents),
    entry_of(stat.S_IFDIR, st.one_of(paths, st.just(b""))),
    entry_of(stat.S_IFLNK, target=st.binary(min_size=1, max_size=20)),
    entry_of(stat.S_IFBLK, rdev=st.integers(0, 1 << 32)),
    entry_of(stat.S_IFIFO),
    st.builds(lambda path, link: Change(path, link=link), paths, paths),
)
change_sets = st.builds(
    ChangeSet,
    diff_id=st.just(DIFF_ID),
    unpacked_bytes=st.integers(0, 1 << 50),
    entries=st.lists(entries, max_size=5).map(tuple),
    whiteouts=st.lists(paths, max_size=3).map(tuple),
    opaque=st.lists(paths, max_size=3).map(tuple),
    warnings=st.lists(st.text(max_size=10), max_size=2).map(tuple),
)


@given(change_sets)
def test_decode_inverts_encode(change_set: ChangeSet) -> None:
    assert decode(encode(change_set)) == change_set


STORED = encode(
    ChangeSet(
        diff_id=DIFF_ID,
        unpacked_bytes=1,
        entries=(
            Change(b"/f", stat.S_IFREG, content=Content(1, Hash(bytes(20))), xattrs={b"user.a": b"v"}),
            Change(b"/d", stat.S_IFBLK, rdev=5),
            Change(b"/h", link=b"/f"),
        ),
    )
)


@given(
    st.one_of(
        st.binary(max_size=50),
        st.tuples(st.integers(0, len(STORED)), st.binary(max_size=3)).map(
            lambda damage: STORED[: damage[0]] + damage[1] + STORED[damage[0] + len(damage[1]) :]
        ),
    )
)
def test_no_bytes_raise_anything_but_change_set_error(stored: bytes) -> None:
    with suppress(ChangeSetError):
        decode(stored)


def test_other_version_is_named() -> None:
    with pytest.raises(ChangeSetError, match="version 9"):
        decode(STORED.replace(b'"version":1', b'"version":9'))
