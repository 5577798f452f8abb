"""Secrets are found where they may be, refused where others see them, and never shown."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ndakit.core import process
from ndakit.core.workspace import Workspace
from ndakit.load import secrets
from ndakit.model import SecretRef

REFERENCE = SecretRef(secret="shop.pem")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def put(workspace: Workspace, value: bytes, mode: int = 0o600) -> Path:
    path = workspace.root / "secrets/acme-shop/shop.pem"
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700)
    path.write_bytes(value)
    path.chmod(mode)
    return path


def test_the_environment_goes_before_the_file(workspace: Workspace) -> None:
    put(workspace, b"from the file")
    secret = secrets.look_up(
        workspace, "acme-shop", REFERENCE, {"NDAKIT_SECRET_ACME_SHOP__SHOP_DOT_PEM": "from outside"}
    )
    assert secret.reveal() == b"from outside"


PROFILES = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,5}", fullmatch=True)


@example(("a-b", "c"), ("a", "b-c"))
@example(("a-", "b"), ("a", "-b"))
@example(("a--b", "c"), ("a", "b--c"))
@example(("a", "b.c"), ("a", "b-c"))
@example(("a", "b.c"), ("a", "b-dot-c"))
@example(("a", "Shop"), ("a", "shop"))
@example(("a", "b_c"), ("a", "b-c"))
@given(st.tuples(PROFILES, NAMES), st.tuples(PROFILES, NAMES))
def test_no_two_secrets_share_a_variable(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (secrets.variable(*one) == secrets.variable(*other)) == (one == other)
    assert re.fullmatch(r"[A-Z0-9_]+", secrets.variable(*one))


def test_a_file_that_only_its_owner_reads_is_taken_without_its_line_end(workspace: Workspace) -> None:
    put(workspace, b"hunter2\n")
    assert secrets.look_up(workspace, "acme-shop", REFERENCE, {}).reveal() == b"hunter2"


def test_a_file_of_several_lines_is_taken_as_it_is(workspace: Workspace) -> None:
    put(workspace, b"-----BEGIN\nx\n-----END\n")
    assert secrets.look_up(workspace, "acme-shop", REFERENCE, {}).reveal().endswith(b"END\n")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(workspace: Workspace, mode: int) -> None:
    path = put(workspace, b"hunter2", mode)
    with pytest.raises(secrets.SecretExposed, match=r"others can read") as caught:
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    assert caught.value.fix == f"chmod 600 {path}"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("folder", ["secrets", "secrets/acme-shop"])
def test_a_folder_that_others_can_write_is_refused(workspace: Workspace, folder: str, mode: int) -> None:
    put(workspace, b"hunter2")
    path = workspace.root / folder
    path.chmod(mode)
    with pytest.raises(secrets.SecretExposed, match="others can replace") as caught:
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    assert caught.value.where == str(path) and caught.value.fix == f"chmod go-w {path}"
    process.run(caught.value.fix.split(), timeout_s=5)
    assert secrets.look_up(workspace, "acme-shop", REFERENCE, {}).reveal() == b"hunter2"


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o000])
def test_what_is_written_as_told_is_taken(workspace: Workspace, umask: int) -> None:
    with pytest.raises(secrets.SecretMissing) as caught:
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    assert caught.value.fix is not None
    command = f"umask {umask:o}; echo hunter2 | ({caught.value.fix.removeprefix('write it: ')})"
    process.run(["sh", "-c", command], timeout_s=5)
    assert secrets.look_up(workspace, "acme-shop", REFERENCE, {}).reveal() == b"hunter2"


def test_a_file_that_git_tracks_is_refused(workspace: Workspace) -> None:
    put(workspace, b"hunter2")
    secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    for command in (["git", "init", "-q"], ["git", "add", "-f", "secrets"]):
        process.run(command, cwd=workspace.root, timeout_s=20)
    with pytest.raises(secrets.SecretExposed, match="git tracks"):
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})


def test_a_secret_that_is_nowhere_says_both_places(workspace: Workspace) -> None:
    with pytest.raises(secrets.SecretMissing) as caught:
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    assert "NDAKIT_SECRET_ACME_SHOP__SHOP_DOT_PEM" in caught.value.where
    assert "secrets/acme-shop/shop.pem" in caught.value.where


def test_a_folder_or_a_far_too_large_file_is_refused(workspace: Workspace) -> None:
    path = put(workspace, b"x" * (secrets.SECRET_MAX + 1))
    with pytest.raises(secrets.SecretUnreadable, match="larger"):
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    path.unlink()
    path.mkdir()
    with pytest.raises(secrets.SecretUnreadable):
        secrets.look_up(workspace, "acme-shop", REFERENCE, {})


def test_a_secret_is_in_no_text_and_not_pickled(workspace: Workspace) -> None:
    put(workspace, b"hunter2")
    secret = secrets.look_up(workspace, "acme-shop", REFERENCE, {})
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
