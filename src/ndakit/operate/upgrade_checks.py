"""What is looked at before an image is written over a running balancer, and why it is not written.

Everything that speaks against it is told at once. Nothing here changes a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ndakit.core.errors import InputError, NdakitError
from ndakit.core.release import Release
from ndakit.image.artifacts import Artifact, ImageFile
from ndakit.image.flash import FLASHES
from ndakit.model import Profile
from ndakit.node.errors import NodeError
from ndakit.node.facts import facts_of
from ndakit.node.shell import Shell
from ndakit.node.status import NodeStatus
from ndakit.operate.flash import NotForDisks, image_for_disk

RESERVE_BYTES = 16 << 20
"""What stays free in a box's memory beside the image: sysupgrade copies the programs that it needs into memory, and
unpacks the image through them."""
MARGIN_BYTES = 1 << 20
"""Beside the image in /tmp: the kept files, and what programs write there meanwhile."""


class WrongBox(NodeError):
    """The box is not the node that the image was made for."""


class WrongTarget(NodeError):
    """The box is another kind of machine than the image was made for."""


class NoRoomForImage(NodeError):
    """The box has not enough memory for the image."""


class OtherNodeNotReady(NodeError):
    """No other node could take over."""


class RunsAlready(InputError):
    """The box runs this image."""


@dataclass(frozen=True)
class BoxFacts:
    """What a box tells of itself, as far as an upgrade has to know. Sizes in bytes."""

    image_id: str
    image_of: str
    """`shop/lb1`; empty if the image does not say."""
    hostname: str
    release: str
    target: str
    revision: str
    board: str
    temporary_free_bytes: int
    """In /tmp, which is memory."""
    memory_available_bytes: int
    boot_free_bytes: int | None
    """On the boot partition, through which kept files go; None where it is not mounted (releases up to 19.07)."""
    disk_bytes: int | None
    """Of the disk that it started from; None where its root is on no partition of a disk (flash)."""
    uptime_s: float


_DISK_SECTORS = (
    # The partition of the root file system: /rom with squashfs, / with ext4. Its disk is the folder above it in sysfs.
    'part=$(awk \'$5 == "/rom" { rom = $3 } $5 == "/" { root = $3 } END { print rom ? rom : root }\' '
    "/proc/self/mountinfo); disk=$(readlink -f /sys/dev/block/$part) && cat ${disk%/*}/size"
)
"""Prints the size of the disk in sectors of 512 bytes (proc_pid_mountinfo(5); Documentation/ABI/stable/sysfs-block)."""


def facts(shell: Shell) -> BoxFacts:
    """Ask a box. Raises what Shell.run raises, OutputNotUnderstood."""
    node = facts_of(shell)
    release, image = node.release(), node.image()
    # A long name of a device makes BusyBox's df break the line: the fields are counted from the end.
    free = "df -k {} | awk 'END {{ print $(NF - 2) }}'"
    temporary = shell.run(free.format("/tmp")).stdout.strip()
    sectors = shell.run(_DISK_SECTORS).stdout.strip()
    boot = shell.run("grep -q ' /boot ' /proc/mounts && " + free.format("/boot")).stdout.strip()
    return BoxFacts(
        image_id=image.get("id", ""),
        image_of=f"{image['profile']}/{image['node']}" if {"profile", "node"} <= set(image) else "",
        hostname=node.hostname(),
        release=release.get("DISTRIB_RELEASE", ""),
        target=release.get("DISTRIB_TARGET", ""),
        revision=release.get("DISTRIB_REVISION", ""),
        board=node.text("cat /tmp/sysinfo/board_name").strip(),
        temporary_free_bytes=int(temporary) << 10 if temporary.isdigit() else 0,
        memory_available_bytes=node.memory_kib()[0] << 10,
        boot_free_bytes=int(boot) << 10 if boot.isdigit() else None,
        disk_bytes=int(sectors) * 512 if sectors.isdigit() else None,
        uptime_s=node.uptime_s(),
    )


def image_for_box(artifact: Artifact) -> ImageFile:
    """The file of a build that sysupgrade takes: the raw disk image, or the sysupgrade file of a device with flash.
    Raises NothingToFlash."""
    for image in artifact.record.images:
        if image.kind == "sysupgrade":
            return image
    return image_for_disk(artifact)


def refusals(
    profile: Profile, node: str, artifact: Artifact, box: BoxFacts, where: str, *, again: bool
) -> list[NdakitError]:
    """Why the image must not be written over this box; empty if it may. With `again` also the image that it runs."""
    record = artifact.record
    errors: list[NdakitError] = []
    if box.image_of not in ("", f"{profile.name}/{node}") or (not box.image_of and box.hostname != record.hostname):
        is_box = f"runs the image of {box.image_of}" if box.image_of else f"calls itself {box.hostname or 'nothing'}"
        errors.append(
            WrongBox(
                f"this is not {profile.name} {node}: the box {is_box}",
                where=where,
                fix="look which box has this address (./inv status tells each one's image), and give the right one "
                f"with --address; to make this box {node}, write its disk: ./inv flash {profile.name} --node {node} "
                "--to DISK",
            )
        )
    if _whole(box.target) != _whole(record.target) or not _board_fits(record.device, box.board):
        errors.append(
            WrongTarget(
                f"the image is for {record.target}, device {record.device}; the box is {box.target or 'unknown'}"
                + (f", {box.board}" if box.board else ""),
                where=where,
                fix=f"write the machine that the box is into the profile (image.device), then: "
                f"./inv build {profile.name} --node {node} --builder {record.builder}",
            )
        )
    if record.warning and box.revision != record.revision:
        errors.append(NotForDisks(artifact, record.warning))
    errors += _room(image_for_box(artifact), box, where) + _fits_disk(image_for_box(artifact), box, where)
    if not again and box.image_id == artifact.id:
        errors.append(
            RunsAlready(
                f"{profile.name} {node} runs this image already ({artifact.id[:12]}); nothing was done",
                where=where,
                fix="to write it anew all the same (what was changed on the box by hand is lost): add --again",
            )
        )
    return errors


def _whole(target: str) -> str:
    """`kirkwood` is `kirkwood/generic` in releases before 23.05."""
    return target if "/" in target or not target else f"{target}/generic"


def _board_fits(device: str, board: str) -> bool:
    """A PC is any PC: its images carry no list of devices, and sysupgrade there looks at none."""
    flash = FLASHES.get(device)
    return flash is None or board in flash.boards


def _room(image: ImageFile, box: BoxFacts, where: str) -> list[NdakitError]:
    needed_in_tmp, needed = image.size_bytes + MARGIN_BYTES, image.size_bytes + RESERVE_BYTES
    for needs, has, place in (
        (needed_in_tmp, box.temporary_free_bytes, "in /tmp"),
        (needed, box.memory_available_bytes, "of memory"),
    ):
        if has < needs:
            return [
                NoRoomForImage(
                    f"the image needs {_mib(needs)} {place} on the box while it is written, and {_mib(has)} are free",
                    where=where,
                    fix="remove what lies in /tmp there (du -s /tmp/*), or restart the box; a box that is too small "
                    "gets its image by its disk: ./inv flash … --to DISK",
                )
            ]
    return []


def _fits_disk(image: ImageFile, box: BoxFacts, where: str) -> list[NdakitError]:
    """sysupgrade itself does not look: it cuts off what does not fit, without a word."""
    if image.disk_bytes is None or box.disk_bytes is None or image.disk_bytes <= box.disk_bytes:
        return []
    return [
        NoRoomForImage(
            f"the image is a disk of {_mib(image.disk_bytes)}, and the box's disk has {box.disk_bytes >> 20} MiB",
            where=where,
            fix="write a smaller image.rootfs_mib into the profile and build again, or give the box a larger disk",
        )
    ]


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // (1 << 20))} MiB"


# -- the other nodes ---------------------------------------------------------------------------------------------------


def missing_there(this: NodeStatus, other: NodeStatus, profile: Profile) -> tuple[str, ...]:
    """What the node at work does and another node could not, in words; empty if the other could take over.

    Compared with each other and not with the profile: of a profile that was changed both run an older image.
    """
    lines = [
        f"{daemon} does not run there" for daemon, runs in this.daemons.items() if runs and not other.daemons[daemon]
    ]
    if profile.instances and not other.vrrp:
        lines.append("its keepalived does not tell of any VRRP instance")
    lines += [
        f"its VRRP instance {name} is {state}"
        for name, state in other.vrrp.items()
        if state not in ("MASTER", "BACKUP")
    ]
    lines += [f"it has no VRRP instance {name}" for name in this.vrrp if other.vrrp and name not in other.vrrp]
    for pool in dict.fromkeys(line.pool for line in this.servers):
        here, there = ([s.state for s in told.servers if s.pool == pool] for told in (this, other))
        if "up" in here and "up" not in there:
            lines.append(f"it sees no server of pool {pool} up")
    return tuple(dict.fromkeys(lines))


def not_ready(
    profile: Profile, node: str, told: Mapping[str, NodeStatus], lost: Mapping[str, NdakitError]
) -> list[NdakitError]:
    """Why the others could not do this node's work meanwhile; empty if they could, or if it is the only one."""
    errors: list[NdakitError] = []
    for other in (name for name in profile.nodes if name != node):
        lines: Sequence[str] = ()
        if other in lost:
            lines = (f"it does not answer: {lost[other].what.splitlines()[0]}",)
        elif other in told:
            lines = missing_there(told[node], told[other], profile)
        if lines:
            errors.append(
                OtherNodeNotReady(
                    f"{other} could not take over from {node}: {'; '.join(lines)}",
                    where=f"{profile.name} {other}",
                    fix=f"bring it back first (./inv status {profile.name} tells how it is); {node} is as it was",
                )
            )
    for vip in profile.vips:
        holders = [name for name, status in told.items() if vip in status.vips]
        if len(holders) > 1:
            errors.append(
                OtherNodeNotReady(
                    f"VIP {vip} is on {' and '.join(holders)} at once",
                    where=profile.name,
                    fix="the nodes do not hear each other: look at the network between them (./inv status "
                    f"{profile.name}), and upgrade when one of them is master",
                )
            )
    return errors


# -- what to know beforehand -------------------------------------------------------------------------------------------


def notes(artifact: Artifact, box: BoxFacts, *, keep: bool, layout_changes: bool) -> list[str]:
    """What is notable about this upgrade and does not speak against it."""
    record = artifact.record
    lines = []
    if box.release != record.release:
        lines.append(
            f"OpenWrt {box.release or '(unknown)'} becomes {record.release}{_backwards(box.release, record.release)}"
        )
    if layout_changes:
        lines.append(
            "the disk's partition table is another one than the image's: the whole disk is written, and partitions "
            "that somebody added are lost"
        )
    if keep:
        lines.append(
            "--keep: the box's configuration is unpacked over the new image and wins. What the profile changed since "
            "in files that an upgrade keeps does not arrive: not in /etc/config, haproxy.cfg, keepalived.conf"
        )
        if box.release.rpartition(".")[0] != record.release.rpartition(".")[0]:
            lines.append(f"--keep: configuration of {box.release} may not suit the programs of {record.release}")
    return lines


def _backwards(before: str, after: str) -> str:
    try:
        return ", which is older" if Release.parse(after) < Release.parse(before) else ""
    except ValueError:
        return ""


def kept_fits(box: BoxFacts, kept_bytes: int, where: str) -> NdakitError | None:
    """Why kept files would get lost: OpenWrt copies them through the boot partition, and does not look for room."""
    if box.boot_free_bytes is None or kept_bytes < box.boot_free_bytes:
        return None
    return NoRoomForImage(
        f"the kept configuration has {kept_bytes >> 10} KiB, and its way leads over the boot partition, where "
        f"{box.boot_free_bytes >> 10} KiB are free: OpenWrt would lose it without a word",
        where=where,
        fix="leave --keep out (the image holds the whole configuration), or keep less: sysupgrade -l on the box lists "
        "what is kept",
    )
