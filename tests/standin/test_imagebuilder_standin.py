"""The stand-in ImageBuilder as make shows it: verbs, names, messages, exit codes, traps, the same bytes twice."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from standin import tree

from labrig import OVERLAYS
from ndakit.core.workspace import cache
from places import LAB

pytestmark = pytest.mark.images

LEAN = "haproxy keepalived ip-full -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe"


def _instantiate(into: Path, release: str, target: str = "x86/64") -> subprocess.CompletedProcess[str]:
    words: list[str | Path] = [sys.executable, "-B", LAB / "imagebuilder/instantiate.py", "--release", release]
    words += ["--target", target, "--cache", cache() / "lab", "--into", into]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def _folder(into: Path, release: str = "24.10.8", **knobs: str) -> Path:
    done = _instantiate(into, release)
    assert done.returncode == 0, done.stderr
    config = into / ".config"
    lines = config.read_text().splitlines()
    for name, value in knobs.items():
        lines = [line for line in lines if not line.startswith(f"CONFIG_{name}=")] + [f"CONFIG_{name}={value}"]
    config.write_text("\n".join(lines) + "\n")
    return into


SMALL = {"TARGET_ROOTFS_EXT4FS": "n", "TARGET_ROOTFS_TARGZ": "n"}


def _make(folder: Path, *words: str, umask: int = 0o022, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env}
    return subprocess.run(
        ["make", "-C", str(folder), *words], env=clean, capture_output=True, text=True, check=False, umask=umask
    )


def _raw(path: Path) -> bytes:
    unpacker = zlib.decompressobj(31)
    return unpacker.decompress(path.read_bytes()) + unpacker.flush()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build of a 24.10 balancer; its output folder."""
    top = tmp_path_factory.mktemp("built")
    folder = _folder(top / "ib", **SMALL)
    out = top / "out"
    done = _make(
        folder,
        "image",
        "PROFILE=generic",
        f"PACKAGES={LEAN}",
        f"FILES={OVERLAYS / 'fw4-lb1'}",
        f"BIN_DIR={out}",
        "EXTRA_IMAGE_NAME=Apache Pair_lb1",
    )
    assert done.returncode == 0, done.stderr
    return out


def test_info_reads_like_the_real_one(tmp_path: Path) -> None:
    done = _make(_folder(tmp_path / "ib"), "info")
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert lines[0] == 'Current Target: "x86/64"'
    assert lines[1] == 'Current Architecture: "x86_64"'
    assert lines[2].startswith('Current Revision: "r')
    assert lines[3].startswith("Default Packages: base-files ")
    assert lines[4:7] == ["Available Profiles:", "", "generic:"]
    assert lines[7] == "    Generic x86/64"
    assert lines[8].startswith("    Packages: kmod-")


@pytest.mark.parametrize(
    ("release", "manager", "firewall"),
    [
        ("19.07.10", "opkg", "firewall"),
        ("21.02.7", "opkg", "firewall"),
        ("23.05.6", "opkg", "firewall4"),
        ("25.12.5", "apk-mbedtls", "firewall4"),
    ],
)
def test_the_defaults_are_those_of_the_family(tmp_path: Path, release: str, manager: str, firewall: str) -> None:
    done = _make(_folder(tmp_path / "ib", release), "info")
    words = next(line for line in done.stdout.splitlines() if line.startswith("Default Packages: ")).split()
    assert manager in words
    assert firewall in words
    assert ("Generic:" in done.stdout) == (release == "19.07.10")


def test_an_unknown_profile_is_exit_2_and_said_on_stdout(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "ib", "19.07.10")
    done = _make(folder, "image", "PROFILE=generic")
    assert done.returncode == 2
    assert (
        'Profile "generic" does not exist!\nUse "make info" to get a list of available profile names.\n' in done.stdout
    )


def test_an_unknown_package_fails_as_opkg_fails(tmp_path: Path) -> None:
    done = _make(_folder(tmp_path / "ib"), "manifest", "PACKAGES=haproxy nosuch")
    assert done.returncode == 2
    assert "Unknown package 'nosuch'.\n" in done.stdout
    assert "Collected errors:\n * opkg_install_cmd: Cannot install package nosuch.\n" in done.stderr


def test_an_unknown_package_fails_as_apk_fails(tmp_path: Path) -> None:
    done = _make(_folder(tmp_path / "ib", "25.12.5"), "manifest", "PACKAGES=haproxy nosuch")
    assert done.returncode == 2
    assert (
        "ERROR: unable to select packages:\n  nosuch (no such package):\n    required by: world[nosuch]\n"
        in done.stderr
    )


def test_what_a_release_does_not_have_is_unknown_there(tmp_path: Path) -> None:
    assert _make(_folder(tmp_path / "a", "21.02.7"), "manifest", "PACKAGES=kmod-nft-tproxy").returncode == 2
    assert _make(_folder(tmp_path / "b", "22.03.7"), "manifest", "PACKAGES=kmod-nft-tproxy").returncode == 0
    assert _make(_folder(tmp_path / "c", "24.10.8"), "manifest", "PACKAGES=varnish").returncode == 2
    assert _make(_folder(tmp_path / "d", "18.06.9"), "manifest", "PACKAGES=pound").returncode == 2


def test_conflicting_packages_are_refused(tmp_path: Path) -> None:
    done = _make(_folder(tmp_path / "ib"), "manifest", "PACKAGES=haproxy haproxy-nossl")
    assert done.returncode == 2
    assert "check_conflicts_for: The following packages conflict with haproxy" in done.stderr


def test_removing_what_is_not_there_is_silent_and_dependencies_come_along(tmp_path: Path) -> None:
    done = _make(_folder(tmp_path / "ib"), "manifest", f"PACKAGES={LEAN} -neverheard")
    assert done.returncode == 0
    names = [line.split(" - ")[0] for line in done.stdout.splitlines() if " - " in line]
    assert names == sorted(names)
    assert {"haproxy", "keepalived", "kmod-nf-ipvs", "kmod-macvlan", "ip-full"} <= set(names)
    assert not {"dnsmasq", "ppp", "neverheard", "lua-lab"} & set(names)


def test_another_target_is_refused_in_three_lines(tmp_path: Path) -> None:
    done = _instantiate(tmp_path / "ib", "24.10.8", "ath79/generic")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 3
    assert "not for 'ath79/generic'" in done.stderr
    assert not (tmp_path / "ib").exists()


def test_instantiating_again_changes_nothing(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "ib", GRUB_TIMEOUT='"0"')
    before = (folder / ".config").stat().st_mtime_ns
    _folder(tmp_path / "ib")
    assert (folder / ".config").stat().st_mtime_ns == before or 'GRUB_TIMEOUT="0"' in (folder / ".config").read_text()


def test_output_names_are_the_real_ones(built: Path) -> None:
    prefix = "openwrt-24.10.8-apache-pair-lb1-x86-64-generic"
    assert sorted(p.name for p in built.iterdir()) == [
        f"{prefix}-kernel.bin",
        f"{prefix}-squashfs-combined-efi.img.gz",
        f"{prefix}-squashfs-combined.img.gz",
        f"{prefix}-squashfs-rootfs.img.gz",
        f"{prefix}.manifest",
        "profiles.json",
        "sha256sums",
    ]
    overview = json.loads((built / "profiles.json").read_text())
    assert overview["target"] == "x86/64" and overview["version_number"] == "24.10.8"
    images = {i["type"]: i for i in overview["profiles"]["generic"]["images"]}
    assert set(images) == {"kernel", "rootfs", "combined", "combined-efi"}
    for line in (built / "sha256sums").read_text().splitlines():
        digest, name = line.split(" *")
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest
        assert all(i["sha256"] == digest for i in images.values() if i["name"] == name)


def test_images_have_metadata_behind_the_gzip_stream(built: Path) -> None:
    path = next(built.glob("*combined.img.gz"))
    done = subprocess.run(["gzip", "-dc", path], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"trailing garbage ignored" in done.stderr
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(path.read_bytes())
    assert path.read_bytes()[-16:-12] == b"FWx0"


def test_the_disks_are_partitioned_as_openwrts(built: Path) -> None:
    mbr, gpt = _raw(next(built.glob("*combined.img.gz"))), _raw(next(built.glob("*combined-efi.img.gz")))
    kinds = [struct.unpack_from("<B3sB3sII", mbr, 446 + 16 * n)[2::2] for n in range(2)]
    assert [k[0] for k in kinds] == [0x0C, 0x83]
    assert mbr[510:512] == gpt[510:512] == b"\x55\xaa"
    assert gpt[512:520] == b"EFI PART" and gpt[-512:-504] == b"EFI PART"
    root_lba = struct.unpack_from("<Q", gpt, 1024 + 128 + 32)[0]
    assert gpt[root_lba * 512 :][:4] == b"hsqs"
    assert struct.unpack_from("<I", mbr, 446 + 16 + 8)[0] == root_lba


def test_the_same_input_gives_the_same_bytes_anywhere(tmp_path: Path, built: Path) -> None:
    folder = _folder(tmp_path / "elsewhere/ib", **SMALL)
    files = tmp_path / "files"
    shutil.copytree(OVERLAYS / "fw4-lb1", files)
    for path in files.rglob("*"):
        os.utime(path, (1, 1))
    out = tmp_path / "out"
    done = _make(
        folder,
        "image",
        f"PACKAGES={LEAN}",
        f"FILES={files}",
        f"BIN_DIR={out}",
        "EXTRA_IMAGE_NAME=apache-pair-lb1",
        umask=0o077,
        LANG="de_DE.UTF-8",
        TZ="Asia/Tokyo",
    )
    assert done.returncode == 0, done.stderr
    assert (out / "sha256sums").read_text() == (built / "sha256sums").read_text()


def test_silent_traps_stay_silent(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "ib", GRUB_EFI_IMAGES="n", **SMALL)
    out = tmp_path / "out"
    out.mkdir()
    (out / "left-over").touch()
    words = [
        f"PACKAGES={LEAN}",
        f"BIN_DIR={out}",
        f"FILES={tmp_path / 'no-such-folder'}",
        "DISABLED_SERVICES=nosuch haproxy",
    ]
    done = _make(folder, "image", *words)
    assert done.returncode == 0
    assert "no-such-folder" not in done.stdout + done.stderr
    assert "Disabling haproxy\n" in done.stdout
    assert (out / "left-over").exists()


def test_a_root_that_does_not_fit_ext4_says_out_of_space(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "ib", TARGET_ROOTFS_SQUASHFS="n", TARGET_ROOTFS_TARGZ="n")
    done = _make(folder, "image", f"PACKAGES={LEAN}", "ROOTFS_PARTSIZE=16")
    assert done.returncode == 2
    assert "out of space?" in done.stderr
    assert not list((folder / "bin").rglob("sha256sums"))


def test_before_23_05_only_config_sets_the_size_of_the_root(tmp_path: Path) -> None:
    sizes = {}
    for release, word in (("22.03.7", "ROOTFS_PARTSIZE=200"), ("23.05.6", "ROOTFS_PARTSIZE=200")):
        folder = _folder(tmp_path / release, release, GRUB_EFI_IMAGES="n", TARGET_IMAGES_GZIP="n", **SMALL)
        out = tmp_path / f"out-{release}"
        assert _make(folder, "image", f"PACKAGES={LEAN}", f"BIN_DIR={out}", word).returncode == 0
        sizes[release] = next(out.glob("*squashfs-combined.img")).stat().st_size >> 20
    assert sizes["23.05.6"] - sizes["22.03.7"] == 200 - 104


def test_19_07_has_its_own_names_and_no_overview(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "ib", "19.07.10", **SMALL)
    out = tmp_path / "out"
    done = _make(folder, "image", "PROFILE=Generic", f"PACKAGES={LEAN}", f"BIN_DIR={out}")
    assert done.returncode == 0, done.stderr
    names = sorted(p.name for p in out.iterdir())
    assert "openwrt-19.07.10-x86-64-combined-squashfs.img.gz" in names
    assert not [n for n in names if "efi" in n or n == "profiles.json"]


def test_services_are_enabled_from_their_own_text_and_modes_are_kept(tmp_path: Path) -> None:
    files = tmp_path / "files"
    (files / "etc/init.d").mkdir(parents=True)
    (files / "etc/init.d/own").write_text("#!/bin/sh /etc/rc.common\nSTART=$((70 + 7))\nSTOP=3\n")
    (files / "etc/init.d/plain").write_text("#!/bin/sh\nSTART=50\n")
    (files / "etc/secret").write_text("x")
    (files / "etc/secret").chmod(0o600)
    (files / "etc/.git").mkdir()
    (files / "etc/.git/x").touch()
    (files / "tmp").mkdir()
    (files / "tmp/x").touch()
    folder = _folder(tmp_path / "ib", TARGET_ROOTFS_EXT4FS="n", TARGET_ROOTFS_SQUASHFS="n", GRUB_EFI_IMAGES="n")
    out = tmp_path / "out"
    assert _make(folder, "image", f"PACKAGES={LEAN}", f"FILES={files}", f"BIN_DIR={out}").returncode == 0
    listed = subprocess.run(
        ["tar", "-tvzf", next(out.glob("*rootfs.tar.gz"))], capture_output=True, text=True, check=True
    ).stdout
    rows = {line.split()[5]: line.split() for line in listed.splitlines()}
    assert "./etc/rc.d/S77own" in rows
    assert not [n for n in rows if n.startswith("./etc/rc.d") and n.endswith("plain")]
    assert rows["./etc/secret"][0] == "-rw-------" and rows["./etc/secret"][1] == "root/root"
    assert not [n for n in rows if "/.git" in n or n.startswith("./tmp/x")]


def test_an_image_with_cached_packages_takes_under_six_seconds(tmp_path: Path, built: Path) -> None:
    folder = _folder(tmp_path / "ib", **SMALL)
    started_s = time.monotonic()
    done = _make(folder, "image", f"PACKAGES={LEAN}", f"FILES={OVERLAYS / 'fw4-lb1'}")
    assert done.returncode == 0
    assert time.monotonic() - started_s < 6.0


def test_the_cache_forgets_what_nobody_has_used_for_long(tmp_path: Path) -> None:
    for number in range(12):
        entry = tmp_path / f"tree{number}"
        entry.mkdir()
        (entry / "file").touch()
        age_s = 10_000 if number % 2 else 10
        os.utime(entry, (time.time() - age_s - number, time.time() - age_s - number))
    tree.prune(tmp_path, keep=8)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*(f"tree{n}" for n in range(0, 12, 2)), "tree1", "tree3"]
    )
