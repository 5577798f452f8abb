"""The tasks that bring images onto disks and boxes: signature, help line, and a call (see `tasks`)."""

from __future__ import annotations

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from ndakit.cli.node_tasks import ACCEPT_HELP, ADDRESS_HELP, IDENTITY_HELP, JUMP_HELP, ssh_way
from ndakit.cli.task_body import PROFILE_HELP, shown


@task(
    positional=["profile"],
    help={
        "profile": f"{PROFILE_HELP}; or the folder of one image, such as rebuilt/PROFILE/NODE",
        "node": "the node whose image is written (may be left out if there is only one)",
        "to": "the disk, by path (/dev/sdX, /dev/disk/by-id/…) or serial number; or a file (./NAME.img)",
        "upgrade": "over the system of the running node, by SSH",
        "keep": "upgrade: the box's configuration survives, and wins over the image's",
        "again": "upgrade: also if the node runs this image already",
        "yes": "do not ask: the disk's serial number (its name if it has none), the file's name, or the node's",
        "as-built": "also an image that is not what the profile says now",
        "json": "the outcome as JSON",
        "identity": IDENTITY_HELP,
        "address": ADDRESS_HELP,
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def flash(
    c: Context,
    profile: str,
    node: str | None = None,
    to: str | None = None,
    upgrade: bool = False,
    keep: bool = False,
    again: bool = False,
    yes: str | None = None,
    as_built: bool = False,
    json: bool = False,
    identity: str | None = None,
    address: str | None = None,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Write a node's image to a disk, a stick or a file, or over its running system."""
    from ndakit.cli.flash import flash_node, refuse_mixed
    from ndakit.cli.upgrade import UpgradeOptions, flash_running
    from ndakit.core.workspace import Workspace

    ssh = {"--identity": identity, "--address": address, "--jump": jump, "--accept-host-key": accept_host_key}
    refuse_mixed(upgrade=upgrade, to=to, only_with_upgrade={"--keep": keep, "--again": again, **ssh})
    if upgrade:
        way = ssh_way(identity, address, jump, accept_host_key)
        options = UpgradeOptions(yes, keep, again, as_built, json)
        raise Exit(code=flash_running(Workspace.at(), profile, node, way, options))
    flash_node(Workspace.at(), profile, node, to, yes, as_built=as_built, as_json=json)


@task(
    name="upgrade",
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "release": "OpenWrt's release that it could have, such as 25.12.5",
        "diff": "also the differences of the rendered files, line by line",
        "json": "the same as JSON",
    },
)
@shown
def release_upgrade(
    c: Context, profile: str, release: str | None = None, diff: bool = False, json: bool = False
) -> None:
    """Show what another release of OpenWrt would change for a profile; edits nothing."""
    from ndakit.cli.release_change import show as show_change
    from ndakit.core.workspace import Workspace

    raise Exit(code=show_change(Workspace.at(), profile, release, diff=diff, as_json=json))


@task(help={"json": "the same as JSON"})
@shown
def disks(c: Context, json: bool = False) -> None:
    """Show the disks of this machine, and which of them `flash` would overwrite."""
    from ndakit.cli.flash import show_disks

    show_disks(as_json=json)
