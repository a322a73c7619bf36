from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import FilterSyntaxError
from snapshotter.filters import parse_filters
from snapshotter.snapshots import Info, Kind

REF = "containerd.io/snapshot.ref"
INFO = Info(
    name="default/4/web1",
    parent="",
    kind=Kind.ACTIVE,
    created_ns=1,
    updated_ns=1,
    labels={"l": "2", REF: "sha256:ab", "odd": 'a "b"\n'},
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "name",
        "parent",
        'parent==""',
        "name==default/4/web1",
        "name == default/4/web1 , kind==active",
        'name=="default/4/web1"',
        "name!=other",
        "labels.l",
        "labels.l==2",
        'labels."containerd.io/snapshot.ref"==sha256:ab,parent==""',
        "labels.containerd.io!=x",
        "labels.absent!=2",
        "name~=web",
        r"name~=/\/web\d$/",
        "name~=|^default/|",
        'name~="web[0-9]"',
        r"name~=1\z",
        r'labels.odd=="a \"b\"\x0a"',
        r'labels.odd=="a \u0022b\U00000022\012"',
        "name~=(?i)WEB",
    ],
)
def test_matching_filters(text: str) -> None:
    assert parse_filters([text]).matches(INFO)


@pytest.mark.parametrize(
    "text",
    [
        "name==web1",
        "kind==committed",
        "kind==ACTIVE",
        "labels.absent",
        "labels.absent==2",
        "labels",
        "nothing",
        "nothing==x",
        "name.x",
        "name!=default/4/web1",
        "labels.l==2,kind==view",
        "labels.absent~=.*",
        'parent!=""',
    ],
)
def test_filters_that_do_not_match(text: str) -> None:
    assert not parse_filters([text]).matches(INFO)


@pytest.mark.parametrize(
    "text",
    [
        "==x",
        "name==",
        "name=x",
        "name==x,",
        ",name",
        "name==x name",
        "name.",
        '"name',
        r'name=="\q"',
        r'name=="\ud800"',
        r'name=="\400"',
        r'name=="\U00110000"',
        "name~=/(/",
        "name~=/x",
        'name=="a\nb"',
        "na-me==x",
        "name~=" + "a" * 1025,
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(FilterSyntaxError):
        parse_filters([text])


def test_any_filter_of_the_list_is_enough() -> None:
    assert parse_filters(["name==x", "labels.l"]).matches(INFO)
    assert parse_filters([]).matches(INFO)


def test_the_reference_that_all_filters_demand_is_known() -> None:
    by_reference = f'labels."{REF}"==a'

    assert parse_filters([f'{by_reference},parent==""', by_reference]).required_reference == "a"
    assert parse_filters([by_reference, f'labels."{REF}"==b']).required_reference is None
    assert parse_filters([by_reference, "name==x"]).required_reference is None
    assert parse_filters([f'labels."{REF}"!=a']).required_reference is None
    assert parse_filters([]).required_reference is None


@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_text_raises_anything_but_filter_syntax_error(texts: list[str]) -> None:
    with suppress(FilterSyntaxError):
        parse_filters(texts).matches(INFO)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='"\\')))
def test_quoted_values_are_taken_as_they_are(value: str) -> None:
    info = Info(name=value, parent="", kind=Kind.VIEW, created_ns=1, updated_ns=1, labels={})

    assert parse_filters([f'name=="{value}"']).matches(info)
