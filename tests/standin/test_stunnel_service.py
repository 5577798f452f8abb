"""The init script that is rendered for stunnel, with Debian's stunnel behind it and the lab's procd. Nothing boots."""

from __future__ import annotations

import json
import re

import pytest

import goldens
from labrig import PROCD, MakeRoot, Root
from ndakit.verify.claims.faults import KILLING

PACKAGES = "stunnel ip-full -dnsmasq -odhcpd-ipv6only -odhcp6c -ppp -ppp-mod-pppoe -opkg -apk-mbedtls"
PLACES = "ip address add 192.0.2.10/32 dev lo; ip address add 2001:db8::10/128 dev lo nodad; "
# Another process than `first`, which a busy machine may be slow to start.
ANOTHER = (
    'another() { i=0; while now=$(pidof stunnel); [ -z "$now" ] || [ "$now" = "$first" ]; do i=$((i+1)); '
    "[ $i -lt 100 ] || return 1; sleep 0.1; done; first=$now; }\n"
)
START = PROCD + ANOTHER + f"ip link set lo up; {PLACES}/etc/init.d/stunnel start; first=; another\n"
SAME = '[ -n "$first" ] && [ "$(pidof stunnel)" = "$first" ] && echo same\n'
ANEW = "another && echo anew\n"
EXAMPLES = {"19.07.10": "stunnel-1907", "24.10.8": "stunnel", "25.12.5": "stunnel-2512"}


def stunnel_root(make_root: MakeRoot, release: str = "24.10.8") -> Root:
    """A root with the rendered files. As root: the namespace here knows nobody else."""
    root = make_root(release=release, packages=PACKAGES)
    for path, file in goldens.tree(EXAMPLES[release]).items():
        if path.startswith(("/etc/stunnel/", "/etc/ndakit/private/", "/etc/init.d/stunnel")):
            root.put(path.lstrip("/"), re.sub(r"(?m)^set[ug]id = .*\n", "", file.text), file.mode)
    return root


@pytest.mark.parametrize("release", list(EXAMPLES))
def test_stunnel_is_a_service_of_procd_that_is_never_given_up(make_root: MakeRoot, release: str) -> None:
    said = stunnel_root(make_root, release).run(
        START + "ubus call service list '{\"name\":\"stunnel\"}' | tr -d ' \\n\\t'; echo\n" + SAME
        + "grep 'open files' /proc/$first/limits\n"
    )  # fmt: skip
    service, same, limits = said.out.splitlines()
    (instance,) = json.loads(service)["stunnel"]["instances"].values()
    assert instance["command"] == ["/usr/bin/stunnel", "/etc/stunnel/stunnel.conf"], said.err
    assert instance["respawn"] == {"threshold": 3600, "timeout": 1, "retry": 0}
    assert same == "same"
    asked = re.search(r'nofile="(\d+) ', goldens.tree(EXAMPLES[release])["/etc/init.d/stunnel"].text)
    assert asked is not None and limits.split()[3] == asked[1]


def test_a_reload_starts_stunnel_anew_only_if_configuration_or_a_certificate_has_changed(make_root: MakeRoot) -> None:
    said = stunnel_root(make_root).run(
        START + "/etc/init.d/stunnel reload; sleep 1\n" + SAME
        + "cp /etc/ndakit/private/shop.pem /tmp/new; cat /tmp/new /tmp/new >/etc/ndakit/private/mail.pem\n"
        + "/etc/init.d/stunnel reload\n" + ANEW
        + "echo '# changed' >>/etc/stunnel/stunnel.conf; /etc/init.d/stunnel reload\n" + ANEW
    )  # fmt: skip
    assert said.out.split() == ["same", "anew", "anew"], said.err


def test_stunnel_comes_back_seven_times(make_root: MakeRoot) -> None:
    said = stunnel_root(make_root).run(START + f"{KILLING}\nkilling stunnel 100", timeout_s=90)
    assert said.out == "stunnel: 7\n", said.err
