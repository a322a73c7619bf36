from pathlib import PurePosixPath as P

from snapshotter.mounts import Lowers, Mount, OverlayTraits, active_mounts, view_mounts

PLAIN = OverlayTraits()


def test_active_without_parent_is_a_bind_mount() -> None:
    assert active_mounts(upper=P("/r/s/1/fs"), work=P("/r/s/1/work"), lowers=Lowers(layers=()), traits=PLAIN) == (
        Mount(type="bind", source="/r/s/1/fs", options=("rw", "rbind")),
    )


def test_active_with_parents_is_an_overlay_uppermost_first() -> None:
    (mount,) = active_mounts(
        upper=P("/r/s/3/fs"),
        work=P("/r/s/3/work"),
        lowers=Lowers(layers=(P("/r/l/2"), P("/r/l/1"))),
        traits=OverlayTraits(index_off=True),
    )

    assert mount.type == mount.source == "overlay"
    assert mount.options == ("index=off", "workdir=/r/s/3/work", "upperdir=/r/s/3/fs", "lowerdir=/r/l/2:/r/l/1")


def test_views_cannot_be_written() -> None:
    own, one, two = P("/r/s/3/fs"), P("/r/l/1"), P("/r/l/2")

    assert view_mounts(own=own, lowers=Lowers(layers=()), traits=PLAIN)[0] == Mount(
        type="bind", source="/r/s/3/fs", options=("ro", "rbind")
    )
    assert view_mounts(own=own, lowers=Lowers(layers=(one,)), traits=PLAIN)[0] == Mount(
        type="bind", source="/r/l/1", options=("ro", "rbind")
    )
    (overlay,) = view_mounts(own=own, lowers=Lowers(layers=(two, one)), traits=OverlayTraits(userxattr=True))
    assert overlay.options == ("userxattr", "lowerdir=/r/l/2:/r/l/1")


def test_id_mappings_are_added() -> None:
    mapping = ("uidmap=0:1000:10", "gidmap=0:1000:10")
    (mount,) = active_mounts(
        upper=P("/u"), work=P("/w"), lowers=Lowers(layers=(P("/l"),)), traits=PLAIN, id_mapping=mapping
    )

    assert mount.options[-2:] == mapping


def test_a_whole_root_gets_the_same_options_with_and_without_its_metadata_image() -> None:
    traits = OverlayTraits(metadata_only=True)
    tree = Lowers(layers=(P("/r/l/9"), P("/r/l/1")), whole=True)
    imaged = Lowers(layers=(P("/r/l/9"), P("/r/m/1")), whole=True, data=P("/r/d"))

    ends = ("metacopy=on", "redirect_dir=on")
    assert tree.options(traits) == ("lowerdir=/r/l/9:/r/l/1", *ends)
    assert imaged.options(traits) == ("lowerdir=/r/l/9:/r/m/1::/r/d", *ends)
    assert tree.options(PLAIN) == ("lowerdir=/r/l/9:/r/l/1",)


def test_a_view_of_a_metadata_image_is_an_overlay() -> None:
    lowers = Lowers(layers=(P("/r/m/1"),), whole=True, data=P("/r/d"))

    (mount,) = view_mounts(own=P("/own"), lowers=lowers, traits=OverlayTraits(metadata_only=True))

    assert (mount.type, mount.options) == ("overlay", ("lowerdir=/r/m/1::/r/d", "metacopy=on", "redirect_dir=on"))


def test_many_lower_layers_are_not_short() -> None:
    assert Lowers(layers=(P("/r/m/1"),), data=P("/r/d")).is_short
    assert not Lowers(layers=(P("/some/where/l/1"),) * 250, data=P("/r/d")).is_short
