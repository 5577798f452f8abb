"""Rendering: which files there are, where they come from, and what stops a template."""

from __future__ import annotations

from pathlib import Path

import pytest

import goldens
from ndakit.lint.lint import lint
from ndakit.load.timezone import UnknownTimezone, posix
from ndakit.model.sorry_pages import BUFFER_BYTES, response
from ndakit.render.render import NodeUnknown, RenderedFile, TemplateBroken, TemplateConflict, Tree, mode_of, render


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / "rootfs" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "rootfs" / name).write_text(text)
    return folder


def bakery(*templates: Path) -> Tree:
    return render(goldens.profile("bakery"), "lb1", templates)


def test_a_template_becomes_the_file_at_its_place(tmp_path: Path) -> None:
    tree = bakery(write(tmp_path, {"etc/a.j2": "{{ node.hostname | comment }}\n", "etc/b": "{{ untouched }}"}))
    assert {p: f.text for p, f in tree.items()} == {"/etc/a": "bakery-lb1\n", "/etc/b": "{{ untouched }}"}
    assert tree["/etc/a"].source == f"{tmp_path.name}/rootfs/etc/a.j2"


def test_the_first_folder_wins(tmp_path: Path) -> None:
    own = write(tmp_path / "own", {"etc/a": "own\n"})
    shipped = write(tmp_path / "shipped", {"etc/a.j2": "shipped\n", "etc/b.j2": "shipped\n"})
    tree = bakery(own, shipped)
    assert {p: f.text for p, f in tree.items()} == {"/etc/a": "own\n", "/etc/b": "shipped\n"}


def test_a_changed_template_is_rendered_anew_in_the_same_process(tmp_path: Path) -> None:
    write(tmp_path, {"etc/a.j2": "one\n"})
    assert bakery(tmp_path)["/etc/a"].text == "one\n"
    write(tmp_path, {"etc/a.j2": "other\n"})
    assert bakery(tmp_path)["/etc/a"].text == "other\n"


def test_two_sources_for_one_path_in_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateConflict, match="two sources for /etc/a"):
        bakery(write(tmp_path, {"etc/a": "", "etc/a.j2": ""}))


def test_a_template_for_a_sorry_page_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, {"etc/ndakit/sorry-apache.http.j2": "x\n"})
    with pytest.raises(TemplateConflict, match="made from the profile's file"):
        render(goldens.profile("apache-pair"), "lb1", [folder])


def test_only_if_leaves_the_file_out(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {"etc/a.j2": "{% only_if node.vrrp %}\nhere\n", "etc/b.j2": "{% only_if not node.vrrp %}\nnot here\n"},
    )
    assert {p: f.text for p, f in bakery(folder).items()} == {"/etc/a": "here\n"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ok\n{{ profile.name }}\n", "not put through a filter"),
        ("ok\n{{ profile.nmae | uci }}\n", "nmae"),
        ("ok\n{{ nothing | uci }}\n", "nothing"),
        ("ok\n{{ profile.customer | uci }}\n", "NoneType"),
        ("ok\n{{ node }}\n", "ValueError: a value of type NodeView was not put through a filter"),
        ("ok\n{{ profile.nodes | uci }}\n", "ValueError: a value of type dict is no value"),
        ("ok\n{{ profile.name | safe }}\n", "safe"),
        ("ok\n{{ profile.name | e }}\n", "'e'"),
        ("ok\n{{ nothing | default('x') | uci }}\n", "default"),
        ("ok\n{% if %}\n", "Expected an expression"),
        ("ok\n{{ profile.networks['x'].nics | words }}\n", "x"),
        ("ok\n{{ profile.name.nothing() | uci }}\n", "nothing"),
        ("ok\n{{ ('a' ~ '\\n') | uci }}\n", "control character"),
        ("ok\n{{ (profile.name ~ 'b') }}\n", "not put through a filter"),
        ("ok\n{{ (profile.name | uci) ~ profile.name }}\n", "not put through a filter"),
        ("ok\n{{ profile.name | uci | upper }}\n", "not put through a filter"),
    ],
)
def test_a_broken_template_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TemplateBroken, match=message) as caught:
        bakery(write(tmp_path, {"etc/a.j2": text}))
    assert caught.value.where == f"{tmp_path.name}/rootfs/etc/a.j2:2"


def test_an_unknown_node_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(NodeUnknown, match="no node 'lb9'") as caught:
        render(goldens.profile("bakery"), "lb9", goldens.TEMPLATES)
    assert "lb1, lb2" in caught.value.fix


def test_every_generated_file_says_where_it_comes_from() -> None:
    for path, file in goldens.tree("apache-pair", "lb1").items():
        if path.startswith("/etc/ndakit/sorry-"):
            continue
        head = file.text if path == "/etc/banner" else "\n".join(file.text.splitlines()[:2])
        assert f"for apache-pair, node lb1, from {file.source}" in head


def test_a_tree_cannot_hold_two_files_of_one_path() -> None:
    file = RenderedFile("/etc/a", b"", 0o644, "x")
    with pytest.raises(ValueError, match="two files"):
        Tree([file, file])


@pytest.mark.parametrize(
    ("path", "mode"),
    [("/etc/config/network", 0o644), ("/etc/dropbear/authorized_keys", 0o600), ("/etc/init.d/x", 0o755),
     ("/usr/libexec/ndakit/x", 0o755), ("/etc/uci-defaults/x", 0o644)],
)  # fmt: skip
def test_modes_come_from_the_table(path: str, mode: int) -> None:
    assert mode_of(path) == mode


@pytest.mark.parametrize(
    ("name", "rule"),
    [("UTC", "UTC0"), ("Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"), ("Asia/Kolkata", "IST-5:30"),
     ("America/Argentina/Buenos_Aires", "<-03>3"), ("America/New_York", "EST5EDT,M3.2.0,M11.1.0")],
)  # fmt: skip
def test_time_zones_become_posix_rules(name: str, rule: str) -> None:
    assert posix(name) == rule


@pytest.mark.parametrize("name", ["Europe/Ulm", "europe/berlin", "/etc/passwd", "zone.tab", "../tzdata/zones", ""])
def test_an_unknown_time_zone_is_refused(name: str) -> None:
    with pytest.raises(UnknownTimezone, match="not a time zone"):
        posix(name)


def test_a_misspelt_time_zone_gets_a_hint() -> None:
    with pytest.raises(UnknownTimezone) as caught:
        posix("Europe/Brelin")
    assert caught.value.fix == "write Europe/Berlin"


def test_every_zone_has_a_rule() -> None:
    import importlib.resources

    for name in importlib.resources.files("tzdata").joinpath("zones").read_text().split():
        assert posix(name)


def test_a_sorry_page_is_a_whole_response() -> None:
    head, _, body = response("<p>ä".encode()).partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == b"HTTP/1.1 503 Service Unavailable"
    assert b"Content-Length: 5" in head
    assert b"charset=utf-8" in head
    assert body == "<p>ä".encode()
    assert b"charset" not in response(b"\xe4").partition(b"\r\n\r\n")[0]


def test_a_large_sorry_page_gets_larger_buffers(tmp_path: Path) -> None:
    (tmp_path / "large.html").write_bytes(b"x" * BUFFER_BYTES)
    text = (
        goldens.PROFILES["bakery"]
        .read_text()
        .replace("{web: {check: http,", "{web: {check: http, sorry: {page: large.html},")
    )
    tree = render(goldens.parse(text, tmp_path), "lb1", goldens.TEMPLATES)
    assert "tune.bufsize 20480" in tree["/etc/haproxy.cfg"].text
    assert "tune.bufsize" not in goldens.tree("apache-pair", "lb1")["/etc/haproxy.cfg"].text


@pytest.mark.parametrize(
    "text",
    ["it's", "$(reboot)", "`id`", "'; option x 'y", '"', "\\", "#", "%s {{ 7 * 7 }} {% raw %}", "Müller 🛒", "x" * 200],
)
def test_free_text_reaches_the_banner_only_and_as_it_is(text: str) -> None:
    profile = goldens.profile("apache-pair").model_copy(update={"customer": text, "description": None})
    tree = render(profile, "lb1", goldens.TEMPLATES)
    before = goldens.tree("apache-pair", "lb1")
    assert [p for p in tree if tree[p].content != before[p].content] == ["/etc/banner"]
    assert tree["/etc/banner"].text.splitlines()[2] == f"  {text}"
    assert lint(tree, profile, "lb1") == []


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "\x1b]0;x\x07", "a\u2028b", "\0"])
def test_free_text_that_would_leave_its_line_stops_rendering(text: str) -> None:
    profile = goldens.profile("apache-pair").model_copy(update={"customer": text})
    with pytest.raises(TemplateBroken, match="control character"):
        render(profile, "lb1", goldens.TEMPLATES)
