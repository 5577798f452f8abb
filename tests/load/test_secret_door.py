"""A secret is where it must be and nowhere else: followed by a marker through every step and everything they write."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certificate_files import Party, issue
from imagebuilder_fakes import PROFILE, fake
from ndakit.build import pipeline
from ndakit.cli import profiles
from ndakit.core.errors import BuildError, ErrorGroup, NdakitError
from ndakit.core.events import Event, Warned
from ndakit.core.locks import scratch_folder
from ndakit.core.workspace import Workspace, cache
from ndakit.imagebuilder import sources
from ndakit.lint import real_daemons
from ndakit.load import load, secrets
from ndakit.render import overlay
from ndakit.render.render import RenderedFile, Tree

TLS = """\
services:
  web: {vip: www, port: 443, protocol: http, hostnames: [shop.example], pool: web, tls: {certificates: %s}}
"""
NAME = "shop.pem"


def profile(certificates: str = "[{secret: shop.pem}]") -> str:
    return PROFILE.replace(PROFILE[PROFILE.index("services:") :], TLS % certificates)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "workspace"
    (root / "profiles").mkdir(parents=True)
    (root / "profiles/bakery.yaml").write_text(profile())
    return Workspace(root)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def certificate(*names: str) -> Party:
    return issue("shop", None, names or ["shop.example"], begins=datetime.now(UTC) - timedelta(days=1))


def put(workspace: Workspace, content: bytes, name: str = NAME) -> Path:
    path = secrets.path_of(workspace, "bakery", name)
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path


def build(workspace: Workspace, events: list[Event] | None = None) -> tuple[pipeline.BuildResult, ...]:
    folder = workspace.root.parent / "imagebuilder"
    builder = sources.OpenWrtBuilder(folder if folder.exists() else fake(folder))
    loaded = load.load(workspace, "bakery")
    return pipeline.build(workspace, loaded, (), builder, (events if events is not None else []).append)


def places_of(marker: bytes, folder: Path) -> Iterator[str]:
    """The files below a folder in which the marker stands, as it is or compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content += zlib.decompressobj(wbits=31).decompress(content)  # metadata may follow
            if marker in content:
                yield path.relative_to(folder).as_posix()


def marker_of(party: Party) -> bytes:
    """A line of the private key."""
    return party.key_pem().splitlines()[1]


@pytest.mark.images
def test_a_marker_is_found_only_where_it_must_be(
    workspace: Workspace, own_cache: None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    party = certificate()
    marker = marker_of(party)
    put(workspace, party.bundle())
    assert profiles.check_profile(workspace, "bakery", as_json=False, daemons=False) == 0
    assert profiles.check_profile(workspace, "bakery", as_json=True, daemons=False) == 0
    profiles.render_profile(workspace, "bakery", None, None)
    events: list[Event] = []
    results = build(workspace, events)
    assert all(result.built for result in results)
    loaded = load.load(workspace, "bakery")
    tree = profiles.rendered(workspace, loaded, "lb1", secrets.resolve(workspace, loaded))
    told = capfd.readouterr()
    for text in (
        told.out,
        told.err,
        caplog.text,
        repr(events),
        repr(results),
        repr(tree["/etc/ndakit/private/shop.pem"]),
    ):
        assert marker.decode() not in text
    allowed = {f"workspace/overlays/bakery/{node}/etc/ndakit/private/shop.pem" for node in ("lb1", "lb2")}
    allowed.add("workspace/secrets/bakery/shop.pem")
    holding = set(places_of(marker, workspace.root.parent))
    assert holding == allowed
    for name in allowed:
        assert stat.S_IMODE((workspace.root.parent / name).stat().st_mode) == 0o600


def test_check_with_the_daemons_leaves_nothing_behind(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []
    folders: list[Path] = []

    @contextmanager
    def watched(base: Path, purpose: str) -> Iterator[Path]:
        with scratch_folder(base, purpose) as folder:
            folders.append(folder)
            modes.append(stat.S_IMODE(folder.stat().st_mode))
            yield folder
            modes.append(stat.S_IMODE((folder / "root/etc/ndakit/private/shop.pem").stat().st_mode))

    monkeypatch.setattr("ndakit.lint.real_daemons.scratch_folder", watched)
    put(workspace, certificate().bundle())
    held = secrets.resolve(workspace, load.load(workspace, "bakery"))
    tree = profiles.rendered(workspace, load.load(workspace, "bakery"), "lb1", held)
    assert real_daemons.check(tree, cache() / "lab") == []
    assert modes == [0o700, 0o600] and not folders[0].exists()
    assert not (real_daemons.daemons_root(cache() / "lab") / "etc/ndakit").exists()  # the shared root is as it was


def test_haproxy_says_so_when_a_certificate_is_no_use_and_does_not_show_it(workspace: Workspace) -> None:
    """The daemons really read the file."""
    party = certificate()
    put(workspace, party.bundle())
    held = secrets.resolve(workspace, load.load(workspace, "bakery"))
    tree = profiles.rendered(workspace, load.load(workspace, "bakery"), "lb1", held)
    path = "/etc/ndakit/private/shop.pem"
    broken = RenderedFile(path, party.pem, 0o600, "secret shop.pem", (NAME,))
    errors = real_daemons.check(Tree([*(f for p, f in tree.items() if p != path), broken]), cache() / "lab")
    assert errors and "shop.pem" in errors[0].what
    assert marker_of(party).decode() not in "".join(error.text() for error in errors)


# -- missing -----------------------------------------------------------------------------------------------------------


def test_all_that_are_missing_are_told_at_once_with_a_command_that_works(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.profiles / "bakery.yaml").write_text(profile("[{secret: shop.pem}, {secret: other.pem}]"))
    assert profiles.check_profile(workspace, "bakery", as_json=True, daemons=False) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [e["what"] for e in errors] == [
        f"the secret '{n}' of profile bakery is nowhere" for n in ("other.pem", NAME)
    ]
    assert "services.web.tls.certificates[0]" in errors[1]["where"]
    with pytest.raises(ErrorGroup) as caught:
        profiles.render_profile(workspace, "bakery", None, None)
    assert len(caught.value.errors) == 2
    for error, party in zip(errors, (certificate("other.example"), certificate()), strict=True):
        command = error["fix"].removeprefix("write it: ").partition("; or")[0]
        subprocess.run(["sh", "-c", command], input=party.bundle(), check=True)
    assert profiles.check_profile(workspace, "bakery", as_json=True, daemons=False) == 0


def test_without_secrets_the_rest_can_be_checked_and_nothing_be_built(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profiles.check_profile(workspace, "bakery", as_json=False, daemons=False, without_secrets=True) == 0
    assert "its secrets were not looked at" in capsys.readouterr().out
    held, _ = profiles.secrets_of(workspace, load.load(workspace, "bakery"), placeholders=True)
    assert not held.real
    tree = profiles.rendered(workspace, load.load(workspace, "bakery"), "lb1", held)
    assert tree.secrets == (NAME,)
    with pytest.raises(ValueError, match="placeholders"):
        overlay.write(tree, workspace.overlays / "bakery/lb1")
    with pytest.raises(secrets.SecretMissing):
        build(workspace)


@pytest.mark.parametrize("without_secrets", [True, False])
@pytest.mark.parametrize("secret", [True, False])
def test_a_broken_ca_of_servers_is_a_mistake_of_the_profile(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], without_secrets: bool, secret: bool
) -> None:
    """With secrets at hand, without them, and in a profile that has none."""
    if not without_secrets:
        put(workspace, certificate().bundle())
    text = (profile() if secret else PROFILE).replace(
        "check: http", "check: https, to_servers: {tls: true, verify: ca.pem, name: a.example}"
    )
    (workspace.root / "profiles/bakery.yaml").write_text(text)
    (workspace.root / "profiles/ca.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    code = profiles.check_profile(workspace, "bakery", as_json=False, daemons=False, without_secrets=without_secrets)
    said = capsys.readouterr().err
    assert code == 2 and "a block CERTIFICATE in ca.pem is damaged" in said and "fault of ndakit" not in said, said


def test_a_certificate_that_is_wrong_is_not_built(workspace: Workspace) -> None:
    put(workspace, certificate("other.example").bundle())
    with pytest.raises(NdakitError, match=r"covers shop\.example"):
        build(workspace)
    assert profiles.check_profile(workspace, "bakery", as_json=True, daemons=False) == 2


# -- records -----------------------------------------------------------------------------------------------------------


@pytest.mark.images
def test_an_image_with_secrets_is_private_and_its_record_names_them(workspace: Workspace, own_cache: None) -> None:
    party = certificate()
    put(workspace, party.bundle())
    events: list[Event] = []
    (result, _) = build(workspace, events)
    assert [e for e in events if isinstance(e, Warned) and "it signs itself" in e.text]
    artifact = result.artifact
    assert artifact.record.secrets == (NAME,)
    images = {image.name for image in artifact.record.images}
    for path in artifact.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.name in images else 0o644), path.name
    text = artifact.record.text()
    assert hashlib.sha256(party.bundle()).hexdigest() not in text
    assert re.search(r"/etc/ndakit/private/shop\.pem\": \"0600 secret-[0-9a-f]{64}\"", text)
    (workspace.profiles / "bakery.yaml").write_text(PROFILE)
    (result, _) = build(workspace)
    assert result.artifact.record.secrets == ()
    assert {stat.S_IMODE(path.stat().st_mode) for path in result.artifact.folder.iterdir()} == {0o644}


@pytest.mark.images
def test_the_id_follows_the_secret_and_cannot_be_guessed_from(workspace: Workspace, own_cache: None) -> None:
    put(workspace, certificate().bundle())
    first = build(workspace)[0]
    assert not build(workspace)[0].built
    other = certificate()
    put(workspace, other.bundle())
    again = build(workspace)[0]
    assert again.built and again.artifact.id != first.artifact.id
    assert "that changes /etc/ndakit/private/shop.pem" in again.reasons[-1] or "/etc/ndakit/private" in str(
        again.reasons
    )
    key = workspace.state / "private" / "hash.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    key.unlink()  # with another key the same secret has another hash: who has the record alone cannot try guesses
    assert build(workspace)[0].artifact.id != again.artifact.id
    key.chmod(0o644)
    with pytest.raises(secrets.SecretExposed):
        build(workspace)


# -- the pieces --------------------------------------------------------------------------------------------------------


def test_a_file_with_a_secret_cannot_have_a_mode_for_others() -> None:
    with pytest.raises(ValueError, match="lets others read"):
        RenderedFile("/etc/x", b"hunter2", 0o644, "x", ("p",))
    file = RenderedFile("/etc/x", b"hunter2", 0o600, "x", ("p",))
    assert "hunter2" not in repr(file) and file.shown == "(holds secrets: p)\n"
    assert file.digest() == RenderedFile("/etc/x", b"another", 0o600, "x", ("p",)).digest()
    key, other = secrets.HashKey(b"k" * 32), secrets.HashKey(b"o" * 32)
    assert file.digest(key) != file.digest(other)
    assert "k" * 32 not in repr(key)


def test_errors_that_quote_a_file_are_masked() -> None:
    held = secrets.Secrets({"p": secrets.Secret(b"hunter2", "x"), "k": secrets.Secret(certificate().bundle(), "x")})
    line = held["k"].reveal().decode().splitlines()[1]
    error = held.mask(BuildError(f"option key 'hunter2' {line}", where="/etc/x", fix="not 'hunter2'"))
    assert error.what == "option key '***' ***" and error.fix == "not '***'"
    assert "hunter2" not in repr(error)
    assert held.masked("-----BEGIN CERTIFICATE-----") == "-----BEGIN CERTIFICATE-----"


def test_lint_findings_are_masked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    party = certificate()
    put(workspace, party.bundle())
    loaded = load.load(workspace, "bakery")
    held = secrets.resolve(workspace, loaded)
    quoted = BuildError(f"line 3: {marker_of(party).decode()}", where="/etc/x", fix="mend it")
    monkeypatch.setattr("ndakit.lint.lint.lint", lambda *_: [quoted])
    with pytest.raises(ErrorGroup) as caught:
        profiles.rendered(workspace, loaded, "lb1", held)
    assert marker_of(party).decode() not in caught.value.text() and "***" in caught.value.text()


def test_the_folder_of_a_tree_with_secrets_is_private(tmp_path: Path) -> None:
    file = RenderedFile("/etc/x", b"hunter2", 0o600, "x", ("p",))
    plain = RenderedFile("/etc/x", b"hello", 0o644, "x")

    def mode(tree: Tree, *, for_image: bool = False) -> int:
        overlay.write(tree, tmp_path / "lb1", for_image=for_image)
        return stat.S_IMODE((tmp_path / "lb1").stat().st_mode)

    old = os.umask(0)
    try:
        assert mode(Tree([plain])) == 0o755
        assert mode(Tree([file])) == 0o700
        assert mode(Tree([file]), for_image=True) == 0o755  # make gives it to the root of the image
        assert mode(Tree([plain])) == 0o755
    finally:
        os.umask(old)


def test_a_secret_is_not_readable_by_others_for_a_moment_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    write_bytes = Path.write_bytes

    def watched(path: Path, content: bytes) -> int:
        done = write_bytes(path, content)
        if content == b"hunter2":
            seen.append(stat.S_IMODE(path.stat().st_mode))
        return done

    monkeypatch.setattr(Path, "write_bytes", watched)
    old = os.umask(0)
    try:
        overlay.write(Tree([RenderedFile("/etc/x", b"hunter2", 0o600, "x", ("p",))]), tmp_path / "lb1")
    finally:
        os.umask(old)
    assert seen == [0o600]
