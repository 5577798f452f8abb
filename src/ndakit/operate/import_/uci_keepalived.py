"""/etc/config/keepalived as blocks of keepalived.conf: the init script makes one of the other (openwrt/packages,
net/keepalived/files/keepalived.init), and the readers of keepalived.conf are to know only one form."""

from __future__ import annotations

from ndakit.core.uci import Section
from ndakit.lint.config_text import Block, Line
from ndakit.operate.import_.uci_files import UciFile

PATH = "/etc/config/keepalived"
_INNER = {
    "virtual_ipaddress": "virtual_ipaddress",
    "virtual_ipaddress_excluded": "virtual_ipaddress_excluded",
    "track_script": "track_script",
    "track_interface": "track_interface",
    "unicast_peer": "unicast_peer",
}
_FLAGS = (
    "nopreempt",
    "dont_track_primary",
    "alpha",
    "omega",
    "ha_suspend",
    "quorum_up",
    "native_ipv6",
    "inhibit_on_failure",
)
_CHECK_KEYS = (
    "connect_port",
    "connect_timeout",
    "delay_before_retry",
    "retry",
    "nb_get_retry",
    "misc_path",
    "misc_timeout",
    "warmup",
    "bind_port",
    "fwmark",
)


def blocks(uci: UciFile) -> Block:
    """All sections as blocks; the lines are those of the UCI file."""
    root = Block((), 0)
    named = {s.name: s for s in uci.sections if s.name}
    for section in uci.sections:
        kind = section.type
        for option in section.options:
            if option.name in ("name", "enabled"):
                uci.file.key(option.line, "vips")
            elif kind in ("ipaddress", "peer") and option.name in ("address", "device"):
                uci.head(section, "vips")
                uci.file.key(option.line, "vips")
        if kind in ("vrrp_instance", "vrrp_sync_group", "vrrp_script"):
            root.blocks.append(_vrrp(section, named))
        elif kind == "virtual_server" and section.get("enabled") != "0":
            root.blocks.append(_virtual(section, named))
        elif kind == "global_defs":
            root.blocks.append(Block((kind,), section.line, _lines(section, ())))
    return root


def _lines(section: Section, without: tuple[str, ...]) -> list[Line]:
    result = []
    for option in section.options:
        if option.name in without or option.name in ("enabled", "name"):
            continue
        if option.name in _FLAGS:
            if option.value not in ("0", "off", "no", "false"):
                result.append(Line(option.line, (option.name,)))
        else:
            result.append(Line(option.line, (option.name, *option.value.split(" "))))
    return result


def _vrrp(section: Section, named: dict[str, Section]) -> Block:
    label = section.get("name") or section.name or "instance"
    block = Block((section.type, label), section.line, _lines(section, (*_INNER, "group", "auth_type", "auth_pass")))
    for name, inner in (*_INNER.items(), ("group", "group")):
        lines: list[Line] = []
        for option in section.options:
            if option.name == name:
                lines += [Line(option.line, _words(named.get(word), word)) for word in option.value.split()]
        if lines:
            block.blocks.append(Block((inner,), lines[0].number, lines))
    secret = [Line(o.line, (o.name, "")) for o in section.options if o.name.startswith("auth_")]
    if secret:
        block.blocks.append(Block(("authentication",), secret[0].number, secret))
    return block


def _words(section: Section | None, word: str) -> tuple[str, ...]:
    """A name in a list stands for a section with an address (ipaddress, peer), or for itself."""
    if section is None:
        return (word,)
    ip = section.get("address") or section.get("value") or section.get("name") or word
    device = section.get("device")
    return (ip, "dev", device) if device is not None else (ip,)


def _virtual(section: Section, named: dict[str, Section]) -> Block:
    mark = section.get("fwmark")
    head = ("fwmark", mark) if mark is not None else (section.get("ipaddr") or "?", section.get("port") or "?")
    block = Block(
        ("virtual_server", *head),
        section.line,
        _lines(section, ("ipaddr", "port", "fwmark", "real_server", "sorry_server_ip", "sorry_server_port")),
    )
    sorry = section.get("sorry_server_ip")
    if sorry is not None:
        line = section.line_of("sorry_server_ip")
        block.lines.append(Line(line, ("sorry_server", sorry, section.get("sorry_server_port") or "")))
    for option in section.options:
        server = named.get(option.value) if option.name == "real_server" else None
        if server is not None:
            block.blocks.append(_real(server))
    return block


def _real(section: Section) -> Block:
    own = (*_CHECK_KEYS, "check", "ipaddr", "port", "url", "path", "digest", "status_code")
    block = Block(
        ("real_server", section.get("ipaddr") or "?", section.get("port") or "?"), section.line, _lines(section, own)
    )
    kind = section.get("check") or ("TCP_CHECK" if section.get("connect_timeout") else None)
    if kind is not None:
        check = Block((kind,), section.line_of("check"))
        check.lines = [Line(o.line, (o.name, *o.value.split(" "))) for o in section.options if o.name in _CHECK_KEYS]
        url = [Line(o.line, (o.name, o.value)) for o in section.options if o.name in ("path", "digest", "status_code")]
        if url:
            check.blocks.append(Block(("url",), url[0].number, url))
        block.blocks.append(check)
    return block
