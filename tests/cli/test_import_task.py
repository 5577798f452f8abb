"""`./inv import`: what is written, what is said, what is never overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imported import boxes, trees
from ndakit.cli.import_profile import ImportOptionsWrong, import_profile
from ndakit.cli.nodes import SshOptions
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.node.errors import HostKeyUnknown
from ndakit.operate.import_ import sources, writing
from ndakit.operate.import_.writing import ImportNameWrong, ImportTargetTaken
from places import DATA, ROOT
from ssh_servers import keygen, server

NO_WAY = SshOptions()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    return Workspace(tmp_path)


def unpacked(profile: str, folder: Path) -> list[Path]:
    """A shipped profile's nodes as folders with etc/ in them."""
    loaded = load.load(Workspace(ROOT), profile).profile
    result = []
    for node in boxes(loaded, trees(loaded)):
        for path, content in node.files.items():
            target = folder / node.source / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        result.append(folder / node.source)
    return result


def test_both_nodes_of_a_pair_become_a_profile_that_check_finds_right(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = unpacked("apache-pair", workspace.root / "boxes")
    code = import_profile(workspace, ",".join(map(str, nodes)), "shop", None, None, NO_WAY)
    said = capsys.readouterr().out
    assert code == 0
    assert "0 that no key says" in said
    assert load.load(workspace, "shop").profile.nodes.keys() == {"lb1", "lb2"}
    assert (workspace.profiles / "shop-sorry-apache.html").read_bytes() == (ROOT / "profiles/sorry.html").read_bytes()


def test_what_nobody_can_know_is_asked_for_and_the_exit_code_says_so(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    code = import_profile(workspace, str(DATA / "imports/ipvsadm-only/lb1"), "old", None, "23.05.5", NO_WAY)
    told = capsys.readouterr()
    assert code == 2
    assert "fill in  access.ssh_keys: at least one SSH public key" in told.out
    assert "no key   lb1:/etc/ipvsadm.rules:10: -Z" in told.out
    assert "access.sources" in told.err
    assert "release: 23.05.5\n" in (workspace.profiles / "old.yaml").read_text()


def test_the_account_is_json_for_scripts(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    import_profile(workspace, str(DATA / "imports/ipvsadm-only/lb1"), "old", "balancer", None, NO_WAY, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["nodes"] == ["balancer"]
    last = facts["unsaid"][-1]
    assert (last["node"], last["path"], last["first"], last["last"]) == ("balancer", "/etc/ipvsadm.rules", 10, 10)
    assert (last["text"], last["why"][:25]) == ("-Z", "it is no virtual server a")
    assert facts["errors"][0]["code"]
    assert sum(facts["lines"].values()) == 16


def test_a_profile_is_never_overwritten(workspace: Workspace) -> None:
    there = workspace.profiles / "old.yaml"
    there.write_text("mine\n")
    with pytest.raises(ImportTargetTaken):
        import_profile(workspace, str(DATA / "imports/ipvsadm-only/lb1"), "old", None, None, NO_WAY)
    assert there.read_text() == "mine\n"


def test_a_file_beside_it_is_never_overwritten_and_then_nothing_is_written(workspace: Workspace) -> None:
    nodes = unpacked("apache-pair", workspace.root / "boxes")
    page = workspace.profiles / "shop-sorry-apache.html"
    page.write_text("mine\n")
    with pytest.raises(ImportTargetTaken):
        import_profile(workspace, ",".join(map(str, nodes)), "shop", None, None, NO_WAY)
    assert [p.name for p in workspace.profiles.iterdir()] == [page.name]
    assert page.read_text() == "mine\n"


def test_nothing_stays_if_the_last_file_cannot_be_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = unpacked("apache-pair", workspace.root / "boxes")
    whole = writing._new_file

    def full(path: Path, content: bytes, mode: int) -> None:
        if path.suffix == ".yaml":
            raise OSError(28, "No space left on device")
        whole(path, content, mode)

    monkeypatch.setattr(writing, "_new_file", full)
    with pytest.raises(OSError, match="No space"):
        import_profile(workspace, ",".join(map(str, nodes)), "shop", None, None, NO_WAY)
    assert list(workspace.profiles.iterdir()) == []


def test_certificates_with_their_keys_become_secrets_for_their_owner_only(workspace: Workspace) -> None:
    nodes = unpacked_tls(workspace.root / "boxes")
    import_profile(workspace, ",".join(map(str, nodes)), "shop", None, None, NO_WAY)
    secret = workspace.root / "secrets/shop/shop.pem"
    assert secret.read_bytes() == (nodes[0] / "etc/ndakit/private/shop.pem").read_bytes()
    assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert b"PRIVATE KEY" not in (workspace.profiles / "shop.yaml").read_bytes()


def unpacked_tls(folder: Path) -> list[Path]:
    return unpacked(str(DATA / "profiles/tls.yaml"), folder)


@pytest.mark.parametrize("name", [None, "", "Shop", "a b", "../x", "x" * 33])
def test_a_name_that_is_none_is_refused_before_anything_is_read(workspace: Workspace, name: str | None) -> None:
    with pytest.raises(ImportNameWrong):
        import_profile(workspace, "/nowhere", name, None, None, NO_WAY)


@pytest.mark.parametrize(("nodes", "release"), [("lb1,lb2", None), ("LB1", None), (None, "24.10")])
def test_options_that_do_not_fit_are_refused(workspace: Workspace, nodes: str | None, release: str | None) -> None:
    with pytest.raises(ImportOptionsWrong):
        import_profile(workspace, str(DATA / "imports/ipvsadm-only/lb1"), "old", nodes, release, NO_WAY)


def test_a_running_balancer_is_imported_over_ssh_and_its_host_key_pinned(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = unpacked("bakery", tmp_path / "boxes")[0]
    monkeypatch.setattr(sources, "_TAR", sources._TAR.replace("cd /", f"cd {root}", 1))
    with server("dropbear", tmp_path / "ssh") as box:
        keygen(box.folder / "me")
        box.allow((box.folder / "me.pub").read_text().strip())
        with pytest.raises(HostKeyUnknown) as unknown:
            import_profile(workspace, "127.0.0.1", "old", None, None, SshOptions(box.folder / "me"), port=box.port)
        way = SshOptions(box.folder / "me", accept_host_key=unknown.value.fingerprint)
        import_profile(workspace, "127.0.0.1", "old", None, None, way, port=box.port)
    assert "pools:\n  web: " in (workspace.profiles / "old.yaml").read_text()
    assert (workspace.known_hosts / "old" / "lb1").is_file()


def test_the_files_of_the_sources_are_left_as_they_are(workspace: Workspace) -> None:
    shutil.copytree(DATA / "imports/openwrt-box/lb1", workspace.root / "box")
    before = {p: p.read_bytes() for p in (workspace.root / "box").rglob("*") if p.is_file()}
    import_profile(workspace, str(workspace.root / "box"), "old", None, None, NO_WAY)
    assert {p: p.read_bytes() for p in (workspace.root / "box").rglob("*") if p.is_file()} == before
