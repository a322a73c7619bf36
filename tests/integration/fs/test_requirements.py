"""Commits that are only made if what they count on is still there; targets that readers expand."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from fs.errors import ChangedError, OvertakenError
from fs.publish.operations import (
    MakeDirectory,
    Operation,
    PutFile,
    PutSymlink,
    Remove,
    Require,
    RequireRevision,
    RequireSame,
)
from fs.publish.repository import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository.create("test.example.org", str(tmp_path / "storage"), tmp_path / "keys", durable=False)
    made.commit([MakeDirectory(b"/a/b", nested=True)])
    return made


@pytest.mark.parametrize("required", [Require(b"/a/gone"), Require(b"/a/b/c/d"), RequireRevision(1)])
def test_what_is_required_and_is_not_stops_a_commit(repository: Repository, required: Operation) -> None:
    with pytest.raises(OvertakenError):
        repository.commit([MakeDirectory(b"/new"), required])

    assert repository.revision == 2
    assert repository.view().lookup(b"/new") is None


def test_what_is_required_and_is_changes_nothing(repository: Repository) -> None:
    commit = repository.commit([Require(b"/a/b"), RequireRevision(2)])

    assert commit.changed is False


def test_file_that_is_put_back_must_be_what_was_read(repository: Repository) -> None:
    put = repository.ingester().add_bytes
    repository.commit([RequireSame(b"/a/record", None), PutFile(b"/a/record", put(b"first"))])
    read = repository.view().lookup(b"/a/record")
    repository.commit([PutFile(b"/b", put(b"of no interest"))])

    repository.commit([RequireSame(b"/a/record", read), PutFile(b"/a/record", put(b"second"))])

    for stale in (read, None):
        with pytest.raises(ChangedError):
            repository.commit([PutFile(b"/new", put(b"x")), RequireSame(b"/a/record", stale)])
    assert repository.view().read(b"/a/record", 100) == b"second"
    assert repository.view().lookup(b"/new") is None


def test_removed_in_the_same_commit_is_gone(repository: Repository) -> None:
    with pytest.raises(OvertakenError):
        repository.commit([Remove(b"/a/b"), Require(b"/a/b")])


def test_targets_are_verbatim_unless_they_expand(repository: Repository) -> None:
    target = b"$(CVMFS_ARCH:-amd64)/x"

    repository.commit([PutSymlink(b"/plain", target), PutSymlink(b"/variant", target, expands=True)])

    view = repository.view()
    plain, variant = view.lookup(b"/plain"), view.lookup(b"/variant")
    assert plain is not None
    assert variant is not None
    assert view.readlink(b"/plain") == target
    assert plain.target != target
    assert variant.target == target


def test_signature_is_of_the_certificates_key(repository: Repository) -> None:
    key = x509.load_pem_x509_certificate(repository.certificate_pem).public_key()

    assert isinstance(key, rsa.RSAPublicKey)
    key.verify(repository.sign(b"text"), b"text", padding.PKCS1v15(), hashes.SHA256())
