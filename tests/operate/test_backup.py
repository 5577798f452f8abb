"""Backups of a box that is a folder: what is in them, what differs, what is refused, and that none is ever half."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyrage
import pytest

import fake_box
from fake_box import Box, TreeShell
from ndakit.build import recipe
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.load import load
from ndakit.load.load import Loaded
from ndakit.operate import backup, backup_files, backups, encryption, tar_files
from ndakit.operate.backup import AnotherBox, AtHand, NoRoomHere, Wanted
from ndakit.operate.backups import Backup, BackupBroken, BackupsExposed, Differences
from ndakit.operate.box_files import BackupFailedThere, BoxFull, BoxTooSlow, ConfigIncomplete, Patience
from places import SUPPORT
from ssh_servers import keygen

PROFILE = """\
name: shop
release: {release}
access: {{ssh_keys: {{me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}},
  sources: {{noc: 192.168.0.0/24}}}}
networks: {{lan: {{nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}}}
nodes:
  lb1: {{addresses: {{lan: 192.168.0.11}}}}
  lb2: {{addresses: {{lan: 192.168.0.12}}}}
vips: {{www: {{network: lan, address: 192.168.0.10}}}}
pools: {{web: {{check: http, servers: {{web1: 192.168.0.21, web2: 192.168.0.22}}}}}}
services: {{web: {{vip: www, port: 80, protocol: http, pool: web}}}}
"""
QUICK = Patience(total_s=20, window_s=0.5, least_bytes=4096)


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    (tmp_path / "work/profiles").mkdir(parents=True)
    (tmp_path / "work/profiles/shop.yaml").write_text(PROFILE.format(release="24.10.8"))
    return Workspace(tmp_path / "work")


@pytest.fixture
def shop(place: Workspace) -> Loaded:
    return load.load(place, "shop")


@pytest.fixture
def box(place: Workspace, shop: Loaded, tmp_path: Path) -> Box:
    return fake_box.make(tmp_path / "box", place, shop, "lb1")


@pytest.fixture
def ext4(place: Workspace, shop: Loaded, tmp_path: Path) -> Box:
    return fake_box.make(tmp_path / "box", place, shop, "lb1", rom=False)


def wanted(loaded: Loaded, node: str = "lb1", **changes: object) -> Wanted:
    profile = loaded.profile
    keys = ("ssh-ed25519 SHA256:AAAA",)
    one = Wanted("shop", node, "root@192.0.2.11", "192.0.2.11", keys, profile.hostname(node), str(profile.release))
    return replace(one, **changes)  # type: ignore[arg-type]


def take(box: Box, shop: Loaded, place: Workspace, **more: object) -> Backup:
    given = {"known": AtHand(), "patience": QUICK, **more}
    return backup.take(TreeShell(box), wanted(shop), place.backups, **given)  # type: ignore[arg-type]


def members(path: Path) -> dict[str, tuple[int, bytes]]:
    with tarfile.open(path) as tar:
        return {m.name: (m.mode, tar.extractfile(m).read()) for m in tar if m.isfile()}  # type: ignore[union-attr]


# -- what is in one ----------------------------------------------------------------------------------------------------


def test_a_backup_is_config_package_list_and_the_images_own_files_for_its_owner_alone(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    before = fake_box.state_of(box.root / "etc")
    done = take(box, shop, place, now=lambda: datetime(2026, 11, 30, 5, 15, tzinfo=UTC))
    assert done.folder == place.root / "backups/shop/lb1/20261130T051500Z"
    assert sorted(p.name for p in done.folder.iterdir()) == [
        "backup.json", "config.tar.gz", "image.tar.gz", "packages.txt",
    ]  # fmt: skip
    for path in (done.folder, *done.folder.iterdir(), *done.folder.parents[:3]):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    config = members(done.folder / "config.tar.gz")
    assert config["etc/haproxy.cfg"][1] == (box.root / "etc/haproxy.cfg").read_bytes()
    assert config["etc/dropbear/dropbear_ed25519_host_key"] == (0o600, b"made at the first start\n")
    assert b"haproxy\trom\n" in config["etc/backup/installed_packages.txt"][1]
    assert (done.folder / "packages.txt").read_text().splitlines()[2] == "dropbear 2024.86"
    record = backups.load(done.folder).record
    assert (record.hostname, record.release, record.target) == ("shop-lb1", "24.10.8", "x86/64")
    assert (record.image_of, record.board, record.original) == ("shop/lb1", "qemu-standard-pc", "whole")
    assert record.host_keys == ("ssh-ed25519 SHA256:AAAA",)
    assert not record.differences.by_hand
    assert record.notes == ()
    assert fake_box.state_of(box.root / "etc") == before, "nothing is left on the box"
    assert not [p for p in (box.root / "tmp").iterdir() if p.name.startswith(".ndakit")]
    assert (place.backups / ".gitignore").read_text().endswith("*\n")


def test_what_the_image_was_made_of_comes_out_of_a_backup_as_it_went_in(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    done = take(box, shop, place)
    made_of = backup_files.recipe_of(done)
    assert made_of is not None
    assert made_of.id == done.record.image_id
    inside = members(done.folder / "image.tar.gz")
    assert {name.removeprefix("image") for name in inside} - {
        "/usr/share/ndakit/image.json", "/usr/share/ndakit/recipe.json",
    } == set(made_of.files)  # fmt: skip
    for path, facts in made_of.files.items():
        assert recipe.entry(*inside[f"image{path}"]) == facts
    assert backup_files.differs_from(place, shop, done) == ()


def by_hand(box: Box) -> None:
    """Somebody changes a file of the image's that is kept, one that is not, adds two and removes one."""
    box.write("/etc/haproxy.cfg", "changed\n")
    box.write("/usr/libexec/ndakit/vips-watch", "#!/bin/sh\n", 0o755)
    box.write("/etc/config/snmpd", "config agent\n")
    box.write("/root/notes", "remember\n")
    (box.root / "etc/sysctl.conf").unlink()


def test_what_was_changed_by_hand_is_named_and_the_images_files_are_there_all_the_same(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    by_hand(box)
    record = take(box, shop, place).record
    assert record.differences == Differences(
        changed=("/etc/haproxy.cfg", "/usr/libexec/ndakit/vips-watch"),
        missing=("/etc/sysctl.conf",),
        added=("/etc/config/snmpd",),
        not_saved=("/root/notes",),
    )
    assert record.original == "whole"
    inside = members(backups.whole(place.backups / "shop/lb1")[0].folder / "image.tar.gz")
    assert inside["now/etc/haproxy.cfg"] == (0o644, b"changed\n")
    assert inside["image/etc/haproxy.cfg"][1] == (box.root / "rom/etc/haproxy.cfg").read_bytes()
    assert "image/etc/sysctl.conf" in inside


def test_what_the_image_says_of_itself_is_not_believed_where_it_was_changed(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    whole = members(take(box, shop, place).folder / "image.tar.gz")
    box.write("/usr/share/ndakit/image.json", '{"id": "x", "profile": "bank", "node": "fw1"}\n')
    box.write("/usr/share/ndakit/recipe.json", "{}\n", 0o600)
    done = take(box, shop, place)
    assert done.record.differences.changed == ("/usr/share/ndakit/image.json", "/usr/share/ndakit/recipe.json")
    inside = members(done.folder / "image.tar.gz")
    assert {name: facts for name, facts in inside.items() if name.startswith("image/")} == whole


def test_a_mode_changed_by_hand_counts_too(box: Box, shop: Loaded, place: Workspace) -> None:
    (box.root / "etc/haproxy.cfg").chmod(0o600)
    assert take(box, shop, place).record.differences.changed == ("/etc/haproxy.cfg",)


def test_a_link_in_a_files_place_is_a_change(box: Box, shop: Loaded, place: Workspace) -> None:
    (box.root / "etc/haproxy.cfg").unlink()
    (box.root / "etc/haproxy.cfg").symlink_to("/tmp/haproxy.cfg")
    done = take(box, shop, place)
    assert done.record.differences.changed == ("/etc/haproxy.cfg",)
    assert "now/etc/haproxy.cfg" not in members(done.folder / "image.tar.gz")


def test_on_ext4_the_time_of_a_file_tells_that_it_was_written(ext4: Box, shop: Loaded, place: Workspace) -> None:
    assert not take(ext4, shop, place).record.differences.by_hand
    by_hand(ext4)
    ext4.write("/etc/rc.local", "exit 0\n")
    record = take(ext4, shop, place).record
    assert record.differences.changed == ("/etc/haproxy.cfg", "/usr/libexec/ndakit/vips-watch")
    assert record.differences.added == ("/etc/config/snmpd", "/etc/rc.local")
    assert record.original == "partly"
    assert record.not_original == ("/etc/haproxy.cfg", "/etc/sysctl.conf", "/usr/libexec/ndakit/vips-watch")


def test_on_ext4_the_overlay_gives_the_images_files_that_the_box_lost(
    ext4: Box, shop: Loaded, place: Workspace, tmp_path: Path
) -> None:
    by_hand(ext4)
    record = take(ext4, shop, place, known=AtHand(overlay=tmp_path / "box-files")).record
    assert (record.original, record.not_original) == ("whole", ())
    (tmp_path / "box-files/etc/haproxy.cfg").write_text("of a later profile\n")
    record = take(ext4, shop, place, known=AtHand(overlay=tmp_path / "box-files")).record
    assert (record.original, record.not_original) == ("partly", ("/etc/haproxy.cfg",))


def test_packages_that_were_added_and_removed_are_named(box: Box, shop: Loaded, place: Workspace) -> None:
    image_id = backup.look(TreeShell(box), wanted(shop), place.root).who.image["id"]
    record = artifacts.Record(
        id=image_id, inputs={}, profile="shop", node="lb1", hostname="shop-lb1", release="24.10.8", target="x86/64",
        device="generic", builder="lab", imagebuilder="", source={}, revision="", warning=None, argv=(), overlay="",
        packages=dict(fake_box.PACKAGES), lock={}, images=(), sources={}, warnings=(), tools={}, built_at="",
        elapsed_s=0, verify=(),
    )  # fmt: skip
    box.set_packages({**{n: v for n, v in fake_box.PACKAGES.items() if n != "keepalived"}, "tcpdump": "4.99"})
    differences = take(box, shop, place, known=AtHand(record)).record.differences
    assert (differences.packages_added, differences.packages_removed) == (("tcpdump",), ("keepalived",))
    other = replace(record, id="f" * 64)
    differences = take(box, shop, place, known=AtHand(other)).record.differences
    assert (differences.packages_added, differences.packages_removed) == (("tcpdump",), ()), "what the box itself knows"


def test_apks_list_is_read_where_there_is_no_opkg(box: Box, shop: Loaded, place: Workspace) -> None:
    (box.root / "usr/lib/opkg/status").unlink()
    (box.root / "lib/apk/db").mkdir(parents=True)
    (box.root / "lib/apk/db/installed").write_text("C:Q1x=\nP:haproxy\nV:3.0.8-r1\nA:x86_64\n\nP:kernel\nV:6.6.1\n\n")
    done = take(box, shop, place)
    assert (done.folder / "packages.txt").read_text() == "haproxy 3.0.8-r1\nkernel 6.6.1\n"


def test_an_image_without_a_recipe_is_backed_up_as_configuration_and_packages(
    place: Workspace, shop: Loaded, tmp_path: Path
) -> None:
    plain = fake_box.make(tmp_path / "box", place, shop, "lb1", carries_recipe=False)
    record = take(plain, shop, place).record
    assert (record.original, record.image_id) == ("none", "")
    assert [f.name for f in record.files] == ["config.tar.gz", "packages.txt"]


def test_a_sysupgrade_of_18_06_has_no_k_and_is_not_asked_for_it(box: Box, shop: Loaded, place: Workspace) -> None:
    (box.root / "usr/lib/lab/family").write_text("number=1806\n")
    release = box.root / "etc/openwrt_release"
    release.write_text(release.read_text().replace("24.10.8", "18.06.9"))
    done = take(box, shop, place)
    assert "etc/backup/installed_packages.txt" not in members(done.folder / "config.tar.gz")


# -- encryption --------------------------------------------------------------------------------------------------------


def test_an_encrypted_backup_opens_for_its_recipients_only(
    box: Box, shop: Loaded, place: Workspace, tmp_path: Path
) -> None:
    box.write("/etc/config/snmpd", "option community 's3cret-of-a-box'\n")
    me, other = keygen(tmp_path / "me"), keygen(tmp_path / "other")
    done = take(box, shop, place, recipients=encryption.recipients((me,)))
    assert {f.name for f in done.record.files} == {"config.tar.gz.age", "packages.txt.age", "image.tar.gz.age"}
    assert done.record.recipients == (" ".join(me.split()[:2]),)
    for path in done.folder.rglob("*"):
        content = path.read_bytes()
        assert b"s3cret-of-a-box" not in content
        assert path.name == backups.RECORD or content.startswith(b"age-encryption.org/v1\n-> ssh-ed25519 ")
    with pytest.raises(encryption.NotDecrypted, match="this backup is encrypted"):
        backup_files.recipe_of(done)
    with pytest.raises(encryption.NotDecrypted, match="none of the keys opens"):
        backup_files.recipe_of(done, encryption.identities([tmp_path / "other"]))
    mine = encryption.identities([tmp_path / "me"])
    made_of = backup_files.recipe_of(done, mine)
    assert made_of is not None
    assert made_of.id == done.record.image_id
    assert other


def test_age_keys_work_as_ssh_keys_do(box: Box, shop: Loaded, place: Workspace, tmp_path: Path) -> None:
    key = pyrage.x25519.Identity.generate()
    (tmp_path / "age.txt").write_text(f"# public key: {key.to_public()}\n{key}\n")
    (tmp_path / "age.txt").chmod(0o600)
    (tmp_path / "recipients").write_text(f"# the admins\n{key.to_public()}\n")
    done = take(box, shop, place, recipients=encryption.recipients((str(tmp_path / "recipients"),)))
    assert done.record.recipients == (str(key.to_public()),)
    with backup_files.opened(done, "packages.txt", encryption.identities([tmp_path / "age.txt"])) as plain:
        assert plain.read().startswith(b"base-files 1\n")


def test_a_damaged_encrypted_file_is_found_out(tmp_path: Path) -> None:
    me = keygen(tmp_path / "me")
    mine = encryption.identities([tmp_path / "me"])
    packed = io.BytesIO()
    encryption.encrypt(io.BytesIO(bytes(200_000)), packed, encryption.recipients((me,)))
    whole = packed.getvalue()
    for broken in (whole[:-100], whole[:70_000], whole[:500] + b"x" + whole[501:]):
        with pytest.raises(encryption.NotDecrypted):
            encryption.decrypt(io.BytesIO(broken), io.BytesIO(), mine, "here")
    back = io.BytesIO()
    encryption.decrypt(io.BytesIO(whole), back, mine, "here")
    assert back.getvalue() == bytes(200_000)


def test_recipients_and_keys_that_are_none_are_refused_with_a_way_out(tmp_path: Path) -> None:
    keygen(tmp_path / "me")
    keygen(tmp_path / "locked", passphrase="secret words")
    keygen(tmp_path / "ecdsa", kind="ecdsa")
    (tmp_path / "age").write_text("# created: now\nAGE-SECRET-KEY-1QQ\n")
    for given in ("age1nonsense", "ssh-rsa AAAA", str(tmp_path / "nothing"), str(tmp_path / "age")):
        with pytest.raises(encryption.RecipientUnusable, match="is no recipient") as refused:
            encryption.recipients((given,))
        assert "AGE-SECRET" not in str(refused.value)
    with pytest.raises(encryption.RecipientUnusable):
        encryption.recipients((str(tmp_path / "me"),))
    assert encryption.recipients((str(tmp_path / "me.pub"),))
    (tmp_path / "age").chmod(0o600)
    for name, words in (("locked", "passphrase"), ("ecdsa", "ecdsa"), ("age", "."), ("none", "No such file")):
        with pytest.raises(encryption.DecryptionKeyUnusable, match=words):
            encryption.identities([tmp_path / name])
    (tmp_path / "me").chmod(0o644)
    with pytest.raises(encryption.DecryptionKeyUnusable, match="others can read it"):
        encryption.identities([tmp_path / "me"])


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_another_customers_box_is_left_alone(box: Box, shop: Loaded, place: Workspace) -> None:
    shell = TreeShell(box)
    with pytest.raises(AnotherBox, match="its image was made for shop/lb1, and shop/lb2 was asked for"):
        backup.take(shell, wanted(shop, "lb2"), place.backups, known=AtHand(), patience=QUICK)
    assert not [line for line in shell.asked if "sysupgrade" in line]
    for name in ("image.json", "recipe.json"):
        (box.root / "usr/share/ndakit" / name).unlink()
    (box.root / "rom/usr/share/ndakit/recipe.json").unlink()
    (box.root / "proc/sys/kernel/hostname").write_text("bank-fw1\n")
    with pytest.raises(AnotherBox, match="it calls itself bank-fw1, and shop-lb1 was asked for"):
        take(box, shop, place)
    assert backups.listed(place.backups / "shop/lb1") == []


def test_another_release_than_the_profiles_is_told_and_backed_up(box: Box, place: Workspace) -> None:
    (place.profiles / "shop.yaml").write_text(PROFILE.format(release="25.12.0"))
    newer = load.load(place, "shop")
    done = take(box, newer, place)
    assert done.record.notes == ("it runs OpenWrt 24.10.8, and the profile has 25.12.0 now",)
    assert "release: 24.10.8 → 25.12.0" in backup_files.differs_from(place, newer, done)


def test_a_box_whose_tmp_is_full_says_so(box: Box, shop: Loaded, place: Workspace) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(box.root / "tmp")], check=True)
    try:
        with pytest.raises(BoxFull, match=r"no 512 KiB left in /tmp"):
            take(box, shop, place)
        assert not list((box.root / "tmp").iterdir())
    finally:
        subprocess.run(["umount", str(box.root / "tmp")], check=True)
    assert backups.listed(place.backups / "shop/lb1") == []


def test_a_full_disk_here_leaves_nothing(box: Box, shop: Loaded, place: Workspace, tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k,mode=0700", "none", str(tiny)], check=True)
    try:
        for recipients in ((), encryption.recipients((keygen(tmp_path / "me"),))):
            with pytest.raises(NoRoomHere, match="no room for the backup on this machine"):
                backup.take(TreeShell(box), wanted(shop), tiny, known=AtHand(), patience=QUICK, recipients=recipients)
            assert backups.listed(tiny / "shop/lb1") == []
    finally:
        subprocess.run(["umount", str(tiny)], check=True)


SLOW = 'case "$*" in *-l*) exit 0;; esac; {0}'


@pytest.mark.parametrize(
    "sends",
    [
        "printf x; sleep 60",
        "sleep 60",
        "while :; do printf xxxxxxxxxx; sleep 0.1; done",
    ],
)
def test_a_box_that_answers_too_slowly_is_given_up(box: Box, shop: Loaded, place: Workspace, sends: str) -> None:
    box.program("/sbin/sysupgrade", SLOW.format(sends))
    begun_s = time.monotonic()
    with pytest.raises(BoxTooSlow, match=r"too slowly: .* bytes in the last .* while its configuration was read"):
        take(box, shop, place)
    assert time.monotonic() - begun_s < 10
    assert backups.listed(place.backups / "shop/lb1") == []


def test_a_named_time_bears_any_speed_for_so_long(box: Box, shop: Loaded, place: Workspace) -> None:
    box.program("/sbin/sysupgrade", SLOW.format("printf x; sleep 60"))
    with pytest.raises(BoxTooSlow, match=r"it had sent 1 bytes in 2 s"):
        take(box, shop, place, patience=Patience(total_s=2, window_s=0.2, least_bytes=0))


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ('case "$*" in *-l*) exit 0;; esac; echo broken >&2; exit 1', BackupFailedThere, "exit code 1.*broken"),
        ('case "$*" in *-l*) exit 0;; esac', BackupFailedThere, "made no backup"),
        ('case "$*" in *-l*) exit 0;; esac; echo not a tar', tar_files.ArchiveRefused, "damaged or cut off"),
        (
            'case "$*" in *-l*) printf "/etc/hosts\\n/etc/gone\\n";; *) tar -C / -czf - etc/hosts;; esac',
            ConfigIncomplete, "lacks files .*: /etc/gone",
        ),
        (
            'case "$*" in *-l*) exit 0;; esac; tar -C / -czf - etc/hosts etc/passwd | dd bs=100 count=1 2>/dev/null',
            tar_files.ArchiveRefused, "cut off",
        ),
    ],
)  # fmt: skip
def test_an_archive_that_is_not_whole_is_no_backup(
    box: Box, shop: Loaded, place: Workspace, script: str, kind: type[Exception], words: str
) -> None:
    box.program("/sbin/sysupgrade", script)
    with pytest.raises(kind, match=f"(?s){words}"):
        take(box, shop, place)
    assert backups.listed(place.backups / "shop/lb1") == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_backups_are_refused_where_others_may_look(box: Box, shop: Loaded, place: Workspace, mode: int) -> None:
    place.backups.mkdir()
    place.backups.chmod(mode)
    with pytest.raises(BackupsExposed, match=f"mode is {mode:04o}") as refused:
        take(box, shop, place)
    subprocess.run(refused.value.fix, shell=True, check=True)  # noqa: S602  # what the message says to type
    assert take(box, shop, place)


# -- whole or not at all -----------------------------------------------------------------------------------------------


def test_two_backups_in_one_second_are_two(box: Box, shop: Loaded, place: Workspace) -> None:
    clock = datetime(2026, 11, 30, 5, 15, tzinfo=UTC)
    names = [take(box, shop, place, now=lambda: clock).folder.name for _ in range(3)]
    assert names == ["20261130T051500Z", "20261130T051501Z", "20261130T051502Z"]


BROKEN = {
    "truncated": "bytes instead of",
    "changed": "was changed, or is damaged",
    "gone": "is not there",
    "record-gone": "there is no backup.json",
    "record-cut": "backup.json cannot be read",
    "record-foreign": "incomplete, or has something foreign",
    "record-newer": "it has format 9",
    "another-file": "no file of a backup",
    "another-place": "incomplete, or has something foreign",
    "linked": "is not there",
    "no-files": "does not name config.tar.gz, packages.txt, image.tar.gz",
    "half-of-the-files": "does not name image.tar.gz",
    "a-file-twice": "names config.tar.gz twice",
    "no-such-day": "incomplete, or has something foreign",
    "folder": "it is no file",
    "pipe": "it is no file",
}


@pytest.mark.parametrize("how", list(BROKEN))
def test_a_broken_backup_is_shown_as_what_it_is(box: Box, shop: Loaded, place: Workspace, how: str) -> None:
    folder = take(box, shop, place).folder
    config, record = folder / "config.tar.gz", folder / "backup.json"
    text = record.read_text()
    if how == "truncated":
        config.write_bytes(config.read_bytes()[:-1])
    elif how == "changed":
        content = bytearray(config.read_bytes())
        content[100] ^= 1
        config.write_bytes(content)
    elif how == "gone":
        config.unlink()
    elif how == "linked":
        config.rename(folder.parent / "elsewhere")
        config.symlink_to("../elsewhere")
    elif how in ("folder", "pipe"):
        record.unlink()
        (os.mkfifo if how == "pipe" else os.mkdir)(record)
    elif how in ("no-files", "half-of-the-files", "a-file-twice", "no-such-day"):
        told = json.loads(text)
        kept = {"no-files": [], "half-of-the-files": told["files"][:2], "a-file-twice": [*told["files"]] * 2}
        told["files"] = kept.get(how, told["files"])
        told["taken_at"] = "0001-01-01T00:00:00+14:00" if how == "no-such-day" else told["taken_at"]
        record.write_text(json.dumps(told))
    elif how == "record-gone":
        record.unlink()
    else:
        record.write_text(
            {
                "record-cut": text[:200],
                "record-foreign": text.replace('"hostname"', '"host_name"'),
                "another-place": text.replace('"profile": "shop"', '"profile": "../../shop"'),
                "record-newer": text.replace('"format": 1', '"format": 9'),
                "another-file": text.replace('"config.tar.gz"', '"../../../etc/passwd"'),
            }[how]
        )
    with pytest.raises(BackupBroken, match=BROKEN[how]):
        backups.load(folder)
    (shown,) = [one for one in backups.listed(folder.parent) if one.folder == folder]
    assert shown.backup is None
    assert BROKEN[how] in shown.why
    assert backups.whole(folder.parent) == []


@pytest.mark.long
def test_30_backups_that_were_killed_on_the_way_and_none_looks_finished(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    """SIGKILL at random moments of a whole backup, from its first question to its last rename."""
    slow = 'case "$*" in *-l*) /sbin/real "$@"; exit;; esac; /sbin/real "$@" >/tmp/all; '
    slow += "for n in 1 2 3 4 5 6 7 8 9 10; do dd if=/tmp/all bs=1100 skip=$((n-1)) count=1 2>/dev/null; sleep 0.01; "
    slow += "done; dd if=/tmp/all bs=1100 skip=10 2>/dev/null"
    (box.root / "sbin/sysupgrade").rename(box.root / "sbin/real")
    box.program("/sbin/sysupgrade", slow)
    folder = place.backups / "shop/lb1"
    argv = [sys.executable, str(SUPPORT / "backup_forks.py"), str(place.root), str(box.root)]
    luck = random.Random(7)
    finished = cut = 0
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as helper:
        assert helper.stdin is not None
        assert helper.stdout is not None
        takes_s = 0.0
        for number in range(31):
            helper.stdin.write("go\n")
            helper.stdin.flush()
            child = int(helper.stdout.readline())
            begun_s = time.monotonic()
            if number > 0:
                time.sleep(luck.uniform(0.0, takes_s))
                os.kill(child, signal.SIGKILL)
            helper.stdin.write("wait for it\n")
            helper.stdin.flush()
            helper.stdout.readline()
            takes_s = takes_s or time.monotonic() - begun_s
            # What it had just started can hold the lock for a moment longer.
            assert fake_box.settled(lambda: all(one.why != "it is being written" for one in backups.listed(folder)))
            for one in backups.listed(folder):
                if one.backup is None:
                    assert one.folder.parent.name == backups.PARTIAL, "cut off, and it has a backup's name"
                    assert one.why == "it was cut off; the next backup of this node removes it"
                else:
                    members(one.folder / "config.tar.gz")
            whole = len(backups.whole(folder))
            assert whole in (finished, finished + 1)
            assert number > 0 or whole == 1, "the first one was left alone"
            cut += whole == finished
            finished = whole
        helper.stdin.close()
    assert cut >= 15, "most were hit on the way"
    for half in (folder / backups.PARTIAL).iterdir():
        os.utime(half, (1, 1))
    take(box, shop, place, patience=Patience())
    assert list((folder / backups.PARTIAL).iterdir()) == [], "what was cut off is gone with the next backup"


# -- which may go ------------------------------------------------------------------------------------------------------


def dated(root: Path, one: Backup, *times: datetime) -> list[Backup]:
    return [Backup(root / t.strftime("%Y%m%dT%H%M%SZ"), replace(one.record, taken_at=t.isoformat())) for t in times]


def test_the_newest_ten_stay_and_one_of_each_month_and_the_only_one_that_matches(
    box: Box, shop: Loaded, place: Workspace
) -> None:
    one = take(box, shop, place)
    begin = datetime(2026, 1, 15, 12, tzinfo=UTC)
    many = dated(place.backups, one, *(begin + timedelta(days=7 * n) for n in range(30)))
    gone = backups.spare(many, 10, lambda b: True)
    stay = [b for b in many if b not in gone]
    assert stay[-10:] == many[-10:]
    assert [b.time.strftime("%m-%d") for b in stay[:-10]] == ["01-29", "02-26", "03-26", "04-30", "05-28"]
    assert backups.spare(many, 1, lambda b: True)[-1] == many[-3], "the last one of July stays"
    assert backups.spare(many[:1], 1, lambda b: False) == []
    second = many[1]
    assert second in gone
    kept = backups.spare(many, 10, lambda b: b is second)
    assert set(map(id, kept)) == set(map(id, gone)) - {id(second)}


def test_a_backup_that_is_removed_loses_its_name_first(box: Box, shop: Loaded, place: Workspace) -> None:
    one = take(box, shop, place)
    backups.remove(one)
    assert backups.listed(place.backups / "shop/lb1") == []


# -- archives from anywhere --------------------------------------------------------------------------------------------


def tar_of(*infos: tarfile.TarInfo, packed: bool = True) -> io.BytesIO:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz" if packed else "w") as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    sink.seek(0)
    return sink


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.type, one.linkname, one.size = kind, target, size
    return one


HOSTILE = {
    "up": (info("../etc/passwd"), "leads out of"),
    "up-inside": (info("etc/../../x"), "leads out of"),
    "absolute": (info("/etc/passwd"), "leads out of"),
    "dot": (info("etc/./x"), "leads out of"),
    "hard link": (info("etc/x", tarfile.LNKTYPE, "etc/shadow"), "hard link"),
    "device": (info("dev/sda", tarfile.BLKTYPE), "device"),
    "character device": (info("dev/mem", tarfile.CHRTYPE), "device"),
    "pipe": (info("tmp/p", tarfile.FIFOTYPE), "pipe"),
    "escape": (info("etc/\x1b[2Jx"), "file of the name"),
    "line end": (info("etc/a\nb"), "file of the name"),
    "long": (info("e" * 1001), "file of the name"),
    "long path": (info("e/" * 500 + "e"), "file of the name"),
    "long name": (info("etc/" + "e" * 256), "file of the name"),
    "long in bytes": (info("etc/" + "\u00e4" * 128), "file of the name"),
    "file under a file": (info("etc/hosts/x"), "is a file and a folder"),
    "file deep under a file": (info("etc/hosts/x/y/z"), "is a file and a folder"),
    "folder of a file's name": (info("etc/hosts", tarfile.DIRTYPE), "is a file and a folder"),
    "file of a folder's name": (info("etc"), "is a file and a folder"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_archive_is_refused_with_a_text(name: str) -> None:
    one, words = HOSTILE[name]
    with (
        pytest.raises(tar_files.ArchiveRefused, match=words) as refused,
        tar_files.reading(tar_of(info("etc/hosts", size=5), one), "a backup") as archive,
    ):
        list(archive.walk())
    assert "\x1b" not in refused.value.what


def test_links_are_only_told_and_nothing_goes_through_them() -> None:
    with tar_files.reading(tar_of(info("etc/x", tarfile.SYMTYPE, "/"), info("etc/x/y", size=1)), "a backup") as archive:
        entries = [(entry.path, entry.target) for entry, _ in archive.walk()]
    assert entries == [("/etc/x", "/"), ("/etc/x/y", "")]


def test_the_same_name_twice_is_refused() -> None:
    with (
        pytest.raises(tar_files.ArchiveRefused, match="/etc/x twice"),
        tar_files.reading(tar_of(info("etc/x"), info("./etc/x")), "a backup") as archive,
    ):
        list(archive.walk())


def test_bombs_are_refused_before_they_are_unpacked() -> None:
    million = 1 << 20
    for bomb in (
        tar_of(*(info(f"f{n}", size=8 * million) for n in range(5))),
        tar_of(*(info(f"f{n}") for n in range(tar_files.MAX_ENTRIES + 1)), packed=False),
    ):
        with (
            pytest.raises(tar_files.ArchiveRefused, match="more than"),
            tar_files.reading(bomb, "a backup", max_bytes=32 * million) as archive,
        ):
            list(archive.walk())
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 64 * million
    raw = io.BytesIO(header.tobuf() + bytes(64 * million))
    with pytest.raises(tar_files.ArchiveRefused, match="unbelievable size"), tar_files.reading(raw, "a") as archive:
        list(archive.walk())


def test_an_archive_that_is_cut_anywhere_is_refused() -> None:
    noise = info("etc/noise", size=20_000)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        tar.addfile(noise, io.BytesIO(random.Random(1).randbytes(20_000)))
    whole = sink.getvalue()
    for length in range(1, len(whole) - 1, 501):
        with (
            pytest.raises(tar_files.ArchiveRefused),
            tar_files.reading(io.BytesIO(whole[:length]), "a backup") as archive,
        ):
            for entry, opened in archive.walk():
                assert opened is not None
                tar_files.content(opened, entry, "a backup")


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """What lies in a backup is private whatever the user's umask says."""
    before = os.umask(0o000)
    yield
    os.umask(before)
