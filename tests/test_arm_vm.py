"""ARM: the image of a Dockstar's profile in a virtual machine, answering behind its VIP."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ndakit.artifacts import Artifact, folder_of
from pairs import Pair, running

pytestmark = pytest.mark.vm

DOCKSTAR = """\
name: shelf
release: 24.10.8
device: dockstar
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.7.0/25}
networks: {lan: {nics: [eth0], subnet: 192.168.7.0/24, gateway: 192.168.7.1, dns: [192.168.7.1]}}
nodes: {box: {addresses: {lan: 192.168.7.11}}}
vips: {www: {network: lan, address: 192.168.7.10}}
pools:
  web:
    check: {type: http, interval_s: 0.5, timeout_s: 1, rise: 2, fall: 2}
    servers: {web1: 192.168.7.21, web2: 192.168.7.22}
services: {web: {vip: www, port: 80, protocol: http, pool: web}}
"""


@pytest.fixture(scope="module")
def dockstar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running(tmp_path_factory.mktemp("shelf"), "shelf", DOCKSTAR) as found:
        yield found


CLAIMS = (
    *("identity/box", "addresses/box", "daemons/box", "ssh/box", "statistics/box", "vips/one-holder", "service/web"),
    *("client-address/web", "check/web", "quiet/box"),
)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_dockstar_s_image_keeps_what_it_claims(dockstar: Pair, name: str) -> None:
    outcome = dockstar.outcome(name)
    assert outcome.ok, f"{outcome.figure}: {outcome.detail}"


def test_it_runs_programs_for_armv5_in_the_memory_of_a_dockstar(dockstar: Pair) -> None:
    lab = dockstar.lab
    assert lab.machine("box").spec.memory_mib == 128
    assert lab.run("box", "uname -m").strip() == "armv7l"  # the board's CPU; what runs on it is for the older one:
    flags = lab.run("box", "hexdump -s 36 -n 4 -e '1/4 \"%08x\"' /usr/sbin/haproxy")
    assert flags.strip() == "05000200"  # EABI 5, soft float
    assert "arm_xscale" in lab.run("box", "cat /etc/openwrt_release")
    free = next(line for line in lab.run("box", "free").splitlines() if line.startswith("Mem:"))
    assert int(free.split()[-1]) > 20_000, f"KiB available: {free}"


def test_what_is_written_is_kept_over_a_restart(dockstar: Pair) -> None:
    lab = dockstar.lab
    lab.run("box", "echo kept >/etc/kept; sync")
    lab.power_off("box")
    lab.power_on("box")
    assert lab.run("box", "cat /etc/kept").strip() == "kept"


def test_the_image_is_the_one_to_flash(dockstar: Pair) -> None:
    folder = folder_of(dockstar.workspace, "shelf", "box")
    record = Artifact.load(folder).record
    assert [i.kind for i in record.images] == ["factory", "sysupgrade"]
    assert all("kirkwood-generic-seagate_dockstar-squashfs" in i.name for i in record.images)
    assert record.target == "kirkwood/generic"
