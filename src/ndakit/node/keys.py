"""The keys with which one logs in to a balancer: a file that the user names, or keys that the profile lets in.

Without a file only keys of `access.ssh_keys` are offered, from the user's agent or from the usual places in ~/.ssh:
dropbear gives up after a few keys that it does not know, and nobody has to learn which others there are.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from ndakit.core import process
from ndakit.node.errors import KeyMissing, KeyUnusable

_USUAL = ("id_ed25519", "id_rsa", "id_ecdsa", "id_ed25519_sk", "id_ecdsa_sk")
_TOOL_S = 10.0


@dataclass(frozen=True)
class Keys:
    """What is offered: files for `ssh -i` (private ones, or public ones whose private half an agent has)."""

    files: tuple[Path, ...]
    agent: str
    """The agent's socket (SSH_AUTH_SOCK); empty if there is none."""
    allowed: tuple[str, ...]
    """Whose keys the profile lets in, for errors."""


def agent_socket() -> str:
    """The socket of the user's agent, as every SSH client finds it; empty if there is none."""
    return os.environ.get("SSH_AUTH_SOCK", "")


def given(path: Path, allowed: Mapping[str, str]) -> Keys:
    """The key that the user names. `allowed`: owner → public key. Raises KeyUnusable, ToolMissing."""
    named = quote(str(path))
    try:
        facts = path.stat()
        head = path.read_bytes()[:4096]
    except OSError as cause:
        why = cause.strerror or str(cause)
        raise KeyUnusable(str(path), why, "name a file that is there and that you can read") from cause
    if not stat.S_ISREG(facts.st_mode) or b"PRIVATE KEY" not in head:
        fix = f"name the private half: --identity {quote(str(path.with_suffix('')))}" if path.suffix == ".pub" else (
            "name a private key in OpenSSH's or PEM's form, as ssh-keygen makes it"
        )  # fmt: skip
        raise KeyUnusable(str(path), "it is not a private key", fix)
    if facts.st_mode & 0o077:
        raise KeyUnusable(
            str(path), f"others can read it (mode {stat.S_IMODE(facts.st_mode):04o}), so that ssh refuses it",
            f"chmod 600 {named}",
        )  # fmt: skip
    public = _public_half(path)
    if public is None and not _in_agent_with_public_file(path):
        raise KeyUnusable(
            str(path),
            "it has a passphrase, or is damaged",
            f"load it into your agent, which asks for it: ssh-add {named}",
        )
    return Keys((path.absolute(),), agent_socket(), tuple(allowed))


def usual(profile: str, allowed: Mapping[str, str], folder: Path, home: Path | None = None) -> Keys:
    """Keys that the profile lets in, where the user has them. `folder` is private: the public halves are written there.

    Raises KeyMissing if the user has none of them, ToolMissing.
    """
    wanted = {_data(line): owner for owner, line in allowed.items()}
    files = []
    home_folder = (home or Path.home()) / ".ssh"
    for name in _USUAL:
        public = home_folder / f"{name}.pub"
        try:
            key = _data(public.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if key in wanted and (home_folder / name).is_file():
            files.append(home_folder / name)
    held = _agent_keys()
    for number, key in enumerate(key for key in wanted if key in held):
        public = folder / f"agent-{number}.pub"
        public.write_text(f"{key[0]} {key[1]}\n")
        files.append(public)
    if not files:
        agent = f"your agent holds {len(held)} other keys" if held else "you have no agent that holds a key"
        raise KeyMissing(profile, tuple(allowed), f"{agent}, and none of them is in {home_folder}")
    return Keys(tuple(files), agent_socket(), tuple(allowed))


def anybodys(folder: Path, home: Path | None = None) -> Keys:
    """The keys that the user has, in the agent and in ~/.ssh, for a box of which nobody knows whose keys it takes.
    `folder` is private. Raises KeyMissing if there are none, ToolMissing."""
    home_folder = (home or Path.home()) / ".ssh"
    files = [home_folder / name for name in _USUAL if (home_folder / name).is_file()]
    for number, data in enumerate(sorted(_agent_keys())):
        public = folder / f"agent-{number}.pub"
        public.write_text(f"{data[0]} {data[1]}\n")
        files.append(public)
    if not files:
        raise KeyMissing("", (), f"your agent holds no key, and none is in {home_folder}")
    return Keys(tuple(files), agent_socket(), ())


def _data(line: str) -> tuple[str, str]:
    """Type and data of a public key's line, without its comment."""
    words = [*line.split(), "", ""]
    return words[0], words[1]


def _agent_keys() -> set[tuple[str, str]]:
    """The public keys that the agent holds; none without an agent."""
    socket = agent_socket()
    if not socket:
        return set()
    program = process.require("ssh-add", package="openssh-client", reason="to ask your agent for its keys")
    asked = process.run([program, "-L"], timeout_s=_TOOL_S, env={"SSH_AUTH_SOCK": socket}, check=False)
    return {_data(line) for line in asked.stdout.splitlines()} if asked.returncode == 0 else set()


def _public_half(path: Path) -> tuple[str, str] | None:
    """The public key of a private one without a passphrase; None if it has one (or is damaged)."""
    program = process.require("ssh-keygen", package="openssh-client", reason="to read your key")
    asked = process.run([program, "-y", "-P", "", "-f", path.absolute()], timeout_s=_TOOL_S, check=False)
    return _data(asked.stdout) if asked.returncode == 0 else None


def _in_agent_with_public_file(path: Path) -> bool:
    """True if the agent holds the key: then its passphrase is not asked for. The public half lies beside it."""
    try:
        return _data(path.with_name(f"{path.name}.pub").read_text(errors="replace")) in _agent_keys()
    except OSError:
        return False
