"""Lint of what belongs to no engine: who starts daemons again, sysctl.conf, sysupgrade.conf.

Source: docs/facts.md, Network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ndakit.lint.subject import LintFinding, Subject
from ndakit.render.render import BROUGHT, KEPT_ANYWAY, SYSUPGRADE, within

SYSTEM = "/etc/config/system"
VIPS_INIT, VIPS_WATCH = "/etc/init.d/ndakit-vips", "/usr/libexec/ndakit/vips-watch"
SYSCTL = "/etc/sysctl.conf"
KEEP_LISTS = "/lib/upgrade/keep.d/"
"""Every file in it is a list like sysupgrade.conf."""
_SYSCTL_KEYS = re.compile(
    r"net\.ipv[46]\.conf\.[a-z0-9/-]+\.(accept_ra|accept_redirects|hop_limit|send_redirects|promote_secondaries|forwarding|arp_ignore|arp_announce|rp_filter)"
    r"|net\.ipv[46]\.ip_nonlocal_bind|net\.ipv4\.(ip_forward|ip_local_port_range|ip_local_reserved_ports)"
    r"|net\.ipv4\.(tcp_max_syn_backlog|tcp_fin_timeout|tcp_syncookies|tcp_tw_reuse|tcp_max_tw_buckets)"
    r"|net\.core\.(somaxconn|netdev_max_backlog)"
    r"|fs\.nr_open|net\.netfilter\.nf_conntrack_(max|buckets)|net\.ipv4\.vs\.[a-z_]+|vm\.[a-z_]+"
)
"""Keys that every kernel of the supported releases has; an unknown one is ignored without a word (sysctl -e)."""


def rules(subject: Subject) -> Iterator[LintFinding]:
    """All rules of this module."""
    yield from supervision(subject)
    yield from kernel(subject)
    yield from kept(subject)


def supervision(subject: Subject) -> Iterator[LintFinding]:
    """Whatever ends is started again, for ever; and a node whose keepalived cannot start gives its VIPs up."""
    section = next(iter(subject.sections("system", "service")), None)
    if section is None or section.get("respawn_retry") != "0":
        what = "procd gives up on a daemon at its sixth end within an hour, unless respawn_retry is 0"
        yield subject.finding("respawn", SYSTEM, section.line if section is not None else 0, what)
    if not subject.view.vrrp:
        return
    watch = subject.tree.get(VIPS_WATCH)
    if watch is None or VIPS_INIT not in subject.tree:
        what = "missing: a node whose keepalived cannot start would keep its VIPs"
        yield subject.finding("vips-watch", VIPS_INIT if watch is not None else VIPS_WATCH, 0, what)
        return
    wanted = {f"{v.prefixed} dev {v.device}" for i in subject.view.instances for v in (i.advertised, *i.others)}
    lines = [line.strip() for line in watch.text.splitlines()]
    named = {line.removeprefix("address del ") for line in lines if line.startswith("address del ")}
    for address in sorted(named ^ wanted):
        what = "is not given up" if address in wanted else "is given up and is no VIP"
        yield subject.finding("vips-watch", VIPS_WATCH, 0, f"{address} {what} when keepalived does not run")


def kernel(subject: Subject) -> Iterator[LintFinding]:
    """sysctl.conf: a key that the kernel does not know is ignored without a word."""
    file = subject.tree.get(SYSCTL)
    values: dict[str, str] = {}
    for number, line in enumerate(file.text.splitlines() if file is not None else [], 1):
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not value or key != key.strip() or value != value.strip():
            yield subject.finding("sysctl", SYSCTL, number, f"'{line[:60]}' is not written as key=value")
        elif key not in subject.profile.tuning.sysctl and not _SYSCTL_KEYS.fullmatch(key):
            what = f"'{key}' is not known to exist in every kernel: it would be ignored without a word"
            yield subject.finding("sysctl", SYSCTL, number, what)
        elif key in values:
            yield subject.finding("sysctl", SYSCTL, number, f"'{key}' is stated twice")
        values.setdefault(key, value)
    for place in ("default", *subject.profile.nics):
        key = f"net.ipv6.conf.{place}.accept_ra"
        if values.get(key) != subject.profile.tuning.sysctl.get(key, "0"):
            what = f"{key}=0 is missing: any host could give this node a way out of its own"
            yield subject.finding("sysctl", SYSCTL, 0, what)
    for version in ("4", "6"):
        key = f"net.ipv{version}.ip_nonlocal_bind"
        if subject.view.vrrp and subject.profile.runs_haproxy and values.get(key) != "1":
            what = f"{key}=1 is missing: HAProxy does not start on a node that does not hold the VIPs"
            yield subject.finding("sysctl", SYSCTL, 0, what)


def kept(subject: Subject) -> Iterator[LintFinding]:
    """What an upgrade that keeps the configuration must keep beyond what it keeps anyway."""
    lists = [f.text for p, f in subject.tree.items() if p == SYSUPGRADE or p.startswith(KEEP_LISTS)]
    listed = [line for text in lists for line in text.splitlines() if line and not line.startswith("#")]
    for path in subject.tree:
        if within(path, KEPT_ANYWAY + BROUGHT):
            continue
        if not any(path == k or path.startswith(f"{k.rstrip('/')}/") for k in listed):
            what = f"{path} is not listed: an upgrade that keeps the configuration would lose it"
            yield subject.finding("not-kept", SYSUPGRADE, 0, what)
