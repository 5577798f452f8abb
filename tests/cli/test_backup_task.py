"""./inv backup and backups against a box on loopback, over SSH: files, listings, dry runs, the first contact."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_node_tasks import PROFILE, fingerprint, way

import fake_box
from fake_box import Box
from ndakit.cli import backup as cli_backup
from ndakit.cli.backup import BackupOptions, BackupOptionsWrong
from ndakit.cli.nodes import NOT_WELL, SshOptions
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.node.errors import HostKeyUnknown
from ndakit.operate import backups
from ndakit.operate.backups import BackupsExposed
from ssh_servers import SshServer, keygen, server


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with server("dropbear", tmp_path_factory.mktemp("backup") / "box") as running:
        keygen(running.folder / "me")
        yield running


@pytest.fixture
def place(box: SshServer, tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    key = (box.folder / "me.pub").read_text().strip()
    (tmp_path / "profiles/shop.yaml").write_text(PROFILE.format(key=key, port=box.port))
    return Workspace(tmp_path)


@pytest.fixture
def tree(box: SshServer, place: Workspace, tmp_path: Path) -> Box:
    """The box's root: whoever logs in is in there."""
    made = fake_box.make(tmp_path / "box/root", place, load.load(place, "shop"), "lb1")
    inside = f"chroot {made.root} /bin/busybox env -i PATH=/sbin:/bin:/usr/bin sh -c"
    key = (box.folder / "me.pub").read_text().strip()
    box.program("in-box", f'exec {inside} "$SSH_ORIGINAL_COMMAND"')
    box.allow(f'command="{box.folder}/bin/in-box" {key}')
    return made


def known(box: SshServer) -> SshOptions:
    return way(box, fingerprint(box))


def ndakit(place: Workspace, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ndakit", *words]
    env = {**os.environ, "TERM": "dumb"}
    return subprocess.run(argv, cwd=place.root, text=True, capture_output=True, timeout=60, check=False, env=env)


def test_a_node_is_backed_up_over_ssh_and_listed(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions()) == 0
    out, err = capsys.readouterr()
    (one,) = backups.whole(place.backups / "shop/lb1")
    assert f"lb1: {one.folder}, " in out
    assert f"lb1: image {one.record.image_id[:12]}, OpenWrt 24.10.8, nothing changed by hand" in out
    assert "lb1: reading configuration" in err
    assert one.record.host_keys == (f"ssh-ed25519 {fingerprint(box)}",)
    cli_backup.show_backups(place, None, None, as_json=False)
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("shop/lb1")
    assert one.record.image_id[:12] in row
    assert row.rstrip().endswith("as built  matches")


def test_what_somebody_changed_is_told_when_it_is_backed_up_and_listed(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.write("/etc/haproxy.cfg", "changed\n")
    tree.write("/root/notes", "remember\n")
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions()) == 0
    out = capsys.readouterr().out
    assert "lb1: changed: /etc/haproxy.cfg" in out
    assert "lb1: NOT in the backup: /root/notes" in out
    profile = place.profiles / "shop.yaml"
    profile.write_text(profile.read_text().replace("192.168.0.22", "192.168.0.23"))
    cli_backup.show_backups(place, "shop", None, as_json=False)
    out = capsys.readouterr().out
    assert "1 file changed by hand" in out
    assert "another now: /etc/haproxy.cfg" in out
    profile.unlink()
    cli_backup.show_backups(place, "shop", None, as_json=False)
    assert "there is no such profile here" in capsys.readouterr().out


def test_json_has_everything_for_scripts(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions(as_json=True)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] == {}
    assert told["nodes"]["lb1"]["original"] == "whole"
    half = place.backups / "shop/lb1/20200101T000000Z"
    half.mkdir(mode=0o700)
    cli_backup.show_backups(place, None, None, as_json=True)
    broken, whole = json.loads(capsys.readouterr().out)
    assert (broken["whole"], broken["why"]) == (False, "there is no backup.json in it")
    assert (whole["whole"], whole["matches"], whole["image_of"]) == (True, True, "shop/lb1")
    cli_backup.show_backups(place, None, None, as_json=False)
    assert "NO BACKUP: there is no backup.json in it" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_tells_what_it_would_do(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BackupOptions(dry_run=True, keep=1)
    assert cli_backup.back_up(place, "shop", "lb1", known(box), options) == 0
    assert not place.backups.exists()
    out = capsys.readouterr().out
    assert "would save" in out
    assert "the names of 5 packages" in out
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions()) == 0
    capsys.readouterr()
    there = sorted(p.name for p in (place.backups / "shop/lb1").iterdir())
    assert cli_backup.back_up(place, "shop", "lb1", known(box), options) == 0
    assert f"lb1: {there[1]} would be removed, for the newest 1 are kept" in capsys.readouterr().out
    assert sorted(p.name for p in (place.backups / "shop/lb1").iterdir()) == there


def test_old_backups_go_by_the_rule_and_never_the_only_one_that_matches(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions()) == 0
    (first,) = backups.whole(place.backups / "shop/lb1")
    for days in range(3):
        at = datetime(2026, 1, 10, tzinfo=UTC) + timedelta(days=days)
        # Only the first of them is of the image that the profile gives.
        image = first.record.image_id if days == 0 else "e" * 64
        folder = first.folder.parent / at.strftime("%Y%m%dT%H%M%SZ")
        folder.mkdir(mode=0o700)
        for name in ("config.tar.gz", "packages.txt", "image.tar.gz"):
            (folder / name).write_bytes((first.folder / name).read_bytes())
        record = replace(first.record, taken_at=at.isoformat(), image_id=image, recipients=("age1x",))
        (folder / "backup.json").write_text(record.text())
    backups.remove(first)
    # The box runs another image now.
    recipe = tree.root / "rom/usr/share/ndakit/recipe.json"
    recipe.write_text(
        recipe.read_text().replace(first.record.image_id, "d" * 64).replace('"rootfs_mib": ', '"rootfs_mib": 1')
    )
    capsys.readouterr()
    assert cli_backup.back_up(place, "shop", "lb1", known(box), BackupOptions(keep=1)) == 0
    out = capsys.readouterr().out
    assert "20260111T000000Z removed" in out
    left = [one.folder.name for one in backups.whole(place.backups / "shop/lb1")]
    assert left[:2] == ["20260110T000000Z", "20260112T000000Z"], "the one that matches, and the month's newest"
    assert len(left) == 3


def test_a_box_without_a_profile_is_backed_up_under_a_name(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    key = str(box.folder / "me")
    words = ("backup", "127.0.0.1", "--as", "old-box", "--port", str(box.port), "--identity", key)
    first = ndakit(place, *words)
    assert first.returncode == 5
    assert "the host key of this node is not known yet" in first.stderr
    again = shlex.split(first.stderr.partition("if it is the same: ")[2].splitlines()[0])
    assert again[:2] == ["./inv", "backup"]
    done = ndakit(place, *again[1:])
    assert done.returncode == 0, done.stderr
    (one,) = backups.whole(place.backups / "old-box/box")
    assert one.record.image_of == "shop/lb1"
    listed = ndakit(place, "backups")
    assert "old-box/box" in listed.stdout
    assert "there is no such profile here" in listed.stdout


def test_a_node_that_cannot_be_reached_is_told_and_the_exit_code_says_so(
    box: SshServer, tree: Box, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_backup.back_up(place, "shop", "lb1", way(box), BackupOptions()) == NOT_WELL
    assert "the host key of this node is not known yet" in capsys.readouterr().err
    assert not place.backups.exists()
    other = keygen(place.root / "other").split()
    pins = place.root / "known_hosts/shop/lb1"
    pins.parent.mkdir(parents=True)
    pins.write_text(f"shop.lb1 {other[0]} {other[1]}\n")
    assert cli_backup.back_up(place, "shop", "lb1", way(box), BackupOptions()) == NOT_WELL
    assert "wrong host key: expected ssh-ed25519 SHA256:" in capsys.readouterr().err
    with pytest.raises(HostKeyUnknown):
        cli_backup.back_up_host(place, "127.0.0.1", "new", SshOptions(box.folder / "me"), BackupOptions(),
                                port=box.port, release=None)  # fmt: skip


def test_options_that_do_not_fit_are_refused(place: Workspace) -> None:
    for words, told in (
        (("backup", "shop", "--keep", "0"), "no backup would be left"),
        (("backup", "shop", "--timeout-s", "soon"), "this is no time"),
        (("backup", "shop", "--port", "23"), "belong to a box without a profile"),
        (("backup", "192.0.2.1", "--as", "../x"), "is no name"),
        (("backup", "192.0.2.1", "--as", "x", "--node", "lb1"), "names a node of a profile"),
        (("backup", "192.0.2.1", "--as", "x", "--address", "192.0.2.1"), "an address twice"),
        (("backup", "192.0.2.1", "--as", "x", "--release", "new"), "an exact OpenWrt release is needed"),
        (("backup", "shop", "--encrypt", "nobody"), "is no recipient"),
        (("rebuild",), "it is not said which backup"),
        (("rebuild", "--from", "shop/lb1"), "there is no whole backup of shop/lb1"),
        (("rebuild", "--from", "./nothing"), "there is no backup.json in it"),
    ):
        done = ndakit(place, *words)
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert BackupOptionsWrong.exit_code == 2


def test_a_listing_is_refused_where_others_may_look(place: Workspace) -> None:
    place.backups.mkdir(mode=0o755)
    place.backups.chmod(0o755)
    with pytest.raises(BackupsExposed):
        cli_backup.show_backups(place, None, None, as_json=False)
