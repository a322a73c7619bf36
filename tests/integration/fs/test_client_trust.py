"""Whom a mount believes: keys in directories, authorities, blacklists that change while it runs."""

import os
import shutil
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fs.client.chain import Anchor, read_public_keys
from fs.errors import AbsentError, BlacklistedError, MalformedError, NotTrustedError
from fs.format.hashes import Hash
from fs.format.trust import load_public_keys
from fs.format.whitelist import Whitelist, encode_fingerprint
from tests.support.authorities import Certified, authority, write_authorities
from tests.support.flaky_origin import flaky_origin, flipped
from tests.support.library import opened
from tests.support.mounts import mounted, unpackd
from tests.support.processes import unmount_below, wait_until
from tests.support.published import Published, publish


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.put(file=b"content")
    return made


@pytest.fixture
def signer(published: Published, tmp_path: Path) -> Certified:
    """Whom the authority in ``tmp_path/ca`` lets sign the whitelist; it has done so."""
    root = authority()
    made = root.certify("Signer", uri=f"cvmfs:{published.name}")
    write_authorities(tmp_path / "ca", certificates=[root, authority("Other")], lists=[root.revoke()])
    _enclose(published, made)
    return made


def _enclose(published: Published, signer: Certified) -> None:
    now = datetime.now(UTC)
    own = (Hash.of(published.writer._keys.certificate_der),)
    text = Whitelist(issued=now, expires=now + timedelta(days=1), name=published.name, fingerprints=own).encode()
    marked = text.replace(f"N{published.name}\n".encode(), f"N{published.name}\nVpkcs7\n".encode())
    (published.storage / ".cvmfswhitelist").write_bytes(marked + b"--\n")
    (published.storage / ".cvmfswhitelist.pkcs7").write_bytes(signer.enclose(marked))


@pytest.mark.root
def test_a_mount_believes_authorities_and_keeps_why(published: Published, signer: Certified, tmp_path: Path) -> None:
    with flaky_origin(published.storage) as origin:
        key = tmp_path / "ca"
        with mounted(published.name, [origin.url], key, tmp_path / "work", key_option="--ca-dir") as mount:
            assert (mount.path / "file").read_bytes() == b"content"
        refused = unpackd(
            "mount", published.name, tmp_path / "work" / "mnt", "--url", origin.url, "--pubkey", published.public_key,
            "--cache", tmp_path / "other",
        )  # fmt: skip
        assert refused.returncode == 12
        assert "--ca-dir" in refused.stderr
        url = origin.url
    with mounted(published.name, [url], key, tmp_path / "work", key_option="--ca-dir") as mount:
        assert mount.control("status")["is_offline"]
        assert (mount.path / "file").read_bytes() == b"content"
    unmount_below(tmp_path)


def test_the_enclosed_whitelist_is_what_counts(published: Published, signer: Certified, tmp_path: Path) -> None:
    trust = Anchor(published.name, (), ca_directories=(tmp_path / "ca",))
    with flaky_origin(published.storage) as origin:
        with opened(published.name, [origin.url], published.public_key, tmp_path / "1", anchor=trust) as library:
            assert library.content(b"/file") == b"content"
        for part, answer in (("pkcs7", flipped), ("pkcs7", lambda _: (404, b""))):
            origin.always(part, answer)
            with (
                pytest.raises((NotTrustedError, MalformedError, AbsentError)),
                opened(published.name, [origin.url], published.public_key, tmp_path / "2", anchor=trust),
            ):
                pass
            origin.mend()
    stranger = Certified(signer.key, authority().certify("Signer", uri=f"cvmfs:{published.name}").certificate)
    _enclose(published, stranger)
    with (
        pytest.raises(NotTrustedError),
        opened(published.name, [str(published.storage)], published.public_key, tmp_path / "3", anchor=trust),
    ):
        pass


@pytest.mark.root
def test_any_key_of_a_directory_will_do(published: Published, tmp_path: Path) -> None:
    keys = tmp_path / "keys.d"
    keys.mkdir()
    shutil.copy(publish(tmp_path / "a", "a.example.org").public_key, keys / "a.pub")
    empty = unpackd("mount", published.name, tmp_path, "--url", "file:///", "--pubkey", tmp_path / "made")
    assert (empty.returncode, "no public key" in empty.stderr) == (10, True)
    where = published.storage.as_uri()
    (tmp_path / "work" / "mnt").mkdir(parents=True)
    mount_it = ("mount", published.name, tmp_path / "work" / "mnt", "--url", where, "--cache", tmp_path / "c")
    assert unpackd(*mount_it, "--pubkey", keys).returncode == 12
    assert unpackd(*mount_it).returncode == 2
    shutil.copy(published.public_key, keys / "z.pub")
    with mounted(published.name, [where], keys, tmp_path / "work") as mount:
        assert (mount.path / "file").read_bytes() == b"content"
        assert os.getxattr(mount.path, "user.pubkeys").count(b"BEGIN PUBLIC KEY") == 2
    unmount_below(tmp_path)


def test_a_key_file_that_is_none_is_named(published: Published, tmp_path: Path) -> None:
    keys = tmp_path / "keys.d"
    keys.mkdir()
    shutil.copy(published.public_key, keys / "good.pub")
    (keys / "bad.pub").write_text("nothing")
    with pytest.raises(MalformedError, match=r"bad\.pub"):
        read_public_keys([keys])
    with pytest.raises(AbsentError, match="none"):
        read_public_keys([tmp_path / "none"])


def test_a_blacklist_is_read_at_each_refresh(published: Published, tmp_path: Path) -> None:
    blacklist = tmp_path / "blacklist"
    blacklist.write_text("# nothing yet\n")
    keys = load_public_keys(published.public_key.read_bytes())
    anchor = Anchor(published.name, keys, blacklists=(blacklist,))
    where = [str(published.storage)]
    with opened(published.name, where, published.public_key, tmp_path / "c", anchor=anchor) as library:
        blacklist.write_text(encode_fingerprint(Hash.of(published.writer._keys.certificate_der)) + "\n")
        published.put(file=b"by a thief")
        with pytest.raises(BlacklistedError, match="certificate"):
            library.run(library.repository.refresh)
        assert library.content(b"/file") == b"content"
        blacklist.unlink()
        with pytest.raises(AbsentError, match="blacklist"):
            library.run(library.repository.refresh)
        blacklist.write_text("")
        assert library.run(library.repository.refresh)
    blacklist.write_text(f"<{published.name} 99\n")
    with (
        pytest.raises(BlacklistedError, match="below 99"),
        opened(published.name, where, published.public_key, tmp_path / "c", anchor=anchor),
    ):
        pass


@pytest.mark.root
@pytest.mark.parametrize("frontend", ["pyfuse3", "wire"])
def test_a_mount_whose_revision_becomes_forbidden_ends(published: Published, tmp_path: Path, frontend: str) -> None:
    blacklist = tmp_path / "blacklist"
    blacklist.write_text("")
    options = ("--blacklist", blacklist, "--frontend", frontend)
    work = tmp_path / "work"
    with mounted(published.name, [published.storage.as_uri()], published.public_key, work, *options) as mount:
        with (mount.path / "file").open("rb", buffering=0) as held:
            blacklist.write_text(f"<{published.name} {published.writer.revision + 1}\n")
            refreshing = threading.Thread(target=unpackd, args=("mountctl", mount.path, "refresh"))
            refreshing.start()
            wait_until(lambda: not os.path.ismount(mount.path), "it is unmounted", timeout_s=20)
            refreshing.join(30)
            with pytest.raises(OSError):  # noqa: PT011  # whichever the kernel has for a file system that is gone
                held.read(1)
        assert "revision_forbidden" in mount.log_text()
    unmount_below(tmp_path)
