"""What the texts about addresses and subnets tell to write: taken as it stands, and no wider than what was written."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ndakit.model.base import IpAddress, IpRange, IpSubnet


def fix_of(kind: Any, text: str) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(text)
    return str(caught.value.errors()[0]["ctx"]["fix"])


def proposed(fix: str) -> list[str]:
    return re.findall(r"[0-9a-f.:]+/[0-9]+", fix)


WRITTEN = ["192.168.0.254", "192.168.0.0", "10.0.0.1", "2001:db8::7", "2001:db8::", "::ffff:1.2.3.4", "fe80::1%eth0",
           "192.168.0.254/24", "2001:db8::7/64", "fe80::1%eth0/64", "192.168.0.7/99", "192.168.0.7/"]  # fmt: skip


@pytest.mark.parametrize("text", WRITTEN)
@pytest.mark.parametrize("kind", [IpRange, IpSubnet])
def test_a_subnet_that_a_fix_names_is_taken_and_holds_what_was_written(kind: Any, text: str) -> None:
    meant = ip_address(text.split("/")[0].split("%")[0].removeprefix("::ffff:"))
    subnets = proposed(fix_of(kind, text))
    assert subnets
    for subnet in subnets:
        assert meant in TypeAdapter(kind).validate_python(subnet)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("192.168.0.254", "192.168.0.254/32"),
        ("2001:db8::7", "2001:db8::7/128"),
        ("::ffff:1.2.3.4", "1.2.3.4/32"),
        ("fe80::1%eth0", "fe80::1/128"),
    ],
)
def test_one_address_as_a_source_stays_one_address(text: str, right: str) -> None:
    assert proposed(fix_of(IpRange, text))[0] == right
    assert right not in proposed(fix_of(IpSubnet, text))


def test_an_address_with_a_length_as_a_source_can_be_either() -> None:
    assert proposed(fix_of(IpRange, "192.168.0.254/24")) == ["192.168.0.0/24", "192.168.0.254/32"]
    assert proposed(fix_of(IpSubnet, "192.168.0.254/24")) == ["192.168.0.0/24"]


def test_a_name_as_a_source_is_not_missing_a_prefix_length() -> None:
    assert "names are not looked up" in fix_of(IpRange, "office.example.com")
    assert ip_network(proposed(fix_of(IpRange, "office"))[0])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("http://192.168.0.22/", "192.168.0.22"),
        ("https://192.168.0.22:8443/health", "192.168.0.22"),
        ("192.168.0.22:8080", "192.168.0.22"),
        ("192.168.0.22/", "192.168.0.22"),
        ("192.168.0.22/health", "192.168.0.22"),
        ("http://[2001:db8::7]:80/", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:80", "2001:db8::7"),
        ("tcp://192.168.0.22", "192.168.0.22"),
    ],
)
def test_an_address_with_something_around_it_is_proposed_alone(text: str, right: str) -> None:
    fix = fix_of(IpAddress, text)
    assert "prefix length" not in fix
    assert f"write the address alone: {right}" in fix
    assert ("port" in fix) == bool(re.search(r"\d:\d+($|/)|\]:\d", text))
    TypeAdapter(IpAddress).validate_python(right)


@pytest.mark.parametrize("text", ["192.168.0.22/24", "2001:db8::7/64", "192.168.0.22/255.255.255.0"])
def test_an_address_with_a_prefix_length_is_told_so(text: str) -> None:
    assert "leave the prefix length out" in fix_of(IpAddress, text)


@pytest.mark.parametrize("text", ["http://web.example.com/", "web.example.com:80", "web"])
def test_a_name_in_a_url_is_still_a_name(text: str) -> None:
    assert "names are not looked up" in fix_of(IpAddress, text)
