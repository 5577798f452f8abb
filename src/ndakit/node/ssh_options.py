"""The command lines of OpenSSH's client, and what its words mean. Text work; `ssh` runs it.

Nothing of the user's configuration counts (`-F none`): the same command does the same for everybody. Words of ssh are
those of OpenSSH 8 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

from ndakit.core.errors import InputError, NdakitError
from ndakit.node.errors import (
    AddressUnknown,
    JumpHostFailed,
    KeyNotAccepted,
    NodeRefused,
    NodeSilent,
    OldAlgorithmsOnly,
    SshFailed,
)
from ndakit.node.keys import Keys

CONNECT_TIMEOUT_S = 10
ALIVE_INTERVAL_S = 5
ALIVE_COUNT = 3
"""A connection that is silent for ALIVE_INTERVAL_S × ALIVE_COUNT seconds is dead."""


class TargetMalformed(InputError):
    """An address, a port or a jump host that cannot be one."""

    def __init__(self, what: str, option: str, fix: str) -> None:
        super().__init__(what, where=option, fix=fix)


@dataclass(frozen=True)
class Target:
    """Where a balancer's SSH server is, and how to get there.

    `address`: an IP address (a link-local one with its scope: `fe80::1%eth0`) or a host name. `jump`: a machine to go
    through, `[USER@]HOST[:PORT]`. `proxy`: a command instead, whose stdin and stdout are the connection. `sha1`: its
    release knows only signatures with SHA-1 (Release.ssh_sha1_only). Raises TargetMalformed.
    """

    profile: str
    node: str
    address: str
    port: int = 22
    user: str = "root"
    jump: str = ""
    proxy: tuple[str, ...] = ()
    sha1: bool = False
    release: str = ""
    given: tuple[str, ...] = ()
    """The options of the task with which the user got here, to be repeated in what an error tells to type."""
    task: tuple[str, ...] = ()
    """The task that gets to a box without a profile; of one with a profile it is `ssh`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.:-]*(%[A-Za-z0-9_.:-]+)?", self.address) or self.address[:1] in (
            "",
            "-",
            "%",
        ):
            raise TargetMalformed(
                f"'{self.address[:80]}' is not an address", "--address",
                "give an IP address or a host name, such as --address 192.0.2.11 or --address fe80::1%eth0",
            )  # fmt: skip
        if self.jump and not re.fullmatch(
            r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\])(:[0-9]{1,5})?",
            self.jump,
        ):
            raise TargetMalformed(
                f"'{self.jump[:80]}' is not a machine to go through", "--jump",
                "write it as USER@HOST or USER@HOST:PORT, an IPv6 address in brackets",
            )  # fmt: skip

    @property
    def name(self) -> str:
        """The node for people: `shop lb1`."""
        return f"{self.profile} {self.node}"

    @property
    def where(self) -> str:
        """The place for errors."""
        way = f", through {self.jump}" if self.jump else ""
        return f"{self.user}@{self.address} port {self.port} ({self.name}{way})"

    @property
    def command(self) -> str:
        """The task that gets there, for errors: `./inv ssh shop --node lb1`."""
        return join(["./inv", *(self.task or ("ssh", self.profile, "--node", self.node)), *self.given])

    @property
    def alias(self) -> str:
        """Its name in the file with pinned host keys."""
        return f"{self.profile}.{self.node}"


def options(target: Target, known_hosts: Path, *, strict: str = "yes") -> list[str]:
    """What every ssh to a balancer is started with, the destination and the key left out."""
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": strict,
        "UserKnownHostsFile": _file(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": target.alias,
        "HashKnownHosts": "no",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "ConnectionAttempts": "1",
        "ServerAliveInterval": str(ALIVE_INTERVAL_S),
        "ServerAliveCountMax": str(ALIVE_COUNT),
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "EscapeChar": "none",
    }
    if target.sha1:  # dropbear up to 19.07 signs host keys, and checks users' RSA keys, with SHA-1 only
        settings |= {"HostKeyAlgorithms": "+ssh-rsa", "PubkeyAcceptedAlgorithms": "+ssh-rsa"}
    if target.proxy:
        settings["ProxyCommand"] = join(target.proxy).replace("%", "%%")
    elif target.jump:
        settings["ProxyCommand"] = _through(target)
    words = ["ssh", "-F", "none"]
    for name, value in settings.items():
        words += ["-o", f"{name}={value}"]
    return words


def _file(path: Path) -> str:
    """A file name as an option takes it: several are separated by blanks, so that it stands in quotes; % begins a
    token (ssh_config(5), TOKENS)."""
    text = str(path.absolute())
    if '"' in text or "\n" in text or "\\" in text:
        raise TargetMalformed(
            'the folder has a character in its name that ssh cannot take (", \\ or a line end)',
            text,
            "use another folder",
        )
    return '"' + text.replace("%", "%%") + '"'


def _through(target: Target) -> str:
    """The connection through another machine, with the user's own known_hosts and keys, and no question asked."""
    host, port = target.jump, ""
    parts = re.fullmatch(r"(.*?)(?::([0-9]+))?", target.jump)
    if parts is not None and (parts[1].endswith("]") or ":" not in parts[1]):
        host, port = parts[1], parts[2] or ""
    words = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
    words += ["-p", port] if port else []
    destination = f"[{target.address}]:{target.port}"
    # %: ssh reads ProxyCommand for tokens first.
    return join([*words, "-W", destination, "--", host.replace("[", "").replace("]", "")]).replace("%", "%%")


def identity(keys: Keys) -> list[str]:
    """The options that offer these keys, and no others."""
    words = ["-o", "IdentitiesOnly=yes", "-o", "PreferredAuthentications=publickey"]
    for path in keys.files:
        words += ["-o", f"IdentityFile={_file(path)}"]
    words += ["-o", f"IdentityAgent={'SSH_AUTH_SOCK' if keys.agent else 'none'}"]
    return words


def destination(target: Target) -> list[str]:
    """The end of a command line, in front of the remote command."""
    return ["-p", str(target.port), "-l", target.user, "--", target.address]


# -- what ssh says -----------------------------------------------------------------------------------------------------


def said(log: str) -> str:
    """ssh's own words for people: its log without what only its developers want to read."""
    lines = [line.strip() for line in log.replace("\r", "").splitlines()]
    dull = ("debug1:", "OpenSSH_", "Authenticated to", "Warning: Permanently added", "Transferred:", "Bytes per second")
    return "\n".join(line for line in lines if line and not line.startswith(dull))


def offered(log: str) -> list[str]:
    """The keys that were offered, as `-v` tells them."""
    return list(dict.fromkeys(re.findall(r"^debug1: Offering public key: (.*?)\r?$", log, re.M)))


def host_key_refused(log: str) -> bool:
    """True if the server showed a host key that is not pinned."""
    return bool(
        re.search(
            "Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|no matching host key type found", log
        )
    )


def explained(log: str, target: Target, keys: Keys | None) -> NdakitError:
    """The error for a connection that did not come about, by what `ssh -v` wrote."""
    words = said(log)
    if re.search(r"Permission denied \(|Too many authentication failures|no more authentication methods", log, re.I):
        return KeyNotAccepted(target.where, offered(log), keys.allowed if keys else ())
    if refusal := re.search(r"open failed: connect failed: (.*)", words):
        refused = "refused" in refusal[1]
        return NodeRefused(target.where) if refused else NodeSilent(target.where, refusal[1], CONNECT_TIMEOUT_S)
    if target.jump and (target.jump.split("@")[-1] in words or "UNKNOWN port" in words or "stdio forwarding" in words):
        return JumpHostFailed(target.jump, words)
    if "Unable to negotiate" in log:
        return OldAlgorithmsOnly(target.where, words, target.release or "this release")
    if "Connection refused" in log:
        return NodeRefused(target.where)
    if refusal := re.search(
        r"Could not resolve hostname .*: ([^:\n]*)$|(Network is unreachable|Invalid argument|Cannot assign requested"
        r" address|Address family not supported[^\n]*)",
        words,
        re.M,
    ):
        return AddressUnknown(target.where, (refusal[1] or refusal[2]).strip())
    if refusal := re.search(
        r"(Connection timed out|Operation timed out|No route to host|Host is down|timed out during banner exchange"
        r"|Connection to \S+ port \S+ timed out)",
        words,
    ):
        return NodeSilent(target.where, refusal[1], CONNECT_TIMEOUT_S)
    return SshFailed(target.where, words)


def quoted_remote(words: Sequence[str]) -> str:
    """A remote command: SSH carries one text, which the login shell there reads (RFC 4254, 6.5)."""
    return " ".join(quote(word) for word in words)
