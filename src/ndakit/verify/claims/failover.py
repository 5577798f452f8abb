"""Claims about what clients notice when the master fails, and when it returns."""

from __future__ import annotations

import contextlib
import time

from ndakit.core.addresses import authority
from ndakit.lab.clients import LabLacks, ServicePort
from ndakit.lab.host import Polled, Watched
from ndakit.lab.network import LabNetwork
from ndakit.model import Profile
from ndakit.model.links import WayOut, ways_out
from ndakit.verify.claims.base import Outcome, asked_services, first_service_port, targets

RETURN_POLL_S = 0.05
"""A booting node needs the processor; the handover it ends with is no emergency."""

NOTICED_S = 8.0
"""In this time keepalived takes a stopped HAProxy or Pound for dead: it looks every second and believes it the second
time."""

GAP_SLACK_S = 0.45
"""Beyond VRRP's own time (3 adverts and the skew): GARP, emulation."""


def gap_bound_s(profile: Profile, survivor: str) -> float:
    """The longest gap a client may see: three adverts and the survivor's skew (RFC 5798, 6.1), and some slack."""
    advert_s = profile.vrrp.advert_interval_s
    return 3 * advert_s + (256 - profile.priority(survivor)) / 256 * advert_s + GAP_SLACK_S


def too_long(polled: Polled | Watched, bound_s: float) -> bool:
    """True if the gap is longer than allowed, beyond what the poller's own lateness explains (Polled.resolution_ms)."""
    return polled.gap_ms - polled.late_ms > bound_s * 1000


def gap_errors(polled: Polled | Watched, bound_s: float) -> list[str]:
    """What is wrong with the gap that clients saw: too long, or not over at all."""
    if polled.silent:
        return [f"clients were not answered again within {polled.gap_ms:.0f} ms"]
    if too_long(polled, bound_s):
        return [f"the gap was longer than {bound_s * 1000:.0f} ms"]
    return []


def unserved(lab: LabNetwork) -> list[str]:
    """Which services do not answer now, and how: each is asked at every address; and which network's servers do not get
    out. The node that has just become master has served nobody before. What nobody in the lab can ask is left out: the
    service's own claim says so."""
    wrong = []
    for name in asked_services(lab.profile):
        for endpoint, port in targets(lab.profile, name):
            try:
                result = lab.ask(ServicePort(name, endpoint, port), 1)
            except LabLacks:
                continue
            at = authority(endpoint.address, port)
            if result.failures:
                wrong.append(f"{name} does not answer at {at} ({result.first_error})")
            elif lab.profile.services[name].transparent:
                point = lab.client_for(endpoint, name)
                seen = lab.client_seen(point, endpoint.address, port, lab.profile.services[name].main_pool)
                own = str(point.address(endpoint.address.version))
                wrong += [f"a server of {name} at {at} saw {seen}, the client is {own}"] if seen != own else []
    for way in ways_out(lab.profile):
        with contextlib.suppress(LabLacks):
            answer = lab.ask_out(way)
            if not answer.ok:
                wrong.append(f"IPv{way.version} from {way.network} does not get out ({answer.error})")
    return wrong


def precision(polled: Polled | Watched) -> str:
    """How far the figure can be trusted, in words; empty on a machine that was quick enough."""
    return f", measured to {polled.resolution_ms:.0f} ms" if polled.disturbed else ""


def measured(polled: Polled | Watched) -> dict[str, float | int | str]:
    """The gap from answer to answer, how long it was at least, and by how much it may exceed the outage."""
    longest = polled.longest_gap
    return {
        "gap_ms": round(polled.gap_ms),
        "gap_at_least_ms": round(longest.at_least_ms) if longest else 0,
        "resolution_ms": round(polled.resolution_ms),
    }


def poll_target(profile: Profile) -> ServicePort | WayOut | None:
    """What is asked during a failover: the first service, on its first address and port; without services the first way
    out. None if there is nothing to ask."""
    if services := asked_services(profile):
        return first_service_port(profile, services[0])
    return next(ways_out(profile), None)


def asked(lab: LabNetwork) -> ServicePort | WayOut:
    """The same for a lab. Raises LabLacks if there is nothing."""
    target = poll_target(lab.profile)
    if target is None:
        raise LabLacks("service or way out that could be asked", ", ".join(lab.profile.networks))
    return target


def daemon_stopped(lab: LabNetwork, daemon: str) -> Outcome:
    """`/etc/init.d/DAEMON stop` on the master's console; without it the node could not serve."""
    master = lab.one_master()
    bound_s = NOTICED_S + gap_bound_s(lab.profile, master)
    with lab.watch(asked(lab)) as watch:
        try:
            lab.run(master, f"/etc/init.d/{daemon} stop")
            moved = lab.wait_other_master(master, timeout_s=bound_s + 10)
            time.sleep(1.0)
            polled = watch.stop()
        finally:
            lab.run(master, f"/etc/init.d/{daemon} start")
    lab.settle()
    wrong = [] if moved else [f"the VIPs stayed on {master}"]
    wrong += gap_errors(polled, bound_s)
    figure = f"gap {polled.gap_ms:.0f} ms{precision(polled)}, then {moved or 'nobody'}"
    return Outcome(not wrong, figure, "; ".join(wrong), {**measured(polled), "bound_ms": round(bound_s * 1000)})


def power_off(lab: LabNetwork) -> Outcome:
    """The master's power is cut, in the middle of a client's requests; then the new one is asked for every service."""
    master = lab.one_master()
    bound_s = gap_bound_s(lab.profile, lab.survivor(master))
    with lab.watch(asked(lab)) as watch:
        time.sleep(0.5)
        lab.power_off(master)
        moved = lab.taken_over(watch, master, timeout_s=bound_s + 10)
        polled = watch.stop()
    wrong = gap_errors(polled, bound_s) + unserved(lab) if moved else ["no other node took the VIPs"]
    figure = f"gap {polled.gap_ms:.0f} ms (limit {bound_s * 1000:.0f} ms){precision(polled)}, then {moved or 'nobody'}"
    values: dict[str, float | int | str] = {
        **measured(polled),
        "bound_ms": round(bound_s * 1000),
        "master_after": moved,
    }
    return Outcome(not wrong, figure, "; ".join(wrong), values)


def off_again(lab: LabNetwork) -> None:
    """Everybody runs, then the master loses its power: as `power_off` leaves the lab."""
    lab.put_back()
    master = lab.one_master()
    lab.power_off(master)
    lab.wait_other_master(master, timeout_s=gap_bound_s(lab.profile, lab.survivor(master)) + 10)


def power_on(lab: LabNetwork) -> Outcome:
    """The node that lost power boots again."""
    off = [n for n in lab.profile.nodes if not lab.is_up(n)]
    if not off:
        return Outcome(False, "not tried", "no node was off: failover/power-off has to come before")
    node, holder = off[0], lab.master()
    with lab.watch(asked(lab), RETURN_POLL_S) as watch:
        boot_s = lab.power_on(node)
        wanted = lab.profile.preferred() if lab.profile.vrrp.preempt else holder
        wait_s = lab.profile.vrrp.preempt_delay_s + 20
        moved = lab.wait_master(lambda m: m == wanted, timeout_s=wait_s)
        time.sleep(1.0 if lab.profile.vrrp.preempt else 3 * lab.profile.vrrp.advert_interval_s + 2)
        now = lab.master()
        polled = watch.stop()
    lab.settle()
    bound_s = gap_bound_s(lab.profile, wanted)
    wrong = [] if moved and now == wanted else [f"the VIPs are on {now or 'no node'}, expected {wanted}"]
    wrong += gap_errors(polled, bound_s)
    figure = f"up after {boot_s:.1f} s, VIPs on {now or 'no node'}, gap {polled.gap_ms:.0f} ms{precision(polled)}"
    return Outcome(
        not wrong,
        figure,
        "; ".join(wrong),
        {**measured(polled), "boot_s": round(boot_s, 1), "master_after": now},
    )
