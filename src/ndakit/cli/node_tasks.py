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


def _way(identity: str | None, address: str | None, jump: str | None, accept_host_key: str | None) -> SshOptions:
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

    way = _way(identity, address, jump, accept_host_key)
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
    server: str,
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

    way = _way(identity, address, jump, accept_host_key)
    raise Exit(code=drain_server(Workspace.at(), profile, node, server, way, undo=undo, as_json=json))


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

    open_session(Workspace.at(), profile, node, _way(identity, address, jump, accept_host_key))
