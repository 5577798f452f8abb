"""Who listens where: the table of daemons, and what follows from the port of the nodes' own SSH."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

import goldens
from ndakit.core.errors import ErrorGroup, NdakitError
from ndakit.core.names import PackageName
from ndakit.core.workspace import Workspace
from ndakit.lab import server_ports
from ndakit.lint.lint import lint
from ndakit.load import load
from ndakit.model import Profile, listeners
from ndakit.model import rules as model_rules
from ndakit.model.rules.findings import Finding
from ndakit.render.node import NodeView
from ndakit.render.render import render
from ndakit.verify.claims.firewall import watched

TEXT = """\
name: small
release: 24.10.8
image: {packages: {PACKAGES}}
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {lan: 192.168.0.0/24}
  ssh: {port: SSH}
system: {ntp: []}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}
nodes: {lb1: {addresses: {lan: 192.168.0.11}}, lb2: {addresses: {lan: 192.168.0.12}}}
vips: {www: {network: lan, address: 192.168.0.10}}
pools: {web: {check: {port: 80}, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}}
services: {web: {vip: www, port: PORT, protocol: PROTOCOL, pool: web, topology: TOPOLOGY}}
"""


def text(packages: str = "", ssh: int = 22, port: str = "80", protocol: str = "tcp", topology: str = "proxy") -> str:
    values = {"PACKAGES": packages, "SSH": str(ssh), "PORT": port, "PROTOCOL": protocol, "TOPOLOGY": topology}
    return re.sub("|".join(values), lambda match: values[match[0]], TEXT)


def small(
    packages: str = "", ssh: int = 22, port: str = "80", protocol: str = "tcp", topology: str = "proxy"
) -> Profile:
    return Profile.model_validate(yaml.load(text(packages, ssh, port, protocol, topology), yaml.BaseLoader))


def found_in(profile: Profile) -> list[Finding]:
    return [f for f in model_rules.findings(profile) if f.severity == "error"]


def example(pattern: str) -> str:
    """A package that a pattern stands for."""
    return pattern.replace("*", "x")


SOCKETS = [
    (daemon, pattern, port)
    for daemon in listeners.DAEMONS
    for pattern in daemon.packages
    for transport, port in daemon.sockets
    if transport == "tcp" and not daemon.loopback and port != 22
]


@pytest.mark.parametrize(("daemon", "pattern", "port"), SOCKETS, ids=[f"{p}-{n}" for _, p, n in SOCKETS])
def test_a_daemon_on_the_port_of_a_proxied_service_is_refused(
    daemon: listeners.Daemon, pattern: str, port: int
) -> None:
    package = example(pattern)
    profile = small(f"{package}: add", port=str(port))
    hit = [f for f in found_in(profile) if f.code == "package-port"]
    assert {f.at for f in hit} == {("image", "packages", package)}
    assert {f.unless for f in hit} == {d.configuration for d in listeners.daemons(package)} & {
        d.configuration for d in listeners.daemons(package) if ("tcp", port) in d.sockets
    }
    assert found_in(small(f"{package}: remove", port=str(port))) == []
    assert found_in(small(f"{package}: add", port=str(port + 7))) == [], "another port clashes with nothing"
    assert found_in(small(f"{package}: add", port=str(port), topology="dr")) == [], "IPVS is first"
    assert daemon.configuration.startswith("/etc/")


def test_every_package_of_the_table_is_a_package_name_and_every_daemon_is_there_once() -> None:
    pattern = next(m.pattern for m in get_args(PackageName) if hasattr(m, "pattern"))
    for daemon in listeners.DAEMONS:
        assert daemon.sockets
        assert all(re.fullmatch(pattern, example(name)) for name in daemon.packages)
        assert all(0 < port < 65536 for _, port in daemon.sockets)
    names = [daemon.name for daemon in listeners.DAEMONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "package", ["luci", "luci-ssl", "luci-light", "luci-nginx", "luci-app-statistics", "luci-base"]
)
def test_luci_is_refused_with_the_reason(package: str) -> None:
    (only,) = found_in(small(f"{package}: add", port="8080"))
    assert only.code == "web-interface"
    assert "root in without a password" in only.what
    assert found_in(small(f"{package}: remove", port="8080")) == []


@pytest.mark.parametrize("package", ["tcpdump", "keepalived-sync", "nginx-ssl-util", "iperf3", "openssh-sftp-server"])
def test_a_package_that_listens_nowhere_is_left_alone(package: str) -> None:
    for port in ("80", "443", "53", "21", "5201"):
        assert found_in(small(f"{package}: add", port=port)) == []


def test_openssh_beside_the_nodes_own_ssh_needs_another_port() -> None:
    (only,) = found_in(small("openssh-server: add"))
    assert (only.code, only.at) == ("package-port", ("image", "packages", "openssh-server"))
    assert found_in(small("openssh-server: add", ssh=2222)) == []


def refused(folder: Path, packages: str, port: int) -> list[str]:
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles/small.yaml").write_text(text(packages, port=str(port)))
    try:
        load.load(Workspace(folder), "small")
    except NdakitError as error:
        return [e.code for e in (error.errors if isinstance(error, ErrorGroup) else (error,))]
    return []


@pytest.mark.parametrize("name", ["uhttpd", "uhttpd.j2"])
def test_a_workspace_with_the_daemons_own_configuration_is_believed(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, "uhttpd: add, nginx-ssl: add", 80) == ["package-port", "package-port"]
    config = tmp_path / "templates/rootfs/etc/config"
    config.mkdir(parents=True)
    (config / name).write_text("config uhttpd 'main'\n\tlist listen_http '127.0.0.1:8888'\n")
    assert refused(tmp_path, "uhttpd: add", 80) == []
    assert refused(tmp_path, "uhttpd: add, nginx-ssl: add", 80) == ["package-port"]


def test_dnsmasq_is_silent_by_the_shipped_configuration(tmp_path: Path) -> None:
    assert refused(tmp_path, "dnsmasq-full: add", 53) == []
    assert refused(tmp_path, "unbound-daemon: add", 53) == ["package-port"]


# -- the port of the nodes' own SSH ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "protocol", "port", "ssh", "clashes"),
    [("proxy", "tcp", "22", 22, True), ("proxy", "tcp", "20-30", 22, True), ("proxy", "tcp", "22", 2222, False),
     ("proxy", "tcp", "2222", 2222, True), ("nat", "tcp", "22", 22, False), ("dr", "tcp", "22", 22, False),
     ("tun", "tcp", "22", 22, False), ("dr", "udp", "22", 22, False), ("dr", "tcp", "1-65535", 22, False)],
)  # fmt: skip
def test_only_haproxy_cannot_share_the_port_of_ssh(
    topology: str, protocol: str, port: str, ssh: int, clashes: bool
) -> None:
    codes = {f.code for f in found_in(small(ssh=ssh, port=port, protocol=protocol, topology=topology))}
    assert ("port-of-ssh" in codes) == clashes


def test_the_port_that_the_message_proposes_works() -> None:
    (only,) = [f for f in found_in(small(port="22")) if f.code == "port-of-ssh"]
    proposed = re.search(r"access: \{ssh: \{port: (\d+)\}\}", only.fix)
    assert proposed is not None
    assert found_in(small(ssh=int(proposed[1]), port="22")) == []
    assert "2222" not in next(f for f in found_in(small(port="[22, 2222]")) if f.code == "port-of-ssh").fix


def rendered(profile: Profile) -> dict[str, str]:
    return {path: file.text for path, file in render(profile, "lb1", goldens.TEMPLATES).items()}


def test_another_ssh_port_is_everywhere() -> None:
    profile = small(ssh=2222, port="22")
    tree = rendered(profile)
    assert "option Port '2222'" in tree["/etc/config/dropbear"]
    rules = tree["/etc/config/firewall"].split("\nconfig ")
    (ssh,) = [r for r in rules if "option name 'ssh'" in r]
    assert "option dest_port '2222'" in ssh
    assert lint(render(profile, "lb1", goldens.TEMPLATES), profile, "lb1") == []
    assert {22, 2222} <= watched(profile, "tcp")
    # A port among those of outgoing connections is kept for SSH.
    high = NodeView(small(ssh=22022), "lb1")
    assert any(v.key.endswith("ip_local_reserved_ports") and v.value == "22022" for v in high.sysctls)


def test_lint_misses_an_ssh_port_that_the_firewall_does_not_open() -> None:
    profile = small(ssh=2222)
    tree = render(small(), "lb1", goldens.TEMPLATES)  # everything in it is about port 22
    codes = {e.code for e in lint(tree, profile, "lb1")}
    assert {"lint-ssh", "lint-fw-ssh-closed"} <= codes


@pytest.mark.parametrize("rule", ["allow", "deny"])
def test_firewall_rules_are_held_against_the_ssh_port_that_is_stated(rule: str) -> None:
    def codes(ssh: int, port: int) -> set[str]:
        data = yaml.load(text(ssh=ssh), yaml.BaseLoader)
        data["firewall"] = {rule: {"x": {"network": "lan", "protocol": "tcp", "port": str(port)}}}
        return {f.code for f in found_in(Profile.model_validate(data))}

    wanted = {"allow": "allow-ssh", "deny": "deny-lock-out"}[rule]
    assert wanted in codes(2222, 2222)
    assert wanted in codes(22, 22)
    assert wanted not in codes(2222, 22)


# -- many ports --------------------------------------------------------------------------------------------------------


def test_the_kernel_takes_any_range_as_one_mark() -> None:
    profile = small(port="1-65535", topology="nat")
    assert [f.code for f in found_in(profile) if "ports" in f.code] == []
    assert list(profile.marks) == ["web"]


def test_haproxy_takes_4096_ports_and_no_more() -> None:
    assert found_in(small(port="10000-14095")) == []
    assert [f.code for f in found_in(small(port="10000-14096"))] == ["too-many-ports"]


def test_services_with_several_ports_have_255_marks_and_the_next_one_is_an_error() -> None:
    data = yaml.load(text(topology="dr"), yaml.BaseLoader)
    one = data["services"].pop("web")
    data["services"] = {f"s{n}": one | {"port": f"{1000 + 2 * n}-{1001 + 2 * n}"} for n in range(255)}
    profile = Profile.model_validate(data)
    assert sorted(profile.marks.values()) == [n << 4 for n in range(1, 256)]
    assert found_in(profile) == []
    data["services"]["t"] = one | {"port": "30000-30001"}
    assert [f.code for f in found_in(Profile.model_validate(data))] == ["too-many-marks"]


def test_the_lab_tries_both_ends_of_a_long_range_and_its_servers_have_them() -> None:
    profile = small(port="[21, 8000-8020, 20000-39999]", topology="nat")
    tried = server_ports.tried_ports(profile.services["web"])
    assert {21, 8000, 8010, 8020, 20000, 39999} <= set(tried)
    assert len(tried) < 40
    assert {p.number for p in server_ports.ports_of(profile, "web", "web1")} >= set(tried)
