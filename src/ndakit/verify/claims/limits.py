"""Claims about limits, maintenance and pages for errors: each is exceeded from outside, by as much as it takes.

Nobody else asks a service whose limits are below what the lab does all the time (`base.unasked`), so that a client that
was shut out here spoils no other claim.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

from ndakit.core.addresses import authority
from ndakit.lab.host.connections import Call
from ndakit.lab.host.measure import Answer
from ndakit.lab.network import LabNetwork
from ndakit.lab.plan import LabPlan, VantagePoint, plan
from ndakit.model import Endpoint, Profile, Service
from ndakit.model.limits import ERROR_STATUSES, RequestLimit
from ndakit.verify.claims.base import Claim, LeftOut, Outcome, unanswered
from ndakit.verify.claims.shares import keeps_one
from ndakit.verify.claims.traffic import sorry_answer

TRIED_PER_S = 8.0
"""How often the lab can surely ask in a second, one request after the other, whatever the machine does beside."""
PERIOD_MAX_S, CONNECTIONS_MAX = 30, 100
"""Longer periods are not waited for, and more connections not held."""
ANSWER_S, SILENCE_S = 5.0, 1.5
"""Within the first a held connection is answered; for the second one that has to wait is not."""
SILENCE_MS = 4000.0
"""A tarpit says nothing for so long, and then the lab's patience ends."""
EMPTY_S = 15.0
"""Within this time HAProxy has noticed that the clients of a full pool are gone."""
ADMIN_REQUESTS = 4
STREAM = "/lab-stream?500"
"""What the lab's web servers answer without an end, a line every 500 ms: with the next one HAProxy notices that the
client has gone."""
TOO_LARGE, NO_LENGTH, MISDIRECTED, TOO_MANY, UNAVAILABLE = 413, 411, 421, 429, 503
UNKNOWN_NAME = "unknown.invalid"
PROVOKED = {TOO_LARGE: "a body that is too large", MISDIRECTED: "an unknown name", TOO_MANY: "too many requests"}
"""Statuses that a client can bring about, and by what."""


def about_service(profile: Profile, name: str) -> Iterator[Claim | LeftOut]:
    """What is claimed of a service's limits."""
    service, limits = profile.services[name], profile.services[name].limits
    certificates = service.tls.client_certificates if service.tls is not None else None
    closed = certificates is not None and certificates.mode == "required"
    if service.maintenance:
        yield _maintenance(profile, name)
    for status in map(int, service.error_pages):
        if status not in PROVOKED:
            yield LeftOut(f"error-page/{name}/{status}", f"no client can bring it about: {ERROR_STATUSES[status]}")
        elif status != TOO_MANY and not closed:
            text = f"{PROVOKED[status]} at {name} is answered with {service.error_pages[str(status)].path}"
            yield Claim(f"error-page/{name}/{status}", text, partial(error_page, name=name, status=status))
    if limits is None:
        return
    if limits.body_kib is not None and not closed:
        text = f"{name} takes bodies of {limits.body_kib} KiB at most, and says so at once"
        yield Claim(f"body/{name}", text, partial(body, name=name))
    if limits.connections is not None:
        yield from _connections(profile, name, service)
    if limits.queue is not None:
        yield _queue(profile, name, service)
    if limits.requests is not None:
        yield _requests(profile, name, limits.requests, closed=closed)


# -- maintenance -------------------------------------------------------------------------------------------------------


def _maintenance(profile: Profile, name: str) -> Claim | LeftOut:
    service, claim = profile.services[name], f"maintenance/{name}"
    sorry = profile.pools[service.main_pool].sorry
    for pool in (service.main_pool, *((sorry.pool,) if sorry is not None and sorry.pool is not None else ())):
        if why := unanswered(profile, pool):
            return LeftOut(claim, why)
    lab = plan(profile)
    if not any(_seats(profile, lab, name, e) for e in profile.endpoints(name)):
        return LeftOut(claim, "nobody can ask it both from access.sources and from elsewhere")
    text = f"strangers get what {service.main_pool}'s sorry says from {name}, and access.sources reach its servers"
    return Claim(claim, text, partial(maintenance, name=name))


def _seats(profile: Profile, lab: LabPlan, name: str, endpoint: Endpoint) -> tuple[VantagePoint, VantagePoint] | None:
    """(a stranger, somebody of access.sources) who can both ask a service at an endpoint; None if one is lacking."""
    version, network = endpoint.address.version, endpoint.network
    sources = profile.sources(version)

    def there(point: VantagePoint, *, admin: bool) -> bool:
        address = point.address(version)
        near = address is not None and profile.network_of(address) == network
        # A neighbour of the servers would get their answers past the balancer.
        neighbour = near and profile.services[name].returning and _servers_are_in(profile, name, network)
        inside = any(address in source for source in sources)
        return address is not None and lab.hosts[point.host].network == network and not neighbour and inside == admin

    strangers = [lab.strangers.get(network), lab.strangers.get(f"{network}, from afar"), lab.outside.get(network),
                 lab.clients.get(network)]  # fmt: skip
    stranger = next((p for p in strangers if p is not None and there(p, admin=False)), None)
    admin = next((p for p in (*lab.admins.values(), *lab.clients.values()) if there(p, admin=True)), None)
    return None if stranger is None or admin is None else (stranger, admin)


def _servers_are_in(profile: Profile, name: str, network: str) -> bool:
    servers = profile.pools[profile.services[name].main_pool].servers.values()
    return any(profile.network_of(a) == network for s in servers for a in s.address)


def maintenance(lab: LabNetwork, name: str) -> Outcome:
    """What a stranger and an admin get at each endpoint."""
    service = lab.profile.services[name]
    pool = service.main_pool
    wrong: list[str] = []
    figures: list[str] = []
    for endpoint in lab.profile.endpoints(name):
        seats = _seats(lab.profile, lab.plan, name, endpoint)
        if seats is None:
            continue
        stranger, admin = seats
        good, figure = sorry_answer(lab, pool, name, endpoint, stranger)
        figures.append(f"strangers: {figure}")
        if not good:
            wrong.append(f"a stranger at {endpoint.address}: {figure}")
        result = lab.load(admin, endpoint.address, endpoint.ports[0][0], pool, ADMIN_REQUESTS)
        servers = ", ".join(sorted(result.shares)) or result.first_error
        figures.append(f"access.sources: {servers}")
        if result.failures or not set(result.shares) <= set(lab.profile.pools[pool].servers):
            wrong.append(f"somebody of access.sources at {endpoint.address}: {servers}")
    return Outcome(bool(figures) and not wrong, ", ".join(dict.fromkeys(figures)), "; ".join(wrong))


# -- pages and bodies --------------------------------------------------------------------------------------------------


def _ask(lab: LabNetwork, name: str, endpoint: Endpoint, headers: dict[str, str], method: str = "GET") -> Answer:
    point = lab.client_for(endpoint, name)
    return lab.get(point, endpoint.address, endpoint.ports[0][0], headers=headers, method=method)


def _shows(profile: Profile, name: str, status: int, answer: Answer) -> bool:
    """True if an answer is the page that a service has for a status."""
    return answer.status == status and _same(profile.services[name].error_pages[str(status)].content, answer)


def _same(page: bytes, answer: Answer) -> bool:
    return answer.body.strip() == page.decode(errors="replace").strip()


def error_page(lab: LabNetwork, name: str, status: int) -> Outcome:
    """Bring an error about, and compare what comes with the page."""
    limits = lab.profile.services[name].limits
    length = (limits.body_kib or 0) * 1024 + 1 if limits is not None else 1
    wrong: list[str] = []
    for endpoint in lab.profile.endpoints(name):
        asked = {"Host": UNKNOWN_NAME} if status == MISDIRECTED else {"Content-Length": str(length)}
        answer = _ask(lab, name, endpoint, asked, "GET" if status == MISDIRECTED else "POST")
        if not _shows(lab.profile, name, status, answer):
            what = "another text" if answer.status == status else answer.error or "another status"
            wrong.append(f"{endpoint.address}: status {answer.status}, {what}")
    return Outcome(not wrong, f"status {status}, {'the page' if not wrong else 'not the page'}", "; ".join(wrong))


def body(lab: LabNetwork, name: str) -> Outcome:
    """A body that is one byte too large, one of unknown size, and one that is small enough: only what is said of it
    before it comes is sent, for HAProxy must not wait for it."""
    service = lab.profile.services[name]
    assert service.limits is not None and service.limits.body_kib is not None, "looked at before"
    length = service.limits.body_kib * 1024
    wrong: list[str] = []
    figures: list[str] = []
    for endpoint in lab.profile.endpoints(name):
        over = _ask(lab, name, endpoint, {"Content-Length": str(length + 1)}, "POST").status
        untold = _chunked(lab, name, endpoint)
        within = _ask(lab, name, endpoint, {"Content-Length": "0"}, "POST").status
        figures.append(f"{length + 1} bytes: {over}, unknown: {untold}, none: {within}")
        if over != TOO_LARGE:
            wrong.append(f"a body of {length + 1} bytes at {endpoint.address} gets status {over}")
        if untold != NO_LENGTH:
            wrong.append(f"a body of unknown size at {endpoint.address} gets status {untold}")
        if within in (0, TOO_LARGE, NO_LENGTH):
            wrong.append(f"no body at {endpoint.address} gets status {within}")
    return Outcome(not wrong, ", ".join(dict.fromkeys(figures)), "; ".join(wrong))


def _chunked(lab: LabNetwork, name: str, endpoint: Endpoint) -> int:
    """The status for a body that does not say how large it is; 0 without one."""
    host = lab.profile.services[name].own_name or authority(endpoint.address, endpoint.ports[0][0])
    said = f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answer = lab.say(lab.client_for(endpoint, name), endpoint.address, endpoint.ports[0][0], said.encode())
    words = answer.body.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


# -- connections -------------------------------------------------------------------------------------------------------


def _connections(profile: Profile, name: str, service: Service) -> Iterator[Claim | LeftOut]:
    stated = service.limits.connections if service.limits is not None else None
    assert stated is not None, "looked at before"
    for key, count in (("count", stated.count), ("per_client", stated.per_client)):
        if count is None:
            continue
        claim = f"connections/{name}/{key.replace('_', '-')}"
        if why := _not_held(profile, service, key, count):
            yield LeftOut(claim, why)
        elif key == "count":
            text = f"{name} takes {count} connections, and the next one waits until one ends"
            yield Claim(claim, text, partial(connections, name=name, count=count))
        else:
            text = f"a client of {name} has {count} connections, and the next one is closed"
            yield Claim(claim, text, partial(per_client, name=name, count=count))
    if stated.per_s is not None:
        yield LeftOut(f"connections/{name}/per-s", "how quickly connections come is the lab's machine's affair")


def _not_held(profile: Profile, service: Service, key: str, count: int) -> str:
    """Why the lab does not hold as many connections as a service takes, and one more; empty if it does."""
    limits = service.limits
    assert limits is not None, "looked at before"
    if service.tls is not None or service.passes_tls:
        return "the lab holds no connections inside of TLS"
    if service.maintenance:
        return "in maintenance no connection lasts"
    if count > CONNECTIONS_MAX:
        return f"the lab holds {CONNECTIONS_MAX} connections at most"
    if limits.requests is not None and limits.requests.count <= count + 1:
        return "one client may not ask as often as it takes"
    own = limits.connections.per_client if limits.connections is not None else None
    if key != "per_client" and own is not None and own <= count:
        return "one client may not have as many connections as it takes"
    return next((why for pool in service.pools if (why := unanswered(profile, pool))), "")


def _hold(lab: LabNetwork, name: str, endpoint: Endpoint, path: str = "") -> Call:
    """A connection over which something was said; http: a request for a path, else for what is asked for anyway."""
    point, port = lab.client_for(endpoint, name), endpoint.ports[0][0]
    host = lab.profile.services[name].own_name or authority(endpoint.address, port)
    request = f"GET {path or lab.path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    said = request if lab.profile.services[name].protocol == "http" else b"who\n"
    return lab.hosts[point.host].call(
        endpoint.address, port, payload=said, source=point.address(endpoint.address.version) or ""
    )


def _heard(call: Call, within_s: float) -> str:
    """`answered`, `closed`, or `silent` after so long."""
    end_s = time.monotonic() + within_s
    while True:
        heard = call.heard()
        if heard.heard or heard.error or time.monotonic() > end_s:
            return "answered" if heard.heard else "closed" if heard.error else "silent"
        time.sleep(0.05)


@contextlib.contextmanager
def _filled(lab: LabNetwork, name: str, count: int, within_s: float) -> Iterator[tuple[list[Call], str]]:
    """So many connections that were answered, and one more at the end; what became of that one within a time, or of the
    first one that was not answered (`connection 3 was silent`). All are closed at the end."""
    held: list[Call] = []
    endpoint = lab.profile.endpoints(name)[0]
    try:
        seen = "answered"
        while len(held) <= count and seen == "answered":
            held.append(_hold(lab, name, endpoint))
            seen = _heard(held[-1], ANSWER_S if len(held) <= count else within_s)
        yield held, seen if len(held) > count else f"connection {len(held)} of {count} was {seen}"
    finally:
        for call in held:
            call.close(reset=True)


def connections(lab: LabNetwork, name: str, count: int) -> Outcome:
    """Hold all that a service takes, ask once more, end one."""
    with _filled(lab, name, count, SILENCE_S) as (held, seen):
        early = {"answered": f"connection {count + 1} did not wait", "closed": f"connection {count + 1} was closed"}
        wrong = "" if seen == "silent" else early.get(seen, seen)
        held.pop(0).close()
        if not wrong and (after := _heard(held[-1], ANSWER_S)) != "answered":
            wrong = f"connection {count + 1} was {after} after another one had ended"
    return Outcome(not wrong, f"{count} at once, the next one {'does not wait' if wrong else 'waits'}", wrong)


def per_client(lab: LabNetwork, name: str, count: int) -> Outcome:
    """Hold all that a client may have, and open one more."""
    with _filled(lab, name, count, ANSWER_S) as (_, seen):
        told = f"connection {count + 1} was {seen}, not closed"
        wrong = {"closed": "", "answered": told, "silent": told}.get(seen, seen)
    return Outcome(not wrong, f"{count} at once, the next one {'not closed' if wrong else 'closed'}", wrong)


# -- the queue ---------------------------------------------------------------------------------------------------------


def _queue(profile: Profile, name: str, service: Service) -> Claim | LeftOut:
    claim, limits = f"queue/{name}", service.limits
    assert limits is not None and limits.queue is not None, "looked at before"
    room = _room(profile, name)
    if room is None:
        return LeftOut(claim, "some server takes any number of connections, so that nobody waits")
    if keeps_one(profile, name):
        return LeftOut(claim, "one client keeps its server, so that the lab does not fill the others")
    count = room + limits.queue.length
    if why := _not_held(profile, service, "queue", count):
        return LeftOut(claim, why)
    if limits.connections is not None and (limits.connections.count or count + 1) <= count:
        return LeftOut(claim, "it takes fewer connections than would fill the servers and the queue")
    sorry = profile.pools[service.main_pool].sorry
    if sorry is not None and sorry.pool is not None and (why := unanswered(profile, sorry.pool)):
        return LeftOut(claim, why)
    text = f"when {limits.queue.length} wait for servers of {name}, the next one gets what sorry says, at once"
    return Claim(claim, text, partial(queue, name=name))


def _room(profile: Profile, name: str) -> int | None:
    """How many connections the servers of a service's pool take; None if there is no end to it."""
    taking = [s.max_connections for s in profile.pools[profile.services[name].main_pool].servers.values() if s.share]
    return None if None in taking else sum(limit or 0 for limit in taking)


def queue(lab: LabNetwork, name: str) -> Outcome:
    """Hold all that the servers take, let as many wait as may, and ask once more."""
    service, room = lab.profile.services[name], _room(lab.profile, name)
    assert room is not None and service.limits is not None and service.limits.queue is not None, "looked at before"
    length, endpoint = service.limits.queue.length, lab.profile.endpoints(name)[0]
    point = lab.client_for(endpoint, name)
    wrong = figure = ""
    held: list[Call] = []
    try:
        while len(held) < room and not wrong:
            held.append(_hold(lab, name, endpoint, STREAM))
            if (seen := _heard(held[-1], ANSWER_S)) != "answered":
                wrong = f"connection {len(held)} of {room} that the servers take was {seen}"
        while len(held) < room + length and not wrong:
            held.append(_hold(lab, name, endpoint, STREAM))
        if not wrong and (seen := _heard(held[-1], SILENCE_S)) != "silent":
            wrong = f"number {length} of those who wait was {seen}"
        if not wrong:
            good, figure = _beyond(lab, service, name, endpoint, point)
            wrong = "" if good else f"with {length} waiting the next one gets {figure}"
    finally:
        for call in held:
            call.close(reset=True)
    left_s = _emptied(lab, name, endpoint)
    if left_s is None and not wrong:
        wrong = f"the servers were still full {EMPTY_S:g} s after all clients had gone"
    return Outcome(not wrong, f"{room} at once, {length} wait, the next one: {figure or 'not asked'}", wrong)


def _emptied(lab: LabNetwork, name: str, endpoint: Endpoint) -> float | None:
    """How long it takes until a service's own servers answer again, in seconds; None if they do not."""
    started_s = time.monotonic()
    pool, service = lab.profile.services[name].main_pool, lab.profile.services[name]
    while (passed_s := time.monotonic() - started_s) < EMPTY_S:
        point, port = lab.client_for(endpoint, name), endpoint.ports[0][0]
        result = lab.load(point, endpoint.address, port, pool, 1, service.transport)
        if not result.failures and set(result.shares) <= set(lab.profile.pools[pool].servers):
            return passed_s
        time.sleep(0.2)
    return None


def _beyond(lab: LabNetwork, service: Service, name: str, endpoint: Endpoint, point: VantagePoint) -> tuple[bool, str]:
    """Does a client for whom there is no room in the queue get what is stated, and what it gets."""
    if lab.profile.pools[service.main_pool].sorry is not None:
        return sorry_answer(lab, service.main_pool, name, endpoint, point)
    if service.protocol == "http":
        answer = _ask(lab, name, endpoint, {})
        return answer.status == UNAVAILABLE, f"status {answer.status} {answer.error}".strip()
    call = _hold(lab, name, endpoint)
    seen = _heard(call, ANSWER_S)
    call.close(reset=True)
    return seen == "closed", seen


# -- requests ----------------------------------------------------------------------------------------------------------


def _requests(profile: Profile, name: str, limit: RequestLimit, *, closed: bool) -> Claim | LeftOut:
    claim, service = f"requests/{name}", profile.services[name]
    if closed:
        return LeftOut(claim, "clients need a certificate of their own, and only its owner has the key")
    if limit.count / limit.per_s > TRIED_PER_S:
        return LeftOut(claim, "the lab cannot ask so often")
    if limit.per_s > PERIOD_MAX_S:
        return LeftOut(claim, f"periods of more than {PERIOD_MAX_S} s are not waited for")
    if limit.on_excess == "sorry" and service.maintenance:
        return LeftOut(claim, "in maintenance everybody gets what sorry says")
    what = {"429": "status 429", "tarpit": "nothing for a long time", "sorry": "what the pool's sorry says"}
    text = f"a client of {name} that asks more than {limit.count} times in {limit.per_s} s gets {what[limit.on_excess]}"
    return Claim(claim, text, partial(requests, name=name))


def requests(lab: LabNetwork, name: str) -> Outcome:
    """Ask until the limit shows, and no longer than it takes in a period; then wait until it is forgotten."""
    profile, service = lab.profile, lab.profile.services[name]
    assert service.limits is not None and service.limits.requests is not None, "looked at before"
    limit, endpoint = service.limits.requests, profile.endpoints(name)[0]
    time.sleep(2 * limit.per_s)  # what was asked before does not count any more
    wrong = ""
    passed = 0
    # HAProxy takes part of what the period before held, so that a few more than stated may pass.
    while passed < 3 * limit.count + 3:
        answer = _ask(lab, name, endpoint, {})
        if _excess(lab, service, answer, limit.on_excess):
            break
        passed += 1
    else:
        wrong = f"{passed} requests in a row were answered as if there were no limit"
    if passed < limit.count:
        wrong = f"request {passed + 1} was refused already: status {answer.status} {answer.error}".strip()
    page = service.error_pages.get(str(TOO_MANY))
    if not wrong and limit.on_excess == "429" and page is not None and not _shows(profile, name, TOO_MANY, answer):
        wrong = f"status {TOO_MANY} does not come with {page.path}"
    if not wrong and limit.on_excess == "sorry" and not _shows_sorry(profile, service, answer):
        wrong = f"who asks too often gets status {answer.status}, not what sorry says"
    time.sleep(2 * limit.per_s)
    if not wrong and _excess(lab, service, _ask(lab, name, endpoint, {}), limit.on_excess):
        wrong = f"the client is still refused after {2 * limit.per_s} s"
    return Outcome(not wrong, f"{passed} requests passed", wrong, {"passed": passed})


def _excess(lab: LabNetwork, service: Service, answer: Answer, on_excess: str) -> bool:
    """True if an answer is what a service gives to who asks too often."""
    if on_excess == "429":
        return answer.status == TOO_MANY
    if on_excess == "tarpit":
        return not answer.status and answer.took_ms >= SILENCE_MS
    sorry = lab.profile.pools[service.main_pool].sorry
    if sorry is not None and sorry.pool is not None:
        return sorry.pool in lab.pools_of(answer.server)
    return answer.status == UNAVAILABLE


def _shows_sorry(profile: Profile, service: Service, answer: Answer) -> bool:
    """True unless a service's pool has a sorry page, and an answer is not this page."""
    sorry = profile.pools[service.main_pool].sorry
    return sorry is None or sorry.page is None or _same(sorry.page.content, answer)
