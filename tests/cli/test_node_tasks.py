"""./inv status, drain and ssh against a box on loopback: first contact, errors with fixes that work, exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndakit.cli import nodes
from ndakit.cli.nodes import NOT_WELL, NodeNeeded, SshOptions
from ndakit.core.workspace import Workspace
from ndakit.load.secrets import Secret, Secrets
from ndakit.node.control import PoolServerUnknown
from ndakit.node.errors import HostKeyUnknown
from ssh_servers import SshServer, keygen, server

PROFILE = """\
name: shop
release: 24.10.8
access: {{ssh_keys: {{me: {key}}}, sources: {{noc: 192.168.0.0/24}}, ssh: {{port: {port}}}}}
networks: {{lan: {{nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}}}
nodes:
  lb1: {{addresses: {{lan: 192.168.0.11}}}}
  lb2: {{addresses: {{lan: 192.168.0.12}}}}
vips: {{www: {{network: lan, address: 192.168.0.10}}}}
pools: {{web: {{check: http, servers: {{web1: 192.168.0.21, web2: 192.168.0.22}}}}}}
services: {{web: {{vip: www, port: 80, protocol: http, pool: web}}}}
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with server("dropbear", tmp_path_factory.mktemp("tasks") / "box") as running:
        running.allow(keygen(running.folder / "me"))
        running.program(
            "logread",
            "echo 'Mon Nov 30 01:00:00 2026 daemon.err haproxy[9]: password=hunter2 refused by v4lue-of-a-secret'",
        )
        yield running


@pytest.fixture
def place(box: SshServer, tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    text = PROFILE.format(key=(box.folder / "me.pub").read_text().strip(), port=box.port)
    (tmp_path / "profiles/shop.yaml").write_text(text)
    return Workspace(tmp_path)


def way(box: SshServer, accept: str | None = None) -> SshOptions:
    return SshOptions(identity=box.folder / "me", address="127.0.0.1", accept_host_key=accept)


def fingerprint(box: SshServer) -> str:
    (key,) = box.host_keys.values()
    return key.fingerprint


def test_a_first_contact_tells_the_fingerprint_and_what_to_type_and_that_works(
    box: SshServer, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nodes.show_status(place, "shop", "lb1", way(box), as_json=False) == NOT_WELL
    out, err = capsys.readouterr()
    assert "shop: NOT WELL" in out
    fix = err.partition("if it is the same: ")[2].splitlines()[0]
    words = shlex.split(fix)
    assert words[:2] == ["./inv", "ssh"]
    done = subprocess.run(
        [sys.executable, "-m", "ndakit", *words[1:]], cwd=place.root, input="echo $((40 + 2)); exit 3\n", text=True,
        capture_output=True, timeout=60, check=False, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "42\n"), done.stderr
    assert f"pinned ssh-ed25519 {fingerprint(box)} for shop lb1" in done.stderr
    assert (place.root / "known_hosts/shop/lb1").read_text().startswith("# The SSH host keys of shop.lb1")
    assert nodes.show_status(place, "shop", "lb1", way(box), as_json=False) == NOT_WELL
    assert "does not run" in capsys.readouterr().out, "now it is asked: it is no balancer"


def test_without_a_terminal_nobody_is_asked(box: SshServer, place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(HostKeyUnknown):
        nodes.open_session(place, "shop", "lb1", way(box))


@pytest.mark.parametrize(("answer", "pinned"), [("yes\n", True), ("no\n", False), ("", False)])
def test_a_person_is_asked_at_the_first_contact(
    box: SshServer, place: Workspace, monkeypatch: pytest.MonkeyPatch, answer: str, pinned: bool
) -> None:
    class Typing:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    monkeypatch.setattr("sys.stdin", Typing())
    became: list[list[str]] = []
    monkeypatch.setattr("ndakit.core.process.replace_us", lambda argv, env: became.append(argv))
    if pinned:
        nodes.open_session(place, "shop", "lb1", way(box))
        assert became[0][:3] == ["ssh", "-F", "none"]
    else:
        with pytest.raises(HostKeyUnknown):
            nodes.open_session(place, "shop", "lb1", way(box))
    assert (place.root / "known_hosts/shop/lb1").exists() is pinned


def test_the_status_for_scripts_has_everything_but_secrets(
    box: SshServer, place: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Secrets({"one": Secret(b"v4lue-of-a-secret", "a test")})
    monkeypatch.setattr("ndakit.load.secrets.resolve", lambda place, loaded: known)
    assert nodes.show_status(place, "shop", "lb1", way(box, fingerprint(box)), as_json=True) == NOT_WELL
    out = capsys.readouterr().out
    assert "hunter2" not in out
    assert "v4lue" not in out
    told = json.loads(out)
    assert told["well"] is False
    assert told["nodes"]["lb1"]["daemons"] == {"dropbear": False, "haproxy": False, "keepalived": False}
    assert told["nodes"]["lb1"]["errors"] == [
        "Mon Nov 30 01:00:00 2026 daemon.err haproxy[9]: password=*** refused by ***"
    ]
    assert told["nodes"]["lb1"]["memory_kib"] > 0
    assert abs(told["nodes"]["lb1"]["clock_offset_s"]) < 5


def test_what_belongs_to_one_node_is_not_taken_for_two(box: SshServer, place: Workspace) -> None:
    with pytest.raises(NodeNeeded, match="--address belongs to one node"):
        nodes.show_status(place, "shop", None, way(box), as_json=False)
    with pytest.raises(NodeNeeded):
        nodes.open_session(place, "shop", None, SshOptions(identity=box.folder / "me"))


def test_a_server_is_drained_where_haproxy_runs_and_the_others_are_named(
    box: SshServer, place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PoolServerUnknown, match=r"fix: .*web/web1"):
        nodes.drain_server(place, "shop", "lb1", "web1", way(box), undo=False, as_json=False)
    done = nodes.drain_server(place, "shop", "lb1", "web/web1", way(box, fingerprint(box)), undo=False, as_json=False)
    out, err = capsys.readouterr()
    assert done == NOT_WELL
    assert "HAProxy does not run" in err
    assert "lb1 could not be told: there web/web1 is not drained" in out


def test_a_changed_host_key_leads_back_by_what_the_error_says(
    box: SshServer, place: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = keygen(tmp_path / "other").split()
    pins = place.root / "known_hosts/shop/lb1"
    pins.parent.mkdir(parents=True)
    pins.write_text(f"shop.lb1 {other[0]} {other[1]}\n")
    assert nodes.show_status(place, "shop", "lb1", way(box), as_json=False) == NOT_WELL
    err = capsys.readouterr().err
    assert "wrong host key: expected ssh-ed25519 SHA256:" in err
    words = shlex.split(err.partition("then: ")[2].partition(";")[0])
    argv = [sys.executable, "-m", "ndakit", *words[1:]]
    done = subprocess.run(argv, cwd=place.root, input="exit\n", text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert fingerprint(box) in done.stderr
