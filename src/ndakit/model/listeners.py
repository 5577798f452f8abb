"""Who listens on a node: what every node runs itself, and what the packages of OpenWrt's feeds bring; tables of facts.

The daemons of the feeds are described as they come, unconfigured: packages of `openwrt/packages` and `openwrt/openwrt`
(their `files/*.config`, `*.init` and default configuration, from 18.06 to 25.12). A daemon that is switched off as it
comes is not in the table; one that listens on one interface counts as one that listens on every address, because its
interface may be one of ours. What is compared with what is the business of `rules.listeners`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ndakit.core.mistakes import KeyPath
from ndakit.model.profile import IPVS_SYNC_PORT, PEERS_PORT, SYNC_PORT, Profile

Transport = Literal["tcp", "udp"]
Where = Literal["every address", "the node's own addresses", "loopback"]


@dataclass(frozen=True)
class OwnListener:
    """Something that a node runs because of the profile, and the place in the profile that says its port."""

    what: str
    transport: Transport
    port: int
    where: tuple[Where, ...]
    at: KeyPath | None
    """None for a port that nothing in the profile says."""


@dataclass(frozen=True)
class Daemon:
    """A daemon of OpenWrt's feeds, with the packages that bring it and the sockets it opens as it comes."""

    name: str
    packages: tuple[str, ...]
    """Names with `*` for any text: the package itself, and those that pull it in."""
    sockets: tuple[tuple[Transport, int], ...]
    configuration: str
    """The file with which a workspace of its own can make it listen elsewhere."""
    loopback: bool = False

    def brought_by(self, package: str) -> bool:
        """True if an image with this package has the daemon in it."""
        return any(fnmatchcase(package, pattern) for pattern in self.packages)


def _tcp(*ports: int) -> tuple[tuple[Transport, int], ...]:
    return tuple(("tcp", port) for port in ports)


def _udp(*ports: int) -> tuple[tuple[Transport, int], ...]:
    return tuple(("udp", port) for port in ports)


_DNS = (*_tcp(53), *_udp(53))

DAEMONS: tuple[Daemon, ...] = (
    # Web servers and proxies.
    Daemon("uhttpd", ("uhttpd", "uhttpd-mod-*"), _tcp(80, 443), "/etc/config/uhttpd"),
    Daemon("nginx", ("nginx", "nginx-ssl", "nginx-full", "nginx-all-module", "nginx-mod-*"), _tcp(80, 443),
           "/etc/config/nginx"),
    Daemon("lighttpd", ("lighttpd", "lighttpd-mod-*"), _tcp(80), "/etc/lighttpd/lighttpd.conf"),
    Daemon("apache", ("apache", "apache-mod-*"), _tcp(80), "/etc/apache2/apache2.conf"),
    Daemon("gatling", ("gatling",), _tcp(80), "/etc/gatling.conf"),
    Daemon("squid", ("squid", "squid-mod-*"), _tcp(3128), "/etc/config/squid"),
    Daemon("tinyproxy", ("tinyproxy",), _tcp(8888), "/etc/config/tinyproxy"),
    Daemon("privoxy", ("privoxy",), _tcp(8118), "/etc/config/privoxy"),
    # Name servers, DHCP and announcements.
    Daemon("dnsmasq", ("dnsmasq", "dnsmasq-full", "dnsmasq-dhcpv6"), (*_DNS, *_udp(67)), "/etc/config/dhcp"),
    Daemon("odhcpd", ("odhcpd", "odhcpd-ipv6only"), _udp(547), "/etc/config/dhcp"),
    Daemon("named (BIND)", ("bind-server", "bind-server-*"), _DNS, "/etc/bind/named.conf"),
    Daemon("unbound", ("unbound", "unbound-daemon*"), _DNS, "/etc/config/unbound"),
    Daemon("knotd (Knot DNS)", ("knot",), _DNS, "/etc/knot/knot.conf"),
    Daemon("kresd (Knot Resolver)", ("knot-resolver",), _DNS, "/etc/config/resolver"),
    Daemon("nsd", ("nsd", "nsd-nossl"), _DNS, "/etc/nsd/nsd.conf"),
    Daemon("pdns_server (PowerDNS)", ("pdns", "pdns-backend-*"), _DNS, "/etc/powerdns/pdns.conf"),
    Daemon("adguardhome", ("adguardhome",), (*_DNS, *_tcp(3000)), "/etc/adguardhome.yaml"),
    Daemon("coredns", ("coredns",), (*_tcp(5353), *_udp(5353)), "/etc/coredns/Corefile"),
    Daemon("stubby", ("stubby",), (*_tcp(5453), *_udp(5453)), "/etc/config/stubby", loopback=True),
    Daemon("pdns_recursor (PowerDNS)", ("pdns-recursor",), _DNS, "/etc/powerdns/recursor.conf", loopback=True),
    Daemon("avahi", ("avahi-daemon", "avahi-*-daemon", "avahi-daemon-*"), _udp(5353), "/etc/avahi/avahi-daemon.conf"),
    Daemon("umdns", ("umdns",), _udp(5353), "/etc/config/umdns"),
    # Ways in.
    Daemon("sshd (OpenSSH)", ("openssh-server", "openssh-server-*"), _tcp(22), "/etc/ssh/sshd_config"),
    Daemon("ttyd", ("ttyd",), _tcp(7681), "/etc/config/ttyd"),
    Daemon("telnetd", ("telnetd", "telnetd-*"), _tcp(23), "/etc/config/telnet"),
    # What is watched.
    Daemon("snmpd", ("snmpd", "snmpd-*"), _udp(161), "/etc/config/snmpd"),
    Daemon("mini_snmpd", ("mini-snmpd",), _udp(161), "/etc/config/mini_snmpd"),
    Daemon("prometheus-node-exporter-lua", ("prometheus-node-exporter-lua*",), _tcp(9100),
           "/etc/config/prometheus-node-exporter-lua", loopback=True),
    Daemon("prometheus-node-exporter-ucode", ("prometheus-node-exporter-ucode*",), _tcp(9101),
           "/etc/config/prometheus-node-exporter-ucode", loopback=True),
    Daemon("prometheus", ("prometheus",), _tcp(9090), "/etc/prometheus.yml"),
    Daemon("collectd's network plugin", ("collectd-mod-network",), _udp(25826), "/etc/config/luci_statistics"),
    Daemon("zabbix_agentd", ("zabbix-agentd*",), _tcp(10050), "/etc/zabbix_agentd.conf"),
    Daemon("zabbix_server", ("zabbix-server*",), _tcp(10051), "/etc/zabbix_server.conf"),
    Daemon("zabbix_proxy", ("zabbix-proxy*",), _tcp(10051), "/etc/zabbix_proxy.conf"),
    Daemon("netdata", ("netdata",), _tcp(19999), "/etc/netdata/netdata.conf"),
    Daemon("monit", ("monit", "monit-nossl"), _tcp(2812), "/etc/monitrc", loopback=True),
    Daemon("darkstat", ("darkstat",), _tcp(667), "/etc/config/darkstat"),
    # Files.
    Daemon("rpcbind", ("rpcbind", "nfs-kernel-server*"), (*_tcp(111), *_udp(111)), "/etc/init.d/rpcbind"),
    Daemon("nfsd", ("nfs-kernel-server*",), (*_tcp(2049), *_udp(2049)), "/etc/config/nfs"),
    Daemon("smbd (Samba)", ("samba36-server", "samba4-server"), (*_tcp(139, 445), *_udp(137, 138)),
           "/etc/config/samba4"),
    Daemon("ksmbd", ("ksmbd-server",), _tcp(445), "/etc/config/ksmbd"),
    Daemon("vsftpd", ("vsftpd", "vsftpd-tls"), _tcp(21), "/etc/vsftpd.conf"),
    Daemon("proftpd", ("proftpd*",), _tcp(21), "/etc/proftpd.conf"),
    Daemon("pure-ftpd", ("pure-ftpd", "pure-ftpd-tls"), _tcp(21), "/etc/config/pure-ftpd"),
    Daemon("rsyncd", ("rsyncd",), _tcp(873), "/etc/rsyncd.conf"),
    Daemon("minidlna", ("minidlna",), (*_tcp(8200), *_udp(1900)), "/etc/config/minidlna"),
    # Databases, messages, mail.
    Daemon("mosquitto", ("mosquitto", "mosquitto-ssl", "mosquitto-nossl"), _tcp(1883), "/etc/mosquitto/mosquitto.conf"),
    Daemon("memcached", ("memcached",), _tcp(11211), "/etc/config/memcached"),
    Daemon("redis", ("redis-server", "redis-full"), _tcp(6379), "/etc/redis.conf"),
    Daemon("postgres", ("pgsql-server",), _tcp(5432), "/etc/config/postgresql"),
    Daemon("postfix", ("postfix",), _tcp(25), "/etc/postfix/main.cf"),
    Daemon("exim", ("exim*",), _tcp(25), "/etc/exim/exim.conf"),
    Daemon("dovecot", ("dovecot",), _tcp(110, 143, 993, 995), "/etc/dovecot/dovecot.conf"),
    # Routing, time, authentication, telephony, tunnels.
    Daemon("bird", ("bird1-ipv4", "bird1-ipv6", "bird4", "bird6", "bird2"), _tcp(179), "/etc/bird.conf"),
    Daemon("bgpd", ("frr-bgpd", "quagga-bgpd"), _tcp(179), "/etc/frr/daemons"),
    Daemon("ntpd", ("ntpd", "ntpd-ssl"), _udp(123), "/etc/config/system"),
    Daemon("chronyd", ("chrony", "chrony-nts"), _udp(123), "/etc/config/chrony"),
    Daemon("radiusd (FreeRADIUS)", ("freeradius3", "freeradius3-mod-*"), _udp(1812, 1813),
           "/etc/freeradius3/radiusd.conf"),
    Daemon("asterisk", ("asterisk*",), _udp(5060), "/etc/asterisk/sip.conf"),
    Daemon("charon (strongSwan)", ("strongswan", "strongswan-*"), _udp(500, 4500), "/etc/config/ipsec"),
    Daemon("xl2tpd", ("xl2tpd",), _udp(1701), "/etc/xl2tpd/xl2tpd.conf"),
    Daemon("tor", ("tor", "tor-basic"), _tcp(9050), "/etc/tor/torrc", loopback=True),
    Daemon("shairport-sync", ("shairport-sync-*",), _tcp(5000), "/etc/config/shairport-sync"),
    Daemon("umurmur", ("umurmur-*",), (*_tcp(64738), *_udp(64738)), "/etc/umurmur.conf"),
)  # fmt: skip
"""Daemons by what they are for."""

WEB_INTERFACE = ("luci", "luci-*")
"""Packages of OpenWrt's web interface. Most of them pull the whole of it in, web server included."""


def daemons(package: str) -> tuple[Daemon, ...]:
    """The daemons that a package brings; none for a package that is not in the table."""
    return tuple(daemon for daemon in DAEMONS if daemon.brought_by(package))


def is_web_interface(package: str) -> bool:
    """True for a package of LuCI."""
    return any(fnmatchcase(package, pattern) for pattern in WEB_INTERFACE)


def own(profile: Profile) -> Iterator[OwnListener]:
    """What every node listens on besides the services: SSH, statistics, what the nodes tell each other."""
    stated = "ssh" in profile.access.model_fields_set
    yield OwnListener(
        "the balancer's own SSH",
        "tcp",
        profile.ssh_port,
        ("every address",),
        ("access", "ssh", "port") if stated else None,
    )
    if profile.runs_haproxy:
        yield OwnListener("the statistics page", "tcp", profile.monitoring.statistics.port,
                          ("the node's own addresses", "loopback"), ("monitoring", "statistics", "port"))  # fmt: skip
    if profile.shares_tables:
        yield OwnListener("what the nodes' HAProxies tell each other", "tcp", PEERS_PORT,
                          ("the node's own addresses",), None)  # fmt: skip
    for terminator in profile.terminators:
        for name in profile.terminated_services(terminator):
            what = f"HAProxy, behind {terminator.title}, for service {name}"
            yield OwnListener(what, "tcp", profile.inner_ports[name], ("loopback",), None)
    if profile.tracks_connections:
        yield OwnListener("conntrackd", "udp", SYNC_PORT, ("the node's own addresses",), None)
    if profile.syncs_ipvs:
        yield OwnListener("IPVS's sync daemon", "udp", IPVS_SYNC_PORT, ("the node's own addresses",), None)
