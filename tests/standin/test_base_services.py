"""The stand-in's procd, rc.common, log and boot script, without a VM."""

from __future__ import annotations

import json

from labrig import LINKS, NETIFD, PROCD, MakeRoot

SERVICE = """#!/bin/sh /etc/rc.common
START=90
STOP=10
USE_PROCD=1
EXTRA_COMMANDS="hello"

one() {
	procd_open_instance "$1"
	procd_set_param command /bin/sleep "1000$(uci get t.$1.n)"
	procd_set_param respawn 3600 1 0
	procd_set_param limits nofile="1000 2000"
	procd_set_param env COLOUR="deep blue"
	procd_set_param file /etc/t.conf
	procd_close_instance
}
start_service() { config_load t; config_foreach one s; }
service_triggers() { procd_add_reload_trigger t; }
hello() { echo "hello from $initscript"; }
"""
PIDS = (
    "pids() { ubus call service list '{\"name\":\"t\"}' | sed -n 's/.*\"pid\": \\([0-9]*\\),/\\1/p' | tr '\\n' ' '; }\n"
)


def _service(make_root: MakeRoot, script: str, body: str = SERVICE) -> tuple[str, str]:
    root = make_root()
    root.put("etc/init.d/t", body, 0o755)
    root.put("etc/config/t", "config s 'a'\n\toption n '1'\n\nconfig s 'b'\n\toption n '2'\n")
    root.put("etc/t.conf", "x\n")
    said = root.run(PROCD + PIDS + script)
    return said.out, said.err


def test_a_service_is_listed_as_procd_lists_it(make_root: MakeRoot) -> None:
    out, err = _service(
        make_root,
        '/etc/init.d/t start; ubus call service list \'{"name":"t"}\'; echo ==\n'
        "set -- $(pids); grep 'open files' /proc/$1/limits; tr '\\0' '\\n' </proc/$1/environ | grep COLOUR\n"
        "/etc/init.d/t running; echo $?; /etc/init.d/t status; /etc/init.d/t hello\n",
    )
    assert err == ""
    listed, _, rest = out.partition("==\n")
    instance = json.loads(listed)["t"]["instances"]["a"]
    assert instance["running"] is True
    assert instance["command"] == ["/bin/sleep", "10001"]
    assert instance["limits"] == {"nofile": "1000 2000"}
    assert instance["respawn"] == {"threshold": 3600, "timeout": 1, "retry": 0}
    assert rest.split("\n")[0].split()[3:5] == ["1000", "2000"]
    assert rest.endswith("COLOUR=deep blue\n0\nrunning\nhello from /etc/init.d/t\n")


def test_a_killed_instance_comes_back_after_its_timeout(make_root: MakeRoot) -> None:
    out, _ = _service(
        make_root,
        "/etc/init.d/t start; set -- $(pids); kill -9 $1; sleep 0.4; set -- $(pids) $1; echo $# before\n"
        "sleep 1.3; old=$2; set -- $(pids); echo $# after; [ $1 != $old ] && echo new\n",
    )
    assert out == "2 before\n2 after\nnew\n"


def test_reload_touches_only_what_has_changed(make_root: MakeRoot) -> None:
    out, _ = _service(
        make_root,
        '/etc/init.d/t start; one=$(pids); /etc/init.d/t reload; sleep 0.2; [ "$one" = "$(pids)" ] && echo same\n'
        "uci set t.b.n=3; uci commit; /etc/init.d/t reload; sleep 0.5; set -- $one $(pids)\n"
        "[ $1 = $3 ] && echo a stays; [ $2 != $4 ] && echo b is new\n"
        "uci delete t.a; uci commit; /etc/init.d/t reload; sleep 0.3; set -- $(pids); echo $#\n"
        "one=$(pids); echo y >/etc/t.conf; /etc/init.d/t reload; sleep 0.3\n"
        '[ "$one" != "$(pids)" ] && echo file counts\n',
    )
    assert out == "same\na stays\nb is new\n1\nfile counts\n"


def test_reload_config_reaches_the_services_that_asked_for_it(make_root: MakeRoot) -> None:
    out, _ = _service(
        make_root,
        "reload_config -q; /etc/init.d/t start; one=$(pids); uci set t.b.n=3; uci commit; reload_config\n"
        'sleep 2; [ "$one" != "$(pids)" ] && echo reloaded\n',
    )
    assert out == "reloaded\n"


def test_a_reload_signal_is_sent_instead_of_a_restart(make_root: MakeRoot) -> None:
    body = SERVICE.replace("/bin/sleep", "/usr/bin/catch").replace(
        "\tprocd_set_param file",
        "\tprocd_set_param reload_signal USR2\n\tprocd_set_param stdout 1\n\tprocd_set_param file",
    )
    root = make_root()
    root.put("etc/init.d/t", body, 0o755)
    root.put("usr/bin/catch", "#!/bin/sh\ntrap 'echo caught' USR2\nwhile :; do sleep 0.1; done\n", 0o755)
    root.put("etc/config/t", "config s 'a'\n\toption n '1'\n")
    root.put("etc/t.conf", "x\n")
    said = root.run(
        PROCD
        + PIDS
        + "/etc/init.d/t start; sleep 0.3; one=$(pids); echo y >/etc/t.conf; /etc/init.d/t reload; sleep 0.6\n"
        '[ "$one" = "$(pids)" ] && echo same; logread -e caught | sed "s/.*: //"\n'
    )
    assert said.out == "same\ncaught\n", said.err


def test_stop_ends_everything_and_disable_removes_the_links(make_root: MakeRoot) -> None:
    out, _ = _service(
        make_root,
        "/etc/init.d/t enable; ls /etc/rc.d | grep -c '^[SK]..t$'; /etc/init.d/t enabled && echo enabled\n"
        "/etc/init.d/t start; /etc/init.d/t stop\n"
        "ubus call service list '{\"name\":\"t\"}' | tr -d ' \\n\\t'; echo; /etc/init.d/t running || echo no\n"
        "/etc/init.d/t disable; /etc/init.d/t enabled || echo disabled\n",
    )
    assert out == "2\nenabled\n{}\nno\ndisabled\n"


def test_a_crash_loop_ends_after_its_retries(make_root: MakeRoot) -> None:
    body = SERVICE.replace("/bin/sleep", "/bin/false").replace("respawn 3600 1 0", "respawn 3600 0 3")
    out, _ = _service(
        make_root, "/etc/init.d/t start; sleep 2; logread -e crash | sed 's/.*Instance/Instance/'\n", body
    )
    assert sorted(line.split(",")[0] for line in out.splitlines()) == [
        "Instance t::a s in a crash loop 4 crashes",
        "Instance t::b s in a crash loop 4 crashes",
    ]


def test_an_unknown_parameter_is_said(make_root: MakeRoot) -> None:
    body = SERVICE.replace("procd_set_param file", "procd_set_param seccomp /x\n\tprocd_set_param file")
    out, _ = _service(make_root, "/etc/init.d/t start; cat /tmp/lab-unsupported\n", body)
    assert out == "lab: unsupported procd_set_param seccomp\n" * 2


def test_haproxy_runs_with_openwrts_command_and_checks_its_file(make_root: MakeRoot) -> None:
    root = make_root()
    root.put(
        "etc/haproxy.cfg",
        "defaults\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n\tmode http\n"
        "frontend f\n\tbind 127.0.0.1:80\n",
    )
    said = root.run(
        PROCD
        + "/etc/init.d/haproxy check; echo $?; echo nonsense >>/etc/haproxy.cfg; /etc/init.d/haproxy check; echo $?"
    )
    lines = [line for line in said.out.splitlines() if line.isdigit()]
    assert lines == ["0", "1"]
    assert "unknown keyword 'nonsense'" in said.err


def test_keepalived_links_the_raw_file_and_needs_enabled_only_from_25_12(make_root: MakeRoot) -> None:
    seen = {}
    for release in ("24.10.8", "25.12.5"):
        root = make_root("keepalived", release=release)
        root.put(
            "etc/config/keepalived",
            "config globals 'globals'\n\toption enabled '0'\n"
            "\toption alt_config_file '/etc/keepalived/keepalived.conf'\n",
        )
        script = (
            "/etc/init.d/keepalived start; readlink /tmp/keepalived.conf\n"
            'ubus call service list \'{"name":"keepalived"}\' | grep -c -- -n\n'
        )
        seen[release] = root.run(LINKS + NETIFD + script).out
    assert seen["24.10.8"] == "/etc/keepalived/keepalived.conf\n1\n"
    assert seen["25.12.5"] == "0\n"


def test_uci_defaults_are_sourced_in_order_and_deleted_when_they_return_0(make_root: MakeRoot) -> None:
    root = make_root("fw4-lb1")
    root.put(
        "etc/uci-defaults/20-second", 'echo second >>/tmp/order; [ -n "$first" ] && echo leaked >>/tmp/order; exit 0\n'
    )
    root.put("etc/uci-defaults/10-first", "first=1; echo first >>/tmp/order; uci set network.wan.metric=7\n")
    root.put("etc/uci-defaults/30-fails", "echo fails >>/tmp/order; false\n")
    said = root.run(
        PROCD
        + "/etc/init.d/boot boot >/dev/null 2>&1; cat /tmp/order; ls /etc/uci-defaults; uci get network.wan.metric\n"
        "uci changes; uci get system.@system[0].hostname\n"
    )
    assert said.out == "first\nsecond\nfails\n30-fails\n7\nOpenWrt\n"


def test_sysctl_conf_comes_last_and_unknown_keys_are_ignored(make_root: MakeRoot) -> None:
    root = make_root()
    root.put("etc/sysctl.conf", "net.ipv4.ip_forward=0\nno.such.key=1\nnet.ipv4.conf.all.promote_secondaries=1\n")
    said = root.run(
        "/etc/init.d/sysctl start; echo $?; cd /proc/sys/net/ipv4; cat ip_forward conf/all/promote_secondaries"
    )
    assert said.out == "0\n0\n1\n"


def test_the_log_takes_syslog_and_shows_it_in_logreads_form(make_root: MakeRoot) -> None:
    said = make_root().run(
        PROCD + "logger -t ndakit -p local0.warning 'it works'; sleep 0.1; logread -e 'it works'; logread -x; echo $?"
    )
    line, code = said.out.splitlines()
    assert line.endswith(" local0.warn ndakit: it works")
    assert code == "1"


def test_an_unknown_object_is_not_found_as_ubus_says_it(make_root: MakeRoot) -> None:
    said = make_root().run(
        PROCD
        + "ubus call nothing list; echo $?; ubus call service nothing; echo $?; ubus call service list '{'; echo $?"
    )
    assert said.out == "4\n3\n2\n"
    assert said.err.splitlines() == [
        "Command failed: Not found",
        "Command failed: Method not found",
        "Failed to parse message data",
    ]


def test_a_child_of_procd_that_ends_while_it_asks_netifd_costs_no_answer(make_root: MakeRoot) -> None:
    # Without an answer fw4 loads a ruleset whose zones have no devices, and the node forwards nothing.
    said = make_root().run(
        NETIFD.replace(" &\n", " & procd=$!\n", 1)
        + "(while kill -CHLD $procd 2>/dev/null; do :; done) & beats=$!\n"
        + "for i in $(seq 60); do ubus call network.interface dump >/dev/null || echo failed; done; kill $beats\n"
    )
    assert said.out == ""
