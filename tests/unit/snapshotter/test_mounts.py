from pathlib import PurePosixPath as P

from snapshotter.mounts import Mount, OverlayTraits, active_mounts, view_mounts

PLAIN = OverlayTraits()


def test_active_without_parent_is_a_bind_mount() -> None:
    assert active_mounts(upper=P("/r/s/1/fs"), work=P("/r/s/1/work"), lowers=[], traits=PLAIN) == (
        Mount(type="bind", source="/r/s/1/fs", options=("rw", "rbind")),
    )


def test_active_with_parents_is_an_overlay_uppermost_first() -> None:
    (mount,) = active_mounts(
        upper=P("/r/s/3/fs"),
        work=P("/r/s/3/work"),
        lowers=[P("/r/l/2"), P("/r/l/1")],
        traits=OverlayTraits(index_off=True),
    )

    assert mount.type == mount.source == "overlay"
    assert mount.options == ("index=off", "workdir=/r/s/3/work", "upperdir=/r/s/3/fs", "lowerdir=/r/l/2:/r/l/1")


def test_views_cannot_be_written() -> None:
    own, one, two = P("/r/s/3/fs"), P("/r/l/1"), P("/r/l/2")

    assert view_mounts(own=own, lowers=[], traits=PLAIN)[0] == Mount(
        type="bind", source="/r/s/3/fs", options=("ro", "rbind")
    )
    assert view_mounts(own=own, lowers=[one], traits=PLAIN)[0] == Mount(
        type="bind", source="/r/l/1", options=("ro", "rbind")
    )
    (overlay,) = view_mounts(own=own, lowers=[two, one], traits=OverlayTraits(userxattr=True))
    assert overlay.options == ("userxattr", "lowerdir=/r/l/2:/r/l/1")


def test_id_mappings_are_added() -> None:
    mapping = ("uidmap=0:1000:10", "gidmap=0:1000:10")
    (mount,) = active_mounts(upper=P("/u"), work=P("/w"), lowers=[P("/l")], traits=PLAIN, id_mapping=mapping)

    assert mount.options[-2:] == mapping
