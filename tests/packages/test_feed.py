"""Packages of packages/: their two forms, which of them an image gets, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest

import feeds
from imagebuilder_fakes import PROFILE, workspace_folder
from ndakit.core.errors import ErrorGroup, NdakitError
from ndakit.core.release import Release
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model import package_plan
from ndakit.packages import apk, feed, ipk
from ndakit.packages import folder as packages_folder
from ndakit.packages.feed import Local
from ndakit.packages.folder import Package
from places import LAB

OPKG, APK = Release.parse("23.05.5"), Release.parse("25.12.5")


def package(base: Path, *changes: tuple[str, str], name: str = "clock") -> Package:
    return packages_folder.read(feeds.folder(base, name, *changes), f"packages/{name}")


def inner(packed: bytes, name: str) -> tarfile.TarFile:
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as outer:
        source = outer.extractfile(f"./{name}")
        assert source is not None
        return tarfile.open(fileobj=io.BytesIO(source.read()), mode="r:gz")


def text(archive: tarfile.TarFile, name: str) -> str:
    source = archive.extractfile(name)
    assert source is not None
    return source.read().decode()


# -- .ipk --------------------------------------------------------------------------------------------------------------


def test_an_ipk_has_the_members_that_opkg_looks_for(tmp_path: Path) -> None:
    packed = ipk.build(package(tmp_path), OPKG)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as outer:
        assert outer.getnames() == ["./debian-binary", "./data.tar.gz", "./control.tar.gz"]
    control, data = inner(packed, "control.tar.gz"), inner(packed, "data.tar.gz")
    assert "Version: 1.2-3\nDepends: libc, busybox\n" in text(control, "./control")
    assert text(control, "./control").splitlines()[-1] == "Description: Tells the time to whoever asks."
    assert text(control, "./conffiles") == "/etc/clock.conf\n"
    assert "default_postinst $0 $@" in text(control, "./postinst")
    assert "clock-installed" in text(control, "./postinst-pkg")
    modes = {m.name: f"{m.mode:o}" for m in data}
    assert (modes["./usr/bin/tell"], modes["./etc/clock.conf"], modes["./usr"]) == ("755", "600", "755")
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in (*data, *control)} == {(0, 0, "", 0)}


def test_an_ipk_is_the_same_bytes_in_another_folder_with_other_times_and_modes(tmp_path: Path) -> None:
    first = ipk.build(package(tmp_path / "one"), OPKG)
    other = feeds.folder(tmp_path / "other ü", "clock")
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert ipk.build(packages_folder.read(other, "x"), OPKG) == first


def test_the_control_file_of_an_ipk_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "x.ipk").write_bytes(ipk.build(package(tmp_path), OPKG))
    fields = ipk.control(tmp_path / "x.ipk")
    assert (fields["Package"], fields["Version"], fields["Architecture"]) == ("clock", "1.2-3", "all")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"not a package", b"!<arch>\ndebian-binary"])
def test_what_is_no_ipk_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.ipk").write_bytes(content)
    with pytest.raises(ipk.NotAnIpk):
        ipk.control(tmp_path / "x.ipk")


# -- .apk --------------------------------------------------------------------------------------------------------------

# What apk 3.0.6 makes of: --info name:clock --info version:1.2-r3 --info arch:x86_64 --info "depends:libc haproxy>3"
REAL_APK = base64.b64decode(
    "QURCZHN0cdIrSM5O38EAAWsYGB6wJufkJ2ezGeoZ6RYZs1VYmMWbmbDkZCYlA+WZgFiGgaGBPSOxoCi/opLRmIGBBSimAxQzAWIg"
    "W4AZyLcAmqMCxCLOFQGqPUEWByJ/M7210mvznz/XXwsoLwDEHED1fEAcAsQgu0WhNA4gAGN4AM0FuSMHSAMA"
)


def imagebuilder(base: Path, program: bool = True) -> Path:
    """A folder with what `deliver` looks at: .config, packages/, and the lab's apk."""
    folder = base / "ib"
    (folder / apk.PROGRAM).parent.mkdir(parents=True)
    (folder / "packages").mkdir()
    (folder / ".config").write_text('CONFIG_TARGET_ARCH_PACKAGES="x86_64"\n')
    if program:
        shutil.copy(LAB / "imagebuilder/apk.py", folder / apk.PROGRAM)
    return folder


def test_the_header_of_a_real_apk_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.apk").write_bytes(REAL_APK)
    assert apk.header(tmp_path / "x.apk") == apk.Header("clock", "1.2-r3", "x86_64", ("haproxy", "libc"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "does not begin as one"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "the old form"),
        (REAL_APK[:40], "damaged"),
        (b"ADBd" + bytes(60), "damaged"),
        (b"ADBc\2\0" + bytes(60), "compressed in another way"),
        (b"ADB.indx" + bytes(60), "no package"),
        (b"ADB.pckg" + bytes(60), "damaged"),
    ],
)
def test_what_is_no_apk_is_said_to_be_none(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "x.apk").write_bytes(content)
    with pytest.raises(apk.NotAnApk, match=why):
        apk.header(tmp_path / "x.apk")


def test_no_damage_of_an_apk_goes_unnoticed_as_another_failure(tmp_path: Path) -> None:
    plain = b"ADB." + zlib.decompressobj(-15).decompress(REAL_APK[4:])[4:]
    for at in range(8, len(plain)):
        (tmp_path / "x.apk").write_bytes(plain[:at] + bytes([plain[at] ^ 0xFF]) + plain[at + 1 :])
        with contextlib.suppress(apk.NotAnApk):
            apk.header(tmp_path / "x.apk")


def test_an_apk_gets_facts_scripts_and_the_lists_of_openwrts_base_system(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    apk.build(package(tmp_path), APK, imagebuilder(tmp_path), scratch, tmp_path / "x.apk")
    with tarfile.open(tmp_path / "x.apk") as made:
        facts = json.loads(text(made, ".PKGINFO"))
        assert (facts["name"], facts["version"], facts["arch"]) == ("clock", "1.2-r3", "noarch")
        assert facts["depends"] == "libc busybox"
        script = text(made, ".scripts/post-install")
        assert "clock-installed" in script
        assert script.index("default_postinst") < script.index("clock-installed")
        assert script.count("#!/bin/sh") == 1
        listed = "/etc/clock.conf\n/etc/init.d/clock\n/lib/upgrade/keep.d/clock\n/usr/bin/say\n/usr/bin/tell\n"
        assert text(made, "files/lib/apk/packages/clock.list") == listed
        assert text(made, "files/lib/apk/packages/clock.conffiles") == "/etc/clock.conf\n/etc/clock.d/\n"
        assert text(made, "files/lib/apk/packages/clock.conffiles_static").startswith("/etc/clock.conf 934c2c")
        assert made.getmember("files/etc/clock.conf").mode == 0o600


def test_an_apk_is_the_same_bytes_whatever_the_umask(tmp_path: Path) -> None:
    clock = package(tmp_path)
    made = []
    for umask in (0o022, 0o077):
        scratch = tmp_path / f"scratch{umask}"
        scratch.mkdir()
        before = os.umask(umask)
        try:
            apk.build(clock, APK, imagebuilder(tmp_path / str(umask)), scratch, tmp_path / "x.apk")
        finally:
            os.umask(before)
        made.append((tmp_path / "x.apk").read_bytes())
    assert made[0] == made[1]


def test_an_imagebuilder_without_apk_is_said_to_lack_it(tmp_path: Path) -> None:
    with pytest.raises(apk.ApkMissing, match="has no apk"):
        apk.build(package(tmp_path), APK, imagebuilder(tmp_path, program=False), tmp_path, tmp_path / "x.apk")


# -- choosing ----------------------------------------------------------------------------------------------------------


def asking(root: Path, wishes: str, release: str = "24.10.8", more: str = "") -> Workspace:
    """A workspace whose profile asks for packages."""
    text = (
        PROFILE.replace("24.10.8", release).replace("rootfs_mib: 64", f"rootfs_mib: 64, packages: {{{wishes}}}") + more
    )
    (workspace_folder(root, text) / "packages").mkdir()
    return Workspace(root, root / "shipped")


def chosen(workspace: Workspace) -> tuple[Local, ...]:
    loaded = load.load(workspace, "bakery")
    return feed.choose(workspace, loaded, package_plan.plan(loaded.profile, "lb1"))


def refused(workspace: Workspace) -> NdakitError:
    with pytest.raises(NdakitError) as caught:
        chosen(workspace)
    return caught.value


def ready(folder: Path, name: str, architecture: str = "all", version: str = "1-1", depends: str = "libc") -> Path:
    """An .ipk that somebody else has made."""
    control = f"Package: {name}\nVersion: {version}\nDepends: {depends}\nArchitecture: {architecture}\n"
    path = folder / ipk.file_name(name, version, architecture)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive_of("control.tar.gz", archive_of("control", control.encode())))
    return path


def archive_of(name: str, content: bytes) -> bytes:
    """A gzipped tar with one file."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"./{name}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def test_only_what_the_profile_asks_for_is_taken_with_what_it_needs_there(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    feeds.folder(tmp_path / "packages", "clock", ("+busybox", "+gears +busybox"))
    feeds.folder(tmp_path / "packages", "unrelated", ("PKG_LICENSE:=", "PKG_SOURCE:=x\nPKG_LICENSE:="))
    ready(tmp_path / "packages", "gears", depends="libc, spring (>= 2)")
    ready(tmp_path / "packages", "spring", "x86_64")
    assert [(one.name, one.shown) for one in chosen(workspace)] == [
        ("clock", "packages/clock"),
        ("gears", "packages/gears_1-1_all.ipk"),
        ("spring", "packages/spring_1-1_x86_64.ipk"),
    ]


def test_a_dependency_that_is_a_path_is_not_looked_for(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    feeds.folder(tmp_path / "elsewhere", "gears")
    ready(tmp_path / "packages", "clock", depends="libc, ../elsewhere/gears, *")
    assert [one.name for one in chosen(workspace)] == ["clock"]


def test_the_workspaces_own_folder_comes_before_the_shipped_one(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    feeds.folder(tmp_path / "shipped/packages", "clock", ("PKG_RELEASE:=3", "PKG_RELEASE:=9"))
    assert [(one.version, one.shown) for one in chosen(workspace)] == [("1.2-r9", "ndakit's packages/clock")]
    feeds.folder(tmp_path / "packages", "clock")
    assert [(one.version, one.shown) for one in chosen(workspace)] == [("1.2-r3", "packages/clock")]


def test_of_several_architectures_the_devices_is_taken(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    ready(tmp_path / "packages", "clock", "arm_xscale")
    ready(tmp_path / "packages", "clock", "x86_64")
    assert [one.architecture for one in chosen(workspace)] == ["x86_64"]


def test_a_package_for_another_architecture_only_is_refused(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    ready(tmp_path / "packages", "clock", "arm_xscale")
    assert "is here for arm_xscale only, and x86-64 needs x86_64" in refused(workspace).what


@pytest.mark.parametrize(("release", "name"), [("24.10.8", "clock-1.2-r3.apk"), ("25.12.5", "clock_1.2-r3_all.ipk")])
def test_a_package_for_another_package_manager_only_is_refused(release: str, name: str, tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add", release)
    (tmp_path / "packages" / name).write_bytes(REAL_APK)
    error = refused(workspace)
    assert f"OpenWrt {release} installs" in error.what
    assert error.where == f"packages/{name}"


def test_a_ready_apk_is_taken_where_apk_installs(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add", "25.12.5")
    (tmp_path / "packages/clock-1.2-r3.apk").write_bytes(REAL_APK)
    assert [(one.name, one.version, one.architecture) for one in chosen(workspace)] == [("clock", "1.2-r3", "x86_64")]


def test_a_package_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    ready(tmp_path / "packages", "clock")
    ready(tmp_path / "packages", "clock", version="2-1")
    assert "there 2 times" in refused(workspace).what
    (tmp_path / "packages/clock_2-1_all.ipk").unlink()
    feeds.folder(tmp_path / "packages", "clock")
    assert "as a folder and as clock_1-1_all.ipk" in refused(workspace).what


def test_a_damaged_package_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "clock: add")
    (tmp_path / "packages/clock_1-1_all.ipk").write_bytes(b"nothing")
    (tmp_path / "packages/other_1-1_all.ipk").write_bytes(b"nothing")
    error = refused(workspace)
    assert (error.code, error.where) == ("package-file-unusable", "packages/clock_1-1_all.ipk")


def test_a_package_that_no_release_has_is_named_with_the_two_ways_out(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "varnish: add, firewall: add")
    error = refused(workspace)
    assert isinstance(error, ErrorGroup)
    lacking = {e.what: e for e in error.errors}
    varnish = lacking["OpenWrt 24.10.8 has no package varnish"]
    assert varnish.fix.startswith("use HAProxy's cache")
    assert "put an .ipk of it for this device into packages/" in varnish.fix
    assert varnish.where == "profiles/bakery.yaml:3:45, image.packages.varnish"
    assert lacking["OpenWrt 24.10.8 has no package firewall"].fix.startswith("use firewall4; or")


def test_a_package_file_makes_up_for_what_the_release_lacks(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "varnish: add")
    ready(tmp_path / "packages", "varnish", "x86_64")
    assert [one.name for one in chosen(workspace)] == ["varnish"]


# -- what OpenWrt's SDK builds -----------------------------------------------------------------------------------------


def test_a_program_that_nobody_has_built_yet_is_named_with_the_steps_of_its_guide(tmp_path: Path) -> None:
    error = refused(asking(tmp_path, "pound: add"))
    assert (error.code, error.exit_code) == ("package-not-built", 2)
    assert error.where == "profiles/bakery.yaml:3:43, image.packages.pound"
    assert error.what.endswith("packages/ has no pound_*_x86_64.ipk that was built for it")
    guide = (LAB.parent / "docs/pound.md").read_text()
    steps = ["./scripts/feeds update base && ./scripts/feeds install openssl", "make defconfig",
             "make package/pound/compile", "bin/packages/x86_64/base/pound_*_x86_64.ipk"]  # fmt: skip
    places = [error.fix.find(step) for step in steps]
    assert min(places) > 0 and places == sorted(places), error.fix
    for step in (*steps[0].split(" && "), *steps[1:]):
        assert step in guide
    assert f"cp -r {tmp_path}/shipped/packages/pound package/" in error.fix
    assert (LAB.parent / "packages/pound/Makefile").is_file()


def test_a_release_with_apk_is_told_of_an_apk(tmp_path: Path) -> None:
    error = refused(asking(tmp_path, "pound: add", release="25.12.5"))
    assert "pound-*.apk" in error.what
    assert "bin/packages/x86_64/base/pound-*.apk into packages/" in error.fix


def test_following_that_advice_makes_the_program_a_package_of_the_image(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "pound: add")
    ready(tmp_path / "packages", "pound", "x86_64")
    assert [one.name for one in chosen(workspace)] == ["pound"]
    assert feed.unbuilt(workspace, load.load(workspace, "bakery"), "lb1") == ()


def test_the_result_may_lie_beside_the_recipe_where_ndakit_is_the_workspace(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "pound: add")
    shutil.copytree(LAB.parent / "packages/pound", tmp_path / "packages/pound")
    own = Workspace(workspace.root, shipped=workspace.root)
    assert refused(own).code == "package-not-built"
    ready(tmp_path / "packages", "pound", "x86_64")
    assert [one.name for one in chosen(own)] == ["pound"]


def test_what_was_built_for_another_device_is_named_as_such(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "pound: add")
    ready(tmp_path / "packages", "pound", "arm_xscale")
    error = refused(workspace)
    assert error.what == "package pound is here for arm_xscale only, and x86-64 needs x86_64"


def test_the_lab_has_the_program_from_debian_and_takes_none_that_was_built_for_openwrt(tmp_path: Path) -> None:
    workspace = asking(tmp_path, "pound: add")
    loaded = load.load(workspace, "bakery")
    packages = package_plan.plan(loaded.profile, "lb1")
    assert feed.choose(workspace, loaded, packages, lab=True) == ()
    ready(tmp_path / "packages", "pound", "x86_64")
    assert feed.choose(workspace, loaded, packages, lab=True) == ()
    assert not feed.unbuilt(workspace, loaded, "lb1")


# -- into an ImageBuilder ----------------------------------------------------------------------------------------------


def local(source: Package, release: Release) -> Local:
    return Local(source.name, source.version(release), source.depends, source.digest, "packages/clock", source, "all")


def test_packages_come_into_the_imagebuilders_folder_under_the_names_that_its_index_needs(tmp_path: Path) -> None:
    clock, folder = package(tmp_path), imagebuilder(tmp_path)
    (tmp_path / "my package.ipk").write_bytes(b"content")
    other = Local("gears", "2-1", (), "", "packages/my package.ipk", tmp_path / "my package.ipk", "x86_64")
    feed.deliver([local(clock, OPKG), other], folder, OPKG)
    assert sorted(p.name for p in (folder / "packages").iterdir()) == ["clock_1.2-3_all.ipk", "gears_2-1_x86_64.ipk"]
    assert (folder / "packages/gears_2-1_x86_64.ipk").read_bytes() == b"content"
    feed.deliver([local(clock, APK)], folder, APK)
    assert (folder / "packages/clock-1.2-r3.apk").is_file()
    assert not list((folder / "tmp/ndakit").iterdir())


def test_a_hard_link_into_the_users_imagebuilder_is_replaced_and_not_written(tmp_path: Path) -> None:
    folder = imagebuilder(tmp_path)
    (tmp_path / "users.ipk").write_bytes(b"the user's")
    (folder / "packages/clock_1.2-3_all.ipk").hardlink_to(tmp_path / "users.ipk")
    feed.deliver([local(package(tmp_path), OPKG)], folder, OPKG)
    assert (tmp_path / "users.ipk").read_bytes() == b"the user's"


def test_an_imagebuilder_of_another_architecture_refuses_a_package(tmp_path: Path) -> None:
    other = Local("gears", "2-1", (), "", "packages/x.ipk", tmp_path / "x.ipk", "arm_xscale")
    with pytest.raises(feed.PackageFileUnusable, match="for arm_xscale, and the ImageBuilder for x86_64"):
        feed.deliver([other], imagebuilder(tmp_path), OPKG)


def test_an_image_with_another_version_than_ours_is_an_error(tmp_path: Path) -> None:
    clock = local(package(tmp_path), OPKG)
    feed.prove([clock], {"clock": "1.2-3"})
    with pytest.raises(feed.PackageNotTaken, match=r"has clock 2\.0-1 instead of 1\.2-3"):
        feed.prove([clock], {"clock": "2.0-1"})
    with pytest.raises(feed.PackageNotTaken, match=r"\(none\)"):
        feed.prove([clock], {})
