"""Two real keepaliveds with rendered files: what clients get after both were master, and when one hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

import goldens
from keepalived_live import attempt

PAIR = """\
name: live
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.20.0/24}
networks:
  wan: {nics: [eth0], subnet: [203.0.113.0/24, "2001:db8:1::/64"]}
  lan: {nics: [eth1], subnet: [192.168.20.0/24, "fd00:20::/64"]}
nodes:
  lb1: {addresses: {wan: [203.0.113.11, "2001:db8:1::11"], lan: [192.168.20.11, "fd00:20::11"]}}
  lb2: {addresses: {wan: [203.0.113.12, "2001:db8:1::12"], lan: [192.168.20.12, "fd00:20::12"]}}
vips:
  out: {network: wan, address: [203.0.113.10, "2001:db8:1::10"]}
  gw: {network: lan, address: [192.168.20.1, "fd00:20::1"], role: gateway}
vrrp: {advert_interval_s: 0.3, unicast: true}
"""
SOON = ("\tvrrp_version 3\n", "\tvrrp_version 3\n\tvrrp_garp_master_delay 60\n")
"""keepalived announces a new master's VIPs twice, the second time after five seconds: here after a minute, so that the
first time alone has to do."""
NO_REFRESH = ("vrrp_garp_master_refresh 2\n", "vrrp_garp_master_refresh 60\n")
NO_LAST_WORD = ("\tvrrp_higher_prio_send_advert true\n", "\tvrrp_garp_master_delay 1\n")
"""The announcements that are repeated for ever begin after the second time."""


@pytest.mark.parametrize(
    ("unicast", "preempt", "without"),
    [("true", "false", NO_REFRESH), ("false", "true", NO_REFRESH), ("false", "false", NO_LAST_WORD)],
    ids=["by-the-last-advert-unicast", "by-the-last-advert", "although-the-last-advert-is-lost"],
)
def test_clients_find_the_master_soon_after_two_were_master(
    tmp_path: Path, unicast: str, preempt: str, without: tuple[str, str]
) -> None:
    profile = goldens.parse(PAIR.replace("unicast: true", f"unicast: {unicast}, preempt: {preempt}"))
    changes = [without] if without is NO_LAST_WORD else [SOON, without]
    result = attempt(profile, tmp_path, "two_masters", changes=changes, times=2, wait_s=4)
    assert None not in result["again_s"], result


def test_without_both_clients_go_on_asking_the_one_that_left(tmp_path: Path) -> None:
    profile = goldens.parse(PAIR.replace("unicast: true", "unicast: false"))
    # On a busy machine lb2 may speak first after all: then lb1 hears it, and nothing is wrong.
    changes = [NO_REFRESH, (NO_LAST_WORD[0], ""), SOON]
    result = attempt(profile, tmp_path, "two_masters", changes=changes, times=6, wait_s=4)
    assert result["again_s"][-1] is None and set(result["answers"].values()) == {"nobody"}, result


STOPPED = "kill -STOP $(pidof keepalived)"


@pytest.mark.parametrize(
    ("release", "command", "said"),
    [
        ("24.10.8", STOPPED, "hangs"),
        ("18.06.9", STOPPED, "hangs"),
        ("24.10.8", "kill -9 $(pidof keepalived)", "does not run"),
        # From keepalived 2.1 on the parent waits before it starts a child that died again.
        ("24.10.8", "kill -STOP $(cat /run/lb1.p); kill -9 $(cat /run/lb1.r)", "does not run"),
    ],
    ids=["hangs", "hangs-1806", "killed", "parent-alone"],
)
def test_a_node_whose_keepalived_hangs_or_is_gone_gives_its_vips_up(
    tmp_path: Path, release: str, command: str, said: str
) -> None:
    result = attempt(
        goldens.parse(PAIR.replace("24.10.8", release)), tmp_path, "hangs", command=command, watched=True, wait_s=8
    )
    assert result["both_s"] is not None and result["served"], result
    assert (tmp_path / "said").read_text() == (
        f"-t ndakit -p daemon.warning keepalived {said}: this node has given its VIPs up\n"
    )


def test_without_the_watcher_it_keeps_them(tmp_path: Path) -> None:
    result = attempt(goldens.parse(PAIR), tmp_path, "hangs", command=STOPPED, watched=False, wait_s=5)
    assert result == {"both_s": None}
