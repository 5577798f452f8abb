"""VIPs put together of the addresses that are used alike, and named after what they are for."""

from __future__ import annotations

from ndakit.operate.import_.draft import Draft, VipDraft, slug


def users(draft: Draft, vip: VipDraft) -> list[str]:
    """The services that listen on a VIP."""
    return [n for n, s in draft.services.items() if any(a in vip.addresses for a in s.get("vip", []))]


def pair(draft: Draft) -> None:
    """An IPv4 and an IPv6 address of one network and group that the same services use are one VIP."""
    for six in [v for v in draft.vips if [a.version for a in v.addresses] == [6]]:
        theirs = users(draft, six)
        four = next(
            (
                v
                for v in draft.vips
                if [a.version for a in v.addresses] == [4]
                and v.network == six.network
                and v.group == six.group
                and users(draft, v) == theirs
            ),
            None,
        )
        if four is not None:
            four.addresses += six.addresses
            four.routed = four.routed or six.routed
            draft.vips.remove(six)


def name(draft: Draft) -> None:
    """VIPs are called after what they are for: the servers' gateway, the first service there, the network."""
    taken: list[str] = []
    for vip in draft.vips:
        theirs = users(draft, vip)
        if vip.gateway:
            wanted = f"{vip.network}-gw"
        elif theirs:
            wanted = "www" if len(theirs) > 1 and len(theirs) == len(draft.services) else theirs[0]
        else:
            wanted = vip.network
        vip.name = slug(wanted, "vip", taken)
        taken.append(vip.name)
