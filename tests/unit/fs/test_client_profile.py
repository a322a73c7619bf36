"""Profiles, read-ahead and figures: everything of a mount that only counts and decides."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.client.metrics import Latencies, Metric, exposition
from fs.client.neighbours import Around, Neighbours
from fs.client.prefetch import ReadAhead
from fs.client.profile import Read, ReadRecorder, parse_profile, profile_document
from fs.errors import MalformedError

MIB = 1 << 20


def test_first_reads_are_kept_in_order() -> None:
    recorder = ReadRecorder()
    recorder.whole(b"/b")
    recorder.chunk(b"/big", 3)
    recorder.whole(b"/a")
    recorder.whole(b"/b")
    recorder.chunk(b"/big", 0)
    recorder.chunk(b"/big", 3)

    assert recorder.reads() == [Read(b"/b"), Read(b"/big", (3, 0)), Read(b"/a")]


def test_a_recorder_is_bounded() -> None:
    recorder = ReadRecorder(most_files=2)
    for number in range(5):
        recorder.whole(b"/%d" % number)
        recorder.chunk(b"/c%d" % number, 0)

    assert len(recorder.reads()) == 2


names = st.binary(min_size=1, max_size=8).filter(lambda name: b"/" not in name and b"\0" not in name and name != b".")


@given(st.lists(st.builds(Read, names.map(lambda name: b"/" + name), st.lists(st.integers(0, 99)).map(tuple))))
def test_parse_inverts_the_document(reads: list[Read]) -> None:
    assert parse_profile(json.dumps(profile_document("x.example.org", 1, reads)).encode()) == reads


def test_a_list_of_paths_is_a_profile() -> None:
    assert parse_profile(b"/a/b\n\nc//d/\n") == [Read(b"/a/b"), Read(b"/c/d")]


@pytest.mark.parametrize("text", [b"{", b"{}", b'{"version": 2, "reads": []}', b'{"version": 1, "reads": [1]}'])
def test_what_is_no_profile_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_profile(text)


def test_a_sequential_reader_gets_more_and_more_ahead() -> None:
    ahead = ReadAhead()
    wanted: list[int] = []
    for offset in range(0, 64 * MIB, MIB):
        wanted += ahead.next_chunks(b"/big", offset, MIB, offset // (4 * MIB), 20)

    assert wanted == list(range(1, 20))
    assert ahead.next_chunks(b"/big", 64 * MIB, MIB, 16, 20) == range(0)


def test_a_random_reader_gets_nothing_ahead() -> None:
    ahead = ReadAhead()
    offsets = [40, 3, 20, 60, 9] * 10

    assert not [at for at in offsets if ahead.next_chunks(b"/big", at * MIB, 4096, at // 4, 20)]


def test_a_glance_at_the_beginning_fetches_one_chunk_only() -> None:
    assert ReadAhead().next_chunks(b"/big", 0, 131072, 0, 20) == range(0)


def test_readers_of_a_directory_get_more_and_more_of_it() -> None:
    around = Neighbours()

    counts = [[one.count for one in around.missed(b"/d/%d" % number, 100)] for number in range(9)]

    assert counts == [[], [], [32], [], [], [64], [], [], [128]]
    assert not any(around.missed(b"/other/%d" % number, 100) for number in range(1))
    assert max(one.count for number in range(99) for one in around.missed(b"/d/%d" % number, 100)) == 512


def test_large_files_say_nothing_about_others() -> None:
    around = Neighbours()

    assert not any(around.missed(b"/d/%d" % number, 1 << 20) for number in range(9))


def test_who_reads_one_directory_after_the_other_gets_the_next_ones() -> None:
    around = Neighbours()
    missed = [around.missed(b"/lib/p%d/cache/m.x.pyc" % number, 100) for number in (0, 0, 1, 1, 2, 3)]

    assert missed[:3] == [[], [], []]
    assert missed[3:] == [
        [Around(b"/lib", count, b".pyc", b"p%d" % package)] for count, package in ((128, 1), (256, 2), (512, 3))
    ]


def test_a_single_directory_says_nothing_about_those_beside_it() -> None:
    around = Neighbours()

    tops = {one.top for number in range(30) for one in around.missed(b"/lib/p/%d.py" % number, 100)}

    assert tops == {b"/lib/p"}


def test_percentiles_and_histogram() -> None:
    latencies = Latencies()
    assert latencies.percentile(0.5) is None
    for number in range(100):
        latencies.add(number / 1000)

    assert latencies.percentile(0.5) == pytest.approx(0.05)
    assert latencies.percentile(0.99) == pytest.approx(0.099)
    lines = list(latencies.lines("x"))
    assert 'x_bucket{le="0.05"} 51' in lines
    assert lines[-1] == "x_count 100"


def test_the_text_for_prometheus() -> None:
    text = exposition(
        [
            Metric("revision", "gauge", "Revision", 7),
            Metric("host", "counter", "Requests", {(("url", 'http://a"b\\c'),): 3.0}),
        ],
        "x.example.org",
    )

    assert text == (
        "# HELP unpackd_mount_revision Revision\n# TYPE unpackd_mount_revision gauge\n"
        'unpackd_mount_revision{repository="x.example.org"} 7\n'
        "# HELP unpackd_mount_host Requests\n# TYPE unpackd_mount_host counter\n"
        'unpackd_mount_host{url="http://a\\"b\\\\c"} 3\n'
    )
