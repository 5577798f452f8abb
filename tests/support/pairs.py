"""Profiles built and booted for tests, each once per session: the product's own path from YAML to a running lab."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ndakit.build import pipeline
from ndakit.core.workspace import Workspace, cache
from ndakit.image.artifacts import images_of
from ndakit.imagebuilder import sources
from ndakit.lab import host
from ndakit.lab.network import LabNetwork
from ndakit.lab.pace import Meter
from ndakit.load import load
from ndakit.load.certificates import certificates_of
from ndakit.machine import accelerator
from ndakit.machine.boot_image import boot_images
from ndakit.render.servers import linux_script
from ndakit.verify import claims
from ndakit.verify.claims import Claim, Outcome
from places import ROOT


class Pair:
    """A running lab, its claims by name, and the workspace it was built in."""

    def __init__(self, lab: LabNetwork, claims: dict[str, Claim], workspace: Workspace) -> None:
        self._lab = lab
        self.claims = claims
        self.workspace = workspace
        self.begin()

    @property
    def lab(self) -> LabNetwork:
        """The running lab. Who takes it asks machines that may be late."""
        self._asked = True
        return self._lab

    @property
    def pace(self) -> Meter:
        """How late this machine runs the lab's machines."""
        return self._lab.pace

    def outcome(self, name: str) -> Outcome:
        """Try one claim."""
        claim = self.claims[name]
        self._tried = name
        self._asked = self._asked or not claim.timeless
        return claim.run(self._lab)

    def begin(self) -> None:
        """A test begins."""
        self._tried = ""
        self._asked = False

    @property
    def late_matters(self) -> bool:
        """Whether the test at work has asked the lab for anything but names, addresses and settings."""
        return self._asked

    def again(self) -> None:
        """Bring the lab back to where a test began that failed: as the claim that it tried last says, if it tried
        one."""
        claim = self.claims.get(self._tried)
        (claim.again if claim else LabNetwork.put_back)(self._lab)


def new_key(folder: Path) -> tuple[str, str]:
    """A fresh SSH key pair: the public line and the private text."""
    path = folder / "id_ed25519"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path.with_suffix(".pub").read_text().strip(), path.read_text()


@contextmanager
def running(
    folder: Path, name: str, text: str, identity: str | None = None, pages: Mapping[str, bytes] | None = None
) -> Iterator[Pair]:
    """Write a profile into a private workspace, build it with the lab, and boot it. `pages`: those that checks know by
    their digests."""
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles" / f"{name}.yaml").write_text(text)
    (folder / "profiles" / "sorry.html").write_bytes((ROOT / "profiles/sorry.html").read_bytes())
    workspace = Workspace(folder)
    loaded = load.load(workspace, name)
    profile = loaded.profile
    pipeline.build(workspace, loaded, (), sources.choose("lab", None, workspace, profile))
    built = images_of(workspace, loaded, tuple(profile.nodes))
    image = host.image.build(ROOT / "lab", cache() / "lab")
    assert accelerator.probe().name in ("kvm", "tcg")
    network = LabNetwork(
        profile,
        boot_images(profile, built),
        workspace.logs("vm"),
        image,
        script_of=partial(linux_script, profile, workspace.templates),
        identity=identity,
        pages=pages,
        certificates=certificates_of(workspace, loaded),
    )
    with network as lab:
        yield Pair(lab, {c.name: c for c in claims.all_claims(profile)}, workspace)
