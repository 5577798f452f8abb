"""An image over the system of a running balancer: looked at, copied, tried, the VIPs handed over, written, waited for.

Until `sysupgrade` begins, everything is undone when something fails or somebody presses Ctrl-C. From then on nothing
can be stopped. The box's SSH host keys go with it over the upgrade (`sysupgrade -f`), and nothing else unless it is
asked for: so the box that returns proves that it is the same one. Prints nothing: what happens goes to the caller.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from ndakit.core.errors import ErrorGroup, NdakitError
from ndakit.image.artifacts import Artifact
from ndakit.model import Profile
from ndakit.node import status
from ndakit.node.errors import (
    CommandTimeout,
    ConnectionLost,
    NodeError,
    NodeRefused,
    NodeSilent,
    SshFailed,
    block,
)
from ndakit.node.facts import facts_of
from ndakit.node.shell import Progress, Shell
from ndakit.node.status import NodeStatus, Pair
from ndakit.operate import upgrade_checks
from ndakit.operate.upgrade_checks import BoxFacts, RunsAlready

FOLDER = "/tmp/ndakit-upgrade"
IMAGE = f"{FOLDER}/image"
HOST_KEYS = f"{FOLDER}/host-keys.tar.gz"
# Root's alone: private keys are in it. No match leaves the pattern as it is, which tar then does not find.
_PACK_HOST_KEYS = f"umask 077; cd / && tar -czf {HOST_KEYS} etc/dropbear/dropbear_*_host_key"
_COPY_S = 1800.0
_BEGIN_S = 300.0
_BACK = (NodeSilent, NodeRefused, SshFailed, ConnectionLost, CommandTimeout)
"""What a box answers that is about to start."""


class SysupgradeRefused(NodeError):
    """The box's own sysupgrade does not take the image."""

    def __init__(self, where: str, said: str) -> None:
        super().__init__(
            f"sysupgrade on the box does not take the image:{block(said) or ' it said nothing'}",
            where=where,
            fix="nothing was written, and the box serves as before; if its words do not tell, run it there by hand: "
            "sysupgrade -T IMAGE. By its disk the box takes any image: ./inv flash … --to DISK",
        )


class HandOverFailed(NodeError):
    """No other node became master."""


class NotBack(NodeError):
    """The box did not return."""


class OldImageBack(NodeError):
    """The box returned with another image than the one that was written."""


@dataclass(frozen=True)
class Waits:
    """How long is waited, in seconds."""

    hand_over_s: float = 20.0
    back_s: float = 900.0
    settle_s: float = 180.0
    poll_s: float = 1.0


@dataclass(frozen=True)
class Order:
    """What is to be done."""

    profile: Profile
    node: str
    artifact: Artifact
    keep: bool = False
    again: bool = False
    """Also if the box runs this image already."""


@dataclass(frozen=True)
class UpgradeOutlook:
    """All that can be known before anything changes: what runs there, what is notable, and where the backup lies."""

    box: BoxFacts
    masters: tuple[str, ...]
    """The VRRP instances that the node is master of."""
    notes: tuple[str, ...]
    backup: str


@dataclass
class Upgraded:
    """How it went: steps with their seconds, and what is not well now."""

    was: str
    now: str
    steps: list[tuple[str, float]] = field(default_factory=list)
    backup: str = ""
    notes: tuple[str, ...] = ()
    trouble: tuple[str, ...] = ()


class Ways:
    """How the nodes are reached, and whom to tell. `open_node` connects anew each time; `save` makes a backup and says
    where; `confirm` raises if nobody wants it after all."""

    def __init__(
        self,
        open_node: Callable[[str], AbstractContextManager[Shell]],
        *,
        save: Callable[[Shell], str],
        confirm: Callable[[UpgradeOutlook], None],
        tell: Callable[[str], None],
        progress: Progress | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.open_node = open_node
        self.save = save
        self.confirm = confirm
        self.tell = tell
        self.progress = progress
        self.clock_s = clock_s
        self.sleep = sleep


class Upgrade:
    """One upgrade of one node. `state` says at any time, in words, how the box is: for whoever stops it."""

    def __init__(self, order: Order, ways: Ways, waits: Waits | None = None) -> None:
        self.order = order
        self.ways = ways
        self.waits = waits or Waits()
        self._done = Upgraded("", order.artifact.id)
        self.state = f"{order.node} is as it was"

    def run(self) -> Upgraded:
        """Do it all. What is not well at the end is in `trouble`.

        Raises ErrorGroup (all that speaks against it), RunsAlready, SysupgradeRefused and HandOverFailed (the box is as
        it was), NotBack, OldImageBack, and what `Shell`, `save` and `confirm` raise.
        """
        order = self.order
        with self.ways.open_node(order.node) as shell:
            with self._step("checks"):
                box, told = self._checks(shell)
            self._done.was = box.image_id
            masters = tuple(name for name, state in told[order.node].vrrp.items() if state == "MASTER")
            try:
                layout_changes = self._copy_and_try(shell)
                with self._step("backup"):
                    self._done.backup = self.ways.save(shell)
                self._keep_check(shell, box)
                self._done.notes = tuple(
                    upgrade_checks.notes(order.artifact, box, keep=order.keep, layout_changes=layout_changes)
                )
                self.ways.confirm(UpgradeOutlook(box, masters, self._done.notes, self._done.backup))
                with self._handed_over(shell, masters):
                    began_s = self._begin(shell)
            except BaseException as error:
                if not self._begun:
                    self._tidy(shell, error)
                raise
        with self._step("written and started anew"):
            self._wait(began_s)
        self.state = f"{order.node} runs the new image"
        with self._step("all well again"):
            self._done.trouble = self._settle()
        return self._done

    _begun = False
    _before: frozenset[str] | set[str] = frozenset()
    """What was not well before: what still is, and does not concern this node, is not the upgrade's fault. So it is
    with the release and the new keys of a profile whose other node comes next."""

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        begun_s = self.ways.clock_s()
        yield
        took_s = self.ways.clock_s() - begun_s
        self._done.steps.append((name, took_s))
        self.ways.tell(f"{name}: {took_s:.1f} s")

    # -- before anything changes ---------------------------------------------------------------------------------------

    def _checks(self, shell: Shell) -> tuple[BoxFacts, Mapping[str, NodeStatus]]:
        order = self.order
        shell.run(["rm", "-rf", FOLDER])  # of an attempt that was cut off
        box = upgrade_checks.facts(shell)
        reasons = upgrade_checks.refusals(order.profile, order.node, order.artifact, box, shell.name, again=order.again)
        told = {order.node: status.ask(shell, order.profile, order.node, "")}
        lost: dict[str, NdakitError] = {}
        for other in self._others:
            try:
                with self.ways.open_node(other) as there:
                    told[other] = status.ask(there, order.profile, other, "")
            except NodeError as error:
                lost[other] = error
        reasons += upgrade_checks.not_ready(order.profile, order.node, told, lost)
        self._before = set(Pair(order.profile, told, lost).trouble)
        if len(reasons) == 1 and isinstance(reasons[0], RunsAlready):
            raise reasons[0]
        if reasons:
            raise ErrorGroup(reasons)
        return box, told

    @property
    def _others(self) -> tuple[str, ...]:
        return tuple(name for name in self.order.profile.nodes if name != self.order.node)

    def _copy_and_try(self, shell: Shell) -> bool:
        """The image into the box's memory, and sysupgrade's own look at it; True if the whole disk will be written."""
        artifact = self.order.artifact
        image = upgrade_checks.image_for_box(artifact)
        with self._step(f"image copied ({image.size_bytes >> 20} MiB)"):
            shell.run(["sh", "-c", f"umask 077; mkdir {FOLDER}"])
            shell.put_file(
                artifact.folder / image.name, IMAGE, mode=0o600, timeout_s=_COPY_S, progress=self.ways.progress
            )
            if not self.order.keep:
                packed = shell.run(_PACK_HOST_KEYS)
                if packed.rc != 0:
                    raise SysupgradeRefused(shell.name, f"its host keys cannot be kept: {packed.stderr}")
        with self._step("sysupgrade -T"):
            tried = shell.run(["sysupgrade", "-T", *self._options, IMAGE], _BEGIN_S)
        if tried.rc != 0:
            raise SysupgradeRefused(shell.name, tried.stderr + tried.stdout)
        # openwrt/openwrt target/linux/x86/base-files/lib/upgrade/platform.sh: the same words in 18.06 to 25.12.
        return "Partition layout has changed" in tried.stderr + tried.stdout

    @property
    def _options(self) -> list[str]:
        return [] if self.order.keep else ["-f", HOST_KEYS]

    def _keep_check(self, shell: Shell, box: BoxFacts) -> None:
        if not self.order.keep:
            return
        size = shell.run("sysupgrade -b - | wc -c", _BEGIN_S).stdout.strip()
        refusal = upgrade_checks.kept_fits(box, int(size) if size.isdigit() else 0, shell.name)
        if refusal is not None:
            raise ErrorGroup([refusal])

    def _tidy(self, shell: Shell, error: BaseException) -> None:
        """Leave the box as it was; a connection that is lost leaves a copy of the image in its memory."""
        if isinstance(error, ConnectionLost):
            self.state += f"; {FOLDER} is left in its memory, and goes with its next start"
            return
        with contextlib.suppress(NodeError, CommandTimeout):
            shell.run(["rm", "-rf", FOLDER])

    # -- hand-over and writing -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _handed_over(self, shell: Shell, masters: tuple[str, ...]) -> Iterator[None]:
        """The VIPs are on another node while this lasts, and stay there once sysupgrade has begun."""
        if not masters or not self._others:
            yield
            return
        node = self.order.node
        self.state = (
            f"{node} has given its VIPs away and writes nothing; /etc/init.d/keepalived start there takes part again"
        )
        try:
            with self._step("VIPs handed over"), contextlib.ExitStack() as stack:
                others = {name: stack.enter_context(self.ways.open_node(name)) for name in self._others}
                stopped = shell.run(["/etc/init.d/keepalived", "stop"])
                if stopped.rc != 0:
                    raise HandOverFailed(
                        f"keepalived on {node} could not be stopped: {stopped.stderr.strip()}",
                        where=shell.name, fix=f"look at the box: ./inv ssh {self.order.profile.name} --node {node}",
                    )  # fmt: skip
                self._wait_for_masters(masters, others)
            yield
        except BaseException:
            if not self._begun:
                with contextlib.suppress(NodeError, CommandTimeout):
                    shell.run(["/etc/init.d/keepalived", "start"])
                    self.state = f"{node} is as it was: its keepalived was started again"
            raise

    def _wait_for_masters(self, masters: tuple[str, ...], others: Mapping[str, Shell]) -> None:
        end_s = self.ways.clock_s() + self.waits.hand_over_s
        while True:
            states = {name: facts_of(shell).vrrp_states(len(masters)) for name, shell in others.items()}
            missing = [m for m in masters if not any(there.get(m) == "MASTER" for there in states.values())]
            if not missing:
                return
            if self.ways.clock_s() > end_s:
                told = "; ".join(f"{name}: {there or 'nothing'}" for name, there in states.items())
                raise HandOverFailed(
                    f"nobody became master of {', '.join(missing)} within {self.waits.hand_over_s:g} s ({told})",
                    where=", ".join(others),
                    fix=f"look why: ./inv status {self.order.profile.name}; {self.order.node} was made master again",
                )
            self.ways.sleep(min(0.5, self.waits.poll_s))

    def _begin(self, shell: Shell) -> float:
        """Start sysupgrade; when that was. It ends the connection, and with it everything that could be asked."""
        node = self.order.node
        began_s = self.ways.clock_s()
        before = self.state
        self.state = (
            f"{node} may be writing its new image: leave it its power. Within minutes it starts anew by itself "
            f"(./inv status {self.order.profile.name}); if it does not, see docs/recovery.md"
        )
        self.ways.tell("sysupgrade: the image is being written; from now on nothing can be stopped")
        try:
            ran = shell.run(["sysupgrade", *self._options, IMAGE], _BEGIN_S)
        except ConnectionLost as lost:
            if not lost.begun:
                self.state = before
                raise
        except KeyboardInterrupt:
            self._begun = True  # nobody knows: so nothing is undone that may be running
            raise
        else:
            if ran.rc != 0:
                self.state = before
                raise SysupgradeRefused(shell.name, ran.stderr + ran.stdout)
        self._begun = True
        return began_s

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _wait(self, began_s: float) -> None:
        """Until the box answers with the new image. Raises NotBack, OldImageBack, HostKeyChanged, KeyNotAccepted."""
        order, said = self.order, ""
        end_s = began_s + self.waits.back_s
        while True:
            try:
                with self.ways.open_node(order.node) as shell:
                    box = upgrade_checks.facts(shell)
            except _BACK as error:
                now = "does not answer yet"
                reason = error.what.splitlines()[0]
            else:
                if box.image_id == order.artifact.id and self._restarted(box, began_s):
                    return
                if self._restarted(box, began_s):
                    raise self._wrong_image(box)
                now, reason = "still answers as before", "it still answers as before"
            if now != said:
                self.ways.tell(f"{order.node} {now} ({self.ways.clock_s() - began_s:.0f} s)")
                said = now
            if self.ways.clock_s() > end_s:
                raise self._not_back(reason)
            self.ways.sleep(self.waits.poll_s)

    def _restarted(self, box: BoxFacts, began_s: float) -> bool:
        """True if the box was started after sysupgrade began: clocks of both tick alike for minutes."""
        return box.uptime_s < self.ways.clock_s() - began_s

    def _wrong_image(self, box: BoxFacts) -> OldImageBack:
        order = self.order
        old = box.image_id == self._done.was
        return OldImageBack(
            f"{order.node} was started anew and runs {'its old image' if old else f'the image {box.image_id[:12]}'}, "
            f"not {order.artifact.id[:12]}" + (": nothing was written" if old else ""),
            where=f"{order.profile.name} {order.node}",
            fix=f"look at its screen or serial line what the upgrade said, and run this again; {self._backup_words()}",
        )

    def _not_back(self, reason: str) -> NotBack:
        order = self.order
        serving = f"{' and '.join(self._others)} serve{'s' if len(self._others) == 1 else ''}" if self._others else (
            "nobody serves meanwhile"
        )  # fmt: skip
        return NotBack(
            f"{order.node} has not come back within {self.waits.back_s / 60:.0f} minutes ({reason}); {serving}",
            where=f"{order.profile.name} {order.node}",
            fix="look at its screen or serial line. If it only takes longer: ./inv status "
            f"{order.profile.name}. If it does not start, write its disk at another machine: ./inv flash "
            f"{order.profile.name} --node {order.node} --to DISK (docs/recovery.md); {self._backup_words()}",
        )

    def _backup_words(self) -> str:
        return f"the backup made before is {self._done.backup}" if self._done.backup else "no backup was made"

    def _settle(self) -> tuple[str, ...]:
        """Wait until nothing is wrong any more; what still is after settle_s seconds."""
        end_s = self.ways.clock_s() + self.waits.settle_s
        while True:
            lines = self._trouble()
            if not lines or self.ways.clock_s() > end_s:
                return lines
            self.ways.sleep(self.waits.poll_s)

    def _trouble(self) -> tuple[str, ...]:
        told: dict[str, NodeStatus] = {}
        lost: dict[str, NdakitError] = {}
        for name in self.order.profile.nodes:
            try:
                with self.ways.open_node(name) as shell:
                    told[name] = status.ask(shell, self.order.profile, name, "")
            except (NodeError, CommandTimeout) as error:
                lost[name] = error
        lines = Pair(self.order.profile, told, lost).trouble
        return tuple(one for one in lines if one.startswith(f"{self.order.node}: ") or one not in self._before)
