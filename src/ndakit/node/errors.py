"""What can go wrong between this machine and a balancer, each with its own type: callers decide by the type.

`where` is the place as people say it: `root@192.0.2.11 port 22 (shop lb1)`, or a console's log.
"""

from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from ndakit.core.errors import InputError, NdakitError, VerifyError
from ndakit.node.shell import Command, short


def block(text: str) -> str:
    """The last lines of what another program said, as a block under an error's first line."""
    return "".join(f"\n         | {line}" for line in text.splitlines()[-10:])


def folder_of(path: str) -> str:
    """The folder of a file on a balancer."""
    return path.rpartition("/")[0] or "/" if "/" in path else "."


class NodeError(NdakitError):
    """Something is wrong with a balancer or with the way to it (exit code 5)."""

    exit_code = 5


# -- the way there -----------------------------------------------------------------------------------------------------


class NodeSilent(NodeError):
    """Nothing answers at the balancer's address."""

    def __init__(self, where: str, why: str, timeout_s: float) -> None:
        super().__init__(
            f"no answer: {why} (waited up to {timeout_s:g} s)",
            where=where,
            fix="look whether the box has power and its network cable, and whether you are inside access.sources: the "
            "firewall answers nobody else; from elsewhere, go through a machine inside: --jump USER@HOST",
        )


class NodeRefused(NodeError):
    """The address answers, but no SSH server listens there."""

    def __init__(self, where: str) -> None:
        super().__init__(
            "connection refused: the machine answers, but no SSH server listens on this port",
            where=where,
            fix="compare the port with access.ssh.port of the profile that the box was built from; right after a boot, "
            "wait a minute; else log in at the box itself (screen or serial line): /etc/init.d/dropbear restart",
        )


class AddressUnknown(NodeError):
    """The host's name or address cannot be used from here."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"the address cannot be used: {why}",
            where=where,
            fix="give an address that this machine has a route to, such as --address 192.0.2.11; one that begins with "
            "fe80: needs the network card: --address fe80::1%eth0",
        )


class JumpHostFailed(NodeError):
    """The machine that the connection should go through does not let it through."""

    def __init__(self, jump: str, said: str) -> None:
        super().__init__(
            f"the way through {jump} failed:{block(said) or ' it said nothing'}",
            where=f"--jump {jump}",
            fix=f"log in there once by hand, so that its host key is known and your key is tried: ssh {_by_hand(jump)}",
        )


def _by_hand(jump: str) -> str:
    """`user@host:2222` as ssh takes it on its command line."""
    host, colon, port = jump.rpartition(":")
    if colon and port.isdigit() and (host.endswith("]") or ":" not in host):
        return f"-p {port} {host.replace('[', '').replace(']', '')}"
    return jump.replace("[", "").replace("]", "")


class SshFailed(NodeError):
    """SSH did not come about, for a reason that has no error of its own."""

    def __init__(self, where: str, said: str) -> None:
        super().__init__(
            f"SSH to the balancer failed:{block(said) or ' ssh said nothing'}",
            where=where,
            fix="ssh's own words are above; run it again, and look at the box's log (logread -e dropbear) if it stays",
        )


class OldAlgorithmsOnly(NodeError):
    """The box offers only algorithms that are refused for this release."""

    def __init__(self, where: str, said: str, release: str) -> None:
        super().__init__(
            f"the box offers only old algorithms, which {release} does not need:{block(said)}",
            where=where,
            fix="a box with 19.07 or older does so: find out which release it really runs (ssh -o "
            "HostKeyAlgorithms=+ssh-rsa -o PubkeyAcceptedAlgorithms=+ssh-rsa root@ADDRESS cat /etc/openwrt_release), "
            "and give the profile that release while you work on this box",
        )


# -- who is there ------------------------------------------------------------------------------------------------------


class HostKeyUnknown(NodeError):
    """This machine talks to the balancer for the first time, and nobody has said which host key is the right one."""

    def __init__(self, where: str, kind: str, fingerprint: str, command: str) -> None:
        super().__init__(
            f"the host key of this node is not known yet; the box shows {kind} {fingerprint}",
            where=where,
            fix="compare it at the box itself (screen or serial line: dropbearkey -y -f "
            f"/etc/dropbear/dropbear_{_dropbear(kind)}_host_key); if it is the same: {command} --accept-host-key "
            f"{fingerprint}",
        )
        self.fingerprint = fingerprint


class HostKeyChanged(NodeError):
    """The box shows another host key than the one that is pinned."""

    def __init__(
        self, where: str, *, expected: Sequence[str], kind: str, fingerprint: str, pins: str, command: str
    ) -> None:
        super().__init__(
            f"wrong host key: expected {' or '.join(expected)}, the box shows {kind} {fingerprint}. Nothing was sent. "
            "The box was flashed without keeping its configuration, or is another box with this address, or somebody "
            "stands in between",
            where=f"{where}; pinned in {pins}",
            fix="if you have just flashed or replaced the box, compare the new key at the box itself (screen or serial "
            f"line: dropbearkey -y -f /etc/dropbear/dropbear_{_dropbear(kind)}_host_key), then: {command} "
            f"--accept-host-key {fingerprint}; if not, do not log in before you know why",
        )
        self.expected = tuple(expected)
        self.fingerprint = fingerprint


class HostKeyNotTheOne(NodeError):
    """The box shows another host key than the one that --accept-host-key names."""

    def __init__(self, where: str, *, accepted: str, kind: str, fingerprint: str) -> None:
        super().__init__(
            f"the box shows the host key {kind} {fingerprint}, and --accept-host-key names {accepted}; nothing was "
            "pinned",
            where=where,
            fix="look at the box itself which key it has (dropbearkey -y -f "
            f"/etc/dropbear/dropbear_{_dropbear(kind)}_host_key); if the address belongs to another box now, give the "
            "right one with --address",
        )
        self.fingerprint = fingerprint


def _dropbear(kind: str) -> str:
    """How dropbear's file names call a type of key."""
    return {"ssh-rsa": "rsa", "ssh-ed25519": "ed25519"}.get(kind, "ecdsa")


class FingerprintMalformed(InputError):
    """What --accept-host-key was given is no fingerprint."""

    def __init__(self, given: str) -> None:
        super().__init__(
            f"'{given[:80]}' is not a fingerprint of a host key",
            where="--accept-host-key",
            fix="give it as SSH shows it: SHA256: and 43 characters",
        )


class PinsUnreadable(InputError):
    """The file with the pinned host keys is damaged."""

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(
            f"the pinned host keys cannot be read: {why}",
            where=f"{path}:{line}" if line else path,
            fix="bring the file back from version control, or remove it: the next contact asks for the host key anew",
        )


class AnybodyGetsIn(NodeError):
    """The box lets root in without a key."""

    def __init__(self, where: str) -> None:
        super().__init__(
            "the box lets root in without a key or a password: it does not run an image of this profile",
            where=where,
            fix="look at the box itself what it is; an OpenWrt that nobody has set up yet does this: flash its image",
        )


# -- who we are --------------------------------------------------------------------------------------------------------


class KeyMissing(InputError):
    """There is no key with which one could log in."""

    def __init__(self, profile: str, wanted: Sequence[str], looked: str) -> None:
        of_pair = f"no private key for this pair: it lets in {', '.join(wanted)}; {looked}"
        super().__init__(
            of_pair if profile else f"no private key: {looked}",
            where=f"access.ssh_keys of profile {profile}" if profile else "your agent and ~/.ssh",
            fix="name the private half of one of these keys: --identity FILE; or load it into your agent: ssh-add FILE",
        )


class KeyUnusable(InputError):
    """The file given by --identity cannot be used as a private key."""

    def __init__(self, path: str, why: str, fix: str) -> None:
        super().__init__(f"the private key cannot be used: {why}", where=f"--identity {path}", fix=fix)


class KeyNotAccepted(NodeError):
    """The balancer is the right one, and takes none of our keys."""

    def __init__(self, where: str, offered: Sequence[str], allowed: Sequence[str]) -> None:
        were = "".join(f"\n         | {one}" for one in offered) or " none"
        super().__init__(
            f"the box takes none of the keys that were offered:{were}",
            where=where,
            fix=(
                f"the profile lets in {', '.join(allowed)}: use one of their keys (--identity FILE), or add yours to "
                "access.ssh_keys, build and flash; at once"
                if allowed
                else "use a key that the box takes (--identity FILE), or let yours in"
            )
            + ", at the box itself (screen or serial line): echo 'YOUR .pub LINE' >> /etc/dropbear/authorized_keys",
        )
        self.offered = tuple(offered)


# -- commands ----------------------------------------------------------------------------------------------------------


class ConnectionLost(NodeError):
    """The connection ended before a command had told its exit code."""

    def __init__(self, where: str, command: Command, *, begun: bool, look: str, said: str = "") -> None:
        unknown = "it had begun; whether it ended, and with what, is unknown" if begun else "it had not begun"
        super().__init__(
            f"the connection ended in the middle of '{short(command)}': {unknown}{block(said)}",
            where=where,
            fix=(
                f"look at the box what came of it before you run it again: {look}"
                if begun
                else "nothing was changed: run it again"
            ),
        )
        self.begun = begun


class CommandTimeout(VerifyError):
    """A command did not end in its time and was ended."""

    def __init__(
        self, name: str, command: Command, timeout_s: float, where: str, output: str, *, ended: bool = True
    ) -> None:
        end = "was killed" if ended else "could not be ended: it may still run there"
        super().__init__(
            f"'{short(command)}' on {name} did not end within {timeout_s:g} s and {end}"
            + (f"; it had said:{block(output)}" if output.strip() else "; it had said nothing"),
            where=where,
            fix="run it by hand on that machine; it may wait for something that never comes",
        )
        self.output = output
        self.ended = ended


class OutputTooLarge(NodeError):
    """A command wrote more than anybody wanted, and was ended."""

    def __init__(self, where: str, command: Command, max_bytes: int) -> None:
        super().__init__(
            f"'{short(command)}' wrote more than {max_bytes} bytes, and was ended",
            where=where,
            fix="look at the box why it is so much; a large file is copied with get_file, which has no such limit",
        )


class RemoteFileFailed(NodeError):
    """A file on the balancer cannot be read or written."""

    def __init__(self, doing: str, path: str, where: str, why: str) -> None:
        super().__init__(
            f"{path} cannot be {doing}: {why.strip() or 'the box does not say why'}",
            where=where,
            fix=f"look at the box what is there: ls -la {quote(folder_of(path))}",
        )


class RemoteDiskFull(NodeError):
    """There is no space on the balancer for a file."""

    def __init__(self, path: str, size_bytes: int, where: str, space: str) -> None:
        super().__init__(
            f"no space on the box for {path} ({size_bytes} bytes); the old file, if there was one, is as it was"
            f"{block(space)}",
            where=where,
            fix="remove what is not needed there (df -h shows what is full), then run it again",
        )


class ChecksumMismatch(NodeError):
    """What arrived is not what was sent."""

    def __init__(self, path: str, where: str, *, wanted: str, actual: str) -> None:
        super().__init__(
            f"{path} did not arrive whole: SHA-256 is {actual or 'not told'}, not {wanted}; "
            "what was there is as it was",
            where=where,
            fix="run it again; a file that somebody writes meanwhile is never the same twice: copy it on the box first",
        )
