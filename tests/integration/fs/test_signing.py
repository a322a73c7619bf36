"""Keys: in files and in the hands of programs, exchanged, and about to end."""

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fs.errors import AbsentError, MalformedError, NotTrustedError, RefusedError
from fs.format.hashes import Hash
from fs.format.trust import load_public_keys
from fs.publish import keys as key_files
from fs.publish.check import CheckOptions, check_repository
from fs.publish.keys import create_keys, load_keys
from fs.publish.operations import PutFile
from fs.publish.published import read_whitelist
from fs.publish.repository import Repository, Settings
from fs.publish.revisions import verified_manifest
from fs.publish.rotation import rotate_key
from fs.publish.signers import CommandSigner, Digest, KeySigner, SignerError
from fs.store.local import LocalStore
from tests.integration.fs.conftest import REPOSITORY as NAME
from tests.support.independent_checker import findings
from tests.support.mounts import unpackd
from tests.support.processes import require_tool


def publish(repository: Repository, name: str) -> None:
    repository.commit([PutFile(b"/" + name.encode(), repository.ingester().add_bytes(name.encode()))])


def open_again(tmp_path: Path) -> Repository:
    return Repository.open(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)


def notes(tmp_path: Path, now: datetime | None = None) -> list[str]:
    """What the check notes; damage fails the test."""
    keys = load_public_keys((tmp_path / "keys" / f"{NAME}.pub").read_bytes())
    options = CheckOptions(keys=keys, now=now or datetime.now(UTC))
    found = check_repository(LocalStore(tmp_path / "storage"), options).findings
    assert [finding.message for finding in found if not finding.is_note] == []
    return [finding.message for finding in found]


def assert_trusted(tmp_path: Path) -> None:
    """Ours and a reader that shares no code believe the newest revision."""
    assert notes(tmp_path) == []
    assert findings(tmp_path / "storage", tmp_path / "keys" / f"{NAME}.pub") == []


# --- rotation


def test_a_new_key_signs_and_the_old_one_is_believed_until_the_next_whitelist(
    repository: Repository, tmp_path: Path
) -> None:
    publish(repository, "old")
    before = (tmp_path / "storage/.cvmfspublished").read_bytes()
    old_key = (tmp_path / "keys" / f"{NAME}.key").read_bytes()
    store = LocalStore(tmp_path / "storage")

    new = rotate_key(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)

    assert (tmp_path / "keys" / f"{NAME}.key").read_bytes() != old_key
    assert (tmp_path / "keys" / f"{NAME}.key").stat().st_mode & 0o777 == 0o600
    assert new.revision == 2
    assert new.manifest.certificate is not None
    assert len(read_whitelist(store).fingerprints) == 2
    assert_trusted(tmp_path)
    publish(new, "new")
    assert_trusted(tmp_path)
    keys = load_public_keys((tmp_path / "keys" / f"{NAME}.pub").read_bytes())
    (tmp_path / "storage/.cvmfspublished").write_bytes(before)
    assert verified_manifest(store, keys, datetime.now(UTC)).revision == 2, "a cached manifest is still believed"
    new.resign()
    with pytest.raises(NotTrustedError):
        verified_manifest(store, keys, datetime.now(UTC))


def test_a_rotation_that_is_killed_at_any_step_is_taken_up(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(repository, "old")
    template = tmp_path / "template"
    shutil.copytree(tmp_path / "storage", template / "storage")
    shutil.copytree(tmp_path / "keys", template / "keys")
    changes = {"left": 0}

    class Killed(BaseException):
        pass

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            changes["left"] -= 1
            if changes["left"] < 0:
                raise Killed
            return real(*arguments, **named)

        return call

    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(os, "rename", dying(os.rename))
    for step in range(40):
        for folder in ("storage", "keys"):
            shutil.rmtree(tmp_path / folder)
            shutil.copytree(template / folder, tmp_path / folder)
        changes["left"] = step
        try:
            rotate_key(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
        except Killed:
            changes["left"] = 1000
            assert [note for note in notes(tmp_path) if "reflog" not in note and "another version" not in note] == []
            publish(rotate_key(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False), "after")
            assert_trusted(tmp_path)
            assert not key_files.is_rotating(tmp_path / "keys", NAME)
        else:
            break
    assert step >= 6
    print(f"\nkilled at {step} steps")


def test_without_the_master_key_revisions_can_be_published_and_nothing_more(
    repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "keys" / f"{NAME}.masterkey").unlink()
    publisher = open_again(tmp_path)

    publish(publisher, "file")

    assert_trusted(tmp_path)
    with pytest.raises(AbsentError, match="master key"):
        publisher.resign()
    with pytest.raises(AbsentError, match="master key"):
        rotate_key(NAME, str(tmp_path / "storage"), tmp_path / "keys", durable=False)
    publish(open_again(tmp_path), "more")
    assert_trusted(tmp_path)


def test_a_certificate_of_another_key_is_refused(tmp_path: Path, made_keys: Path) -> None:
    shutil.copytree(made_keys, tmp_path / "keys")
    create_keys(tmp_path / "others", NAME, datetime.now(UTC))
    shutil.copy(tmp_path / "others" / f"{NAME}.crt", tmp_path / "keys" / f"{NAME}.crt")

    with pytest.raises(MalformedError, match="not the certificate of the key"):
        load_keys(tmp_path / "keys", NAME)


# --- programs that sign


@pytest.fixture
def programs(tmp_path: Path, made_keys: Path) -> Path:
    """The keys' folder with both private keys outside of it, in the hands of OpenSSL."""
    require_tool("openssl")
    shutil.copytree(made_keys, tmp_path / "keys")
    (tmp_path / "token").mkdir()
    for name in ("masterkey", "key"):
        (tmp_path / "keys" / f"{NAME}.{name}").rename(tmp_path / "token" / name)
        signer = tmp_path / "keys" / f"{NAME}.{name}.signer"
        signer.write_text(f"# a comment\nopenssl pkeyutl -sign -inkey '{tmp_path}/token/{name}'\n")
        signer.chmod(0o600)
    return tmp_path / "keys"


def test_programs_sign_whitelists_and_manifests(programs: Path, tmp_path: Path) -> None:
    repository = Repository.create(NAME, str(tmp_path / "storage"), programs, durable=False)
    publish(repository, "file")
    repository.resign()

    assert sorted(path.name for path in programs.iterdir()) == sorted(
        f"{NAME}.{ending}" for ending in ("crt", "pub", "key.signer", "masterkey.signer")
    )
    assert_trusted(tmp_path)


def test_programs_and_keys_make_the_same_signatures(programs: Path, tmp_path: Path) -> None:
    loaded = load_keys(programs, NAME)
    key = key_files._load(tmp_path / "token/key")
    for digest in Digest:
        assert loaded.repository.sign(b"some text", digest) == KeySigner(key).sign(b"some text", digest)


def test_a_key_in_a_program_is_exchanged_for_another_one(programs: Path, tmp_path: Path) -> None:
    Repository.create(NAME, str(tmp_path / "storage"), programs, durable=False)
    with pytest.raises(RefusedError, match=r"crt\.next"):
        rotate_key(NAME, str(tmp_path / "storage"), programs, durable=False)
    subject = ["-subj", "/CN=next", "-days", "10"]
    key = str(tmp_path / "token/next")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, *subject]
    subprocess.run([*made, "-out", str(programs / f"{NAME}.crt.next")], check=True, capture_output=True, timeout=60)
    signer = programs / f"{NAME}.key.signer.next"
    signer.write_text(f"openssl pkeyutl -sign -inkey '{tmp_path}/token/next'\n")
    signer.chmod(0o600)

    publish(rotate_key(NAME, str(tmp_path / "storage"), programs, durable=False), "file")

    assert [note for note in notes(tmp_path) if "certificate expires" not in note] == []
    assert findings(tmp_path / "storage", programs / f"{NAME}.pub") == []


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("openssl pkeyutl -sign -inkey /nowhere", SignerError, "status"),
        ("/no/such/program", SignerError, "cannot be run"),
        ("echo hello", SignerError, "no signature"),
        ("cat '{token}/other-signature'", SignerError, "signed something else"),
        ("", RefusedError, "does not hold a command"),
        ("openssl 'unfinished", RefusedError, "does not hold a command"),
    ],
)
def test_programs_that_do_not_sign(
    programs: Path, tmp_path: Path, command: str, error: type[Exception], words: str
) -> None:
    key = KeySigner(key_files._load(tmp_path / "token/key"))
    (tmp_path / "token/other-signature").write_bytes(key.sign(b"something else", Digest.SHA1))
    signer = programs / f"{NAME}.key.signer"
    signer.write_text(command.replace("{token}", str(tmp_path / "token")) + "\n")

    with pytest.raises(error, match=words):
        load_keys(programs, NAME).repository.sign(b"text", Digest.SHA1)


def test_a_command_that_others_may_change_is_refused(programs: Path) -> None:
    (programs / f"{NAME}.key.signer").chmod(0o620)

    with pytest.raises(RefusedError, match="changed by others"):
        load_keys(programs, NAME)


def test_the_signer_is_given_what_is_padded(programs: Path) -> None:
    signer = load_keys(programs, NAME).repository
    assert isinstance(signer, CommandSigner)

    assert Digest.SHA1.padded(b"abc")[15:] == Hash.of(b"abc").digest
    assert len(signer.sign(b"abc", Digest.NONE)) == 256


# --- expiry


def test_what_ends_soon_is_warned_of(make_repository: Callable[..., Repository], tmp_path: Path) -> None:
    days = {"ahead": 0}

    def clock() -> float:
        return (datetime.now(UTC) + timedelta(days=days["ahead"])).timestamp()

    repository = make_repository(Settings(clock=clock))

    assert repository.expiry_warnings() == []
    days["ahead"] = 24
    assert [warning.partition(" expires")[0] for warning in repository.expiry_warnings()] == ["the whitelist"]
    days["ahead"] = 350
    warnings = repository.expiry_warnings()
    assert "whitelist expired" in warnings[0]
    assert "certificate expires" in warnings[1]
    repository.resign()
    assert len(repository.expiry_warnings()) == 1
    later = datetime.now(UTC) + timedelta(days=350)
    assert ["rotate-key" in note for note in notes(tmp_path, later)] == [True]


def test_a_commit_says_what_ends_soon_but_not_each_time(
    make_repository: Callable[..., Repository], tmp_path: Path
) -> None:
    make_repository()
    later = (datetime.now(UTC) + timedelta(days=25)).timestamp()
    repository = Repository.open(
        NAME, str(tmp_path / "storage"), tmp_path / "keys", settings=Settings(clock=lambda: later), durable=False
    )

    with capture_logs() as logs:
        publish(repository, "one")
        publish(repository, "two")

    assert [(line["event"], line["repository"]) for line in logs] == [("signature_expires", NAME)]
    assert "repo resign" in logs[0]["reason"]


def test_the_commands(tmp_path: Path, made_keys: Path) -> None:
    storage, keys = tmp_path / "storage", tmp_path / "keys"
    shutil.copytree(made_keys, keys)
    Repository.create(NAME, str(storage), keys, durable=False)

    rotated = unpackd("repo", "rotate-key", "--storage", storage, "--keys", keys)
    assert (rotated.returncode, rotated.stdout) == (0, "")
    assert "certificate" in rotated.stderr
    resigned = unpackd("repo", "resign", "--storage", storage, "--keys", keys, "--json")
    assert resigned.returncode == 0, resigned.stderr
    assert '"warnings": []' in resigned.stdout
    info = unpackd("repo", "info", "--storage", storage)
    assert "certificate_expires" in info.stdout
    assert_trusted(tmp_path)
