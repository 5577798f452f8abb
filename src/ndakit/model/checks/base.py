"""How a pool finds out which of its servers are well: the check, and what it means in seconds.

HAProxy checks for proxied services, keepalived for those that the kernel balances. Which of the two can do what is
written here as facts; the cross-checks (`rules.ipvs`) compare them with who uses the pool.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, model_validator

from ndakit.core.names import HostName
from ndakit.model.base import AttachedFile, Between, Int, Model, Number, Port, Text, UrlPath, as_list, mistake

PROXY_CHECKS = ("tcp", "http", "https", "smtp")
"""Types that HAProxy has; the others are keepalived's alone. keepalived has all of them (ping and udp from 2.1 on)."""

WITHOUT_PORT = ("ping",)
"""Types that ask a host, not a port of it."""

SCRIPT_MAX = 64 * 1024

_HTTP = ("http", "https")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "path": _HTTP,
    "host": _HTTP,
    "expect.status": _HTTP,
    "expect.digest": _HTTP,
    "expect.reply": ("tcp", "udp"),
    "send": ("tcp", "udp"),
    "helo": ("smtp",),
    "query": ("dns",),
    "record": ("dns",),
    "script": ("script",),
    "arguments": ("script",),
    "run_as": ("script",),
}
"""Keys that mean something for some types only."""

_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|.?)")


def raw_bytes(text: str) -> bytes:
    r"""Text with the escapes `\r`, `\n`, `\t`, `\\` and `\x41` as bytes. Raises ValueError on another escape."""
    found, end = b"", 0
    for match in _ESCAPE.finditer(text):
        found += text[end : match.start()].encode()
        end, escape = match.end(), match[1]
        if escape.startswith("x") and len(escape) == 3:
            found += bytes.fromhex(escape[1:])
        elif escape in _ESCAPES:
            found += _ESCAPES[escape]
        else:
            raise ValueError(match[0])
    return found + text[end:].encode()


def _escaped(value: str) -> str:
    # YAML's double quotes make real line ends of the escapes, single quotes and plain text leave them.
    for char, escape in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        value = value.replace(char, escape)
    try:
        raw_bytes(value)
    except ValueError as cause:
        raise mistake(
            "escape", "'{got}' is no escape", got=str(cause)[:10], fix=r"write \r, \n, \t, \\ or two hex digits as \x41"
        ) from None
    return value


Talk = Annotated[Text, BeforeValidator(lambda v: _escaped(v) if isinstance(v, str) else v)]
r"""Text that goes over the wire, with the escapes `\r`, `\n`, `\t`, `\\` and `\x41`."""


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", value):
        raise mistake(
            "digest", "'{got}' is not an MD5 digest", got=value[:40],
            fix="write the 32 hex digits that md5sum prints for the page",
        )  # fmt: skip
    return value


def _dns_name(value: str) -> str:
    if not re.fullmatch(r"\.|([a-z0-9_][a-z0-9_-]{0,62}\.)*[a-z0-9_][a-z0-9_-]{0,62}", value) or len(value) > 253:
        raise mistake(
            "dns-name", "'{got}' is not a name in the DNS", got=value[:60],
            fix="write lower-case letters, digits, '-', '_' and '.', such as example.com, or . for the root",
        )  # fmt: skip
    return value


class Expect(Model):
    """What a check takes for a good answer."""

    status: Annotated[Int, Between(100, 599)] | None = None
    """http, https: the status; without it any 2xx or 3xx is good."""
    digest: Annotated[str, AfterValidator(_digest)] | None = None
    """http, https: the MD5 digest of the answer's body. Services of topology nat, dr and tun only. `./inv verify` then
    wants the page: `--page FILE`."""
    reply: Talk | None = None
    r"""tcp: the answer (or the greeting) contains this. udp: the answer begins with this. Escapes as in `send`."""


class Check(Model):
    """How a pool finds out which of its servers are well."""

    short_form: ClassVar[str | None] = "type"
    planned_values: ClassVar = {"type": {"mysql-replica": "database replicas"}}
    planned: ClassVar = {
        "user": "checks that log in",
        "password": "checks that log in",
        "max_lag_s": "database replicas",
    }

    type: Literal["tcp", "http", "https", "smtp", "dns", "udp", "ping", "script"] = "tcp"
    """`tcp`: a connection is accepted. `http`, `https`: a request is answered as expected (certificates are not
    looked at). `smtp`: the mail server greets and takes HELO (behind topology nat, dr and tun with one line each:
    keepalived takes `220-` for a failure). `dns`: the name server answers a query. `udp`: nothing says that the port
    is closed (a Linux server says that to a node once a second, so ask no more often), or the answer is as expected.
    `ping`: the host answers. `script`: a program of your own says so. The last four are for services of topology nat,
    dr and tun; `ping` and `script` also for a pool that no service uses and `vrrp.demote_on` names."""
    path: UrlPath | None = None
    """http, https: the path that is asked for, default `/`."""
    host: HostName | None = None
    """http, https: the Host header; by default the first of the service's `hostnames`."""
    send: Talk | None = None
    r"""tcp, udp: what is sent, with the escapes `\r`, `\n`, `\t`, `\\` and `\x41`."""
    helo: HostName | None = None
    """smtp: the name in the HELO, default the node's host name."""
    query: Annotated[str, AfterValidator(_dns_name)] | None = None
    """dns: the name that is asked for, default `.`, the root."""
    record: Literal["SOA", "A", "AAAA", "NS", "CNAME", "MX", "TXT"] | None = None
    """dns: the kind of record, default SOA."""
    script: AttachedFile | None = None
    """script: a shell script, relative to the file that writes it. It gets address, port (0 if there is none) and
    `arguments`; the server is well if it ends with 0."""
    arguments: Annotated[tuple[Text, ...], BeforeValidator(as_list)] | None = None
    """script: further arguments."""
    run_as: Literal["nobody", "root"] | None = None
    """script: the user it runs as, default nobody."""
    expect: Expect = Expect()
    """What counts as a good answer."""
    port: Port | None = None
    """The port that is checked, where it is not the server's own."""
    interval_s: Annotated[Number, Between(0.1, 3600, "s")] = 2.0
    """Seconds between two checks of a server, by each node; the first ones are spread over this time."""
    timeout_s: Annotated[Number, Between(0.1, 600, "s")] = 2.0
    """Seconds that a server has for its answer once it is connected. By HAProxy connecting may take as long as the
    service's `timeouts.connect_s`, at most `interval_s`, and that is all there is to a plain tcp check; by keepalived
    it may take as long again as `timeout_s`, and smtp has three answers. script: whole seconds, rounded up."""
    retry_delay_s: Annotated[Number, Between(0.1, 3600, "s")] | None = None
    """Seconds from a failed check to the next one while `fall` is not reached; default `interval_s`."""
    rise: Annotated[Int, Between(1, 100)] | None = None
    """Good checks in a row after which a server is in the pool again, default 2. With topology nat, dr and tun the
    default is 1, and nothing else can be had: keepalived takes a server back after the first."""
    fall: Annotated[Int, Between(1, 100)] = 3
    """Failed checks in a row after which a server is out of the pool. A dead one stays in until then: for up to `fall`
    times `interval_s` and what an attempt takes. By default that is 12 s (tcp) or 18 s (http); at `interval_s: 30` it
    is 105 s, with `retry_delay_s: 1` beside it 47 s (tcp, HAProxy). `check` says so above a minute."""

    @model_validator(mode="after")
    def _keys_of_type(self) -> Self:
        for key, types in _KEYS.items():
            holder, name = (self.expect, key.removeprefix("expect.")) if key.startswith("expect.") else (self, key)
            unused = getattr(holder, name) == type(holder).model_fields[name].default
            if not unused and self.type not in types:
                one = f"an {types[0]}" if types[0] == "http" else f"a {types[0]}"
                raise mistake(
                    "key-of-check", "'{key}' belongs to {kind} check, and this one is {type}", key=key,
                    kind=one if types != ("tcp", "udp") else "a tcp or udp", type=self.type,
                    fix=f"write type: {types[0]}, or leave {key} out",
                )  # fmt: skip
        if self.type in WITHOUT_PORT and self.port is not None:
            raise mistake("key-of-check", "a {type} check has no port", type=self.type, fix="leave port out")
        if self.type == "script":
            self._script_runs()
        return self

    def _script_runs(self) -> None:
        if self.script is None:
            raise mistake("no-script", "a script check without a script", fix="add script: check.sh")
        content = self.script.content
        fix = "name a shell script that begins with #!/bin/sh"
        if not re.match(rb"#! ?/bin/(a?sh|busybox)\b", content):
            raise mistake("no-script", "{path} is no shell script: the image has no other interpreter for sure",
                          path=self.script.path, fix=fix)  # fmt: skip
        if len(content) > SCRIPT_MAX or b"\0" in content or b"\r" in content or not content.endswith(b"\n"):
            raise mistake("no-script", "{path} has more than 64 KiB, carriage returns, or no newline at its end",
                          path=self.script.path, fix="save it as plain text with Unix line ends")  # fmt: skip

    @property
    def request_path(self) -> str:
        """http: the path that is asked for."""
        return self.path or "/"

    @property
    def good_in_a_row(self) -> int:
        """Good checks after which HAProxy takes a server back."""
        return self.rise or 2

    @property
    def exchanges(self) -> bool:
        """True if a tcp check says or waits for something beyond the connection."""
        return self.type == "tcp" and (self.send is not None or self.expect.reply is not None)

    @property
    def retry_s(self) -> float:
        """Seconds from one check to the next while a server is on its way in or out (HAProxy's `fastinter`), or out
        (keepalived's `delay_before_retry`)."""
        return self.interval_s if self.retry_delay_s is None else self.retry_delay_s

    def attempt_s(self, connect_s: float) -> float:
        """The longest time, in seconds, that one check by HAProxy takes. `connect_s` is its `timeout connect`.

        Connecting may take min(`timeout connect`, `inter`), and `timeout check` comes on top, for the answer once
        connected (HAProxy's configuration manual, "timeout check"); a tcp check ends with the connection.
        """
        answer = self.type != "tcp" or self.exchanges
        return min(connect_s, self.interval_s) + (self.timeout_s if answer else 0.0)

    def detection_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's HAProxy).

        It dies right after a good check; the interval runs from the end of one check to the start of the next.
        """
        attempt_s = self.attempt_s(connect_s)
        return self.interval_s + attempt_s + (self.fall - 1) * (self.retry_s + attempt_s)

    def recovery_s(self, connect_s: float) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's HAProxy).

        It comes back while a check is running that still fails, and `good_in_a_row` good ones follow.
        """
        attempt_s = self.attempt_s(connect_s)
        return attempt_s + self.interval_s + attempt_s + (self.good_in_a_row - 1) * (self.retry_s + attempt_s)

    @property
    def keepalived_attempt_s(self) -> float:
        """The longest time, in seconds, that one check by keepalived takes: `connect_timeout` counts for connecting,
        and once more for each answer (keepalived.conf(5), check_http.c; check_smtp.c: greeting, HELO, QUIT).
        `misc_timeout` is in whole seconds."""
        if self.type == "script":
            return math.ceil(self.timeout_s)
        return self.timeout_s * {"http": 2, "https": 2, "smtp": 4}.get(self.type, 1)

    @property
    def keepalived_detection_s(self) -> float:
        """The longest time, in seconds, from a server's death to its leaving the pool (one node's keepalived)."""
        return self.interval_s + self.fall * self.keepalived_attempt_s + (self.fall - 1) * self.retry_s

    @property
    def keepalived_recovery_s(self) -> float:
        """The longest time, in seconds, from a server's recovery to its return to the pool (one node's keepalived).

        While it is out, rounds of `fall` attempts go on; it comes back during one that still fails.
        """
        return self.keepalived_attempt_s + max(self.interval_s, self.retry_s) + self.keepalived_attempt_s
