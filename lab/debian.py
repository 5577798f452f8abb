#!/usr/bin/env python3
"""Debian packages for the lab: resolve, download and unpack them, without root and without touching this machine's apt.

A script and an importable module, standard library only. It owns the lab's private apt (suite, mirror, lists,
downloads); unpacking is `debian_unpack`. Which packages are wanted, and what is built from them,
is left to the callers.

    debian.py closure --cache DIR [--arch amd64] PACKAGE...               one .deb path per line
    debian.py root    --cache DIR [--arch amd64] [--name NAME] PACKAGE... the path of an unpacked root

A request that was answered once is remembered and needs no network again. Exit code 3 with three lines (what, where,
fix) when the machine cannot: no mirror, no network, no space, a missing tool.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from debian_base import LabError as LabError
from debian_base import require, run, space
from debian_unpack import unpack

# In the order in which they are tried: a mirror's index can name files that the mirror does not hold (seen: Debian
# 13.8's libc6 for armel, a point release that some architecture's builds had not reached).
SUITES = ("trixie", "bookworm")
SUITE_VARIABLE = "NDAKIT_DEBIAN_SUITES"
MIRROR_VARIABLE = "NDAKIT_DEBIAN_MIRROR"
_FORMAT = "3"  # part of every key in the cache: raise it when the meaning of what is cached changes
_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")
_DEBIAN_SUITES = re.compile(r"^(stretch|buster|bullseye|bookworm|trixie|forky|duke|(old)*stable|testing|unstable|sid)$")
# Choices of the machine's administrator about how its mirror is reached; the rest of its apt configuration is not ours.
_PASSED_ON = re.compile(r"^Acquire::(https?|ftp|Check-Date|Check-Valid-Until|ForceIPv[46]|Max-FutureTime)(::|\b)")
# apt's words for a file that the index names and the server has not: over HTTP, and from a folder.
_NOT_HELD = re.compile(r"Failed to fetch \S*?([^/\s]+\.deb)\s+(?:404|File not found)")

Say = Callable[[str], None]


class NoSuchPackage(LabError):
    """The suite has no package of that name."""

    def __init__(self, names: Sequence[str], suite: str, mirror: str) -> None:
        super().__init__(
            f"no such Debian package: {' '.join(names)}", where=f"suite {suite} at {mirror}", fix="correct the name"
        )


class FilesMissing(LabError):
    """The suite's index names files that the mirror does not hold."""

    def __init__(self, files: Sequence[str], suite: str, mirror: str) -> None:
        self.files = tuple(files)
        super().__init__(
            f"the mirror names packages that it does not hold: {' '.join(files[:3])}",
            where=f"suite {suite} at {mirror}",
            fix=f"the mirror is being updated: try again in some hours, or name another one in {MIRROR_VARIABLE}",
        )


def progress(line: str) -> None:
    """Say one line of progress where it does not disturb the answer."""
    sys.stderr.write(f"debian: {line}\n")


def mirror() -> str:
    """The address of a Debian mirror: the environment's NDAKIT_DEBIAN_MIRROR, or the machine's own apt sources."""
    if chosen := os.environ.get(MIRROR_VARIABLE):
        return chosen
    require("apt-get", "apt")
    # apt-get(8), "indextargets": what `apt-get update` would fetch, whatever format the sources are written in.
    listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"], os.environ).stdout
    for line in listed.splitlines():
        uri, _, release = line.rpartition(" ")
        if uri and _DEBIAN_SUITES.match(release) and "security" not in uri:
            return uri.rstrip("/")
    raise LabError(
        "no Debian mirror is known on this machine",
        where="apt's sources (/etc/apt/sources.list, /etc/apt/sources.list.d/)",
        fix=f"name a mirror: export {MIRROR_VARIABLE}=http://MIRROR/debian",
    )


def suites() -> tuple[str, ...]:
    """The suites to take packages from, best first: those that NDAKIT_DEBIAN_SUITES names (with blanks), or ours."""
    return tuple(os.environ.get(SUITE_VARIABLE, "").split()) or SUITES


def suite_of(cache: Path, arch: str) -> str:
    """The suite that an architecture's packages come from: the first, if none had to be taken in its place."""
    with contextlib.suppress(OSError):
        chosen = _chosen(cache, arch).read_text().strip()
        if chosen in suites():
            return chosen
    return suites()[0]


def _chosen(cache: Path, arch: str) -> Path:
    return cache / f"suite-{arch}"


def closure(cache: Path, packages: Sequence[str], *, arch: str = "amd64", say: Say = progress) -> list[Path]:
    """The .deb files of the packages and of all they depend on (no recommends), downloaded into `cache`.

    The same request again is answered from `cache` alone. Raises LabError.
    """
    wanted = sorted(set(packages))
    if not wanted:
        raise LabError("no package was asked for", where="closure", fix="name at least one package")
    remembered = cache / "requests" / f"{_digest([_FORMAT, suites()[0], arch, *wanted])}.json"
    if (debs := _recall(cache, remembered)) is not None:
        return debs
    with _lock(cache, say):
        if (debs := _recall(cache, remembered)) is not None:
            return debs
        debs = _download(cache, wanted, arch, say)
        entries = [{"name": p.name, "size": p.stat().st_size, "sha256": _sha256(p)} for p in debs]
        _write(remembered, json.dumps({"packages": wanted, "arch": arch, "debs": entries}, indent=1) + "\n")
        return debs


def root(cache: Path, packages: Sequence[str], *, arch: str = "amd64", name: str = "root", say: Say = progress) -> Path:
    """An unpacked root of the packages' closure, cached per set; to be read only (copy what you want to change).

    Works under chroot: usr-merge links, accounts, /tmp, empty files in /dev to mount real devices on. No maintainer
    script runs. Raises LabError.
    """
    debs = closure(cache, packages, arch=arch, say=say)
    folder = cache / "roots" / f"{name}-{_digest([_FORMAT, *(p.name for p in debs)])[:16]}"
    if folder.is_dir():
        return folder
    require("dpkg-deb", "dpkg")
    with _lock(cache, say):
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob("*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        say(f"unpacking {len(debs)} packages into {folder.name}")
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".partial", dir=folder.parent))
        try:
            with space(folder):
                unpack(debs, partial)
            partial.chmod(0o755)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def _download(cache: Path, wanted: list[str], arch: str, say: Say) -> list[Path]:
    """Download from the first suite whose files the mirror really holds.

    An architecture that had to fall back stays with that suite for as long as the cache lives: the roots of one image
    must be of one Debian, because newer programs do not start with an older libc.
    """
    order = suites()
    order = order[order.index(suite_of(cache, arch)) :]
    at = mirror()
    while True:
        suite, order = order[0], order[1:]
        try:
            debs = _download_from(cache, suite, wanted, arch, at, say)
        except FilesMissing as lacking:
            if not order:
                raise
            say(f"the mirror lacks files that it names in {suite} for {arch}: {' '.join(lacking.files[:3])}")
            say(f"taking {order[0]} for {arch} instead; ./inv clean --cache forgets that")
        else:
            if suite != suites()[0]:
                _write(_chosen(cache, arch), suite + "\n")
            return debs


def _download_from(cache: Path, suite: str, wanted: list[str], arch: str, at: str, say: Say) -> list[Path]:
    """Resolve with the private apt and download; fetch the lists anew when they are missing or outdated.

    Raises FilesMissing if fresh lists name files that the mirror does not hold, LabError for everything else.
    """
    base = cache / f"apt-{suite}-{arch}"
    env = _private_apt(cache, base, suite, arch, at)
    lists_fresh = False
    if not list((base / "state/lists").glob("*_Packages*")):
        _update(env, suite, at, say)
        lists_fresh = True
    install = ["apt-get", "install", "--yes", "--quiet", *wanted]
    while True:
        # An empty folder of archives, because what is downloaded already would not be listed.
        plan = run([*install, "--print-uris", "-o", f"Dir::Cache::archives={base}/etc/empty"], env)
        unknown = re.findall(r"E: Unable to locate package (\S+)", plan.stderr)
        unknown += re.findall(r"E: Package '([^']+)' has no installation candidate", plan.stderr)
        if plan.returncode == 0:
            files = re.findall(r"^'[^']+' (\S+\.deb) \d+", plan.stdout, re.MULTILINE)
            say(f"{len(files)} packages of {suite} for {arch}; downloading what is missing")
            downloaded = run([*install, "--download-only"], env)
            if downloaded.returncode == 0:
                debs = sorted(cache / "debs" / f for f in files)
                if debs and all(p.is_file() for p in debs):
                    return debs
            plan = downloaded
        if not lists_fresh:  # the mirror has moved on since the lists were fetched
            _update(env, suite, at, say)
            lists_fresh = True
            continue
        if unknown:
            raise NoSuchPackage(unknown, suite, at)
        if lacking := _NOT_HELD.findall(plan.stderr):
            raise FilesMissing([urllib.parse.unquote(name) for name in lacking], suite, at)
        raise _apt_failed(plan, suite, at, env)


def _private_apt(cache: Path, base: Path, suite: str, arch: str, at: str) -> dict[str, str]:
    """Write an apt of our own (nothing installed, one source) and return the environment that selects it."""
    keyring = next((k for k in _KEYRINGS if Path(k).is_file()), None)
    if keyring is None:
        raise LabError(
            "Debian's archive keys are missing, so its packages cannot be checked",
            where=_KEYRINGS[0],
            fix="apt-get install debian-archive-keyring",
        )
    with space(base):
        for folder in ("state/lists/partial", "cache", "etc/empty/partial"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (cache / "debs/partial").mkdir(parents=True, exist_ok=True)
        _write(base / "state/status", "")
        _write(base / "etc/sources.list", f"deb [arch={arch} signed-by={keyring}] {at} {suite} main\n")
        kept = [line for line in run(["apt-config", "dump"], os.environ).stdout.splitlines() if _PASSED_ON.match(line)]
        settings = [
            *kept,
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::parts "/dev/null";',
            f'Dir::Etc::sourcelist "{base}/etc/sources.list";',
            *(f'Dir::Etc::{part} "{base}/etc/empty";' for part in ("sourceparts", "trustedparts", "preferencesparts")),
            'Dir::Etc::trusted "/dev/null";',
            'Dir::Etc::preferences "/dev/null";',
            f'Dir::State "{base}/state";',
            f'Dir::State::status "{base}/state/status";',
            f'Dir::Cache "{base}/cache";',
            f'Dir::Cache::archives "{cache}/debs";',
            'Dir::Log "/dev/null";',
            'APT::Sandbox::User "";',
            f'APT::Architecture "{arch}";',
            f'APT::Architectures {{ "{arch}"; }};',
            'APT::Install-Recommends "false";',
            'APT::Keep-Downloaded-Packages "true";',
            'Acquire::Languages "none";',
            'Acquire::Retries "3";',
            'Acquire::http::Timeout "30";',
            'Acquire::https::Timeout "30";',
        ]
        _write(base / "etc/apt.conf", "\n".join(settings) + "\n")
    return dict(os.environ) | {"APT_CONFIG": f"{base}/etc/apt.conf", "DEBIAN_FRONTEND": "noninteractive"}


def _update(env: dict[str, str], suite: str, at: str, say: Say) -> None:
    say(f"fetching the package lists of {suite}")
    done = run(["apt-get", "update", "--quiet", "--error-on=any"], env)
    if done.returncode != 0:
        raise _apt_failed(done, suite, at, env)


def _apt_failed(done: subprocess.CompletedProcess[str], suite: str, at: str, env: Mapping[str, str]) -> LabError:
    said = done.stdout + done.stderr
    tail = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:", "Err:"))][:3] or ["no message"]
    if re.search(r"No space left|don't have enough free space|not enough free disk space", said):
        fix = "free some space on that disk, or point XDG_CACHE_HOME at one that has it"
    elif re.search(r"NO_PUBKEY|not signed|KEYEXPIRED|EXPKEYSIG", said):
        fix = f"install a newer debian-archive-keyring that knows {suite}"
    elif re.search(r"Could not (resolve|connect)|Temporary failure|Unable to connect|Failed to fetch|timed out", said):
        fix = f"check the network and apt's proxy, or name another mirror in {MIRROR_VARIABLE}; then run it again"
    else:
        fix = f"run it by hand to see more: APT_CONFIG={env['APT_CONFIG']} apt-get update"
    return LabError(f"apt could not get the packages: {' | '.join(tail)}", where=f"suite {suite} at {at}", fix=fix)


def _recall(cache: Path, remembered: Path) -> list[Path] | None:
    """The answer to an earlier request, if all its files are still there and whole (by size)."""
    try:
        entries = json.loads(remembered.read_text())["debs"]
        debs = [cache / "debs" / e["name"] for e in entries]
        if all(p.stat().st_size == e["size"] for p, e in zip(debs, entries, strict=True)):
            return debs
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


@contextlib.contextmanager
def _lock(cache: Path, say: Say) -> Iterator[None]:
    """One run at a time per cache; the lock goes away with its holder."""
    with space(cache):
        cache.mkdir(parents=True, exist_ok=True)
        handle = (cache / "debian.lock").open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that uses the same cache")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(path: Path, text: str) -> None:
    """Write a file in one step, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="debian.py", description="Debian packages for the lab")
    parser.add_argument("verb", choices=("closure", "root"))
    parser.add_argument("packages", nargs="+", metavar="PACKAGE")
    parser.add_argument("--cache", type=Path, required=True, help="folder for lists, downloads and roots")
    parser.add_argument("--arch", default="amd64", help="Debian architecture (default: amd64)")
    parser.add_argument("--name", default="root", help="first part of the root's folder name")
    options = parser.parse_args(argv)
    cache = options.cache.absolute()
    try:
        if options.verb == "closure":
            answer = [str(p) for p in closure(cache, options.packages, arch=options.arch)]
        else:
            answer = [str(root(cache, options.packages, arch=options.arch, name=options.name))]
    except LabError as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 3
    sys.stdout.write("\n".join(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
