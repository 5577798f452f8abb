"""What the real daemons say about rendered files, without booting anything.

HAProxy, keepalived, conntrackd, nft and the shell are Debian's own, unpacked by the lab into a cached root; they run in
it as root of a user namespace with interfaces of the right names, and see nothing of this machine's network. Their
versions are close to the newest OpenWrt's, not the same: a finding here is certain, silence is not. HAProxy warns of
more with each version, so a release with a newer one than Debian 13's has that of Debian's testing asked, where it can
be had. Rules that the daemons swallow are lint's.
"""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ndakit.core import process
from ndakit.core.errors import BuildError, Location, MachineError, NdakitError
from ndakit.core.locks import scratch_folder
from ndakit.core.workspace import Workspace
from ndakit.lint import config_text
from ndakit.lint.config_text import HAPROXY, KEEPALIVED, POUND, STUNNEL
from ndakit.lint.subject import mend
from ndakit.render.render import Tree

PACKAGES = (
    "haproxy",
    "keepalived",
    "nftables",
    "iproute2",
    "busybox",
    "shellcheck",
    "conntrackd",
    "netbase",
    "pound",
    "stunnel4",
)
_HAPROXY_PACKAGES = ("haproxy", "busybox", "netbase")
_NEWER, _NEWER_SUITES = "newer", "testing unstable"
"""Folder in the cache and Debian's suites for a HAProxy that Debian 13 does not have."""
_INIT = "/etc/init.d/"
SYSTEM_CAS = "etc/ssl/certs/ca-certificates.crt"
_TIMEOUT_S = 60.0
_DOWNLOAD_TIMEOUT_S = 600.0

CONNTRACKD = "/etc/conntrackd/conntrackd.conf"
_HAPROXY_MESSAGE = re.compile(
    r"\[(?:ALERT|WARNING)\]\s*\(\d+\) : config : (?:parsing \[(?P<file>[^:\]]+):(?P<line>\d+)\]\s*: )?(?P<text>.*)"
)
_CONNTRACKD_MESSAGE = re.compile(
    r"\[(?:ERROR|warning)\] (?!can't connect: is conntrackd running)(?P<text>.*?(?:in line \((?P<line>\d+)\).*)?)$"
)
_POUND_MESSAGE = re.compile(r"pound: (?P<file>/[^:]*):(?P<line>\d+)\.[\d.-]+: (?P<text>.*)")
_STUNNEL_MESSAGE = re.compile(r"^\[!\] (?:(?P<file>/[^:]*):(?P<line>\d+): )?(?P<text>.*)", re.MULTILINE)
_STUNNEL_USUAL = ("No trusted certificates found", "Configuration failed", "error queue: ")
"""What stunnel says of every server without certificates of clients, after each fault, and of OpenSSL's depths."""
_KEEPALIVED_MESSAGE = re.compile(r"\((?P<file>/[^:]*): Line (?P<line>\d+)\) (?P<text>.*)")
_SHELL_MESSAGE = re.compile(r"(?P<file>/[^:]*):(?: line )?(?P<line>\d+):(?P<text>.*)")
_OLD_HTTPCHK = re.compile(rb"^(\s*option httpchk .* HTTP/1\.1)\\r\\nHost:.*$", re.MULTILINE)
"""The only form of an http check with a Host that HAProxy before 2.2 has (OpenWrt up to 19.07); today's refuses it, so
that it sees the line without the Host."""

_KERNEL_LACKS, _SOCKET = "Could not process rule: No such file or directory", "socket transparent 1"
"""What nft says where the kernel has no module for a word, and the word for which not every machine has one."""

_USER_NOBODY = re.compile(rb"^(\s*user) nobody$", re.MULTILINE)
"""keepalived becomes the user of a script to look whether it may run it. The namespace here has root alone, so that the
script is looked at as root's: everybody may run what has the modes of `render.MODES`, which lint checks."""


class DaemonRefuses(BuildError):
    """A daemon does not take a rendered file, or takes it with a warning."""

    def __init__(self, program: str, message: str, path: str, line: int, source: str) -> None:
        super().__init__(
            f"{program}: {message}",
            where=Location(path, line, 1) if line else Location(path),
            fix=mend(source),
        )
        self.program = program


class NamespacesRefused(MachineError):
    """This machine does not let us make user namespaces."""


@dataclass(frozen=True)
class NewHaproxy:
    """A HAProxy of its own root: the folder, and the branch of its version, such as (3, 2)."""

    root: Path
    branch: tuple[int, int]


def newer_haproxy(
    cache: Path, wanted: tuple[int, int], *, download: bool, lab: Path | None = None
) -> NewHaproxy | None:
    """A HAProxy that is at least as new as a branch; None if Debian has none, or it cannot be reached (or, without
    `download`, is not in the cache yet)."""
    if not download and not any((cache / _NEWER / "roots").glob("haproxy-*")):
        return None
    debian = (lab or Workspace(Path.cwd()).lab) / "debian.py"
    argv: list[str | Path] = [
        "python3",
        debian,
        "root",
        "--cache",
        cache / _NEWER,
        "--name",
        "haproxy",
        *_HAPROXY_PACKAGES,
    ]
    env = {"NDAKIT_DEBIAN_SUITES": _NEWER_SUITES}
    made = process.run(argv, env=env, timeout_s=_DOWNLOAD_TIMEOUT_S, check=False)
    if made.returncode != 0:
        return None
    root = Path(made.stdout.strip().splitlines()[-1])
    branch = haproxy_branch(root)
    return NewHaproxy(root, branch) if branch is not None and branch >= wanted else None


@functools.cache
def haproxy_branch(root: Path) -> tuple[int, int] | None:
    """The version of a root's HAProxy: (3, 0) for 3.0.11; None if it does not say."""
    version = re.match(r"HA-?Proxy version (\d+)\.(\d+)", _run(root, "haproxy -v").stdout)
    return (int(version[1]), int(version[2])) if version else None


def ready(cache: Path) -> bool:
    """True if the daemons' root lies in the cache, so that asking them downloads nothing."""
    return any((cache / "roots").glob("daemons-*"))


def daemons_root(cache: Path, *, lab: Path | None = None) -> Path:
    """The unpacked root of all daemons, made on first use. Raises ProcessFailed or MachineError."""
    debian = (lab or Workspace(Path.cwd()).lab) / "debian.py"
    argv: list[str | Path] = ["python3", debian, "root", "--cache", cache, "--name", "daemons", *PACKAGES]
    made = process.run(argv, timeout_s=_DOWNLOAD_TIMEOUT_S)
    return Path(made.stdout.strip().splitlines()[-1])


def check(tree: Tree, cache: Path, *, lab: Path | None = None, haproxy: NewHaproxy | None = None) -> list[NdakitError]:
    """What the daemons find in a tree; empty if they take all of it.

    `cache` holds the daemons' root (downloaded and unpacked on first use), `lab` is the folder with debian.py;
    `haproxy` is asked in place of that root's. Raises ProcessFailed or MachineError if the root cannot be made, and
    NamespacesRefused.
    """
    base = daemons_root(cache, lab=lab)
    with _filled(tree, base, cache) as root:
        errors = [*_keepalived(tree, root), *_conntrackd(tree, root), *_nft(tree, root), *_shell(tree, root)]
        errors += [*_pound(tree, root), *_stunnel(tree, root)]
        if haproxy is None:
            return [*_haproxy(tree, root), *errors]
    with _filled(tree, haproxy.root, cache) as root:
        return [*_haproxy(tree, root), *errors]


def asked(tree: Tree) -> tuple[str, ...]:
    """The programs that `check` asks about a tree: only those that have something to read in it."""
    reads = {
        "haproxy": HAPROXY in tree,
        "keepalived": KEEPALIVED in tree,
        "conntrackd": CONNTRACKD in tree,
        "pound": POUND in tree,
        "stunnel": STUNNEL in tree,
        "nft": any(p.endswith(".nft") for p in tree),
        "sh": True,
    }
    return tuple(who for who, something in reads.items() if something)


@contextmanager
def _filled(tree: Tree, base: Path, cache: Path) -> Iterator[Path]:
    """A copy of a root with the tree's files in it."""
    with scratch_folder(cache / "validators", "tree") as scratch:
        root = scratch / "root"
        # Hard links: the files are shared with the cached root, so each one of ours replaces its link. What no daemon
        # reads (documentation, most of the files) stays behind.
        (root / "usr").mkdir(parents=True)
        for folder, parts in ((root, [p for p in base.iterdir() if p.name != "usr"]), (root / "usr", _programs(base))):
            process.run(["cp", "-al", "-t", folder, *sorted(parts)], timeout_s=_TIMEOUT_S)
        for file in tree.values():
            target = root / file.path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.touch(mode=0o600)  # what holds a secret is never readable by others
            target.write_bytes(_readable_here(file.path, file.content))
            target.chmod(file.mode)
        _system_cas(root)
        yield root


def _system_cas(root: Path) -> None:
    """The CAs that OpenWrt's package ca-bundle brings; here Mozilla's own list stands for them."""
    import certifi

    target = root / SYSTEM_CAS
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copyfile(certifi.where(), target)


def _readable_here(path: str, content: bytes) -> bytes:
    """A file as the daemons can be shown it here; each line keeps its number."""
    if path == HAPROXY:
        return _OLD_HTTPCHK.sub(rb"\1", content)
    return _USER_NOBODY.sub(rb"\1 root", content) if path == KEEPALIVED else content


def _programs(base: Path) -> list[Path]:
    return [p for p in (base / "usr").iterdir() if p.name not in ("share", "include")]


def chroot_argv(root: Path, script: str) -> list[str]:
    """The command that runs a shell script as root inside `root`, with a network of its own."""
    quoted = shlex.quote(str(root))
    inside = (
        f"mount --rbind /dev {quoted}/dev && mount --rbind /proc {quoted}/proc"
        f" && exec chroot {quoted} /bin/busybox sh -c {shlex.quote(script)}"
    )
    return ["unshare", "-Urnm", "sh", "-c", inside]


def _run(root: Path, script: str) -> process.Done:
    process.require("unshare", package="util-linux", reason="to run the daemons apart from this machine")
    done = process.run(chroot_argv(root, script), timeout_s=_TIMEOUT_S, check=False)
    if re.search(r"^(unshare|mount): ", done.stderr, re.MULTILINE):
        raise NamespacesRefused(
            f"no user namespace can be made: {done.tail(1)[0]}",
            where=f"command: {done.command()}",
            fix="run it as root, or allow it: sysctl kernel.unprivileged_userns_clone=1"
            " (Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)",
        )
    return done


def _haproxy(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    if HAPROXY not in tree:
        return
    # The name by which it finds itself among its peers: on a node the host name, which `node` states as well.
    name = re.search(r"^\s*node (\S+)$", tree[HAPROXY].text, re.MULTILINE)
    done = _run(root, f"haproxy -c -dW {f'-L {shlex.quote(name[1])} ' if name else ''}-f {HAPROXY}")
    if done.returncode == 0:
        return
    messages = [m for line in done.stderr.splitlines() if (m := _HAPROXY_MESSAGE.match(line))]
    places = [m for m in messages if m["file"]] or [m for m in messages if "found in configuration" not in m["text"]]
    for match in places:
        path, line = (match["file"], int(match["line"])) if match["file"] else _place(tree[HAPROXY].text, match["text"])
        yield DaemonRefuses("haproxy", match["text"], path, line, _source(tree, path))
    if not places:
        yield DaemonRefuses("haproxy", " ".join(done.tail(3)), HAPROXY, 0, _source(tree, HAPROXY))


def _place(text: str, message: str) -> tuple[str, int]:
    """The place of a message that does not begin with one: named in it, or the section of a name that it quotes."""
    if named := re.search(r"\((/[^:()]+):(\d+)\)", message):
        return named[1], int(named[2])
    try:
        sections = {p.name: p.number for p in config_text.haproxy(text) if p.name}
    except config_text.TextError:
        sections = {}
    return HAPROXY, next((sections[n] for n in re.findall(r"'([^']+)'", message) if n in sections), 0)


def _keepalived(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    if KEEPALIVED not in tree:
        return
    names = [n for n in interfaces(tree[KEEPALIVED].text) if n != "lo"]
    done = _run(root, f"{_links(names)}keepalived -t -f {KEEPALIVED}")
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode == 0 and not said:
        return
    for line in said or [process.ending(done.returncode)]:
        match = _KEEPALIVED_MESSAGE.search(line)
        path, number, text = (match["file"], int(match["line"]), match["text"]) if match else (KEEPALIVED, 0, line)
        yield DaemonRefuses("keepalived", text.strip(), path, number, _source(tree, path))


def _pound(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    """Pound's own check reads the certificates as well; what it only warns of is a fault here."""
    if POUND not in tree:
        return
    done = _run(root, f"pound -c -e -f {POUND} </dev/null")
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and not line.endswith(" is OK")]
    for line in said or ([f"exit code {done.returncode}"] if done.returncode else []):
        match = _POUND_MESSAGE.search(line)
        path, number, text = (match["file"], int(match["line"]), match["text"]) if match else (POUND, 0, line)
        yield DaemonRefuses("pound", text.strip(), path, number, _source(tree, path))


def _stunnel(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    """stunnel has no check: it is started, on addresses that need not be there, and ended. Its account is not known
    here, so that it stays root."""
    if STUNNEL not in tree:
        return
    start = (
        "ip link set lo up; for f in /proc/sys/net/ipv?/ip_nonlocal_bind; do echo 1 >$f; done; busybox mkdir -p /tmp; "
        f"busybox sed -e 's/^set[ug]id = .*/#/' -e 's/^foreground = quiet/foreground = yes/' {STUNNEL} "
        ">/tmp/stunnel.conf; "
        "stunnel4 /tmp/stunnel.conf & busybox sleep 1; kill $! 2>/dev/null && echo it runs; wait"
    )
    done = _run(root, start)
    said = done.stdout + done.stderr
    for match in _STUNNEL_MESSAGE.finditer(said):
        if not match["text"].startswith(_STUNNEL_USUAL):
            yield DaemonRefuses("stunnel", match["text"], STUNNEL, int(match["line"] or 0), _source(tree, STUNNEL))
    if "it runs" not in said and not _STUNNEL_MESSAGE.search(said):
        yield DaemonRefuses("stunnel", said.strip() or "it ends without a word", STUNNEL, 0, _source(tree, STUNNEL))


def _links(names: list[str]) -> str:
    """The beginning of a command that makes interfaces of these names."""
    return "".join(
        f"ip link add {shlex.quote(n)} type veth peer name ndapeer{i} && ip link set {shlex.quote(n)} up && "
        for i, n in enumerate(names)
    )


def _conntrackd(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    """conntrackd has no check of its own, but asking a daemon that does not run reads the file first."""
    if CONNTRACKD not in tree:
        return
    names = re.findall(r"^\s*Interface (\S+)$", tree[CONNTRACKD].text, re.MULTILINE)
    done = _run(root, f"{_links(names)}conntrackd -C {CONNTRACKD} -s")
    for line in (done.stdout + done.stderr).splitlines():
        if match := _CONNTRACKD_MESSAGE.search(line):
            number = int(match["line"]) if match["line"] else 0
            yield DaemonRefuses("conntrackd", match["text"], CONNTRACKD, number, _source(tree, CONNTRACKD))


def interfaces(text: str) -> list[str]:
    """The interface names that a keepalived.conf mentions."""
    try:
        root = config_text.keepalived(text)
    except config_text.TextError:
        return []
    names: list[str] = []
    stack = [root]
    while stack:
        block = stack.pop()
        stack.extend(block.blocks)
        for line in block.lines:
            for before, word in zip(line.words, line.words[1:], strict=False):
                if before in ("interface", "dev") and word not in names:
                    names.append(word)
    return names


def _nft(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    for path in (p for p in tree if p.endswith(".nft")):
        # fw4 reads these inside its own table (docs/facts.md, Firewall).
        (root / "check.nft").write_text(f'table inet fw4 {{\n\tinclude "{path}"\n}}\n')
        done = _run(root, "nft -c -f /check.nft")
        if _KERNEL_LACKS in done.stderr and _SOCKET in tree[path].text:
            # This machine's kernel has no nft_socket, the node's has (kmod-nft-socket): the rest of the file is read.
            target = root / path.lstrip("/")
            target.unlink()
            target.write_text(tree[path].text.replace(_SOCKET, "meta mark 0"))
            done = _run(root, "nft -c -f /check.nft")
        if done.returncode != 0:
            match = re.search(rf"{re.escape(path)}:(\d+):[\d-]+: Error: (.*)", done.stderr)
            number, text = (int(match[1]), match[2]) if match else (0, " ".join(done.tail(3)))
            yield DaemonRefuses("nft", text, path, number, _source(tree, path))


def _shell(tree: Tree, root: Path) -> Iterator[DaemonRefuses]:
    scripts = [p for p, f in tree.items() if f.content.startswith(b"#!/bin/sh")]
    if not scripts:
        return
    words = " ".join(map(shlex.quote, scripts))
    # procd reads START and the like from init scripts, which shellcheck cannot know (SC2034).
    inits = " ".join(shlex.quote(p) for p in scripts if p.startswith(_INIT))
    others = " ".join(shlex.quote(p) for p in scripts if not p.startswith(_INIT))
    checks = [f"shellcheck -s busybox -f gcc {options} {w}" for options, w in (("-e SC2034", inits), ("", others)) if w]
    done = _run(root, f"for s in {words}; do busybox sh -n $s; done; {'; '.join(checks)}")
    for line in (done.stdout + done.stderr).splitlines():
        if match := _SHELL_MESSAGE.search(line):
            path = match["file"]
            yield DaemonRefuses("shell", match["text"].strip(), path, int(match["line"]), _source(tree, path))
        elif line.strip():
            yield DaemonRefuses("shell", line.strip(), scripts[0], 0, _source(tree, scripts[0]))


def _source(tree: Tree, path: str) -> str:
    return tree[path].source if path in tree else str(PurePosixPath(path))
