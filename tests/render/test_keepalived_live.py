"""What two real keepaliveds with rendered files do to clients, after both were master for a while."""

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
vrrp: {advert_interval_s: 0.5, unicast: true}
"""
SOON = ("\tvrrp_version 3\n", "\tvrrp_version 3\n\tvrrp_garp_master_delay 60\n")
"""keepalived announces a new master's VIPs twice, the second time after five seconds: here after a minute, so that the
first time alone has to do."""
LAST_WORD = "\tvrrp_higher_prio_send_advert true\n"


@pytest.mark.parametrize(("unicast", "preempt"), [("true", "false"), ("false", "true")])
def test_clients_find_the_master_at_once_after_two_were_master(tmp_path: Path, unicast: str, preempt: str) -> None:
    profile = goldens.parse(PAIR.replace("unicast: true", f"unicast: {unicast}, preempt: {preempt}"))
    found = attempt(profile, tmp_path, "two_masters", changes=[SOON], wait_s=4)
    assert found["answered_s"] is not None, found


def test_without_the_last_advert_of_the_one_that_leaves_clients_go_on_asking_it(tmp_path: Path) -> None:
    changes = [SOON, (LAST_WORD, "")]
    found = attempt(goldens.parse(PAIR), tmp_path, "two_masters", changes=changes, wait_s=4)
    assert found["answered_s"] is None and set(found["answers"].values()) == {"nobody"}, found
