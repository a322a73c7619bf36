from converter import placement
from converter.start_profiles import reads_of_image
from fs.client.profile import Read

CHAIN = "sha256:" + "ab" * 32
FLAT = b"/.flat/cd/" + b"cd" * 32


def test_only_what_belongs_to_the_image_is_kept_in_order() -> None:
    image = Read(placement.root_image_path(CHAIN))
    first, second = Read(FLAT + b"/usr/bin/python3"), Read(FLAT + b"/lib/big", (3, 0))
    others = [Read(FLAT), Read(FLAT + b"2/etc/passwd"), Read(b"/.flat/00/x"), Read(placement.start_profile_path(CHAIN))]

    assert reads_of_image([others[0], second, *others[1:], image, first], CHAIN, FLAT) == [second, image, first]


def test_a_chain_is_not_another_one() -> None:
    other = "sha256:" + "ac" * 32

    assert reads_of_image([Read(placement.root_image_path(other))], CHAIN, FLAT) == []


def test_what_was_read_through_the_content_view_is_named_by_its_path() -> None:
    seen = [Read(b"/.unpackd/content" + FLAT + b"/a"), Read(FLAT + b"/a")]

    assert reads_of_image(seen, CHAIN, FLAT) == [Read(FLAT + b"/a")]
