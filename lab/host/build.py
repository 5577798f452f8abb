#!/usr/bin/env python3
"""Make what a lab host boots: a kernel, a small initramfs and a read-only root file system, of Debian packages.

    build.py --cache DIR      prints the folder that holds `kernel`, `initrd` and `root`

Standard library only, like the rest of the lab; Debian packages come through debian.py, kernel modules and the tools
through the ImageBuilder stand-in's modules. Made once per set of inputs (packages, the sources in lab/host) and kept in
DIR. Exit code 3 with three lines (what, where, fix) when this machine cannot.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_LAB = _HERE.parent
sys.path[:0] = [str(_LAB), str(_LAB / "imagebuilder")]

import debian  # noqa: E402  # lies in the lab's folder
from standin import boot  # noqa: E402
from standin.modules import Kernel  # noqa: E402
from standin.tools import ToolFailed, Tools  # noqa: E402

PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "dash",
    "dropbear-bin",
    "iproute2",
    "iputils-ping",
    "libpython3.13-stdlib",
    "netbase",
    "nftables",
    "openssh-client",
    "python3.13-minimal",
    "tcpdump",
)
_MODULES = (
    *("virtio_net", "virtio_console", "virtio_rng", "macvlan", "8021q", "af_packet", "bridge", "veth", "dummy", "tun"),
    *("ipip", "ip6_tunnel", "sch_netem", "nf_tables", "nft_ct", "nft_chain_nat", "nft_nat", "nft_masq", "nft_redir"),
    *("nft_reject_inet", "nft_limit", "nft_log"),
)
# What the guest never reads: the kernel (booted directly), texts, other tools' data.
_LEFT_OUT = (
    *("boot", "usr/lib/modules", "usr/share", "usr/include", "usr/src", "usr/games", "usr/lib/locale", "var/lib/dpkg"),
    *("usr/lib/initramfs-tools", "usr/lib/udev", "usr/lib/systemd", "usr/lib/x86_64-linux-gnu/gconv"),
    *("usr/lib/python3.13/" + name for name in ("ensurepip", "idlelib", "test", "tkinter", "pydoc_data")),
)
_PYTHON = "usr/bin/python3.13"
_FULL = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied")
_KEPT_S = 7 * 24 * 3600
_BUSYBOX = "usr/bin/busybox"
# Names under which the guest's own scripts use busybox.
_APPLETS = (
    *("sh", "mount", "mkdir", "modprobe", "hostname", "cat", "sleep", "poweroff", "ls", "ps", "grep", "dmesg", "head"),
    *("tail", "wc", "kill", "nc", "sed", "awk", "id", "true", "false", "echo", "test", "env", "touch", "rm", "cp"),
    *("tr", "date", "md5sum", "sha256sum", "od", "seq", "sysctl", "udhcpc", "wget", "traceroute", "traceroute6"),
    *("arping",),
)


def build(cache: Path, say: debian.Say = debian.progress) -> Path:
    """The folder with `kernel`, `initrd` and `root`; made if it is not there. Raises debian.LabError, ToolFailed."""
    debs = debian.closure(cache, PACKAGES, say=say)
    folder = cache / "lab-hosts" / _key(debs)
    with _lock(folder.parent, say):
        if not folder.is_dir():
            say("making the lab hosts' root file system")
            for left in folder.parent.glob("*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(suffix=".partial", dir=folder.parent))
            try:
                _make(cache, partial, say)
                partial.chmod(0o755)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        folder.touch()
        for other in folder.parent.iterdir():
            if other.is_dir() and time.time() - other.stat().st_mtime > _KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _make(cache: Path, into: Path, say: debian.Say) -> None:
    tools = Tools(cache)
    packages = debian.root(cache, PACKAGES, name="lab-hosts", say=say)
    kernel = Kernel(packages, tools)
    shutil.copyfile(kernel.image, into / "kernel")
    # Not packed: the kernel would have to unpack it under emulation.
    packed = boot.initramfs(kernel, packages, _HERE / "initrd", 0)
    (into / "initrd").write_bytes(gzip.decompress(packed))
    root = into / "tree"
    _tree(packages, root)
    kernel.install(_MODULES, root)
    _own_files(root)
    _precompile(root)
    # Not packed either, for the same reason; time stamps and owners do not depend on who makes it, or when.
    tools.run(
        *(
            "usr/bin/mksquashfs",
            root,
            into / "root",
            "-noappend",
            "-no-progress",
            "-quiet",
            "-all-root",
            "-noI",
            "-noD",
        ),
        *("-noF", "-noX", "-no-xattrs", "-no-exports", "-mkfs-time", "0", "-all-time", "0"),
    )
    shutil.rmtree(root)


def _tree(packages: Path, root: Path) -> None:
    """The packages' files without what is left out, as hard links: nothing in it is written, only replaced."""
    left_out = {packages / name for name in _LEFT_OUT}

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(folder, name) in left_out]

    shutil.copytree(packages, root, symlinks=True, ignore=ignored, copy_function=os.link)


def _own_files(root: Path) -> None:
    for name in _APPLETS:
        link = root / "usr/bin" / name
        if not link.exists() and not (root / "usr/sbin" / name).exists():
            link.symlink_to("busybox")
    # kmod's modprobe wants tables in its own form; busybox reads the plain ones.
    for name, target in (("modprobe", "../bin/busybox"), ("init", "../lib/lab-host/init")):
        (root / "usr/sbin" / name).unlink(missing_ok=True)
        (root / "usr/sbin" / name).symlink_to(target)
    (root / "usr/bin/python3").unlink(missing_ok=True)
    (root / "usr/bin/python3").symlink_to("python3.13")
    place = root / "usr/lib/lab-host"
    shutil.copytree(_HERE / "guest", place / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("init", "start.py"):
        shutil.copyfile(_HERE / name, place / name)
    (place / "init").chmod(0o755)
    (root / "etc/hostname").write_text("lab\n")
    (root / "new").mkdir(exist_ok=True)


def _precompile(root: Path) -> None:
    """Run the guest's own Python on this machine, out of its root, through its own loader."""
    loader, libraries = root / "lib64/ld-linux-x86-64.so.2", root / "usr/lib/x86_64-linux-gnu"
    done = subprocess.run(
        [loader, "--library-path", libraries, root / _PYTHON, "-s", "-S", "-B", _HERE / "precompile.py", root],
        env={"PYTHONHOME": str(root / "usr"), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolFailed(f"python3.13: {done.stderr.strip()[-2000:]}")


def _key(debs: Sequence[Path]) -> str:
    """A digest of everything the result is made of."""
    digest = hashlib.sha256("\0".join(p.name for p in debs).encode())
    sources = [p for p in _HERE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    sources += [_LAB / "imagebuilder/standin" / f"{name}.py" for name in ("boot", "busybox", "modules", "tools")]
    for path in sorted(sources):
        digest.update(f"{path.relative_to(_LAB)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(folder: Path, say: debian.Say) -> Iterator[None]:
    """One run at a time; the lock goes away with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that makes the same")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="build.py", description="what a lab host boots")
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads and results")
    cache = parser.parse_args(argv).cache.absolute()
    os.umask(0o022)  # the modes of what is made here must not depend on who makes it
    try:
        sys.stdout.write(f"{build(cache)}\n")
    except debian.LabError as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 3
    except (OSError, ToolFailed) as failure:
        if not _FULL.search(str(failure)):
            raise
        sys.stderr.write(
            f"error: there is no room for what a lab host boots: {_FULL.findall(str(failure))[0]}\n"
            f"  where: {cache}\n"
            "  fix:   free some space there (about 500 MB are needed), or choose another folder (XDG_CACHE_HOME)\n"
        )
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
