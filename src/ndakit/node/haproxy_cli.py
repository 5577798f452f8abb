"""HAProxy's own command line (management guide, 9.3) on a balancer, which has nothing to speak to a unix socket with.

BusyBox's nc knows no unix sockets, and socat is in no default image. So HAProxy itself carries the question: a second
process of it, for as long as it takes, between a port of loopback and the socket of the first one. That works on every
release, with images that run already, and leaves no port open that could take servers out of service.
"""

from __future__ import annotations

from collections.abc import Sequence

from ndakit.node.errors import NodeError
from ndakit.node.shell import Shell

SOCKET = "/var/run/haproxy.sock"
_TIMEOUT_S = 20.0

# nc sends the end of its input on, and HAProxy answers and closes then. /proc/net/tcp tells when the port is open
# (0A: LISTEN); another port is taken where somebody has this one.
_ASK = r"""[ -S "$2" ] || { echo "there is no $2: HAProxy does not run" >&2; exit 1; }
d=$(mktemp -d /tmp/.ndakit.XXXXXX) || exit 1
p=
trap 'rm -rf "$d"; [ -z "$p" ] || kill "$p"' EXIT
trap 'exit 1' HUP INT TERM
n=0
while [ $n -lt 8 ]; do
    port=$((20000 + ($$ * 13 + n * 1009) % 10000))
    n=$((n + 1))
    hex=$(printf '0100007F:%04X 00000000:0000 0A' $port)
    ! grep -q "$hex" /proc/net/tcp || continue
    printf '%s\n' global 'maxconn 8' defaults 'mode tcp' 'timeout connect 5s' 'timeout client 15s' \
        'timeout server 15s' 'listen ask' "bind 127.0.0.1:$port" "server socket unix@$2" >"$d/cfg"
    haproxy -q -db -f "$d/cfg" >"$d/log" 2>&1 </dev/null &
    p=$!
    i=0
    while [ $i -lt 100 ] && kill -0 $p 2>/dev/null; do
        if grep -q "$hex" /proc/net/tcp; then
            printf '%s\n' "$1" | nc 127.0.0.1 $port
            exit
        fi
        i=$((i + 1))
        sleep 0.05
    done
    kill $p 2>/dev/null
    p=
done
cat "$d/log" >&2
exit 1"""


class HaproxySilent(NodeError):
    """HAProxy's command line does not answer."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(
            f"HAProxy on {name} does not answer on its command line: {why.strip()[:400] or 'it said nothing'}",
            where=f"{SOCKET} of {name}",
            fix="look at the box whether it runs: /etc/init.d/haproxy status; logread -e haproxy; start it: "
            "/etc/init.d/haproxy restart",
        )


def ask(shell: Shell, commands: Sequence[str]) -> str:
    """The answers to some commands, one after the other. Raises HaproxySilent and what Shell.run raises."""
    ran = shell.run(["sh", "-c", _ASK, "ask", "; ".join(commands), SOCKET], _TIMEOUT_S)
    if ran.rc != 0 or not ran.stdout:
        raise HaproxySilent(shell.name, ran.stderr or ran.stdout)
    return ran.stdout
