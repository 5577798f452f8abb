"""What the fake ImageBuilder's Makefile calls. Standard library only; see README.md beside this file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import flashfiles  # beside this script

MIB = 1024 * 1024
SECTOR = 512
HERE = Path.cwd()
SETTINGS = json.loads((HERE / "fake.json").read_text())
RELEASE, TARGET, MODE = SETTINGS["release"], SETTINGS["target"], SETTINGS["mode"]
YEAR_MONTH = tuple(int(part) for part in RELEASE.split(".")[:2])
OLD = YEAR_MONTH < (21, 2)
APK = YEAR_MONTH >= (25, 12)
DEVICE = SETTINGS.get("device") or ("Generic" if OLD else "generic")
DEFAULTS = ("base-files", "dnsmasq", "dropbear", "odhcp6c", "odhcpd-ipv6only", "ppp", "ppp-mod-pppoe")
# What can be installed: version and how much it takes in MiB.
FEED = {
    **dict.fromkeys(DEFAULTS, ("1-r1", 1)),
    "haproxy": ("3.0.11-r1", 2), "keepalived": ("2.3.3-r1", 1), "ip-full": ("6.15.0-r1", 1), "tcpdump": ("4-r1", 1),
    "tcpdump-mini": ("4-r1", 1), "big": ("1-r1", 100), "one": ("1-r1", 1), "other": ("1-r1", 1),
    "needy": ("1-r1", 1), "unsigned": ("1-r1", 1), "badscript": ("1-r1", 1), "pppd-user": ("1-r1", 1),
    "otherarch": ("1-r1", 1),
}  # fmt: skip


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def complain(text: str) -> None:
    sys.stderr.write(text + "\n")


def env(name: str) -> str:
    return os.environ.get(name, "")


def knobs() -> dict[str, str]:
    """.config as make reads it: the last assignment wins, everything else is a comment."""
    values = {}
    for line in (HERE / ".config").read_text().splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            values[name] = value.strip('"')
    return values


def info() -> int:
    say(f'Current Target: "{TARGET}"')
    if YEAR_MONTH >= (22, 3):
        say('Current Architecture: "x86_64"')
    say('Current Revision: "r1-fake"')
    say(f"Default Packages: {' '.join(DEFAULTS)}")
    say("Available Profiles:\n")
    if MODE != "no-devices":  # lost exec bits: exit code 0, and nobody there
        say(f"{DEVICE}:\n    Generic device\n    Packages: kmod-e1000\n    hasImageMetadata: 0")
    return 0


def profile_known() -> bool:
    if env("PROFILE") in ("", DEVICE):
        return True
    say(f'Profile "{env("PROFILE")}" does not exist!')
    say('Use "make info" to get a list of available profile names.')
    return False


def packages() -> dict[str, str] | None:
    """Resolve PACKAGES; None after the texts of the package manager of this release."""
    words = (env("USER_PACKAGES") or env("PACKAGES")).split()
    removed = {w[1:] for w in words if w.startswith("-")}  # of names that do not exist nothing is said
    names = [w for w in words if not w.startswith("-")] + [d for d in DEFAULTS if d not in removed]
    feed = FEED if MODE != "feeds-gone" else {n: FEED[n] for n in DEFAULTS}  # what lies in packages/ itself
    missing = [n for n in names if n not in feed]
    problems: list[str] = []
    if APK:
        wrong = [f"  {n} (no such package):\n    required by: world[{n}]" for n in missing]
        if {"one", "other"} <= set(names):
            wrong.append("  one-1-r1:\n    conflicts: other-1-r1[one]\n    satisfies: world[one]")
        if wrong:
            problems.append("ERROR: unable to select packages:\n" + "\n".join(wrong))
        elif "unsigned" in names:
            problems.append("ERROR: packages/unsigned-1-r1.apk: UNTRUSTED signature")
        elif {"tcpdump", "tcpdump-mini"} <= set(names):
            problems.append("ERROR: tcpdump-mini-4-r1: trying to overwrite usr/bin/tcpdump owned by tcpdump-4-r1.")
    else:
        for name in missing:
            say(f"Unknown package '{name}'.")
            problems.append(f" * opkg_install_cmd: Cannot install package {name}.")
        if {"one", "other"} <= set(names):
            problems.append(
                " * check_conflicts_for: The following packages conflict with one:\n"
                " * check_conflicts_for: \tother * \n * opkg_install_cmd: Cannot install package one."
            )
        if {"tcpdump", "tcpdump-mini"} <= set(names):
            problems.append(
                " * check_data_file_clashes: Package tcpdump-mini wants to install file "
                f"{HERE}/build_dir/target-x/root-x86/usr/bin/tcpdump\n"
                "\tBut that file is already provided by package  * tcpdump\n"
                " * opkg_install_cmd: Cannot install package tcpdump-mini."
            )
        if "needy" in names:
            say("Unknown package 'needy'.")
            problems.append(
                " * pkg_hash_check_unresolved: cannot find dependency libgone for needy\n"
                " * opkg_install_cmd: Cannot install package needy."
            )
        if "otherarch" in names:
            say("Unknown package 'otherarch'.")
            problems.append(
                " * pkg_hash_fetch_best_installation_candidate: Packages for otherarch found, but incompatible with the"
                " architectures configured\n * opkg_install_cmd: Cannot install package otherarch."
            )
        if "badscript" in names:
            problems.append(' * pkg_run_script: package "badscript" postinst script returned status 7.')
        if problems:
            problems.insert(0, "Configuring libuciCollected errors:")
    if MODE == "feeds-gone":
        for name in ("openwrt_core", "openwrt_base"):
            address = f"http://127.0.0.1:9/{name}/{'packages.adb' if APK else 'Packages.gz'}"
            if APK:
                say(f"WARNING: updating and opening {address}: temporary error (try again later)")
                continue
            say(f"Downloading {address}\n*** Failed to download the package list from {address}\n")
            problems.insert(0, f" * opkg_download: Failed to download {address}, wget returned 4.")
    if problems:
        complain("\n".join(problems))
        return None
    versions = {n: FEED[n][0] for n in sorted(set(names))}
    if "pppd-user" in versions:
        versions["ppp"] = FEED["ppp"][0]
    return dict(sorted(versions.items()))


def manifest() -> int:
    if not profile_known():
        return 1
    versions = packages()
    if versions is None:
        return 255
    say("".join(f"{n} - {v}\n" for n, v in versions.items()), end="")
    return 0


def package_list() -> int:
    say("".join(f"{n} - {v}\n" for n, (v, _) in sorted(FEED.items())), end="")
    return 0


def check_profile() -> int:
    return 0 if profile_known() else 1


def prerequisites() -> int:
    if MODE == "prerequisites":
        say("Checking 'gawk'... failed.\n\nBuild dependency: Please install GNU 'awk'")
        say("Build dependency: Please install the Python3 distutils module\n")
        say("Prerequisite check failed. Use FORCE=1 to override.")
        return 1
    return 0


def package_install() -> int:
    """Install into TARGET_DIR: one file that lists the packages, and a service. Its time is the clock's, as opkg's."""
    say("Installing packages...")
    versions = packages()
    if versions is None:
        return 255
    with (HERE / "fake.log").open("a") as log:
        log.write("package_install\n")
    root = Path(env("TARGET_DIR"))
    full = f" * opkg_conf_write_status_files: Couldn't close {root}//usr/lib/opkg/status: No space left on device."
    if MODE == "full-unnoticed":  # opkg cannot write what it has installed, and ends with 0
        complain(f"Collected errors:\n{full}")
    if MODE == "full-installing":
        complain(f"Collected errors:\n{full}\n * pkg_hash_check_unresolved: cannot find dependency libc for kernel")
        return 255
    (root / "usr/lib/opkg").mkdir(parents=True, exist_ok=True)
    (root / "usr/lib/opkg/status").write_text(json.dumps(versions))
    if MODE != "no-root":
        (root / "etc/init.d").mkdir(parents=True)
        (root / "etc/init.d/dropbear").write_text("#!/bin/sh /etc/rc.common\n")
    if MODE == "sleep-installing":
        time.sleep(60)
    return 0


def build_image() -> int:
    if MODE == "sleep":
        say("Building images...")
        time.sleep(60)
    if MODE == "disk-full":
        complain("dd: error writing 'root.squashfs': No space left on device")
        return 1
    if MODE == "crash":
        complain("something new went wrong")
        return 3
    versions = json.loads((Path(env("TARGET_DIR")) / "usr/lib/opkg/status").read_text())
    config = knobs()
    out = Path(env("BIN_DIR") or "bin")
    out.mkdir(parents=True, exist_ok=True)
    extra = env("EXTRA_IMAGE_NAME").lower().replace("_", "-")
    prefix = f"openwrt-{RELEASE}-{extra}{'-' if extra else ''}{TARGET.replace('/', '-')}"
    partsize = int(config["CONFIG_TARGET_ROOTFS_PARTSIZE"])
    if YEAR_MONTH >= (23, 5) and env("CONFIG_TARGET_ROOTFS_PARTSIZE"):
        partsize = int(env("CONFIG_TARGET_ROOTFS_PARTSIZE"))
    if MODE == "ignores-size":
        partsize = 104
    used = sum(FEED[name][1] for name in versions) + 3
    images = []
    if TARGET == "kirkwood/generic":
        images += [_flash(out, prefix, kind) for kind in ("sysupgrade", "factory")]
    for knob, filesystem in (("EXT4FS", "ext4"), ("SQUASHFS", "squashfs")):
        if config.get(f"CONFIG_TARGET_ROOTFS_{knob}") != "y" or TARGET == "kirkwood/generic":
            continue
        if filesystem == "ext4" and used > partsize:
            text = "make_file: failed to allocate inode" if OLD else (
                "ext4_allocate_best_fit_partial: failed to allocate 10604 blocks, out of space?"
            )  # fmt: skip
            complain(f"error: {text}")
            return 1
        for grub, kind in (("GRUB_IMAGES", "combined"), ("GRUB_EFI_IMAGES", "combined-efi")):
            if config.get(f"CONFIG_{grub}") == "y":
                name = f"{prefix}-{kind}-{filesystem}.img.gz" if OLD else f"{prefix}-generic-{filesystem}-{kind}.img.gz"
                (out / name).write_bytes(_disk(kind, filesystem, partsize, used))
                images.append((name, kind, filesystem))
    if config.get("CONFIG_TARGET_ROOTFS_TARGZ") == "y" and MODE != "no-archive":
        _archive(out / f"{prefix}-generic-rootfs.tar.gz")
    if MODE == "too-big":
        for name, _, _ in images:
            size = (out / name).stat().st_size
            (out / name).unlink()
            complain(f"    WARNING: Image file {out / name} is too big: {size} > {size - 5}")
        images = []
    for name, _, _ in images:
        content = (out / name).read_bytes()
        key = Path(env("BUILD_KEY"))
        if not OLD and key.is_file():  # as `append-metadata` signs: behind everything, by the key of this copy
            (out / name).write_bytes(content + flashfiles.signature(content, key.read_bytes()))
        if MODE == "truncated":
            (out / name).write_bytes(content[: len(content) // 2])
        if MODE == "empty":
            (out / name).write_bytes(b"")
        if MODE == "vanished":
            (out / name).unlink()
    if not OLD:
        listed = [
            {"name": n, "type": k, "filesystem": f, "sha256": hashlib.sha256((out / n).read_bytes()).hexdigest()}
            for n, k, f in images if (out / n).is_file()
        ]  # fmt: skip
        if MODE == "altered":
            listed[0]["sha256"] = "0" * 64
        overview = {
            "version_number": SETTINGS.get("says_release", RELEASE), "target": TARGET,
            "profiles": {DEVICE: {"images": listed}},
        }  # fmt: skip
        (HERE / "build_dir/profiles.json").write_text(json.dumps(overview))
    (out / f"{prefix}-generic.manifest").write_text("".join(f"{n} - {v}\n" for n, v in versions.items()))
    return 0


def _archive(path: Path) -> None:
    """The root file system as an archive; profiles.json does not list it."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 1, raw, 0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.addfile(tarfile.TarInfo("./etc/openwrt_release"))


def _flash(out: Path, prefix: str, kind: str) -> tuple[str, str, str]:
    name = f"{prefix}-{DEVICE}-squashfs-{kind}.bin"
    root = flashfiles.squashfs(_files().encode() * 100)
    make = flashfiles.ubi if kind == "factory" else flashfiles.sysupgrade
    (out / name).write_bytes(make(flashfiles.kernel(b"zImage" * 50), root))
    return name, kind, "squashfs"


def _files() -> str:
    """A digest of the root file system: names, modes and contents."""
    digest = hashlib.sha256()
    folder = Path(env("TARGET_DIR"))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_mode:o}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _disk(kind: str, filesystem: str, partsize: int, used: int) -> bytes:
    """A gzipped disk with a partition table and a superblock; the rest is zeros, one gzip member per MiB."""
    root_start = 2 * MIB // SECTOR
    sectors = partsize * MIB // SECTOR
    head = bytearray(2 * MIB)
    head[510:512] = b"\x55\xaa"
    if kind == "combined-efi":
        head[450] = 0xEE
        head[512:520] = b"EFI PART"
        struct.pack_into("<QII", head, SECTOR + 72, 2, 128, 128)
        struct.pack_into("<QQ", head, 2 * SECTOR + 128 + 32, root_start, root_start + sectors - 1)
    else:
        struct.pack_into("<II", head, 446 + 16 + 8, root_start, sectors)
    head[4096 : 4096 + 64] = _files().encode()
    root = bytearray(MIB)
    if filesystem == "squashfs":
        root[:4] = b"hsqs"
        struct.pack_into("<Q", root, 40, used * MIB)
    else:
        root[1080:1082] = b"\x53\xef"
        struct.pack_into("<I", root, 1028, partsize * 256)
        struct.pack_into("<I", root, 1048, 2)
    zeros = gzip.compress(bytes(MIB), 1, mtime=0)
    packed = gzip.compress(bytes(head), 1, mtime=0) + gzip.compress(bytes(root), 1, mtime=0) + zeros * (partsize - 1)
    return packed + b"metadata appended behind the stream"


VERBS = {
    "info": info, "manifest": manifest, "package_list": package_list, "_check_profile": check_profile,
    "prerequisites": prerequisites, "package_install": package_install, "build_image": build_image,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(VERBS[sys.argv[1]]())
