"""Finding, reading, merging and writing back profiles."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import goldens
from ndakit.cli import profiles
from ndakit.core.errors import ErrorGroup, InputError, NdakitError
from ndakit.core.mistakes import KeyPath, ProfileMistake, ProfileWarning
from ndakit.core.workspace import EXAMPLES, Workspace
from ndakit.image.artifacts import ImageNotBuilt, images_of
from ndakit.load import field_types, load, messages, yaml_nodes
from ndakit.load.json_schema import models
from ndakit.model import Attachment
from ndakit.model.checks import HttpCheck, TcpCheck
from places import DATA, ROOT

SHIPPED = Workspace(ROOT)
BAKERY = (ROOT / "profiles/bakery.yaml").read_text()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "profiles").mkdir()
    return Workspace(tmp_path)


def write(workspace: Workspace, name: str, text: str | bytes) -> None:
    path = workspace.profiles / f"{name}.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def bakery(name: str, *changes: tuple[str, str]) -> str:
    text = BAKERY.replace("name: bakery", f"name: {name}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def refused(workspace: Workspace, what: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load.load(workspace, what)
    return caught.value


# finding


def test_the_shipped_profiles_load() -> None:
    assert load.names(SHIPPED) == (
        "apache-pair",
        "bakery",
        "far-tun",
        "iis-tproxy",
        "mirror-dr",
        "rtmp-tproxy",
        "shop-nat",
    )
    for name in load.names(SHIPPED):
        assert load.load(SHIPPED, name).profile.name == name


def test_fragments_and_hidden_files_are_not_profiles(workspace: Workspace) -> None:
    for name in ("b", "a", "_house", ".b.yaml.swp"):
        write(workspace, name, "")
    assert load.names(workspace) == ("a", "b")


def test_a_profile_is_found_by_name_by_file_name_and_by_path(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workspace, "bakery", BAKERY)
    monkeypatch.chdir(workspace.root)
    by_name = load.load(workspace, "bakery")
    for what in ("bakery.yaml", "profiles/bakery.yaml", str(workspace.profiles / "bakery.yaml")):
        assert load.load(workspace, what) == by_name
    assert by_name.sources == (workspace.profiles / "bakery.yaml",)


def test_an_unknown_profile_gets_a_suggestion_and_the_list(workspace: Workspace) -> None:
    write(workspace, "bakery", BAKERY)
    error = refused(workspace, "bakry")
    assert isinstance(error, load.ProfileNotFound)
    assert error.fix == "did you mean 'bakery'? profiles here: bakery"
    for odd in ("", "a\0b", "x" * 10_000, "no/such/file.yaml"):
        assert isinstance(refused(workspace, odd), load.ProfileNotFound)


def test_a_yml_file_is_named_as_the_reason(workspace: Workspace) -> None:
    (workspace.profiles / "old.yml").write_text(BAKERY)
    assert refused(workspace, "old").fix == "rename profiles/old.yml to profiles/old.yaml"


def test_a_fragment_is_not_loaded_as_a_profile(workspace: Workspace) -> None:
    write(workspace, "_house", "release: 24.10.8\n")
    assert isinstance(refused(workspace, "_house"), load.ProfileIsFragment)


def test_a_folder_in_place_of_a_profile_is_refused(workspace: Workspace) -> None:
    (workspace.profiles / "folder.yaml").mkdir()
    assert "is not a file" in refused(workspace, "folder").what


# reading


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (BAKERY.encode("utf-16"), "not-utf8"),
        ("customer: Bäcker\n".encode("latin-1"), "not-utf8"),
        (b"name: a\x07b\n", "control-character"),
        ("name: a\u2028b\n".encode(), "control-character"),
        (b"name: " + b"x" * (1 << 20), "too-big"),
        (b"%YAML 1.1\n---\nname: x\n...\n---\nname: y\n", "several-documents"),
        (b"name: " + b"[" * 100_000, "too-deep"),
        (b"name: " + b"{a: " * 100_000, "too-deep"),
        (b"~", "empty-file"),
        (b"", "empty-file"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_with_its_reason(workspace: Workspace, data: bytes, code: str) -> None:
    write(workspace, "x", data)
    assert refused(workspace, "x").code == code


@pytest.mark.parametrize("loader", ["CBaseLoader", "BaseLoader"])
@pytest.mark.parametrize(
    "name", ["wildcard", "ipv6-begins-in-list", "percent", "backtick", "open-quote", "tab", "indentation"]
)
def test_both_yaml_parsers_get_the_same_explanation(monkeypatch: pytest.MonkeyPatch, loader: str, name: str) -> None:
    monkeypatch.setattr(yaml, "CBaseLoader", getattr(yaml, loader))
    here = DATA
    assert (
        refused(Workspace(here), f"{here}/invalid/{name}.yaml").text() + "\n"
        == (here / f"invalid/{name}.txt").read_text()
    )


def test_a_byte_order_mark_and_windows_line_ends_are_taken(workspace: Workspace) -> None:
    write(workspace, "bakery", b"\xef\xbb\xbf" + BAKERY.replace("\n", "\r\n").encode())
    assert load.load(workspace, "bakery").profile == load.load(SHIPPED, "bakery").profile


def test_scalars_stay_the_text_that_stands_in_the_file() -> None:
    tree, mistakes = yaml_nodes.parse(b"a: 24.10\nb: yes\nc: 52:54:00:12:34:56\nd: 0x1F\ne: 1e3\nf: 'null'\n", "x")
    assert not mistakes
    assert dict(tree) == {"a": "24.10", "b": "yes", "c": "52:54:00:12:34:56", "d": "0x1F", "e": "1e3", "f": "null"}
    assert tree.keys_at["b"].line == 2


def test_anchors_and_keys_of_ones_own_are_taken(workspace: Workspace) -> None:
    text = bakery("own", ("pools:", "x-any: &servers {web1: 192.168.0.21}\npools:"),
                  ("{web1: 192.168.0.21, web2: 192.168.0.22}", "*servers"))  # fmt: skip
    write(workspace, "own", text)
    assert list(load.load(workspace, "own").profile.pools["web"].servers) == ["web1"]


def test_thousands_of_mistakes_are_reported_in_linear_time(workspace: Workspace) -> None:
    write(workspace, "many", bakery("many") + "".join(f"key{n}: {n}\n" for n in range(10_000)))
    begun_s = time.process_time()
    with pytest.raises(ErrorGroup) as caught:
        load.load(workspace, "many")
    assert len(caught.value.errors) == load.MISTAKES_MAX + 1
    assert "9900 more mistakes" in caught.value.text()
    assert time.process_time() - begun_s < 8


def test_a_huge_profile_is_checked_in_reasonable_time(workspace: Workspace) -> None:
    servers = ", ".join(f"s{n}: 10.0.{n // 250}.{n % 250 + 1}" for n in range(20_000))
    write(workspace, "huge", bakery("huge", ("{web1: 192.168.0.21, web2: 192.168.0.22}", "{" + servers + "}")))
    begun_s = time.process_time()
    assert len(load.load(workspace, "huge").profile.pools["web"].servers) == 20_000
    assert time.process_time() - begun_s < 8


# extends


def test_a_child_merges_over_its_parents_from_left_to_right(workspace: Workspace) -> None:
    write(workspace, "_left", "customer: Left\ndescription: Left\nlabels: {a: left, b: left}\n")
    write(workspace, "_right", "customer: Right\nlabels: {b: right, c: right}\n")
    write(
        workspace,
        "child",
        bakery("child", ("name: child", "extends: [_left, _right]\nname: child\nlabels: {c: child}")),
    )
    loaded = load.load(workspace, "child")
    assert loaded.profile.customer == "Right"
    assert loaded.profile.description == "Left"
    assert loaded.profile.labels == {"a": "left", "b": "right", "c": "child"}
    assert loaded.origins["labels", "b"].file == "profiles/_right.yaml"
    assert loaded.origins["labels", "c"].file == "profiles/child.yaml"
    assert [p.name for p in loaded.sources] == ["child.yaml", "_left.yaml", "_right.yaml"]


def test_null_takes_an_inherited_value_away_and_lists_replace(workspace: Workspace) -> None:
    write(workspace, "base", bakery("base", ("name: base", "name: base\ncustomer: Base\nlabels: {a: b}"),
                                    ("gateway: 192.168.0.254",
                                     "gateway: 192.168.0.254, dns: [192.168.0.3, 192.168.0.4]")))  # fmt: skip
    write(
        workspace,
        "child",
        "extends: base\nname: child\ncustomer: null\nlabels:\nnetworks: {lan: {dns: [192.168.0.5]}}\n",
    )
    profile = load.load(workspace, "child").profile
    assert profile.customer is None
    assert profile.labels == {}
    assert [str(d) for d in profile.networks["lan"].dns] == ["192.168.0.5"]


def test_another_kind_of_mapping_replaces_the_inherited_one(workspace: Workspace) -> None:
    write(workspace, "base", bakery("base", ("check: http", "check: {type: http, path: /alive}")))
    write(workspace, "tcp", "extends: [base]\nname: tcp\npools: {web: {check: {type: tcp, fall: 5}}}\n")
    write(workspace, "http", "extends: [base]\nname: http\npools: {web: {check: {fall: 5}}}\n")
    assert load.load(workspace, "tcp").profile.pools["web"].check == TcpCheck.model_validate(
        {"type": "tcp", "fall": "5"}
    )
    other = HttpCheck.model_validate({"type": "http", "path": "/alive", "fall": "5"})
    assert load.load(workspace, "http").profile.pools["web"].check == other


def test_a_mapping_merges_onto_an_inherited_short_form(workspace: Workspace) -> None:
    write(workspace, "base", BAKERY.replace("name: bakery", "name: base"))
    write(
        workspace,
        "child",
        "extends: [base]\nname: child\npools: {web: {servers: {web1: {weight: 3}}, check: {rise: 1}}}\n",
    )
    pool = load.load(workspace, "child").profile.pools["web"]
    assert (str(pool.servers["web1"].address[0]), pool.servers["web1"].weight) == ("192.168.0.21", 3)
    assert (pool.check.type, pool.check.rise) == ("http", 1)


def test_a_named_file_belongs_to_the_file_that_names_it(workspace: Workspace) -> None:
    house = workspace.root / "house"
    house.mkdir()
    (house / "_common.yaml").write_text("pools: {web: {sorry: {page: pages/sorry.html}}}\n")
    (house / "pages").mkdir()
    (house / "pages/sorry.html").write_text("<p>house</p>")
    write(workspace, "child", bakery("child", ("name: child", "extends: ../house/_common.yaml\nname: child")))
    loaded = load.load(workspace, "child")
    sorry = loaded.profile.pools["web"].sorry
    assert sorry is not None
    assert sorry.page == Attachment(path="pages/sorry.html", content=b"<p>house</p>")
    assert house / "pages/sorry.html" in loaded.sources


def test_a_parent_that_is_not_there_gets_a_suggestion_and_no_noise_about_what_it_would_have_brought(
    workspace: Workspace,
) -> None:
    write(workspace, "_house", "release: 24.10.8\n")
    write(workspace, "child", "name: child\nextends: [_hous]\nservices: {a: {pool: b}}\n")
    assert refused(workspace, "child").text() == (
        "error: there is no profile or fragment '_hous' to extend\n"
        "  where: profiles/child.yaml:2:11, extends[0]\n"
        "  fix:   did you mean '_house'? there are: _house, child"
    )


def test_a_chain_of_too_many_files_is_refused(workspace: Workspace) -> None:
    for number in range(200):
        write(workspace, f"p{number}", f"extends: [p{number + 1}]\nname: p{number}\n")
    assert refused(workspace, "p0").code == "too-many-files"


def test_a_file_name_that_is_no_name_is_to_be_changed(workspace: Workspace) -> None:
    write(workspace, "Bakery", BAKERY)
    assert refused(workspace, "Bakery").fix == "rename the file to bakery.yaml"


def test_an_inherited_mistake_names_the_file_that_wrote_it(workspace: Workspace) -> None:
    write(workspace, "_house", "# a comment\nvrrp: {preempt: yes}\n")
    write(workspace, "child", bakery("child", ("name: child", "extends: [_house]\nname: child")))
    location = refused(workspace, "child").location
    assert location is not None
    assert (location.file, location.line, location.column) == ("profiles/_house.yaml", 2, 17)


# several mistakes at once


def test_what_follows_from_a_mistake_is_not_reported_again(workspace: Workspace) -> None:
    write(workspace, "x", bakery("x", ("subnet: 192.168.0.0/24", "subnet: 192.168.0.0/33")))
    assert refused(workspace, "x").code == "subnet"
    write(workspace, "x", bakery("x", ("pools: {web:", "pools: {Web:")))
    assert refused(workspace, "x").code == "name"
    write(workspace, "x", bakery("x", ("servers: {web1: 192.168.0.21, web2: 192.168.0.22}", "servers: {}")))
    assert refused(workspace, "x").code == "empty"


def test_mistakes_in_every_part_are_reported_together(workspace: Workspace) -> None:
    write(workspace, "x", bakery(
        "x", ("release: 24.10.8", "release: 24.x"), ("subnet: 192.168.0.0/24,", "subnet: 192.168.0.0/24, mtus: 9000,"),
        ("lan: 192.168.0.12", "lan: 192.168.7.12"), ("port: 80", "port: 22"), ("pool: web}", "pool: wb}")))  # fmt: skip
    with pytest.raises(ErrorGroup) as caught:
        load.load(workspace, "x")
    assert [e.code for e in caught.value.errors] == [
        "release", "unknown-key", "node-outside-subnet", "port-of-ssh", "unknown-pool"
    ]  # fmt: skip


def test_both_places_of_a_disagreement_are_facts_for_scripts(workspace: Workspace) -> None:
    write(workspace, "x", bakery("x", ("lan: 192.168.0.12", "lan: 192.168.0.11")))
    error = refused(workspace, "x")
    assert isinstance(error, ProfileMistake)
    facts = error.as_json()
    assert (facts["code"], facts["line"], facts["key"]) == ("address-twice", 9, "nodes.lb2.addresses.lan")
    assert facts["other"] == {"file": "profiles/x.yaml", "line": 8, "column": 26, "key": "nodes.lb1.addresses.lan"}


def test_every_required_key_has_an_example_for_its_message() -> None:
    required = {k for m in models().values() for k, f in m.model_fields.items() if f.is_required()}
    assert required - set(messages.EXAMPLES) == set()


def test_every_example_of_a_message_is_yaml() -> None:
    for key, text in messages.EXAMPLES.items():
        for one in text.split(", or "):
            assert list(yaml.load(one, Loader=yaml.BaseLoader)) == [key.rpartition(".")[2]]


# writing back


def test_the_full_dump_of_the_smallest_profile_is_frozen() -> None:
    assert load.dump(load.load(SHIPPED, "bakery")) == (DATA / "valid/bakery.full").read_text()


@pytest.mark.parametrize("path", sorted((DATA / "valid").glob("[a-z]*.yaml")), ids=lambda p: p.stem)
def test_a_dump_loads_as_the_same_profile(path: Path, workspace: Workspace) -> None:
    loaded = load.load(Workspace(DATA), str(path))
    write(workspace, loaded.profile.name, load.dump(loaded))
    shutil.copy(ROOT / "profiles/sorry.html", workspace.profiles)
    assert load.load(workspace, loaded.profile.name).profile == loaded.profile


def test_every_value_of_a_file_has_its_line_in_the_origins_and_the_rest_is_default() -> None:
    lines = {line.text.strip(): line.origin for line in load.origin_lines(load.load(SHIPPED, "apache-pair"))}
    assert lines["interval_s: 1"] == "profiles/apache-pair.yaml:40"
    assert lines["address: 192.168.0.21"] == "profiles/apache-pair.yaml:43"
    assert lines["unicast: true"] == "default"
    assert lines["pools:"] == ""


def test_a_short_form_is_the_origin_of_its_key_only() -> None:
    lines = [(line.text.strip(), line.origin) for line in load.origin_lines(load.load(SHIPPED, "bakery"))]
    assert ("address: 192.168.0.21", "profiles/bakery.yaml:11") in lines
    assert ("type: http", "profiles/bakery.yaml:11") in lines
    assert ("weight: 1", "default") in lines


# a workspace's profiles beside each other


def two(workspace: Workspace, *changes: tuple[str, str]) -> set[str]:
    write(workspace, "one", bakery("one", *changes))
    write(workspace, "two", bakery("two", *changes))
    return {w.code for w in load.cross_check(workspace)}


def test_two_profiles_of_one_customer_with_the_same_addresses_are_told(workspace: Workspace) -> None:
    assert two(workspace) == {"same-address", "same-vrid"}


def beside(workspace: Workspace, name: str) -> list[ProfileWarning]:
    """What `./inv check` says of a profile beside the others."""
    return profiles._beside_the_others(workspace, load.load(workspace, name))


DUAL = ("subnet: 192.168.0.0/24", 'subnet: [192.168.0.0/24, "fd00:0:0:1::/64"]')


def test_a_router_id_of_other_profiles_is_told_at_the_checked_one_with_one_that_is_free(workspace: Workspace) -> None:
    for number, name in enumerate("abc"):
        write(workspace, name, bakery(name, DUAL, ("192.168.0.1", f"192.168.0.{number + 4}")))
    told: dict[str, int] = {}
    for name in "abc":
        clashes = [w for w in beside(workspace, name) if w.code == "same-vrid"]
        assert len(clashes) == 2, "one for each other profile, not one for each family"
        for clash in clashes:
            assert Path(clash.where.file).name == f"{name}.yaml"
            assert "192.168.0.0/24 and fd00:0:0:1::/64" in clash.what
            fix = re.match(rf"in profiles/{name}\.yaml, under networks: lan:, add vrid: (\d+);", clash.fix)
            assert fix is not None
            told[name] = int(fix[1])
    assert len({*told.values()}) == 3
    for name, vrid in told.items():  # everybody does as told, at once
        path = workspace.profiles / f"{name}.yaml"
        facts = yaml.load(path.read_text(), yaml.BaseLoader)
        facts["networks"]["lan"]["vrid"] = str(vrid)
        path.write_text(yaml.dump(facts))
    assert "same-vrid" not in {w.code for name in "abc" for w in beside(workspace, name)}


def test_a_pinned_router_id_is_to_be_changed_and_one_that_another_profile_has_is_not_proposed(
    workspace: Workspace,
) -> None:
    for number, (name, vrid) in enumerate({"a": 7, "b": 7, "c": 8, "d": 9}.items()):
        pinned = ("lan: {nics", f"lan: {{vrid: {vrid}, nics")
        write(workspace, name, bakery(name, pinned, ("192.168.0.1", f"192.168.0.{number + 4}")))
    (clash,) = [w for w in beside(workspace, "b") if w.code == "same-vrid"]
    assert clash.fix.startswith("in profiles/b.yaml, under networks: lan:, change vrid to 11; if the two belong to")


def test_heartbeats_of_two_profiles_are_no_finding(workspace: Workspace) -> None:
    heart = goldens.PROFILES["heartbeat"].read_text()
    for name in ("one", "two"):
        write(workspace, name, heart.replace("name: heartbeat", f"name: {name}"))
    told = beside(workspace, "two")
    assert told
    assert not [w for w in told if "172.31.255." in w.text() or "networks.hb" in w.text()]


def test_a_clash_of_customers_is_settled_by_naming_them(workspace: Workspace) -> None:
    two(workspace)
    assert all("write customer: NAME in each profile" in w.fix for w in beside(workspace, "two"))


def test_private_addresses_of_two_customers_are_no_finding(workspace: Workspace) -> None:
    two(workspace)
    write(workspace, "two", bakery("two", ("name: two", "name: two\ncustomer: Other")))
    assert load.cross_check(workspace) == ()


def test_addresses_that_are_unique_in_the_world_are_compared_always(workspace: Workspace) -> None:
    public = [("192.168.0.", "198.51.100.")]
    write(workspace, "one", bakery("one", *public))
    write(workspace, "two", bakery("two", *public, ("name: two", "name: two\ncustomer: Other")))
    assert {w.code for w in load.cross_check(workspace)} == {"same-address", "same-vrid"}


def test_a_server_that_many_profiles_check_is_told(workspace: Workspace) -> None:
    for number in range(3):
        write(workspace, f"p{number}", bakery(
            f"p{number}", ("lan: 192.168.0.11", f"lan: 192.168.0.{100 + number}"),
            ("lan: 192.168.0.12", f"lan: 192.168.0.{110 + number}"),
            ("address: 192.168.0.10", f"address: 192.168.0.{120 + number}"),
            ("lan: {nics", f"lan: {{vrid: {number + 1}, nics")))  # fmt: skip
    assert [w.code for w in load.cross_check(workspace)] == ["many-checkers"]


def test_two_files_of_one_name_are_told(workspace: Workspace) -> None:
    write(workspace, "one", bakery("one"))
    loaded = load.load(workspace, "one")
    other = dataclasses.replace(loaded, path=loaded.path.parent / "copy.yaml")
    assert "same-name" in {w.code for w in load.cross_check(workspace, [loaded, other])}


# anything at all

NASTY = st.sampled_from(
    [
        "name: x",
        "release: 24.10.8",
        "extends: [x]",
        "nodes:",
        "  lb1: {addresses: {lan: ::1}}",
        "vips: {a: {network: lan}}",
        "pools: [",
        "services: {w: {vip: [a, a], port: [1, 2-3, 70000], protocol: tcp, pool: w}}",
        "networks: {lan: {nics: eth0, subnet: [10.0.0.0/8, fd00::/64]}}",
        "access: {ssh_keys: {me: x}, sources: {a: 0.0.0.0/0}}",
        "vrrp: {preempt: yes}",
        "x-a: [1, [2]]",
        "!!python/object/apply:os.system [id]",
        "<<: *a",
        "%YAML 1.3",
        "---",
        "...",
        "*a",
        "&a",
        "? ",
        "- ",
        "|",
        ">",
        "'",
        '"',
        "\t",
        "\u0000",
        "\ufeff",
        "~",
        "null",
        "}",
        "]",
        ": ",
    ]
)
ANYTHING = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(str.encode),
    st.lists(NASTY, max_size=12).map(lambda lines: "\n".join(lines).encode()),
)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_no_file_gives_anything_but_a_profile_or_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "any")
    workspace.profiles.mkdir(parents=True, exist_ok=True)
    write(workspace, "x", data)
    check_any(workspace)


def check_any(workspace: Workspace) -> None:
    try:
        load.load(workspace, "x")
    except NdakitError as error:
        assert error.exit_code == 2
        text = error.text()
        assert "pydantic" not in text
        assert "Input should" not in text
        assert all(c.isprintable() or c == "\n" for c in text)


LIKE_NAMES = st.one_of(
    st.text("aZ0-_:. /", min_size=1, max_size=40),
    st.text(st.characters(min_codepoint=33, max_codepoint=0x17F), min_size=1, max_size=40),
)
IS_NO_NAME = re.compile("'.*' is not a name$")


@settings(max_examples=100, deadline=None)
@given(LIKE_NAMES, st.sampled_from(["web", "a", "a-a", "A_a"]))
@example("_sorry:a", "web")
@example("Web_Shop", "web-shop")
@example("Web_Shop", "WEB_shop")
def test_a_name_that_a_fix_proposes_is_taken_when_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, key: str, other: str
) -> None:
    workspace = Workspace(tmp_path_factory.getbasetemp() / "names")
    workspace.profiles.mkdir(parents=True, exist_ok=True)
    data = yaml.load(BAKERY, Loader=yaml.BaseLoader) | {"name": "names"}
    pool = data["pools"].pop("web")
    data["pools"] = {key: pool} | {other: pool}

    def mistaken() -> list[NdakitError]:
        write(workspace, "names", json.dumps(data))
        try:
            load.load(workspace, "names")
        except ErrorGroup as errors:
            return list(errors.errors)
        except NdakitError as error:
            return [error]
        return []

    fixes = [e.fix for e in mistaken() if IS_NO_NAME.match(e.what) and e.what.startswith(f"'{key}'")]
    for proposed in (m[1] for fix in fixes if (m := re.match(r"write (.*): use lower-case", fix))):
        assert proposed not in data["pools"]
        data["pools"][proposed] = data["pools"].pop(key)
        assert not [e for e in mistaken() if e.location is not None and e.location.key == f"pools.{proposed}"]


def test_what_is_proposed_is_what_was_probably_meant() -> None:
    meant = {"Web_Shop": "web-shop", "_sorry:a": "sorry-a", "www.example.com": "www-example-com", "7up": "up"}
    assert {wrong: messages.better_name(wrong) for wrong in meant} == meant
    hopeless = ["Größe", "123", "_____", "A" * 33]
    assert [messages.better_name(wrong) for wrong in hopeless] == hopeless


WORDS = ["true", "yes", "80", "0", "192.168.0.1", "::1", "lan", "web", "www", "http", "", "~", "10.0.0.0/8", "-1", "ü"]
KEYS = ["type", "page", "pool", "lan", "web", "address", "secret", "a b", "Ä"]
VALUES = st.recursive(
    st.sampled_from([*WORDS, "x" * 300]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)),
    max_leaves=6,
)


def places() -> list[KeyPath]:
    """Every place of the smallest profile, and every key that it leaves out."""
    paths: list[KeyPath] = []
    for path in load.load(SHIPPED, "bakery").origins:
        paths.append(path)
        model = field_types.model_of(field_types.at(path))
        paths += [(*path, key) for key in (model.model_fields if model else ())]
    return sorted(set(paths), key=str)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(places()), VALUES, st.sampled_from(places()), VALUES)
def test_no_value_in_any_place_gives_anything_but_a_profile_or_an_error_for_people(
    tmp_path_factory: pytest.TempPathFactory, first: KeyPath, one: object, second: KeyPath, other: object
) -> None:
    data = yaml.load(BAKERY, Loader=yaml.BaseLoader)
    for path, value in ((first, one), (second, other)):
        around = data
        for part in path[:-1]:
            around = around[part] if isinstance(around, dict) and part in around else {}
        if isinstance(around, dict):
            around[path[-1]] = value
    workspace = Workspace(tmp_path_factory.getbasetemp() / "values")
    workspace.profiles.mkdir(parents=True, exist_ok=True)
    write(workspace, "x", yaml.dump(data, default_style='"', allow_unicode=True))
    check_any(workspace)


def test_the_shipped_examples_are_known_as_such_and_only_in_the_clone(tmp_path: Path) -> None:
    assert {*load.names(SHIPPED)} >= EXAMPLES, "each of them is there"
    assert {n for n, path in goldens.PROFILES.items() if path.parent == SHIPPED.profiles} == EXAMPLES
    assert SHIPPED.examples == EXAMPLES
    (tmp_path / "profiles").mkdir()
    assert Workspace(tmp_path).examples == frozenset()


def test_the_examples_in_the_clone_are_no_neighbours(tmp_path: Path) -> None:
    clone = Workspace(tmp_path, shipped=tmp_path)
    (tmp_path / "profiles").mkdir()
    for name in ("bakery", "mine", "other"):
        write(clone, name, bakery(name))

    def beside_it(workspace: Workspace, name: str) -> set[str]:
        return {w.what for w in profiles._beside_the_others(workspace, load.load(workspace, name))}

    assert not [text for text in beside_it(clone, "mine") if "bakery" in text]
    assert [text for text in beside_it(clone, "mine") if "other" in text], "one's own profiles are compared"
    assert beside_it(clone, "bakery") == set()
    assert [text for text in beside_it(Workspace(tmp_path), "mine") if "bakery" in text], "elsewhere it is a profile"


def test_a_profile_knows_how_it_was_called(workspace: Workspace) -> None:
    write(workspace, "x", bakery("x"))
    path = str(workspace.profiles / "x.yaml")
    assert load.load(workspace, "x").called == "x"
    assert load.load(workspace, path).called == path
    with pytest.raises(ImageNotBuilt) as caught:
        images_of(workspace, load.load(workspace, path), ("lb1",))
    assert (
        caught.value.fix == f"build it: ./inv build {path} --builder openwrt (or without --builder, for the lab only)"
    )
