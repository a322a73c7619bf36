"""What mount(8) gives becomes what ``unpackd mount`` takes."""

import pytest

from fs.client.mount_helper import arguments


def test_a_line_of_fstab() -> None:
    options = "ro,_netdev,x-systemd.automount,url=http://a/r;http://b/r,pubkey=/k.pub,tag=v1,raw-symlinks"

    assert arguments(["repo.example.org", "/cvmfs/repo", "-n", "-t", "unpackd", "-o", options]) == [
        "mount", "repo.example.org", "/cvmfs/repo",
        "--url", "http://a/r;http://b/r", "--pubkey", "/k.pub", "--tag", "v1", "--raw-symlinks",
    ]  # fmt: skip


@pytest.mark.parametrize("option", ["urls=x", "tag", "what"])
def test_an_option_that_nobody_knows_is_named(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        arguments(["repo", "/mnt", "-o", f"ro,{option}"])
