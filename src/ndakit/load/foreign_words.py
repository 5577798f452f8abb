"""Words of keepalived, HAProxy, IPVS and UCI, and what they are called in a profile, or why a profile has none.

Tables of facts: what a person who knows those programs writes at first, and the sentence that leads on. Sources: the
man page keepalived.conf(5), HAProxy's configuration manual, ipvsadm(8), OpenWrt's UCI pages. Dotted words in the texts
are our keys with NAME for any name; a test looks each of them up in the model.
"""

from __future__ import annotations

from collections.abc import Mapping

COMPUTED = "nothing to write: it is computed"

NO_PASSWORD = (
    "leave it out: VRRP version 3 has no password, and that of version 2 went over the wire in plain text (RFC 5798, "
    "9). What protects adverts: they go to the other nodes' addresses alone (vrrp.unicast, the default), and the "
    "firewall takes them from those addresses only"
)
NO_ROOT_PASSWORD = "leave it out: root logs in with the keys of access.ssh_keys, and no password opens anything"
SCRIPT = "write services.NAME.topology: nat, dr or tun, and pools.NAME.check: {type: script, script: check.sh}"
NOTIFY = "leave it out: calling a program at a change of the master is not carried yet"
IN_SERVICE = "write services.NAME.vip and services.NAME.port"

KEYS: Mapping[str, str] = {
    # keepalived.conf(5): VRRP
    **dict.fromkeys(
        ("auth", "authentication", "auth_type", "auth_pass", "auth_key", "vrrp_password", "ah"), NO_PASSWORD
    ),
    **dict.fromkeys(
        ("state", "initial_state", "master", "priority", "base_priority", "effective_priority"),
        "name the node that is master when all are well in vrrp.prefer; state and priorities are computed",
    ),
    **dict.fromkeys(
        (
            "notify",
            "notify_master",
            "notify_backup",
            "notify_fault",
            "notify_stop",
            "notify_up",
            "notify_down",
            "smtp_alert",
            "notification_email",
            "notification_email_from",
            "smtp_server",
        ),
        NOTIFY,
    ),
    **dict.fromkeys(
        ("virtual_router_id", "vrid", "router_id"),
        "it is computed from the names of network and group; networks.NAME.vrid pins one",
    ),
    **dict.fromkeys(
        ("vrrp_instance", "vrrp_sync_group", "vrrp_instances", "sync_group"),
        f"{COMPUTED} from the networks and vips.NAME.group: VIPs of one group move together",
    ),
    **dict.fromkeys(
        ("advert_int", "advertisement_interval", "advert_interval"), "write vrrp.advert_interval_s: seconds"
    ),
    **dict.fromkeys(("nopreempt", "no_preempt"), "leave it out: vrrp.preempt is false unless you say true"),
    **dict.fromkeys(
        ("virtual_ipaddress", "virtual_ipaddress_excluded", "virtual_ip", "virtual_ips"),
        "write vips.NAME.network and vips.NAME.address",
    ),
    **dict.fromkeys(
        ("unicast_peer", "unicast_src_ip", "mcast_src_ip", "unicast_peers"),
        f"{COMPUTED} from nodes.NAME.addresses; vrrp.unicast says which of the two it is",
    ),
    **dict.fromkeys(
        ("track_interface", "track_process", "track_script", "vrrp_script", "track_file"),
        "leave it out: links and HAProxy are watched without being told; what else gives the VIPs away is a list of "
        "pools, vrrp.demote_on",
    ),
    **dict.fromkeys(
        ("garp_master_delay", "garp_master_repeat", "garp_master_refresh", "use_vmac", "vmac"),
        "leave it out: there is no such key; after a takeover the VIPs are announced several times",
    ),
    **dict.fromkeys(("lvs_sync_daemon", "conntrackd", "peers"), "write vrrp.connection_sync: true"),
    # keepalived.conf(5): virtual servers
    **dict.fromkeys(("virtual_server", "virtual_servers", "virtual_server_group"), IN_SERVICE),
    **dict.fromkeys(("real_server", "real_servers", "members", "upstream", "upstreams"), "write pools.NAME.servers"),
    **dict.fromkeys(("lb_algo", "lvs_sched", "scheduler", "algorithm"), "write pools.NAME.balance"),
    **dict.fromkeys(
        ("lb_kind", "lvs_method", "forwarding_method", "packet_forwarding"),
        "write services.NAME.topology: nat, dr or tun",
    ),
    **dict.fromkeys(("delay_loop", "inter", "interval"), "write pools.NAME.check.interval_s: seconds"),
    **dict.fromkeys(("connect_timeout", "misc_timeout", "check_timeout"), "write pools.NAME.check.timeout_s: seconds"),
    **dict.fromkeys(("retry", "nb_get_retry"), "write pools.NAME.check.fall: failed checks in a row"),
    **dict.fromkeys(("delay_before_retry", "fastinter", "downinter"), "write pools.NAME.check.retry_delay_s: seconds"),
    "connect_port": "write pools.NAME.check.port",
    "status_code": "write pools.NAME.check.expect.status",
    "persistence_timeout": "write pools.NAME.persistence.timeout_s: seconds",
    "persistence_granularity": "write pools.NAME.persistence.netmask: bits",
    "sorry_server": "write pools.NAME.sorry: {pool: NAME}, with a pool of its own",
    **dict.fromkeys(
        ("uthreshold", "upper_threshold", "maxconn", "max_conn"),
        "for one server write max_connections (pools.NAME.servers.NAME.max_connections); the balancer's own limit is "
        "computed from sizing.sessions_per_second and sizing.session_duration_s",
    ),
    **dict.fromkeys(("lthreshold", "lower_threshold"), "write pools.NAME.servers.NAME.resume_below"),
    **dict.fromkeys(("inhibit_on_failure", "alpha", "omega", "hysteresis"), "leave it out: there is no such key"),
    **dict.fromkeys(
        (
            "tcp_check",
            "http_get",
            "ssl_get",
            "smtp_check",
            "dns_check",
            "ping_check",
            "udp_check",
            "httpchk",
            "healthcheck",
            "health_check",
            "monitor",
        ),
        "write pools.NAME.check: a type (tcp, http, https, smtp, dns, udp, ping), or {type: http, path: /health}",
    ),
    **dict.fromkeys(("misc_check", "misc_path", "external_check"), SCRIPT),
    # HAProxy's configuration manual
    **dict.fromkeys(("frontend", "frontends", "listen", "bind"), IN_SERVICE),
    **dict.fromkeys(("backend", "backends"), "write pools.NAME.servers"),
    **dict.fromkeys(("default_backend", "use_backend"), "write services.NAME.pool"),
    **dict.fromkeys(("cookie", "stick_table", "stick", "sticky", "affinity"), "write pools.NAME.persistence"),
    **dict.fromkeys(
        ("indirect", "nocache", "httponly", "http_only"), "leave it out: HAProxy's own cookie has it (mode: insert)"
    ),
    "slowstart": "write pools.NAME.slow_start_s: seconds",
    **dict.fromkeys(("errorfile", "errorfiles"), "write pools.NAME.sorry: {page: sorry.html}"),
    "redispatch": "leave it out: every retry goes to another server anyway",
    **dict.fromkeys(
        ("forwardfor", "x_forwarded_for", "xff"),
        "leave it out: services of protocol http set X-Forwarded-For anyway, and drop what a client claims",
    ),
    **dict.fromkeys(("stats", "stats_port"), "write monitoring.statistics.port"),
    **dict.fromkeys(
        ("ssl", "crt", "cert", "certificate", "certificates", "https"),
        "leave it out: TLS termination is not carried yet; services.NAME.protocol: tcp hands TLS to the servers",
    ),
    **dict.fromkeys(
        ("acl", "http_request", "http_response", "reqadd"),
        "leave it out: choosing by host or path, and changing headers, is not carried yet",
    ),
    **dict.fromkeys(("nbthread", "nbproc", "daemon", "chroot", "defaults", "global", "global_defs"), f"{COMPUTED}"),
    **dict.fromkeys(
        ("send_proxy", "accept_proxy", "proxy_protocol"), "leave it out: the PROXY protocol is not carried yet"
    ),
    # UCI
    **dict.fromkeys(
        ("ipaddr", "ip6addr", "ip", "ipv4", "ipv6", "netmask"),
        "write networks.NAME.subnet with its length, and each node's own address in nodes.NAME.addresses",
    ),
    **dict.fromkeys(("ifname", "interface", "interfaces", "dev", "nic"), "write networks.NAME.nics"),
    **dict.fromkeys(("vid", "vlan_id", "tag"), "write networks.NAME.vlan"),
    **dict.fromkeys(
        ("slaves", "bonding", "lacp", "miimon", "xmit_hash_policy"),
        "write networks.NAME.nics with all cards, and networks.NAME.bond.mode; the rest is computed",
    ),
    **dict.fromkeys(("bridge_ports",), "write networks.NAME.nics with all cards, and networks.NAME.bridge: true"),
    "hostname": f"{COMPUTED} from the profile's name and the node's",
    "zonename": "write system.timezone",
    **dict.fromkeys(("masq", "masquerade", "snat"), "write networks.NAME.egress: the name of a VIP, or node"),
    **dict.fromkeys(
        ("zone", "zones", "forwarding", "forward", "rule", "rules"),
        "zones and most rules are computed; write further ones as firewall.allow.NAME and firewall.deny.NAME",
    ),
    **dict.fromkeys(("src_ip", "src", "source"), "write sources: addresses, or names of access.sources"),
    **dict.fromkeys(("dest_port", "dport"), "write port"),
    **dict.fromkeys(("password", "root_password", "passwordauth", "rootpasswordauth"), NO_ROOT_PASSWORD),
    **dict.fromkeys(("ssh_port", "dropbear", "sshd"), "write access.ssh.port"),
    **dict.fromkeys(("dhcp", "dnsmasq"), "leave it out: a balancer gives out no addresses and answers no names"),
    **dict.fromkeys(("wifi", "wireless", "ssid"), "leave it out: a balancer has no wireless"),
    **dict.fromkeys(("sysctls", "kernel"), "write tuning.sysctl"),
    "name": "leave it out: the key above it is its name",
}
"""A key that no profile has, lower case with `_` → what to do instead."""

PLACES: Mapping[tuple[str, str], str] = {
    **{(model, word): "write network: the name of one of networks"
       for model in ("Opening", "Vip") for word in ("interface", "dev", "nic", "nics", "zone")},
    **{("Server", word): "write address" for word in ("ip", "ipaddr", "host", "hostname")},
    **{("Vip", word): "write address" for word in ("ip", "ipaddr", "ipv4", "ipv6")},
    ("Service", "mode"): "write protocol: http or tcp",
    **{(model, "mode"): "write services.NAME.protocol: http or tcp" for model in ("Pool", "Server", "Check")},
    ("Service", "type"): "write protocol: http, tcp or udp, and topology: proxy, nat, dr or tun",
    **{("Service", word): "write vip: the name of one of vips" for word in ("address", "addresses")},
    ("Server", "addresses"): "write address",
    ("Service", "hostname"): "write hostnames: [www.example.com]",
    ("Service", "host"): "write hostnames: [www.example.com]",
    **{(model, word): f"write {at}connections: {{count: …}}{end}"
       for model, at, end in (("Service", "limits: {", "}"), ("Limits", "", ""))
       for word in ("maxconn", "max_conn", "max_connections")},
    ("Check", "status"): "write expect: {status: 200}",
    ("Check", "url"): "write path: /health",
    ("Check", "uri"): "write path: /health",
    ("Check", "retries"): "write fall: failed checks in a row",
}  # fmt: skip
"""(Class of the model, key that it does not have) → what to do instead there, before what KEYS says."""

TWO_SERVICES = "make two services: one with protocol: tcp, one with protocol: udp"
_TLS = "write protocol: tcp, which hands TLS through to the servers; TLS termination is not carried yet"
_BOND = "802.3ad (LACP with the switch) and active-backup are the modes that need no luck with the switch"

VALUES: Mapping[tuple[str, str], str] = {
    **dict.fromkeys((("protocol", w) for w in ("https", "ssl", "tls")), _TLS),
    **dict.fromkeys((("protocol", w) for w in ("tcp+udp", "tcp,udp", "tcp/udp", "both", "any", "all")), TWO_SERVICES),
    **dict.fromkeys(
        (("protocol", w) for w in ("smtp", "imap", "mysql", "ldap", "ftp", "ssh", "rdp", "tcpip")),
        "write protocol: tcp: what is spoken on top is handed through",
    ),
    **dict.fromkeys(
        (("protocol", w) for w in ("dns", "ntp", "syslog", "radius", "rtp", "sip")),
        "write protocol: udp or tcp: what is spoken on top is handed through",
    ),
    **dict.fromkeys(
        (("topology", w) for w in ("haproxy", "http", "l7", "layer7", "reverse-proxy")), "write topology: proxy"
    ),
    **dict.fromkeys(
        (("topology", w) for w in ("transparent", "transparent-proxy", "usesrc", "snat", "divert")),
        "write topology: tproxy",
    ),
    **dict.fromkeys(
        (("topology", w) for w in ("masq", "masquerading", "ipvs", "lvs", "l4", "layer4", "lvs-nat")),
        "write topology: nat",
    ),
    **dict.fromkeys(
        (("topology", w) for w in ("gate", "gatewaying", "dsr", "direct", "droute", "lvs-dr", "routing")),
        "write topology: dr",
    ),
    **dict.fromkeys((("topology", w) for w in ("ipip", "tunnel", "tunneling", "lvs-tun")), "write topology: tun"),
    **dict.fromkeys((("balance", w) for w in ("static-rr", "round-robin", "round_robin")), "write balance: roundrobin"),
    **dict.fromkeys((("balance", w) for w in ("ip-hash", "ip_hash", "source-hash", "src")), "write balance: source"),
    **dict.fromkeys(
        (("balance", w) for w in ("least-connections", "least_conn", "leastconns")), "write balance: leastconn"
    ),
    **dict.fromkeys((("mode", w) for w in ("lacp", "4", "802.3AD", "ieee802.3ad")), "write mode: 802.3ad"),
    **dict.fromkeys((("mode", w) for w in ("1", "activebackup", "failover")), "write mode: active-backup"),
    **dict.fromkeys(
        (
            ("mode", w)
            for w in ("0", "2", "3", "5", "6", "balance-rr", "balance-xor", "broadcast", "balance-tlb", "balance-alb")
        ),
        f"write mode: 802.3ad or active-backup: {_BOND}",
    ),
    **dict.fromkeys((("check", w) for w in ("http_get", "httpchk", "HTTP_GET")), "write check: http"),
    **dict.fromkeys((("check", w) for w in ("ssl_get", "ssl", "tls", "SSL_GET")), "write check: https, or check: tcp"),
    **dict.fromkeys((("check", w) for w in ("icmp", "PING_CHECK")), "write check: ping"),
    **dict.fromkeys(
        (("check", w) for w in ("MISC_CHECK", "external", "external-check")),
        "write check: {type: script, script: check.sh}",
    ),
    **dict.fromkeys(
        (("check", w) for w in ("mysql", "mysql-check", "pgsql", "postgresql", "ldap", "imap", "ftp")),
        "write check: tcp; what is spoken there can be asked with send and expect: {reply: …}",
    ),
    **dict.fromkeys((("platform", w) for w in ("proxmox", "qemu", "libvirt", "openstack")), "write platform: kvm"),
    **dict.fromkeys((("platform", w) for w in ("esx", "esxi", "vsphere")), "write platform: vmware"),
    **dict.fromkeys(
        (("platform", w) for w in ("physical", "metal", "baremetal", "hardware", "none")), "write platform: bare"
    ),
    **dict.fromkeys((("firmware", w) for w in ("legacy", "mbr")), "write firmware: bios"),
    **dict.fromkeys((("formats", w) for w in ("raw", "disk")), "write img"),
    **dict.fromkeys((("formats", w) for w in ("ova", "ovf")), "write vmdk: an .ovf lies beside it"),
    **dict.fromkeys((("families", w) for w in ("4", "inet", "v4")), "write ipv4"),
    **dict.fromkeys((("families", w) for w in ("6", "inet6", "v6")), "write ipv6"),
    **dict.fromkeys((("packages", w) for w in ("install", "true", "yes", "present", "latest")), "write add"),
    **dict.fromkeys((("packages", w) for w in ("uninstall", "false", "no", "absent")), "write remove"),
}
"""(Key, word that it does not take) → what to do instead. `check` is also for the key `type` of a check."""


def key(word: str, model: str = "") -> str | None:
    """What to do instead of writing a key in an object of a class; None if nothing is known about it."""
    plain = word.lower().replace("-", "_")
    return PLACES.get((model, plain)) or KEYS.get(plain)


def value(of: str, word: str) -> str | None:
    """What to do instead of writing a value for a key; None if nothing is known about it."""
    return VALUES.get((of, word)) or VALUES.get((of, word.lower()))
