"""The tasks: signature, help line, and a body that loads, calls and prints. No decisions.

Library errors become an exit code in one place (`task_body.shown`). Imports are inside the bodies, so that a task pays
only for what it uses. `flash_tasks` has those that bring images onto boxes, `node_tasks` those
that talk to running balancers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from ndakit.cli.flash_tasks import disks, flash, release_upgrade
from ndakit.cli.node_tasks import backup, backups, drain, import_, session, status
from ndakit.cli.task_body import NODE_HELP, PROFILE_HELP, shown
from ndakit.core import terminal

OFFLINE_HELP = "openwrt: no network; the ImageBuilder and the packages come from the cache"
MIRROR_HELP = "openwrt: download address instead of OpenWrt's own (several: comma; also NDAKIT_MIRROR)"
CHECKSUM_HELP = "openwrt: the ImageBuilder archive's SHA-256, instead of a signature"


@task(name="list")
@shown
def list_profiles(c: Context) -> None:
    """Show the profiles of this workspace."""
    from ndakit.cli.profiles import list_text
    from ndakit.core.workspace import Workspace

    terminal.say(list_text(Workspace.at()))


@task(positional=["profile"], help={"profile": PROFILE_HELP, "origin": "with the file and line of every value"})
@shown
def show(c: Context, profile: str, origin: bool = False) -> None:
    """Show a profile as it is after `extends` and defaults."""
    from ndakit.cli.profiles import show_text
    from ndakit.core.workspace import Workspace

    terminal.say(show_text(Workspace.at(), profile, origin=origin))


@task(
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "json": "errors and warnings as JSON",
        "daemons": "also ask the daemons (haproxy, keepalived …); downloads them if they are not in the cache",
        "without-secrets": "secrets are not at hand: placeholders stand for them",
    },
)
@shown
def check(c: Context, profile: str, json: bool = False, daemons: bool = False, without_secrets: bool = False) -> None:
    """Check a profile and everything rendered from it; writes nothing."""
    from ndakit.cli.profiles import check_profile
    from ndakit.core.workspace import Workspace

    code = check_profile(Workspace.at(), profile, as_json=json, daemons=daemons, without_secrets=without_secrets)
    raise Exit(code=code)


@task(
    positional=["profile"],
    help={"profile": PROFILE_HELP, "days": "how long the certificates are good"},
)
@shown
def certificate(c: Context, profile: str, days: int = 90) -> None:
    """Make certificates to begin with (they sign themselves) for services that have none yet."""
    from ndakit.cli import certificate as certificates
    from ndakit.core.workspace import Workspace

    certificates.make(Workspace.at(), profile, days)


@task(name="packages", positional=["profile"], help={"profile": PROFILE_HELP, "json": "the same as JSON"})
@shown
def package_list(c: Context, profile: str, json: bool = False) -> None:
    """Show which packages an image gets or loses, from where and why."""
    from ndakit.cli.packages import show as show_packages
    from ndakit.cli.profiles import read
    from ndakit.core.workspace import Workspace

    workspace = Workspace.at()
    show_packages(workspace, read(workspace, profile), as_json=json)


@task(
    positional=["profile"],
    help={"profile": PROFILE_HELP, "node": NODE_HELP, "out": "folder to write to (default: overlays/PROFILE)"},
)
@shown
def render(c: Context, profile: str, node: str | None = None, out: str | None = None) -> None:
    """Write the OpenWrt configuration of each node as a file tree."""
    from ndakit.cli.profiles import render_profile
    from ndakit.core.workspace import Workspace

    render_profile(Workspace.at(), profile, node, Path(out) if out else None)


@task(
    positional=["profile"],
    help={
        "profile": "profile's name or path to its file (several names: comma); none with --all",
        "node": NODE_HELP,
        "builder": "lab (the default: a stand-in, for testing) or openwrt (images to flash)",
        "imagebuilder": "openwrt: folder of an unpacked ImageBuilder (default: the release's is fetched)",
        "jobs": "so many profiles at a time (default: as many as there are processors)",
        "all": "every profile of this workspace",
        "why": "only say what would be built, and because of what",
        "locked": "build exactly what the lock file pins, or nothing",
        "offline": OFFLINE_HELP,
        "mirror": MIRROR_HELP,
        "checksum": CHECKSUM_HELP,
        "json": "the result as JSON",
    },
)
@shown
def build(
    c: Context,
    profile: str,
    node: str | None = None,
    builder: str = "lab",
    imagebuilder: str | None = None,
    jobs: int = 0,
    all: bool = False,
    why: bool = False,
    locked: bool = False,
    offline: bool = False,
    mirror: str | None = None,
    checksum: str | None = None,
    json: bool = False,
) -> None:
    """Build the disk image of each node; does nothing if it is up to date."""
    from ndakit.cli import build as cli_build
    from ndakit.core.workspace import Workspace
    from ndakit.imagebuilder.sources import FetchOptions

    workspace = Workspace.at()
    names = cli_build.chosen(workspace, profile, all_of_them=all)
    fetch_options = FetchOptions(mirror, offline, checksum)
    options = cli_build.BuildOptions(builder, Path(imagebuilder) if imagebuilder else None, fetch_options, locked)
    if why:
        raise Exit(code=cli_build.why(workspace, names, node, options, as_json=json))
    raise Exit(code=cli_build.build(workspace, names, node, options, jobs=jobs, as_json=json))


@task(
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "update": "pin what the images were built from",
        "json": "the differences as JSON",
    },
)
@shown
def lock(c: Context, profile: str, update: bool = False, json: bool = False) -> None:
    """Show how the built images differ from what the lock file pins."""
    from ndakit.cli import build as cli_build
    from ndakit.core.workspace import Workspace

    cli_build.lock(Workspace.at(), profile, update=update, as_json=json)


@task(
    help={
        "profile": "take release and device from this profile",
        "release": "OpenWrt's release, such as 24.10.8",
        "device": "device as in a profile, such as x86-64",
        "offline": OFFLINE_HELP,
        "mirror": MIRROR_HELP,
        "checksum": CHECKSUM_HELP,
        "json": "the result as JSON",
    },
)
@shown
def fetch(
    c: Context,
    profile: str | None = None,
    release: str | None = None,
    device: str | None = None,
    offline: bool = False,
    mirror: str | None = None,
    checksum: str | None = None,
    json: bool = False,
) -> None:
    """Download and verify OpenWrt's ImageBuilder into the cache; builds do it by themselves."""
    from ndakit.cli.fetch import fetch_imagebuilder
    from ndakit.core.workspace import Workspace
    from ndakit.imagebuilder.sources import FetchOptions

    options = FetchOptions(mirror, offline, checksum)
    fetch_imagebuilder(Workspace.at(), profile, release, device, options, as_json=json)


@task(
    positional=["profile"],
    help={
        "profile": PROFILE_HELP,
        "server": "only this server: its name, or POOL/SERVER (default: all)",
        "out": "folder to write to (default: servers/PROFILE)",
        "json": "what each server needs, as JSON",
    },
)
@shown
def servers(c: Context, profile: str, server: str | None = None, out: str | None = None, json: bool = False) -> None:
    """Write what each server must have (gateway, VIP, tunnel) as scripts with an undo."""
    from ndakit.cli.servers import write_scripts
    from ndakit.core.workspace import Workspace

    write_scripts(Workspace.at(), profile, server, Path(out) if out else None, as_json=json)


@task(positional=["profile"], help={"profile": PROFILE_HELP, "node": "the node to boot (default: the first)"})
@shown
def boot(c: Context, profile: str, node: str | None = None) -> None:
    """Boot a built image on a throw-away disk, with its console here."""
    from ndakit.cli.boot import boot_node
    from ndakit.core.workspace import Workspace

    boot_node(Workspace.at(), profile, node)


@task(
    positional=["profile"],
    iterable=["page"],
    help={
        "profile": PROFILE_HELP,
        "only": "only claims whose name is or begins with this (several: comma); see the table a run prints",
        "json": "FILE: also write the result there",
        "identity": "private SSH key of an admin of the profile, to prove the login as well",
        "page": "FILE: a page that a check knows by its digest (expect.digest); may be given several times",
    },
)
@shown
def verify(
    c: Context,
    profile: str,
    only: str | None = None,
    json: str | None = None,
    identity: str | None = None,
    page: Sequence[str] | None = None,
) -> None:
    """Boot the built images in a lab network and prove what the profile says."""
    from ndakit.cli.verify import verify_profile
    from ndakit.core.workspace import Workspace

    code = verify_profile(
        Workspace.at(), profile, only=only, json=Path(json) if json else None,
        identity=Path(identity) if identity else None, pages=[Path(p) for p in page or ()],
    )  # fmt: skip
    raise Exit(code=code)


@task
@shown
def demo(c: Context) -> None:
    """Build apache-pair, boot it, kill servers and balancers, and show what happens."""
    from ndakit.cli.verify import demo_pair
    from ndakit.core.workspace import Workspace

    raise Exit(code=demo_pair(Workspace.at()))


@task(
    help={
        "quick": "leave out virtual machines and image builds (under a minute)",
        "only": "pytest's -k: only tests whose name matches",
    }
)
@shown
def test(c: Context, quick: bool = False, only: str | None = None) -> None:
    """Run every test: style, types, units, goldens, and the virtual machines."""
    from ndakit.cli.tests import run_tests

    raise Exit(code=run_tests(quick=quick, only=only))


@task(
    positional=["what"],
    help={
        "what": "topologies: what nat, dr and tun carry, against a plain router (default: everything else)",
        "runs": "failovers per advert interval",
        "json": "FILE: where to write the figures (default: images/bench.json, images/bench-topologies.json)",
        "plot": "topologies: also draw them, an SVG file",
    },
)
@shown
def bench(c: Context, what: str, runs: int = 20, json: str | None = None, plot: str | None = None) -> None:
    """Measure rendering, building and failover on this machine, or what the topologies carry."""
    from ndakit.cli.bench.bench import run
    from ndakit.core.workspace import Workspace

    path, drawn = (Path(p) if p else None for p in (json, plot))
    raise Exit(code=run(Workspace.at(), what, runs=runs, json=path, plot=drawn))


@task(
    iterable=["identity"],
    help={
        "from": "the backup's folder, or PROFILE/NODE for the newest one of a node",
        "as-built": "the image as the box got it, without what was changed on the box",
        "builder": "lab or openwrt (default: what made the box's image)",
        "imagebuilder": "folder of an unpacked ImageBuilder (default: OpenWrt's is fetched)",
        "offline": OFFLINE_HELP,
        "mirror": MIRROR_HELP,
        "checksum": CHECKSUM_HELP,
        "identity": "a private key that opens an encrypted backup (age's or SSH's); may be repeated",
        "without-local-packages": "make the image without the packages that came from packages/",
        "out": "where the image goes (default: rebuilt/PROFILE/NODE)",
        "json": "the same as JSON",
    },
)
@shown
def rebuild(
    c: Context,
    from_: str | None = None,
    as_built: bool = False,
    builder: str | None = None,
    imagebuilder: str | None = None,
    offline: bool = False,
    mirror: str | None = None,
    checksum: str | None = None,
    identity: list[str] | None = None,
    without_local_packages: bool = False,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Make a box's image from its backup alone: no profile is needed, and the same bytes come of it if they can."""
    from ndakit.cli.build import BuildOptions
    from ndakit.cli.rebuild import RebuildOptions, rebuild_image
    from ndakit.core.workspace import Workspace
    from ndakit.imagebuilder.sources import FetchOptions

    how = BuildOptions(
        imagebuilder=Path(imagebuilder) if imagebuilder else None, fetch=FetchOptions(mirror, offline, checksum)
    )
    options = RebuildOptions(
        tuple(Path(one) for one in identity or ()),
        as_built,
        not without_local_packages,
        Path(out) if out else None,
        json,
    )
    rebuild_image(Workspace.at(), from_, builder, how, options)


@task(
    help={
        "cache": "also the per-user cache with downloads (all workspaces share it)",
        "gone": "only overlays and images of profiles and nodes that are no longer there",
    }
)
@shown
def clean(c: Context, cache: bool = False, gone: bool = False) -> None:
    """Remove rendered overlays, built images, logs and scratch files."""
    from ndakit.cli.clean import clean_workspace
    from ndakit.core.workspace import Workspace

    clean_workspace(Workspace.at(), cache=cache, gone=gone)


GROUPS = (
    ("look", (list_profiles, show, check, package_list)),
    ("make", (certificate, render, fetch, build, lock, servers, disks, flash)),
    ("try", (boot, verify, demo)),
    ("operate", (status, drain, session, backup, backups, rebuild, release_upgrade, import_)),
    ("care", (test, bench, clean)),
)

namespace = Collection(*(t for _, tasks in GROUPS for t in tasks))


def overview() -> str:
    """The tasks grouped by what people do."""
    lines = [
        "ndakit: OpenWrt load-balancer pairs from one YAML profile.",
        "",
        "usage: ./inv TASK [PROFILE] [options]   ./inv TASK --help",
    ]
    for title, tasks in GROUPS:
        lines += ["", title]
        lines += [f"  {getattr(t, 'name', ''):11} {(t.__doc__ or '').splitlines()[0]}" for t in tasks]
    return "\n".join(lines)
