"""Images from backups alone: the same bytes where nothing was changed by hand, and what was changed otherwise."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fake_box
from fake_box import Box, TreeShell
from ndakit.build import pipeline, recipe
from ndakit.cli import certificate
from ndakit.cli import rebuild as cli_rebuild
from ndakit.cli.build import BuildOptions
from ndakit.cli.flash import NodeNotNamed, flash_node
from ndakit.cli.rebuild import BackupNotNamed, RebuildOptions
from ndakit.core.errors import InputError
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace
from ndakit.image.artifacts import Artifact, ImageChanged, Record
from ndakit.imagebuilder import sources
from ndakit.imagebuilder.imagebuilder import ImageBuilderMismatch
from ndakit.load import load
from ndakit.load.load import Loaded
from ndakit.operate import backup, backups, encryption, rebuild
from ndakit.operate.backup import Wanted
from ndakit.operate.backups import Backup, BackupBroken
from ndakit.packages.feed import PackageFileUnusable
from ssh_servers import keygen

PROFILE = """\
name: shop
release: {release}
access: {{ssh_keys: {{me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}},
  sources: {{noc: 192.168.0.0/24}}}}
networks: {{lan: {{nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}}}
nodes: {{lb1: {{addresses: {{lan: 192.168.0.11}}}}, lb2: {{addresses: {{lan: 192.168.0.12}}}}}}
vips: {{www: {{network: lan, address: 192.168.0.10}}}}
pools: {{web: {{port: 80, check: http, servers: {{web1: 192.168.0.21, web2: 192.168.0.22}}}}}}
services:
  web: {{vip: www, port: 80, protocol: http, pool: web}}
  secure: {{vip: www, port: 443, protocol: http, hostnames: [shop.example], pool: web,
    tls: {{certificates: [{{secret: shop.pem}}]}}}}
image: {{rootfs_mib: 128{more}}}
"""
MAKEFILE = """\
include $(TOPDIR)/rules.mk
PKG_NAME:=motd-lb
PKG_VERSION:=1.2
PKG_RELEASE:=1
include $(INCLUDE_DIR)/package.mk
define Package/motd-lb
  SECTION:=utils
  CATEGORY:=Utilities
  TITLE:=Words for who logs in
  PKGARCH:=all
endef
define Package/motd-lb/install
	$(INSTALL_DIR) $(1)/usr/share/motd-lb
	$(INSTALL_DATA) ./files/motd $(1)/usr/share/motd-lb/motd
endef
$(eval $(call BuildPackage,motd-lb))
"""


def workspace(root: Path, *, release: str = "24.10.8", more: str = "") -> Workspace:
    (root / "profiles").mkdir(parents=True)
    text = PROFILE.format(release=release, more=more)
    if release.startswith("18."):  # takes RSA keys only
        text = re.sub(r"ssh-ed25519 \S+ me", keygen(root.parent / "rsa", "rsa"), text)
    (root / "profiles/shop.yaml").write_text(text)
    certificate.make(Workspace(root), "shop", 90)
    return Workspace(root)


class Origin:
    """A profile's workspace with its image, and a box that runs it."""

    def __init__(self, folder: Path, *, release: str = "24.10.8", more: str = "") -> None:
        self.place = workspace(folder / "work", release=release, more=more)
        if more:
            (self.place.root / "packages/motd-lb/files").mkdir(parents=True)
            (self.place.root / "packages/motd-lb/Makefile").write_text(MAKEFILE)
            (self.place.root / "packages/motd-lb/files/motd").write_text("hello\n")
        self.loaded: Loaded = load.load(self.place, "shop")
        builder = sources.choose("lab", None, self.place, self.loaded.profile)
        pipeline.build(self.place, self.loaded, ("lb1",), builder)
        self.artifact = Artifact.load(self.place.images / "shop/lb1")
        self.pristine = folder / "pristine"
        self._made = fake_box.make(self.pristine, self.place, self.loaded, "lb1")
        self._made.set_packages(self.artifact.record.packages)
        for path in ("usr/lib/opkg/status", "usr/lib/lab/installed"):
            if (self.pristine / path).exists():
                (self.pristine / "rom" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.pristine / path, self.pristine / "rom" / path)

    @property
    def record(self) -> Record:
        return self.artifact.record

    def box(self, folder: Path) -> Box:
        """Another box that runs the same image."""
        shutil.copytree(self.pristine, folder, symlinks=True)
        return replace(self._made, root=folder)

    def back_up(self, box: Box, root: Path, *recipients: str) -> Backup:
        profile = self.loaded.profile
        wanted = Wanted("shop", "lb1", "the box", "192.0.2.11", (), profile.hostname("lb1"), str(profile.release))
        known = backup.at_hand(self.place, self.loaded, "lb1")
        return backup.take(
            TreeShell(box), wanted, root, known=known, recipients=encryption.recipients(tuple(recipients))
        )


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return Origin(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def box(origin: Origin, tmp_path: Path) -> Box:
    return origin.box(tmp_path / "box")


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """A machine that knows nothing of the profile."""
    (tmp_path / "fresh/profiles").mkdir(parents=True)
    return Workspace(tmp_path / "fresh")


def made(fresh: Workspace, given: Path | str, **options: object) -> Artifact:
    cli_rebuild.rebuild_image(
        fresh,
        str(given),
        None,
        BuildOptions(),
        RebuildOptions(**options),  # type: ignore[arg-type]
    )
    return Artifact.load(fresh.rebuilt / "shop/lb1")


def hashes(artifact: Artifact) -> dict[str, str]:
    return {image.name: file_sha256(artifact.folder / image.name) for image in artifact.record.images}


# -- the same bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.images
def test_a_machine_without_the_profile_makes_the_same_bytes_from_a_backup(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = origin.back_up(box, tmp_path / "backups")
    copied = tmp_path / "stick/some name"
    shutil.copytree(one.folder, copied)
    rebuilt = made(fresh, copied)
    assert rebuilt.id == origin.record.id
    assert hashes(rebuilt) == {image.name: image.sha256 for image in origin.record.images}
    out = capsys.readouterr().out
    assert "the same bytes as the image that the box ran" in out
    assert "packages in other versions" not in out
    assert "it holds secrets" in out
    assert stat.S_IMODE(rebuilt.image.stat().st_mode) == 0o600
    assert not rebuilt.verify()


@pytest.mark.images
def test_an_encrypted_backup_gives_the_same_bytes_to_who_has_the_key(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path
) -> None:
    one = origin.back_up(box, tmp_path / "backups", keygen(tmp_path / "me"))
    with pytest.raises(encryption.NotDecrypted, match="--identity FILE"):
        made(fresh, one.folder)
    rebuilt = made(fresh, one.folder, identities=(tmp_path / "me",))
    assert hashes(rebuilt) == {image.name: image.sha256 for image in origin.record.images}


@pytest.mark.images
def test_what_was_changed_by_hand_gets_into_the_image_and_is_told_and_as_built_leaves_it_out(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box.write("/etc/haproxy.cfg", "changed\n", 0o640)
    box.write("/etc/config/snmpd", "config agent\n", 0o600)
    box.write("/root/notes", "remember\n")
    (box.root / "etc/sysctl.conf").unlink()
    one = origin.back_up(box, tmp_path / "backups")
    rebuilt = made(fresh, one.folder)
    out = capsys.readouterr().out
    assert rebuilt.id != origin.record.id
    for line in (
        f"another image than the box ran ({origin.record.id[:12]}):", "as changed on the box: /etc/haproxy.cfg",
        "added on the box: /etc/config/snmpd", "removed on the box: /etc/sysctl.conf",
        "left out: /root/notes: not in the backup",
    ):  # fmt: skip
        assert line in out
    with rebuild_tree(fresh, one) as files:
        assert (files / "etc/haproxy.cfg").read_text() == "changed\n"
        assert stat.S_IMODE((files / "etc/haproxy.cfg").stat().st_mode) == 0o640
        assert stat.S_IMODE((files / "etc/config/snmpd").stat().st_mode) == 0o600
        assert not (files / "etc/sysctl.conf").exists()
        assert not list(files.rglob("*host_key")), "an image never holds a host key"
    assert hashes(made(fresh, one.folder, as_built=True)) == {i.name: i.sha256 for i in origin.record.images}


class rebuild_tree:  # noqa: N801  # reads as what it is at its place
    """The files that a rebuilt image gets."""

    def __init__(self, fresh: Workspace, one: Backup, *, as_built: bool = False) -> None:
        self._scratch = fresh.root / "tree"
        self._one = one
        self._as_built = as_built

    def __enter__(self) -> Path:
        self._scratch.mkdir()
        return rebuild.prepare(self._one, (), self._scratch, as_built=self._as_built).files

    def __exit__(self, *details: object) -> None:
        shutil.rmtree(self._scratch)


@pytest.mark.images
def test_packages_that_were_added_are_in_the_rebuilt_image(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box.set_packages({**origin.record.packages, "tcpdump": "9.9", "haproxy": "1.0"})
    rebuilt = made(fresh, origin.back_up(box, tmp_path / "backups").folder)
    assert "tcpdump" in rebuilt.record.packages
    out = capsys.readouterr().out
    assert "packages added: tcpdump" in out
    assert f"haproxy 1.0 → {origin.record.packages['haproxy']}" in out
    assert "tcpdump 9.9 → " in out


@pytest.mark.images
def test_packages_from_no_feed_are_in_the_backup_and_give_the_same_bytes(
    fresh: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Origin(tmp_path / "origin", more=", packages: {motd-lb: add}")
    assert "motd-lb" in mine.record.packages
    one = mine.back_up(mine.box(tmp_path / "box"), tmp_path / "backups")
    assert one.record.notes == ()
    assert hashes(made(fresh, one.folder)) == {i.name: i.sha256 for i in mine.record.images}
    (mine.place.root / "packages/motd-lb/files/motd").write_text("other\n")
    changed = mine.back_up(mine.box(tmp_path / "box2"), tmp_path / "backups")
    assert changed.record.notes == (
        "package motd-lb of packages/ is not here as it was, so that it is not in the backup",
    )
    with pytest.raises(PackageFileUnusable, match=r"(?s)had package motd-lb 1\.2\S* from .*--without-local-packages"):
        made(fresh, changed.folder)
    assert "motd-lb" not in made(fresh, changed.folder, with_local=False).record.packages
    assert "packages removed: motd-lb" in capsys.readouterr().out


@pytest.mark.images
def test_a_box_with_ext4_that_lost_its_files_gives_what_it_has(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path
) -> None:
    shutil.rmtree(box.root / "rom")
    shutil.rmtree(box.root / "overlay")
    ext4 = replace(box, rom=False)
    ext4.write("/etc/haproxy.cfg", "changed\n")
    shutil.move(origin.place.overlays, tmp_path / "overlays")
    try:
        one = origin.back_up(ext4, tmp_path / "backups")
    finally:
        shutil.move(tmp_path / "overlays", origin.place.overlays)
    assert one.record.not_original == ("/etc/haproxy.cfg",)
    with pytest.raises(rebuild.NotAsBuilt, match="without --as-built"):
        made(fresh, one.folder, as_built=True)
    assert made(fresh, one.folder).id != origin.record.id


@pytest.mark.images
def test_a_box_of_another_making_is_rebuilt_with_its_release_packages_and_configuration(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for root in (box.root, box.root / "rom"):
        shutil.rmtree(root / "usr/share/ndakit")
    one = origin.back_up(box, tmp_path / "backups")
    assert one.record.original == "none"
    with pytest.raises(rebuild.NotAsBuilt, match="does not say what it was made of"):
        made(fresh, one.folder, as_built=True)
    cli_rebuild.rebuild_image(fresh, str(one.folder), "lab", BuildOptions(), RebuildOptions())
    rebuilt = Artifact.load(fresh.rebuilt / "shop/lb1").record
    assert (rebuilt.release, rebuilt.target, rebuilt.device) == ("24.10.8", "x86/64", "generic")
    assert rebuilt.packages.keys() >= {"haproxy", "keepalived", "dropbear"}
    assert "which does not say its id" in capsys.readouterr().out
    (box.root / "etc/openwrt_release").write_text("DISTRIB_RELEASE='SNAPSHOT'\nDISTRIB_TARGET='x86/64'\n")
    strange = replace(one.record, release="SNAPSHOT")
    with pytest.raises(rebuild.BoxUnknown, match="for releases only"):
        rebuild.prepare(Backup(one.folder, strange), (), scratch(tmp_path), as_built=False)
    nameless = replace(one.record, target="", board="")
    with pytest.raises(rebuild.BoxUnknown, match="does not say what it is"):
        rebuild.prepare(Backup(one.folder, nameless), (), scratch(tmp_path), as_built=False)


def scratch(folder: Path) -> Path:
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    (folder / "scratch").mkdir()
    return folder / "scratch"


@pytest.mark.images
def test_an_imagebuilder_of_another_release_is_refused(
    origin: Origin, box: Box, fresh: Workspace, tmp_path: Path
) -> None:
    one = origin.back_up(box, tmp_path / "backups")
    folder = tmp_path / "openwrt-imagebuilder-23.05.5"
    for name in ("include", "staging_dir"):
        (folder / name).mkdir(parents=True)
    for name in ("Makefile", ".config"):
        (folder / name).touch()
    (folder / "include/version.mk").write_text("VERSION_NUMBER:=$(if $(VERSION_NUMBER),$(VERSION_NUMBER),23.05.5)\n")
    with pytest.raises(ImageBuilderMismatch, match=r"for release 23\.05\.5, .* 24\.10\.8"):
        cli_rebuild.rebuild_image(
            fresh, str(one.folder), "openwrt", BuildOptions(imagebuilder=folder), RebuildOptions()
        )


@pytest.mark.images
@pytest.mark.parametrize(("release", "listed"), [("18.06.9", False), ("25.12.0", True)])
def test_a_backup_of_a_whole_root_of_the_lab_has_no_differences_by_its_own_sysupgrade(
    tmp_path: Path, release: str, listed: bool
) -> None:
    place = workspace(tmp_path / "work", release=release, more=", formats: [img, rootfs], firmware: bios")
    loaded = load.load(place, "shop")
    pipeline.build(place, loaded, ("lb1",), sources.choose("lab", None, place, loaded.profile))
    (archive,) = (place.images / "shop/lb1").glob("*rootfs.tar.gz")
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-xpzf", archive, "-C", root], check=True)
    shutil.rmtree(root / "rom", ignore_errors=True)
    shutil.copytree(root, tmp_path / "rom", symlinks=True)
    (tmp_path / "rom").rename(root / "rom")
    for name in ("overlay/upper", "proc", "dev"):
        (root / name).mkdir(parents=True, exist_ok=True)
    mounts = [("--bind", "/dev", root / "dev"), ("-t", "proc", "proc", root / "proc")]
    try:
        for words in mounts:
            subprocess.run(["mount", *words], check=True)
        wanted = Wanted("shop", "lb1", "the box", "192.0.2.11", ())
        shell = TreeShell(Box(root, rom=True))
        one = backup.take(shell, wanted, tmp_path / "backups", known=backup.at_hand(place, loaded, "lb1"))
    finally:
        for words in mounts:
            subprocess.run(["umount", str(words[-1])], check=True)
    assert not one.record.differences.by_hand, one.record.differences
    assert (one.record.original, one.record.notes) == ("whole", ())
    record = Artifact.load(place.images / "shop/lb1").record
    lines = (one.folder / "packages.txt").read_text().splitlines()
    assert dict(line.split(" ") for line in lines) == record.packages
    with tarfile.open(one.folder / "config.tar.gz") as tar:
        assert ("etc/backup/installed_packages.txt" in tar.getnames()) is listed


# -- flash -------------------------------------------------------------------------------------------------------------


@pytest.mark.images
def test_a_rebuilt_image_is_flashed_from_its_folder(origin: Origin, box: Box, fresh: Workspace, tmp_path: Path) -> None:
    rebuilt = made(fresh, origin.back_up(box, tmp_path / "backups").folder)
    target = tmp_path / "disk.img"
    flash_node(fresh, str(rebuilt.folder), None, str(target), None, as_built=False, as_json=False)
    assert target.stat().st_size == rebuilt.first.disk_bytes
    with pytest.raises(NodeNotNamed, match="taken as it is"):
        flash_node(fresh, str(rebuilt.folder), "lb1", str(target), None, as_built=False, as_json=False)
    with rebuilt.image.open("r+b") as image:
        image.seek(1000)
        image.write(b"x")
    with pytest.raises(ImageChanged):
        flash_node(fresh, str(rebuilt.folder), None, str(target), None, as_built=False, as_json=False)


# -- hostile backups ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    folder = tmp_path_factory.mktemp("whole")
    return origin.back_up(origin.box(folder / "box"), folder / "backups")


def forged(whole: Backup, folder: Path, name: str, content: bytes, **record: object) -> Backup:
    """A backup in which somebody has replaced a file, and the sizes and hashes with it."""
    shutil.copytree(whole.folder, folder)
    (folder / name).write_bytes(content)
    size, digest = len(content), file_sha256(folder / name)
    files = tuple(replace(f, size_bytes=size, sha256=digest) if f.name == name else f for f in whole.record.files)
    told = replace(whole.record, files=files, **record)  # type: ignore[arg-type]
    (folder / "backup.json").write_text(told.text())
    return backups.load(folder)


def repacked(whole: Backup, change: dict[str, tarfile.TarInfo | bytes | None]) -> bytes:
    """image.tar.gz with some members replaced, added or left out."""
    sink = io.BytesIO()
    with tarfile.open(whole.folder / "image.tar.gz") as old, tarfile.open(fileobj=sink, mode="w:gz") as new:
        for member in old:
            if member.name not in change:
                new.addfile(member, old.extractfile(member))
        for name, value in change.items():
            if isinstance(value, bytes):
                one = tarfile.TarInfo(name)
                one.size, one.mode = len(value), 0o644
                new.addfile(one, io.BytesIO(value))
            elif value is not None:
                new.addfile(value)
    return sink.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    one = tarfile.TarInfo(name)
    one.type, one.linkname = kind, target
    return one


@pytest.mark.images
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image/../../../tmp/x": b"x"}, "leads out of"),
        ({"/etc/passwd": b"x"}, "leads out of"),
        ({"image/etc/haproxy.cfg": link("image/etc/haproxy.cfg", "/etc/shadow")}, "is a link"),
        ({"image/etc/x": link("image/etc/x", "/etc/shadow", tarfile.LNKTYPE)}, "hard link"),
        ({"image/dev/sda": link("image/dev/sda", "", tarfile.BLKTYPE)}, "device"),
        ({"image/etc/haproxy.cfg": b"not what it was\n"}, "is not what the image was made of"),
        ({"elsewhere/etc/x": b"x"}, "in no folder of ours"),
        ({"image/usr/share/ndakit/recipe.json": b"{}"}, "has format None"),
        ({"image/usr/share/ndakit/recipe.json": None}, "there is no /usr/share/ndakit/recipe.json"),
        ({"image/etc/haproxy.cfg": None}, "not in the backup: /etc/haproxy.cfg"),
    ],
)  # fmt: skip
def test_a_hostile_backup_is_refused_with_a_text(
    whole: Backup, tmp_path: Path, change: dict[str, tarfile.TarInfo | bytes | None], words: str
) -> None:
    one = forged(whole, tmp_path / "forged", "image.tar.gz", repacked(whole, change))
    with pytest.raises(InputError, match=words):
        rebuild.prepare(one, (), scratch(tmp_path), as_built=False)


@pytest.mark.images
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("device", "x; rm -rf /", "its device is"),
        ("target", "x86/64 FILES=/", "its target is"),
        ("packages", "haproxy $(reboot)", "its packages is"),
        ("extra_name", "a b", "its extra_name is"),
        ("release", "1.2", "its release is"),
        ("rootfs_mib", 10**9, "root partition"),
        ("filesystem", "zfs", "something foreign"),
        ("surprise", 1, "something foreign"),
    ],
)
def test_a_recipe_that_would_reach_a_command_line_is_refused(
    whole: Backup, tmp_path: Path, key: str, value: object, words: str
) -> None:
    with tarfile.open(whole.folder / "image.tar.gz") as tar:
        member = tar.extractfile("image/usr/share/ndakit/recipe.json")
        assert member is not None
        told = json.loads(member.read())
    told["asked"][key] = value
    change: dict[str, tarfile.TarInfo | bytes | None] = {
        "image/usr/share/ndakit/recipe.json": json.dumps(told).encode()
    }
    one = forged(whole, tmp_path / "forged", "image.tar.gz", repacked(whole, change))
    with pytest.raises(recipe.RecipeBroken, match=words):
        rebuild.prepare(one, (), scratch(tmp_path), as_built=False)


@pytest.mark.images
def test_a_record_that_names_files_from_elsewhere_is_no_help(whole: Backup, tmp_path: Path) -> None:
    """What the record says was changed counts for nothing where the archives do not have it."""
    content = (whole.folder / "packages.txt").read_bytes()
    differences = replace(
        whole.record.differences, changed=("/etc/../../x", "/etc/haproxy.cfg"), missing=("/../y",),
        added=("/etc/shadow-of-somebody", "/etc/dropbear/dropbear_ed25519_host_key"),
    )  # fmt: skip
    one = forged(whole, tmp_path / "forged", "packages.txt", content, differences=differences)
    prepared = rebuild.prepare(one, (), scratch(tmp_path), as_built=False)
    assert not prepared.changes.any
    assert prepared.made_of.id == whole.record.image_id
    assert not (prepared.files / "etc/dropbear/dropbear_ed25519_host_key").exists()


# -- which one ---------------------------------------------------------------------------------------------------------


@pytest.mark.images
def test_a_backup_is_named_by_its_folder_or_its_node(whole: Backup, fresh: Workspace) -> None:
    fresh.backups.mkdir(mode=0o700)
    with pytest.raises(BackupNotNamed, match="there is no whole backup of shop/lb1"):
        cli_rebuild.chosen(fresh, "shop/lb1")
    for name in ("20261101T000000Z", "20261102T000000Z"):
        shutil.copytree(whole.folder, fresh.backups / "shop/lb1" / name)
    (fresh.backups / "shop/lb1/20261103T000000Z").mkdir()
    assert cli_rebuild.chosen(fresh, "shop/lb1").folder.name == "20261102T000000Z", "the newest whole one"
    assert cli_rebuild.chosen(fresh, "shop/lb1/20261101T000000Z").folder.name == "20261101T000000Z"
    assert cli_rebuild.chosen(fresh, str(whole.folder)).folder == whole.folder
    with pytest.raises(BackupBroken):
        cli_rebuild.chosen(fresh, "shop/lb1/20261103T000000Z")
    with pytest.raises(BackupNotNamed, match="which backup"):
        cli_rebuild.chosen(fresh, None)
    with pytest.raises(BackupNotNamed, match="something else than an image"):
        cli_rebuild.refuse_foreign(fresh.root)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("sys.stdin", None)
    yield
