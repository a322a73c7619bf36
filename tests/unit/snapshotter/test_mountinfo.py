from pathlib import Path

from snapshotter.mountinfo import MountPoint, parse_mountinfo


def test_points_are_unescaped_and_sharing_is_told() -> None:
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "30 22 0:26 / /a\\040b\\134c rw master:1 propagate_from:2 - tmpfs a\\040b rw\n"
        "31 22 0:27 / /plain rw - overlay overlay rw,lowerdir=/x\n"
    )

    assert list(parse_mountinfo(text)) == [
        MountPoint(Path("/"), is_shared=True, kind="ext4", source="/dev/vda"),
        MountPoint(Path("/a b\\c"), is_shared=False, kind="tmpfs", source="a b"),
        MountPoint(Path("/plain"), is_shared=False, kind="overlay", source="overlay"),
    ]
