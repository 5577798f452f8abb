"""Verify and demo: built images in a lab network, and what is shown of it.

Starts from images on disk (`demo` builds them first), ends with verdicts on the terminal and in acceptance.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from ndakit.cli import verify_progress
from ndakit.cli.build import BuildOptions, build_loaded
from ndakit.cli.profiles import read
from ndakit.core import terminal
from ndakit.core.errors import BuildError, InputError, NdakitError
from ndakit.core.workspace import Workspace, cache
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact, ImageNotBuilt, images_of
from ndakit.lab import host, server_ports
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Pace
from ndakit.load.certificates import certificates_of
from ndakit.load.load import Loaded
from ndakit.machine import accelerator
from ndakit.machine.boot_image import boot_images
from ndakit.render.servers import linux_script
from ndakit.verify import claims, report, run
from ndakit.verify.claims import Claim

DEMO = "apache-pair"
FAILED = 5


class NodeNotBuilt(BuildError):
    """Some nodes have images to flash, and one has none: the lab's would be another kind."""

    def __init__(self, profile: str, node: str, folder: Path) -> None:
        super().__init__(
            f"there is no image of node {node} yet, and the other nodes' images are not the lab's",
            where=str(folder),
            fix=f"build it as the others: ./inv build {profile} --node {node} --builder openwrt",
        )


class IdentityUnusable(InputError):
    """The private key given by --identity cannot be read."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"the private key cannot be used: {why}",
            where=f"--identity {path}",
            fix="name the private half (not .pub) of one of the profile's access.ssh_keys, without a passphrase",
        )


# -- verify ------------------------------------------------------------------------------------------------------------


def verify_profile(
    workspace: Workspace,
    profile: str,
    *,
    only: str | None,
    json: Path | None,
    identity: Path | None,
    pages: Sequence[Path] = (),
) -> int:
    """Try the claims on the built images; 0 if every one holds. `pages`: files that checks know by their digests."""
    loaded = read(workspace, profile)
    contents = server_ports.pages_given(loaded.profile, {path: _page(path) for path in pages})
    server_ports.need_pages(loaded.profile, contents)
    return _verify(workspace, loaded, only=only, json=json, identity=_key(identity), pages=contents)


def demo_pair(workspace: Workspace) -> int:
    """Build the worked example with the lab, and verify all of it."""
    shipped = Workspace(workspace.shipped)
    loaded = read(shipped, DEMO)
    build_loaded(shipped, loaded, tuple(loaded.profile.nodes), BuildOptions(), as_json=False)
    return _verify(shipped, loaded, only=None, json=None, identity=None, thorough=False)


def _page(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise server_ports.PageUnusable(path, cause.strerror or str(cause)) from cause


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as cause:
        raise IdentityUnusable(path, str(cause)) from cause
    if "PRIVATE KEY" not in text:
        raise IdentityUnusable(path, "it is not a private key")
    return text


def _verify(
    workspace: Workspace,
    loaded: Loaded,
    *,
    only: str | None,
    json: Path | None,
    identity: str | None,
    pages: Mapping[str, bytes] | None = None,
    thorough: bool = True,
) -> int:
    profile = loaded.profile
    wanted = run.select(claims.all_claims(profile), only)
    later = () if thorough else tuple(c.name for c in wanted if c.thorough)
    wanted = tuple(c for c in wanted if c.name not in later)
    built = _built(workspace, loaded)
    started, started_s = datetime.now(UTC), time.monotonic()
    run_dir = workspace.logs(f"verify-{profile.name}")
    with workspace.lock(f"verify-{profile.name}", on_wait=terminal.note):
        terminal.say(f"verifying {profile.name}; consoles and logs are in {run_dir}")
        title = f"{profile.name}: {len(wanted)} claims"
        with verify_progress.show(title, wanted) as show:
            verdicts, pace, failure = _judge(workspace, loaded, built, wanted, run_dir, identity, pages, show)
    acceptance = report.Acceptance(
        profile=profile.name,
        customer=profile.customer,
        release=str(profile.release),
        builder=next(iter(built.values())).record.builder,
        lab_image=any(a.record.warning for a in built.values()),
        images={node: {"file": a.image.name, "sha256": a.first.sha256, "id": a.id} for node, a in built.items()},
        machine=_machine(),
        started_at=started.isoformat(timespec="seconds"),
        elapsed_s=round(time.monotonic() - started_s, 1),
        verdicts=verdicts,
        left_out=() if only else claims.left_out(profile),
        pace=pace.as_json(),
    )
    _finish(workspace, acceptance, wanted, only, json, failure)
    if later:
        terminal.say(f"./inv verify {loaded.called} also tries: {', '.join(later)}")
    return 0 if acceptance.holds else FAILED


def _judge(
    workspace: Workspace,
    loaded: Loaded,
    built: dict[str, Artifact],
    wanted: Sequence[Claim],
    run_dir: Path,
    identity: str | None,
    pages: Mapping[str, bytes] | None,
    show: verify_progress.Show,
) -> tuple[tuple[run.Verdict, ...], Pace, NdakitError | None]:
    """The verdicts, how this machine's pace was, and the error that kept claims from being judged, if one did.

    Raises what is not the pair's fault, but for a machine that is too busy.
    """
    profile, pace = loaded.profile, Pace(0.0)
    try:
        image = host.image.build(workspace.lab, cache() / "lab", tell=show.tell)
        network = LabNetwork(
            profile, boot_images(profile, built), run_dir, image,
            script_of=partial(linux_script, profile, workspace.templates), identity=identity, pages=pages,
            certificates=certificates_of(workspace, loaded), tell=show.tell,
        )  # fmt: skip
        started_s = time.monotonic()
        try:
            with network as lab:
                verdicts = run.run(lab, wanted, show.claim, lab.pace)
                return verdicts, lab.pace.since(started_s), run.undecided(profile.name, verdicts)
        finally:
            pace = network.pace.since(started_s)
    except NdakitError as error:
        if error.exit_code != FAILED:
            raise
        if not pace.taken:
            return run.not_tried(wanted, error.what), pace, error
        busy = run.MachineTooBusy(profile.name, f"the lab did not start: {error.what}", pace.taken)
        return run.not_tried(wanted, f"{error.what}; {pace.taken}", "too busy"), pace, busy


def _built(workspace: Workspace, loaded: Loaded) -> dict[str, Artifact]:
    """The images to try; where there is none, the lab builds it first.

    Raises RecordBroken, ImageChanged, what building raises, and NodeNotBuilt.
    """
    folders = {node: artifacts.folder_of(workspace, loaded.profile.name, node) for node in loaded.profile.nodes}
    kinds: set[str] = set()
    missing: list[str] = []
    for node, folder in folders.items():
        try:
            kinds.add(Artifact.load(folder).record.builder)
        except ImageNotBuilt:
            missing.append(node)
    if missing and kinds - {"lab"}:
        raise NodeNotBuilt(loaded.called, missing[0], folders[missing[0]])
    if missing:
        terminal.say(f"there is no image of {', '.join(missing)} yet: the lab builds it (for testing, not to flash)")
        build_loaded(workspace, loaded, missing, BuildOptions(), as_json=False)
    return images_of(workspace, loaded, tuple(folders))


def _machine() -> dict[str, str]:
    acceleration = accelerator.probe()
    qemu = accelerator.find_qemu()
    return {
        "qemu": qemu.text,
        "accelerator": acceleration.name,
        "reason": acceleration.reason,
        "cpus": str(os.cpu_count()),
    }


def _finish(
    workspace: Workspace,
    acceptance: report.Acceptance,
    wanted: Sequence[Claim],
    only: str | None,
    json: Path | None,
    failure: NdakitError | None,
) -> None:
    """Write the records and show the table."""
    paths = [] if only else [workspace.images / acceptance.profile / "acceptance.json"]
    if json is not None:
        paths.append(json)
    terminal.say()
    terminal.say(verify_progress.claims_table(acceptance.verdicts))
    if acceptance.left_out:
        terminal.say(verify_progress.left_out_table(acceptance.left_out))
    terminal.say()
    for path in paths:
        report.write(path, acceptance)
        terminal.say(f"record: {path}")
    if failure is not None:
        terminal.show_error(failure)
    terminal.say(verify_progress.summary(acceptance))
