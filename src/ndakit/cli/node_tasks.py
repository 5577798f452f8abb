"""The tasks that talk to running balancers: signature, help line, and a call (see `tasks`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from ndakit.cli.task_body import NODE_HELP, PROFILE_HELP, shown

if TYPE_CHECKING:
    from ndakit.cli.nodes import SshOptions

IDENTITY_HELP = "your private SSH key (default: a key of the profile that your agent or ~/.ssh has)"
ADDRESS_HELP = "the node's address, where it is another one than the profile's"
JUMP_HELP = "USER@HOST[:PORT]: go through this machine"
ACCEPT_HELP = "SHA256:…: pin the node's host key if it has this fingerprint"


def ssh_way(identity: str | None, address: str | None, jump: str | None, accept_host_key: str | None) -> SshOptions:
    """How the user wants to get to the nodes, as the options say."""
    from ndakit.cli.nodes import SshOptions

    return SshOptions(Path(identity) if identity else None, address, jump, accept_host_key)


@task(
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "node": NODE_HELP,
        "json": "the same as JSON",
        "identity": IDENTITY_HELP,
        "address": ADDRESS_HELP,
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def status(
    c: Context,
    profile: str,
    node: str | None = None,
    json: bool = False,
    identity: str | None = None,
    address: str | None = None,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Ask the running balancers how they are; exit code 5 if something is not well."""
    from ndakit.cli.nodes import show_status
    from ndakit.core.workspace import Workspace

    way = ssh_way(identity, address, jump, accept_host_key)
    raise Exit(code=show_status(Workspace.at(), profile, node, way, as_json=json))


@task(
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "server": "POOL/SERVER",
        "undo": "bring it back, with the profile's weight",
        "node": "only on this node (default: on all, so that a failover changes nothing)",
        "json": "the same as JSON",
        "identity": IDENTITY_HELP,
        "address": ADDRESS_HELP,
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def drain(
    c: Context,
    profile: str,
    server: str | None = None,
    undo: bool = False,
    node: str | None = None,
    json: bool = False,
    identity: str | None = None,
    address: str | None = None,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Give a server no new connections on the running balancers, or bring it back."""
    from ndakit.cli.nodes import drain_server
    from ndakit.core.workspace import Workspace

    way = ssh_way(identity, address, jump, accept_host_key)
    raise Exit(code=drain_server(Workspace.at(), profile, node, server, way, undo=undo, as_json=json))


@task(
    name="import",
    positional=["source"],
    help={
        "source": "a backup (sysupgrade -b, or a folder of ./inv backup), a folder with etc/ in it, or a host; both "
        "nodes of a pair with a comma between them",
        "as": "the name of the new profile",
        "node": "what the nodes are called, in the order of the sources (default: by their host names)",
        "release": "the OpenWrt release, where the source does not tell it",
        "json": "the account as JSON",
        "identity": "your private SSH key, for a host (default: those of your agent and of ~/.ssh)",
        "port": "the TCP port of the host's SSH server",
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def import_(
    c: Context,
    source: str,
    as_: str | None = None,
    node: str | None = None,
    release: str | None = None,
    json: bool = False,
    identity: str | None = None,
    port: int = 22,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Write a profile for a balancer that somebody else built, with an account of every line; changes nothing there."""
    from ndakit.cli.import_profile import import_profile
    from ndakit.core.workspace import Workspace

    way = ssh_way(identity, None, jump, accept_host_key)
    raise Exit(code=import_profile(Workspace.at(), source, as_, node, release, way, port=port, as_json=json))


@task(
    name="ssh",
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "node": NODE_HELP,
        "identity": IDENTITY_HELP,
        "address": ADDRESS_HELP,
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def session(
    c: Context,
    profile: str,
    node: str | None = None,
    identity: str | None = None,
    address: str | None = None,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Log in to a running balancer; its host key is pinned at the first time."""
    from ndakit.cli.nodes import open_session
    from ndakit.core.workspace import Workspace

    open_session(Workspace.at(), profile, node, ssh_way(identity, address, jump, accept_host_key))


@task(
    positional=["profile"],
    iterable=["encrypt"],
    help={
        "profile": "profile's name (profiles/NAME.yaml) or path to its file; with --as a box's address",
        "node": NODE_HELP,
        "as": "NAME or NAME/NODE: the box has no profile, and its backups are filed under this name",
        "to": "the folder of all backups (default: backups/); for its owner alone",
        "encrypt": "an age or SSH public key, or a file with some; any one of them opens the backup; may be repeated",
        "keep": "so many backups of a node are kept, and the newest of each month (default: 10)",
        "dry-run": "ask the box and say what would be done; nothing is written",
        "timeout-s": "for one archive, at any speed (default: 1800, and not slower than 4 KiB a minute)",
        "port": "with --as: the port of its SSH server (default: 22)",
        "release": "with --as: its OpenWrt release, if it is 19.07 or older",
        "json": "the same as JSON",
        "identity": IDENTITY_HELP,
        "address": ADDRESS_HELP,
        "jump": JUMP_HELP,
        "accept-host-key": ACCEPT_HELP,
    },
)
@shown
def backup(
    c: Context,
    profile: str,
    node: str | None = None,
    as_: str | None = None,
    to: str | None = None,
    encrypt: list[str] | None = None,
    keep: int = 10,
    dry_run: bool = False,
    timeout_s: str | None = None,
    port: int = 22,
    release: str | None = None,
    json: bool = False,
    identity: str | None = None,
    address: str | None = None,
    jump: str | None = None,
    accept_host_key: str | None = None,
) -> None:
    """Back up running balancers: configuration, package list, and what their images can be made from again."""
    from ndakit.cli.backup import BackupOptions, BackupOptionsWrong, back_up, back_up_host
    from ndakit.core.workspace import Workspace

    way = ssh_way(identity, address, jump, accept_host_key)
    options = BackupOptions(Path(to) if to else None, tuple(encrypt or ()), keep, timeout_s, dry_run, json)
    if as_ is None:
        if port != 22 or release is not None:
            raise BackupOptionsWrong(
                "--port and --release belong to a box without a profile", where="the command line",
                fix="leave them out: the profile says both; or file the box under a name: --as NAME",
            )  # fmt: skip
        raise Exit(code=back_up(Workspace.at(), profile, node, way, options))
    if node is not None:
        raise BackupOptionsWrong("--node names a node of a profile", where="--node", fix=f"write --as {as_}/{node}")
    raise Exit(code=back_up_host(Workspace.at(), profile, as_, way, options, port=port, release=release))


@task(
    positional=["profile"],
    help={
        "profile": "only those of this profile, or of this name (default: all)",
        "to": "the folder of all backups (default: backups/)",
        "json": "the same as JSON, with everything that is known of each",
    },
)
@shown
def backups(c: Context, profile: str, to: str | None = None, json: bool = False) -> None:
    """List backups with age, size, what is in them, and whether their profile still gives the same image."""
    from ndakit.cli.backup import show_backups
    from ndakit.core.workspace import Workspace

    show_backups(Workspace.at(), profile or None, Path(to) if to else None, as_json=json)
