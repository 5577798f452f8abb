"""The driver of ImageBuilders against a fake one: command lines, settings, results, and every failure by its name."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path

import pytest

from imagebuilder_fakes import driver, fake, request
from ndakit.core import process
from ndakit.core.errors import NdakitError
from ndakit.core.release import Release
from ndakit.image import disk
from ndakit.image.built import DiskFull
from ndakit.imagebuilder import diagnosis, failures, output, working_copy
from ndakit.imagebuilder import request as imagebuilder_request
from ndakit.imagebuilder.imagebuilder import (
    ImageBuilder,
    ImageBuilderBroken,
    ImageBuilderMismatch,
    ImageMissing,
    OutputNotEmpty,
    ServiceUnknown,
)


def test_image_argv_names_everything_and_the_size_only_where_make_knows_it(tmp_path: Path) -> None:
    asked = dataclasses.replace(request(tmp_path), files=Path("/f"), disabled_services=("odhcpd", "cron"))
    argv = imagebuilder_request.image_argv(asked, Release.parse("24.10.8"), Path("/out"))
    assert argv == [
        "make", "image", "PROFILE=generic", "PACKAGES=haproxy -ppp", "FILES=/f", "BIN_DIR=/out",
        "EXTRA_IMAGE_NAME=bakery-lb1", "DISABLED_SERVICES=cron odhcpd", "ROOTFS_PARTSIZE=64",
    ]  # fmt: skip
    assert "ROOTFS_PARTSIZE=64" not in imagebuilder_request.image_argv(asked, Release.parse("22.03.7"), Path("/out"))


def test_packages_are_named_in_one_order_whatever_the_order_asked(tmp_path: Path) -> None:
    one = request(tmp_path, add=("b", "a", "a"), remove=("d", "c"))
    other = request(tmp_path, add=("a", "b"), remove=("c", "d"))
    assert one.packages == other.packages == "a b -c -d"


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("19.07.10", "openwrt-19.07.10-bakery-lb1-x86-64-combined-squashfs.img.gz"),
        ("22.03.7", "openwrt-22.03.7-bakery-lb1-x86-64-generic-squashfs-combined.img.gz"),
        ("25.12.5", "openwrt-25.12.5-bakery-lb1-x86-64-generic-squashfs-combined.img.gz"),
    ],
)
def test_each_family_yields_the_one_image_asked_for_with_its_size(release: str, name: str, tmp_path: Path) -> None:
    builder = driver(tmp_path, release)
    device = "Generic" if release.startswith("19") else "generic"
    built = builder.image(request(tmp_path, device=device, firmware="bios"), tmp_path / "out")
    assert [i.path.name for i in built.images] == [name]
    assert built.images[0].disk is not None
    assert built.images[0].disk.root_capacity == 64 * disk.MIB
    assert built.packages["haproxy"] == "3.0.11-r1"
    assert "ppp" not in built.packages
    assert sorted(p.name for p in (tmp_path / "out").glob("*.img.gz")) == [name]


def test_efi_means_one_gpt_disk(tmp_path: Path) -> None:
    built = driver(tmp_path).image(request(tmp_path), tmp_path / "out")
    assert [(i.kind, i.disk.table if i.disk else "") for i in built.images] == [("combined-efi", "gpt")]


def test_ext4_is_made_instead_of_squashfs(tmp_path: Path) -> None:
    built = driver(tmp_path).image(request(tmp_path, filesystem="ext4"), tmp_path / "out")
    assert [(i.filesystem, i.disk.filesystem if i.disk else "") for i in built.images] == [("ext4", "ext4")]


def test_a_device_that_is_flashed_yields_its_sysupgrade_and_factory_files(tmp_path: Path) -> None:
    builder = driver(tmp_path, target="kirkwood/generic", device="seagate_dockstar")
    asked = request(tmp_path, device="seagate_dockstar", target="kirkwood/generic")
    assert [i.kind for i in builder.image(asked, tmp_path / "out").images] == ["sysupgrade", "factory"]


def test_the_overlay_reaches_the_image(tmp_path: Path) -> None:
    first = driver(tmp_path / "a").image(request(tmp_path / "a"), tmp_path / "out1")
    asked = request(tmp_path / "b")
    (asked.files / "etc/banner").write_text("other\n")
    second = driver(tmp_path / "b").image(asked, tmp_path / "out2")
    assert first.images[0].sha256 != second.images[0].sha256


def test_the_folder_and_the_time_do_not_reach_the_image(tmp_path: Path) -> None:
    sums = {driver(tmp_path / n).image(request(tmp_path / n), tmp_path / n / "o").images[0].sha256 for n in "ab"}
    assert len(sums) == 1


FAILURES: list[tuple[str, str, dict[str, object], type[NdakitError], str]] = [
    ("24.10.8", "", {"add": ("hapoxy", "nosuch")}, failures.PackagesMissing, "hapoxy, nosuch (for hapoxy there"),
    ("25.12.5", "", {"add": ("hapoxy", "nosuch")}, failures.PackagesMissing, "hapoxy, nosuch"),
    ("24.10.8", "feeds-gone", {}, failures.FeedsUnreachable, "openwrt_core/Packages.gz (no connection), and 1 more"),
    ("25.12.5", "feeds-gone", {}, failures.FeedsUnreachable, "(temporary error (try again later)), and 1 more"),
    ("24.10.8", "", {"add": ("one", "other")}, failures.PackagesConflict, "one conflicts with other"),
    ("25.12.5", "", {"add": ("one", "other")}, failures.PackagesConflict, "one conflicts with other"),
    ("24.10.8", "", {"add": ("tcpdump", "tcpdump-mini")}, failures.FilesClash, "/usr/bin/tcpdump is in tcpdump-mini"),
    ("25.12.5", "", {"add": ("tcpdump", "tcpdump-mini")}, failures.FilesClash, "/usr/bin/tcpdump is in tcpdump-mini"),
    ("24.10.8", "", {"add": ("needy",)}, failures.DependenciesMissing, "needy needs libgone"),
    ("25.12.5", "", {"add": ("unsigned",)}, failures.PackagesUntrusted, "unsigned-1-r1.apk"),
    ("24.10.8", "", {"add": ("badscript",)}, failures.InstallScriptFailed, "badscript"),
    ("24.10.8", "", {"add": ("big",)}, failures.RootTooSmall, "rootfs_mib: 192"),
    ("24.10.8", "", {"add": ("big",), "filesystem": "ext4"}, failures.RootTooSmall, "10604 more blocks"),
    ("19.07.10", "", {"add": ("big",), "filesystem": "ext4"}, failures.RootTooSmall, "more files"),
    ("24.10.8", "prerequisites", {}, failures.PrerequisitesMissing, "apt-get install gawk python3-setuptools"),
    ("24.10.8", "too-big", {}, failures.ImageTooBig, "5 more than"),
    ("24.10.8", "disk-full", {}, DiskFull, "no space left"),
    ("24.10.8", "full-installing", {}, DiskFull, "Couldn't close"),
    ("24.10.8", "full-unnoticed", {}, DiskFull, "Couldn't close"),
    ("24.10.8", "", {"add": ("otherarch",)}, failures.PackageFilesUnusable, "otherarch (another architecture)"),
    ("24.10.8", "crash", {}, failures.ImageBuilderFailed, "something new went wrong"),
    ("24.10.8", "vanished", {}, ImageMissing, "no squashfs combined image"),
    ("24.10.8", "empty", {}, ImageMissing, "ended without an error"),
    ("19.07.10", "vanished", {}, ImageMissing, "ended without an error"),
    ("24.10.8", "truncated", {}, disk.DiskImageBroken, "cut off in the middle"),
    ("24.10.8", "altered", {}, disk.DiskImageBroken, "not the one in profiles.json"),
    ("24.10.8", "ignores-size", {}, disk.DiskImageBroken, "104 MiB instead of 64"),
    ("24.10.8", "no-devices", {}, ImageBuilderBroken, "lists 0 devices"),
    ("24.10.8", "", {"device": "gneric"}, failures.DeviceUnknown, "write <target>:generic"),
    ("24.10.8", "", {"target": "x86/generic"}, ImageBuilderMismatch, "is for target x86/64"),
    ("24.10.8", "", {"disabled_services": ("odhcpd",)}, ServiceUnknown, "odhcpd"),
]  # fmt: skip


@pytest.mark.parametrize(("release", "mode", "changes", "kind", "text"), FAILURES)
def test_each_failure_has_its_own_error(
    release: str, mode: str, changes: dict[str, object], kind: type[NdakitError], text: str, tmp_path: Path
) -> None:
    device = {"device": "Generic"} if release.startswith("19") else {}
    asked = request(tmp_path, **({"firmware": "bios"} | device | changes))
    with pytest.raises(kind) as caught:
        driver(tmp_path, release, mode).image(asked, tmp_path / "out")
    assert text in caught.value.text()


OLD_CHECK = (
    "Checking 'gcc'... failed.\nBuild dependency: Please install the GNU C Compiler (gcc) 4.8 or later\n"
    "Build dependency: Please install the GNU C++ Compiler (g++) 4.8 or later\n"
    "Build dependency: Please install Python 2.x\nPrerequisite check failed. Use FORCE=1 to override.\n"
)


@pytest.mark.parametrize("installed", [True, False])
def test_a_compiler_that_is_too_new_is_not_asked_for_again(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find", lambda name: Path("/usr/bin", name) if installed else None)
    error = diagnosis.diagnose(OLD_CHECK, diagnosis.Context("log", "Generic", ("Generic",), 64, tuple))
    assert isinstance(error, failures.PrerequisitesMissing)
    if installed:
        assert "needs gcc and g++ of a version from 4.8 to 10, and those of this machine are newer" in error.text()
        assert "use release 19.07.8 or later" in error.text()
        assert "apt-get install python2 (python2: up to Debian 11 and Ubuntu 22.04)" in error.text()
        assert "install gcc" not in error.fix
    else:
        assert "apt-get install gcc g++ python2" in error.text()


def test_an_unknown_device_is_named_even_if_make_is_the_one_to_notice() -> None:
    text = 'Profile "gneric" does not exist!\nUse "make info" to get a list of available profile names.\n'
    context = diagnosis.Context("log", "gneric", ("generic",), 64, tuple)
    assert isinstance(diagnosis.diagnose(text, context), failures.DeviceUnknown)


FIRST, SECOND = "https://downloads.openwrt.org/releases/23.05.2/packages/Packages.gz", "mirror.example/base/Packages.gz"
OPKG = f"""\
Downloading {FIRST}
*** Failed to download the package list from {FIRST}

Downloading https://me:hush@{SECOND}
*** Failed to download the package list from https://me:hush@{SECOND}

Collected errors:
 * opkg_download: Failed to download https://me:hush@{SECOND}, wget returned 5.
 * opkg_download: Check your network settings and connectivity.
"""
LIBGCC = """\
Collected errors:
 * pkg_hash_check_unresolved: cannot find dependency libgcc1 for libc
 * opkg_install_cmd: Cannot install package libc.
"""
APK = """\
WARNING: updating and opening https://me:hush@downloads.openwrt.org/packages.adb: network error (check firewall)
ERROR: unable to select packages:
  haproxy (no such package):
    required by: world[haproxy]
"""
UNTRUSTED = APK.replace("network error (check firewall)", "UNTRUSTED signature")


@pytest.mark.parametrize(
    ("text", "starts", "ends"),
    [
        (OPKG + LIBGCC, f"not downloaded: {FIRST}, and 1 more", "packages cannot be installed: libc needs libgcc1"),
        (OPKG.replace(FIRST, f"https://me:hush@{SECOND}") + LIBGCC,
         f"not downloaded: https://{SECOND} (the certificate is not accepted).", "libgcc1"),
        (OPKG + "Unknown package 'haproxy'.\n * opkg_install_cmd: Cannot install package haproxy.\n",
         "not downloaded: https://", "no such package in this release: haproxy"),
        (APK, "not downloaded: https://downloads.openwrt.org/packages.adb (network error (check firewall))",
         "no such package in this release: haproxy"),
        ("Unknown package 'haproxy'.\n"
         " * opkg_download: Failed to download http://a.example/haproxy_3_x.ipk, wget returned 8.\n"
         " * opkg_install_cmd: Cannot install package haproxy.\n",
         "not downloaded: http://a.example/haproxy_3_x.ipk (the server answers with an error)", "haproxy"),
    ],
)  # fmt: skip
def test_a_list_that_failed_to_load_is_said_first(text: str, starts: str, ends: str) -> None:
    error = diagnosis.diagnose(text, diagnosis.Context("log", "generic", ("generic",), 64, tuple))
    assert isinstance(error, failures.FeedsUnreachable)
    assert error.what.startswith(starts)
    assert error.what.endswith(ends)
    assert "network and proxy" in error.fix
    assert error.exit_code == 3
    assert "hush" not in error.text()
    offline = diagnosis.diagnose(text, diagnosis.Context("log", "generic", ("generic",), 64, tuple, (), True))
    assert offline is not None
    assert offline.what.startswith("with --offline nothing is downloaded")
    assert "build once without --offline" in offline.fix


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (LIBGCC, failures.DependenciesMissing), (UNTRUSTED, failures.PackagesUntrusted),
        ("Signature check failed.\nRemove wrong Signature file.\n" + LIBGCC, failures.PackagesUntrusted),
        (OPKG + "x: No space left on device\n" + LIBGCC, DiskFull),
        (OPKG + "Image file x.bin is too big: 10 > 5\n", failures.ImageTooBig),
    ],
)  # fmt: skip
def test_what_has_another_cause_is_not_blamed_on_the_network(text: str, kind: type[NdakitError]) -> None:
    error = diagnosis.diagnose(text, diagnosis.Context("log", "generic", ("generic",), 64, tuple))
    assert type(error) is kind


def test_output_that_tells_of_nothing_known_is_not_guessed_at() -> None:
    assert diagnosis.diagnose("all is well\n", diagnosis.Context("log", "d", (), 64, tuple)) is None


def test_a_release_that_the_folder_is_not_for_is_refused_before_make_runs(tmp_path: Path) -> None:
    folder = fake(tmp_path / "ib", "23.05.2")
    with pytest.raises(ImageBuilderMismatch, match=r"is for release 23\.05\.2, the profile asks for 24\.10\.8"):
        ImageBuilder(folder, Release.parse("24.10.8"), log=tmp_path / "log")


def test_a_release_that_only_the_result_shows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageBuilderMismatch, match=r"24\.10\.7"):
        driver(tmp_path, says_release="24.10.7").image(request(tmp_path), tmp_path / "out")


def test_a_folder_that_is_no_imagebuilder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageBuilderBroken, match="no Makefile"):
        ImageBuilder(tmp_path, Release.parse("24.10.8"), log=tmp_path / "log")


def test_stale_files_in_the_output_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/openwrt-24.10.8-bakery-lb1-x86-64-generic-squashfs-combined-efi.img.gz").write_bytes(b"old")
    with pytest.raises(OutputNotEmpty):
        driver(tmp_path).image(request(tmp_path), tmp_path / "out")


def test_efi_for_a_release_without_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(imagebuilder_request.EfiUnavailable, match="firmware: bios"):
        driver(tmp_path, "19.07.10").image(request(tmp_path, device="Generic"), tmp_path / "out")


def test_a_file_system_that_the_target_does_not_make_is_refused(tmp_path: Path) -> None:
    builder = driver(tmp_path)
    (builder.root / ".config").write_text("CONFIG_TARGET_ROOTFS_SQUASHFS=y\nCONFIG_USES_SQUASHFS=y\n")
    with pytest.raises(imagebuilder_request.FilesystemUnavailable, match="filesystem: squashfs"):
        builder.image(request(tmp_path, filesystem="ext4"), tmp_path / "out")


def test_missing_and_empty_files_are_errors_not_an_image_without_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    builder = driver(tmp_path)
    for folder, text in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "empty", "is empty")):
        with pytest.raises(imagebuilder_request.FilesMissing, match=text):
            builder.image(request(tmp_path, files=folder), tmp_path / "out")


def test_files_that_the_imagebuilder_drops_silently_are_errors(tmp_path: Path) -> None:
    asked = request(tmp_path)
    for name in ("tmp/x", "boot/y", "etc/.git/z", "etc/.#lock"):
        (asked.files / name).parent.mkdir(parents=True, exist_ok=True)
        (asked.files / name).write_text("x")
    with pytest.raises(imagebuilder_request.FilesDropped) as caught:
        imagebuilder_request.check_files(asked.files)
    for name in ("/tmp/x", "/boot/y", "/etc/.git/z", "/etc/.#lock"):
        assert name in caught.value.what


@pytest.mark.parametrize("name", ["with space", "a:b", "a'b", "a$b", "a#b"])
def test_a_path_that_make_cannot_work_in_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    with pytest.raises(imagebuilder_request.PathUnusable):
        imagebuilder_request.usable_path(tmp_path / name)


def test_an_ordinary_path_is_usable() -> None:
    assert imagebuilder_request.usable_path(Path("/home/müller/a-b_c.d+e,f@g/1")) is not None


def test_a_package_that_stays_in_spite_of_its_removal_is_warned_of(tmp_path: Path) -> None:
    built = driver(tmp_path).image(request(tmp_path, add=("pppd-user",)), tmp_path / "out")
    assert built.warnings == ("package ppp was to be left out and is in the image: another package needs it",)


def test_little_room_for_changes_is_warned_of(tmp_path: Path) -> None:
    built = driver(tmp_path).image(request(tmp_path, add=("big",), rootfs_mib=120), tmp_path / "out")
    assert built.warnings == ("only 11 MiB are left for changes on the appliance; image.rootfs_mib: 192",)


def test_a_known_service_is_disabled(tmp_path: Path) -> None:
    built = driver(tmp_path).image(request(tmp_path, disabled_services=("dropbear",)), tmp_path / "out")
    assert "DISABLED_SERVICES=dropbear" in built.argv


def test_a_service_that_cannot_be_looked_for_is_warned_of(tmp_path: Path) -> None:
    built = driver(tmp_path, mode="no-root").image(request(tmp_path, disabled_services=("cron",)), tmp_path / "out")
    assert built.warnings == ("whether there are services cron to disable could not be checked",)


def test_what_the_labs_imagebuilder_lacks_is_passed_on_in_its_own_words() -> None:
    text = "Building\nerror: no Debian mirror\n  where: apt's sources\n  fix:   add one\nmake: *** Error 3\n"
    error = diagnosis.diagnose(text, diagnosis.Context("log", "d", (), 64, tuple))
    assert isinstance(error, failures.MachineLacking)
    assert (error.what, error.where, error.fix, error.exit_code) == ("no Debian mirror", "apt's sources", "add one", 3)


def test_manifest_lists_versions_and_makes_no_image(tmp_path: Path) -> None:
    builder = driver(tmp_path)
    versions = builder.manifest("generic", ["haproxy"], ["ppp"])
    assert versions["haproxy"] == "3.0.11-r1"
    assert "ppp" not in versions
    with pytest.raises(failures.PackagesMissing):
        builder.manifest("generic", ["nosuch"])


def test_the_log_has_the_commands_and_what_was_said(tmp_path: Path) -> None:
    driver(tmp_path).image(request(tmp_path), tmp_path / "out")
    log = (tmp_path / "log").read_text()
    assert "$ make info\n" in log
    assert "$ make image PROFILE=generic" in log


def test_info_reads_devices_titles_and_packages() -> None:
    text = (
        'Current Target: "ath79/generic"\nCurrent Architecture: "mips_24kc"\nCurrent Revision: "r1-abc"\n'
        "Default Packages: a b\nAvailable Profiles:\n\n"
        "8dev_carambola2:\n    8devices Carambola2\n    Packages: kmod-usb2\n    hasImageMetadata: 1\n"
        "    SupportedDevices: 8dev,carambola2 carambola2\nplain:\n    Packages:\n    hasImageMetadata:\n"
    )
    told = output.info(text)
    assert told.target == "ath79/generic"
    assert told.default_packages == ("a", "b")
    assert told.devices["8dev_carambola2"].title == "8devices Carambola2"
    assert told.devices["8dev_carambola2"].supported == ("8dev,carambola2", "carambola2")
    assert told.devices["plain"].packages == ()


def test_manifests_of_both_package_managers_are_read() -> None:
    assert output.manifest("haproxy - 3.0-r1\nnoise: x\n") == {"haproxy": "3.0-r1"}
    assert output.manifest("haproxy 3.0-r1\n") == {"haproxy": "3.0-r1"}


def test_package_lists_of_both_package_managers_are_read() -> None:
    assert output.package_names("ip-full - 6.1-1 - 2000 - x\n") == ("ip-full",)
    assert output.package_names("ip-full-6.15.0-r1 x86_64 {feeds}\n") == ("ip-full",)


def test_set_knobs_changes_in_place_appends_and_leaves_no_second_assignment() -> None:
    text = 'A=1\nCONFIG_X=y\n# CONFIG_Y is not set\nCONFIG_T="5"\nCONFIG_X=m\n'
    changed = output.set_knobs(text, {"CONFIG_X": False, "CONFIG_Y": True, "CONFIG_T": "1", "CONFIG_N": 7})
    assert changed == 'A=1\n# CONFIG_X is not set\nCONFIG_Y=y\nCONFIG_T="1"\nCONFIG_N=7\n'
    assert output.knobs(changed) == {"CONFIG_Y": "y", "CONFIG_T": "1", "CONFIG_N": "7"}


def test_the_private_copy_shares_packages_only_and_leaves_out_leftovers(tmp_path: Path) -> None:
    source = fake(tmp_path / "ib")
    for name in ("bin/old.img", "tmp/x", ".profiles.mk", "build_dir/target-x/root-x86/etc/x", "dl/haproxy_1.ipk"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("left by an earlier run")
    (source / "link").symlink_to("Makefile")
    (source / "fake.py").chmod(0o755)
    working_copy.private_copy(source, tmp_path / "copy")
    copy = tmp_path / "copy"
    copied = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if not p.is_dir() or p.is_symlink()}
    assert copied == {
        "Makefile", "fake.py", "flashfiles.py", "fake.json", ".config", "include/version.mk", "dl/haproxy_1.ipk",
        "link", "packages/kernel_1_all.ipk",
    }  # fmt: skip
    assert (copy / "packages/kernel_1_all.ipk").stat().st_nlink == 2
    assert (copy / "Makefile").stat().st_nlink == 1
    assert (copy / "fake.py").stat().st_mode & 0o777 == 0o755
    assert (copy / "fake.py").stat().st_mtime_ns == (source / "fake.py").stat().st_mtime_ns
    assert (copy / "staging_dir/host").is_dir()


def test_the_private_copy_works_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("ndakit.imagebuilder.working_copy.os.link", refused)
    working_copy.private_copy(fake(tmp_path / "ib"), tmp_path / "copy")
    assert (tmp_path / "copy/packages/kernel_1_all.ipk").read_bytes() == b"a package"


def test_the_fingerprint_is_of_the_material_not_of_place_time_or_leftovers(tmp_path: Path) -> None:
    one = fake(tmp_path / "one")
    first = working_copy.fingerprint(one)
    shutil.copytree(one, tmp_path / "two")
    (tmp_path / "two/tmp").mkdir()
    (tmp_path / "two/tmp/x").write_text("made by make")
    (tmp_path / "two/packages/Packages").write_text("an index")
    assert working_copy.fingerprint(tmp_path / "two") == first
    (tmp_path / "two/packages/new_1_all.ipk").write_text("a package more")
    assert working_copy.fingerprint(tmp_path / "two") != first


@pytest.mark.parametrize("change", ["content", "mode", "link"])
def test_the_fingerprint_notices_every_change_also_with_a_cache(change: str, tmp_path: Path) -> None:
    folder, cache = fake(tmp_path / "ib"), tmp_path / "cache.json"
    (folder / "link").symlink_to("a")
    first = working_copy.fingerprint(folder, cache)
    assert working_copy.fingerprint(folder, cache) == first
    if change == "content":
        (folder / "Makefile").write_text((folder / "Makefile").read_text().swapcase())
    elif change == "mode":
        (folder / "Makefile").chmod(0o755)
    else:
        (folder / "link").unlink()
        (folder / "link").symlink_to("b")
    assert working_copy.fingerprint(folder, cache) != first


def test_a_damaged_fingerprint_cache_does_no_harm(tmp_path: Path) -> None:
    folder, cache = fake(tmp_path / "ib"), tmp_path / "cache.json"
    cache.write_text("{half")
    assert working_copy.fingerprint(folder, cache) == working_copy.fingerprint(folder)


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "only 0 bytes"), (bytes(40000), "no partition table"), (b"\x1f\x8b" + bytes(100), "damaged")],
)
def test_what_is_no_disk_is_refused(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.img.gz"
    path.write_bytes(content)
    with pytest.raises(disk.DiskImageBroken, match=text):
        disk.inspect(path)


@pytest.mark.parametrize(("release", "file"), [("24.10.8", "mine_1-r1_all.ipk"), ("25.12.5", "mine-1-r1.apk")])
def test_a_package_file_that_cannot_be_read_is_named_instead_of_a_missing_package(
    release: str, file: str, tmp_path: Path
) -> None:
    builder = driver(tmp_path, release)
    for name in (file, f"mine-too{file[4:]}"):
        (builder.root / "packages" / name).write_bytes(b"half of it")
    with pytest.raises(failures.PackageFilesUnusable) as caught:
        builder.image(request(tmp_path, add=("mine",)), tmp_path / "out")
    assert f"cannot be used: {file} (" in caught.value.what


def test_near_names_come_from_the_lists_on_disk_without_asking_the_servers_again(tmp_path: Path) -> None:
    builder = driver(tmp_path)
    (builder.root / "dl").mkdir()
    (builder.root / "dl/openwrt_packages").write_text("Package: hapoxie\nVersion: 1\n\nPackage: other\n")
    (builder.root / "dl/x_1_all.ipk").write_bytes(b"\x1f\x8b\nPackage: inside")
    with pytest.raises(failures.PackagesMissing, match="for hapoxy there is hapoxie"):
        builder.image(request(tmp_path, add=("hapoxy",)), tmp_path / "out")
    assert "package_list" not in (tmp_path / "log").read_text()
    assert builder.package_names() == ("hapoxie", "other")


def test_a_broken_init_script_is_warned_of(tmp_path: Path) -> None:
    asked = request(tmp_path)
    (asked.files / "etc/init.d").mkdir()
    (asked.files / "etc/init.d/mine").write_text("#!/bin/sh /etc/rc.common\nstart() {\n")
    (warning,) = driver(tmp_path).image(asked, tmp_path / "out").warnings
    assert warning.startswith("the init script /etc/init.d/mine has an error in line 3: syntax error")


def test_a_file_system_without_capitals_is_not_mended_with_packages() -> None:
    text = (
        "Build dependency: OpenWrt can only be built on a case-sensitive filesystem\n"
        "Prerequisite check failed. Use FORCE=1 to override.\n"
    )
    error = diagnosis.diagnose(text, diagnosis.Context("log", "d", (), 64, tuple))
    assert isinstance(error, failures.PrerequisitesMissing)
    assert "tells capitals from small letters" in error.what
    assert "apt-get" not in error.fix
