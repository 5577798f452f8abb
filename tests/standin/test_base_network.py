"""The stand-in's netifd, in a network namespace with six cards."""

from __future__ import annotations

import json

import pytest

from labrig import LINKS, NETIFD, MakeRoot, Root, Said

UNSUPPORTED = "\necho ==unsupported; cat /tmp/lab-unsupported\n"
LOOPBACK = (
    "config interface 'loopback'\n\toption device 'lo'\n\toption proto 'static'\n\toption ipaddr '127.0.0.1/8'\n\n"
)


def _up(root: Root, script: str) -> Said:
    said = root.run(LINKS + NETIFD + script)
    assert said.code == 0, said
    return said


def _network(root: Root, text: str) -> None:
    root.put("etc/config/network", LOOPBACK + text)


def test_the_fw4_form_of_a_balancer_comes_up_whole(make_root: MakeRoot) -> None:
    said = _up(
        make_root("fw4-lb1"),
        "ip -br a show eth0; ip -br a show br-lan; ls /sys/class/net/br-lan/brif; ip ro; ip -6 ro show fd00:20::/32\n"
        "ip rule; ip -6 rule; ip ro show table 100; ip -6 ro show table 100; cat /tmp/resolv.conf.d/resolv.conf.auto"
        + UNSUPPORTED,
    )
    for line in (
        "203.0.113.11/24 2001:db8:113::11/64",
        "192.168.0.11/24 fd00:0:0:1::11/64",
        "eth1\neth2\n",
        "default via 203.0.113.1 dev eth0 proto static \n",
        "10.20.0.0/16 via 192.168.0.254 dev br-lan proto static metric 20",
        "fd00:20::/32 via fd00:0:0:1::254 dev br-lan proto static metric 1024",
        "1000:\tfrom all fwmark 0x1/0x1 lookup 100",
        "local default dev lo proto static scope host",
        "local default dev lo proto static metric 1024",
        "nameserver 203.0.113.53\nnameserver 2001:db8:113::53\n",
    ):
        assert line in said.out
    assert said.out.count("fwmark 0x1/0x1") == 2
    assert said.out.endswith("==unsupported\n")


def test_routes_and_rules_come_out_as_netifds(make_root: MakeRoot) -> None:
    said = _up(make_root("fw4-net-forms"), "ip ro show table all; echo; ip rule; ip -6 rule; ip -br a")
    assert "table 100" not in said.out.split("\n\n")[0]  # a local route without interface is not installed
    assert "local default dev lo table 101 proto static" in said.out
    assert "local 0.0.0.0 dev lo table 102" in said.out
    assert "blackhole 10.99.0.0/16 proto static" in said.out
    assert "blackhole 10.98.0.0/16 proto static" in said.out
    assert "10.97.0.0/16 via 192.168.0.254" in said.out
    assert "10.96.0.0/16" not in said.out
    for rule in (
        "1:\tfrom all fwmark 0x1 lookup 100",
        "2:\tfrom all fwmark 0x2 lookup 101",
        "3:\tfrom all fwmark 0x4/0x4 lookup main",
        "500:\tfrom 192.168.0.0/24 iif eth1 lookup 102",
        "501:\tfrom 192.168.0.21 unreachable",
        "502:\tnot from 192.168.0.22 to 10.0.0.0/8 lookup 102",
        "7:\tfrom all fwmark 0x1/0xff lookup 100",
    ):
        assert rule in said.out
    assert "600:" not in said.out  # a table name that is not in rt_tables


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("\tlist ipaddr '192.0.2.1/24'\n\tlist ipaddr '192.0.2.300/24'\n", "INVALID_ADDRESS"),
        ("\toption ipaddr '192.0.2.1/24 '\n", "INVALID_ADDRESS"),
        ("\toption ipaddr '2001:db8::1/64'\n", "INVALID_ADDRESS"),
        ("\toption ipaddr '192.0.2.1/24'\n\toption gateway 'router'\n", "INVALID_GATEWAY"),
    ],
)
def test_one_bad_value_leaves_the_interface_without_any_address(make_root: MakeRoot, options: str, code: str) -> None:
    root = make_root()
    _network(
        root,
        f"config interface 'bad'\n\toption device 'eth0'\n\toption proto 'static'\n{options}\n"
        "config interface 'good'\n\toption device 'eth1'\n\toption proto 'static'\n\toption ipaddr '198.51.100.1/24'\n",
    )
    said = _up(root, "ip -4 -br a show eth0; ip -4 -br a show eth1; ubus call network.interface.bad status")
    shown, _, status = said.out.partition("{")
    assert "192.0.2" not in shown
    assert "198.51.100.1/24" in shown
    answer = json.loads("{" + status)
    assert answer["up"] is False
    assert answer["errors"] == [{"subsystem": "static", "code": code}]


def test_a_device_that_is_not_there_or_too_long_is_no_device(make_root: MakeRoot) -> None:
    root = make_root()
    _network(root, "config interface 'x'\n\toption device 'eth-nine-and-more'\n\toption proto 'static'\n")
    said = _up(root, "ubus call network.interface.x status")
    assert json.loads(said.out)["errors"][0]["code"] == "NO_DEVICE"


def test_a_file_that_uci_refuses_leaves_the_network_as_it_was(make_root: MakeRoot) -> None:
    said = _up(
        make_root("fw4-lb1"),
        "printf \"config interface 'a-b'\\n\" >>/etc/config/network; /etc/init.d/network reload; ip -br a show eth0",
    )
    assert "203.0.113.11/24" in said.out


def test_a_vip_stays_over_reload_and_goes_with_a_bridge_made_anew(make_root: MakeRoot) -> None:
    said = _up(
        make_root("fw4-lb1"),
        "ip a add 203.0.113.10/32 dev eth0; ip a add 192.168.0.1/32 dev br-lan\n"
        "ip -6 a add 2001:db8:113::10/128 dev eth0\n"
        "uci set network.wan.gateway=203.0.113.2; uci add_list network.wan.ipaddr=203.0.113.99/24; uci commit\n"
        "/etc/init.d/network reload; ip -br a show eth0; ip -br a show br-lan; ip ro show default\n"
        "ifup wan; ip -br a show eth0; echo ==\n"
        "uci set network.@device[0].mtu=1400; uci commit; /etc/init.d/network reload\n"
        "ip -br a show br-lan; ip -br a show eth0\n",
    )
    before, _, after = said.out.partition("==\n")
    assert before.count("203.0.113.10/32") == 2
    assert before.count("2001:db8:113::10/128") == 2
    assert "203.0.113.99/24" in before
    assert "192.168.0.1/32" in before
    assert "default via 203.0.113.2 dev eth0" in before
    assert "192.168.0.1/32" not in after
    assert "192.168.0.11/24" in after
    assert "203.0.113.10/32" in after


def test_an_interface_taken_out_loses_its_address(make_root: MakeRoot) -> None:
    said = _up(
        make_root("fw4-lb1"),
        "uci delete network.lan; uci commit; ubus call network reload; ip -br a\n"
        "ubus call network.interface.lan status; echo $?",
    )
    assert "192.168.0.11" not in said.out
    assert said.out.endswith("\n4\n")


def test_the_old_form_works_before_21_02_and_only_there(make_root: MakeRoot) -> None:
    old = "config interface 'lan'\n\toption type 'bridge'\n\toption ifname 'eth1 eth2'\n\toption proto 'static'\n" + (
        "\toption ipaddr '192.168.0.11'\n\toption netmask '255.255.255.0'\n"
    )
    loopback = LOOPBACK.replace("device", "ifname")
    outcome = {}
    for release in ("19.07.10", "24.10.8"):
        root = make_root(release=release)
        root.put("etc/config/network", (loopback if release.startswith("19") else LOOPBACK) + old)
        outcome[release] = _up(root, "ip -br a; ubus call network.interface.lan status" + UNSUPPORTED).out
    assert "br-lan" in outcome["19.07.10"] and "192.168.0.11/24" in outcome["19.07.10"]
    assert "NO_DEVICE" in outcome["24.10.8"]
    root = make_root("fw4-lb1", release="19.07.10")
    assert "network.wan.device (this release takes ifname)" in _up(root, UNSUPPORTED).out


def test_what_the_stand_in_does_not_know_is_said(make_root: MakeRoot) -> None:
    root = make_root()
    _network(
        root,
        "config interface 'x'\n\toption device 'eth0'\n\toption proto 'wireguard'\n\toption colour 'blue'\n\n"
        "config magic\n",
    )
    said = _up(root, UNSUPPORTED)
    listed = said.out.partition("==unsupported\n")[2].splitlines()
    assert listed == [
        "lab: unsupported network.x.colour",
        "lab: unsupported network.x proto wireguard",
        "lab: unsupported network section type magic",
    ]


def test_generated_network_has_a_lan_in_each_family(make_root: MakeRoot) -> None:
    for release, form in (
        ("19.07.10", "option ifname 'eth0'"),
        ("23.05.6", "option netmask"),
        ("25.12.5", "list ipaddr"),
    ):
        root = make_root(release=release)
        said = _up(
            root, "/bin/config_generate; cat /etc/config/network; ubus call network reload; ip -br a show br-lan"
        )
        assert form in said.out
        assert "192.168.1.1/24" in said.out.splitlines()[-1]
