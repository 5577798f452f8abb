"""Redirects: what the profile tells about where they lead, and that the fix of each finding settles it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

import goldens
from ndakit.model import rules

DATA = Path(__file__).resolve().parents[1] / "data"


def codes(text: str) -> set[str]:
    return {f.code for f in rules.findings(goldens.parse(text)) if f.code.startswith("redirect-")}


def changed(name: str, /, **changes: Mapping[str, object]) -> set[str]:
    profile = yaml.safe_load((DATA / f"{name}.yaml").read_text())
    for service, keys in changes.items():
        profile["services"].setdefault(service.replace("_", "-"), {}).update(keys)
        if "pool" in keys:
            profile["services"][service].pop("redirect", None)
    return codes(yaml.safe_dump(profile))


@pytest.mark.parametrize("name", ["redirect-circle", "redirect-circle-of-https"])
def test_a_circle_ends_at_a_pool_or_at_a_name_of_others(name: str) -> None:
    name = f"invalid/{name}"
    assert changed(name) == {"redirect-loop"}
    assert changed(name, secure={"pool": "web"}) == set()
    assert changed(name, secure={"redirect": "http://new.example.org:8080"}) == set()


def test_the_name_of_a_service_leads_to_its_vip() -> None:
    name = "invalid/redirect-name-of-vip"
    assert changed(name) == {"redirect-loop"}
    assert changed(name, web={"redirect": "https://mill.example.com"}) == set()
    assert changed(name, secure={"vip": "api"}) == {"redirect-to-nothing"}
    plain = {"vip": "api", "port": 80, "protocol": "http", "pool": "web"}
    assert changed(name, secure={"vip": "api"}, plain=plain) == set()


def test_a_service_that_says_its_names_is_told_from_the_target() -> None:
    name = "valid/redirect-perhaps-circle"
    assert changed(name) == {"redirect-perhaps-loop"}
    own = {"hostnames": ["own.example.org"]}
    assert changed(name, secure=own, itself=own, below_wildcard=own) == set()


def test_a_target_at_a_vip_has_to_be_served_as_it_is_asked() -> None:
    name = "invalid/redirect-nobody-listens"
    assert changed(name) == {"redirect-to-nothing", "redirect-to-other-scheme"}
    fixed = {
        "web": {"redirect": "http://192.168.0.20:8080"}, "name": {"redirect": "https://mill.example.com"},
        "scheme": {"redirect": "http://192.168.0.20:8080"},
    }  # fmt: skip
    assert changed(name, **fixed) == set()


def test_ipv6_targets_are_compared_as_addresses() -> None:
    text = (DATA / "invalid/redirect-nobody-listens.yaml").read_text()
    text = (
        text[: text.index("  name:")]
        .replace("192.168.0.20", "fd00::20")
        .replace("https://fd00::20", "http://[fd00:0::20]")
    )
    assert codes(text) == {"redirect-to-nothing"}
