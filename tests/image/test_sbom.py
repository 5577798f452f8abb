"""The bill of materials: right by the official schema, the same bytes every time, with what packages say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from ndakit.image import sbom
from ndakit.image.artifacts import Record
from ndakit.image.sbom import PackageFacts
from records import record

FACTS = {
    "haproxy": PackageFacts("GPL-2.0-or-later LGPL-2.1-or-later", "cpe:/a:haproxy:haproxy", "x86_64"),
    "odd": PackageFacts("as is, see README", "", "all"),
    "both": PackageFacts("MIT OR Apache-2.0", "cpe:/a:b:both", "x86_64"),
}
PACKAGES = {"haproxy": "3.0.11-r1", "libc": "1.2.5-r4", "odd": "2024-01-01~ab+1", "both": "1:2"}


def made(folder: Path, **changes: Any) -> Record:
    image = folder / "x.img.gz"
    image.write_bytes(b"disk")
    return replace(record(image), **({"builder": "openwrt", "warning": None, "packages": PACKAGES} | changes))


def valid(text: str) -> bool:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def components(folder: Path, **changes: Any) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in json.loads(sbom.document(made(folder, **changes), FACTS))["components"]}


@pytest.mark.parametrize("builder", ["lab", "openwrt"])
@pytest.mark.parametrize("release", ["18.06.9", "24.10.8", "25.12.0-rc2"])
def test_it_is_right_by_the_official_schema(builder: str, release: str, tmp_path: Path) -> None:
    assert valid(sbom.document(made(tmp_path, builder=builder, release=release), FACTS))


def test_the_schema_notices_a_wrong_licence_and_a_missing_name(tmp_path: Path) -> None:
    text = sbom.document(made(tmp_path), FACTS)
    assert not valid(text.replace('"GPL-2.0-or-later"', '"GPL-2-or-so"'))
    assert not valid(text.replace('"name": "libc"', '"called": "libc"'))


def test_every_spdx_identifier_we_know_is_one(tmp_path: Path) -> None:
    facts = {"libc": PackageFacts(" ".join(sorted(sbom.SPDX)))}
    text = sbom.document(made(tmp_path), facts)
    assert valid(text)
    assert text.count('"id": ') == len(sbom.SPDX)


def test_the_same_image_has_the_same_bytes_and_another_one_another_serial(tmp_path: Path) -> None:
    one = made(tmp_path)
    text = sbom.document(one, FACTS)
    later = replace(
        one, built_at="2030-01-01T00:00:00+00:00", elapsed_s=99.0, packages=dict(reversed(PACKAGES.items()))
    )
    assert sbom.document(later, FACTS) == text
    other = replace(one, id="0" * 64)
    assert json.loads(sbom.document(other, FACTS))["serialNumber"] != json.loads(text)["serialNumber"]
    assert "timestamp" not in text


def test_packages_have_version_address_licence_and_cpe(tmp_path: Path) -> None:
    by_name = components(tmp_path)
    assert list(by_name) == sorted(PACKAGES)
    haproxy = by_name["haproxy"]
    assert haproxy["purl"] == "pkg:opkg/openwrt/haproxy@3.0.11-r1?arch=x86_64&distro=openwrt-24.10.8"
    assert haproxy["cpe"] == "cpe:/a:haproxy:haproxy:3.0.11"
    assert [licence["license"] for licence in haproxy["licenses"]] == [
        {"id": "GPL-2.0-or-later"},
        {"id": "LGPL-2.1-or-later"},
    ]
    assert "licenses" not in by_name["libc"]
    assert by_name["odd"]["licenses"] == [{"license": {"name": "as is, see README"}}]
    assert by_name["odd"]["purl"].startswith("pkg:opkg/openwrt/odd@2024-01-01~ab%2B1?")
    assert by_name["both"]["licenses"] == [{"license": {"name": "MIT OR Apache-2.0"}}]
    assert "cpe" not in by_name["both"]


def test_package_addresses_follow_the_package_manager(tmp_path: Path) -> None:
    assert components(tmp_path, release="25.12.1")["libc"]["purl"].startswith("pkg:apk/openwrt/libc@1.2.5-r4?")
    assert components(tmp_path, builder="lab")["libc"]["purl"] == "pkg:generic/libc@1.2.5-r4"


def test_packages_of_the_workspace_are_not_said_to_be_openwrts(tmp_path: Path) -> None:
    by_name = components(tmp_path, inputs={"local_packages": {"odd": "2024-01-01~ab+1 hash"}})
    assert by_name["odd"]["purl"] == "pkg:generic/odd@2024-01-01~ab%2B1"
    assert by_name["libc"]["purl"].startswith("pkg:opkg/openwrt/")


def test_image_files_are_named_with_their_hashes(tmp_path: Path) -> None:
    one = made(tmp_path)
    (file,) = json.loads(sbom.document(one, FACTS))["metadata"]["component"]["components"]
    assert (file["name"], file["hashes"]) == ("x.img.gz", [{"alg": "SHA-256", "content": one.images[0].sha256}])


def test_what_opkg_and_apk_packages_say_is_read_from_the_root(tmp_path: Path) -> None:
    info = tmp_path / "opkg/build_dir/target-x86_64_musl/root-x86/usr/lib/opkg/info"
    info.mkdir(parents=True)
    (info / "haproxy.control").write_text(
        "Package: haproxy\nVersion: 3.0.11-r1\nLicense: GPL-2.0-or-later\nCPE-ID: cpe:/a:haproxy:haproxy\n"
        "Architecture: x86_64\nDescription: a balancer\n License: not this one\n"
    )
    assert sbom.package_facts(tmp_path / "opkg") == {
        "haproxy": PackageFacts("GPL-2.0-or-later", "cpe:/a:haproxy:haproxy", "x86_64")
    }
    database = tmp_path / "apk/build_dir/target-x86_64_musl/root-x86/lib/apk/db/installed"
    database.parent.mkdir(parents=True)
    database.write_text("C:Q1x\nP:haproxy\nV:3.0.11-r1\nA:x86_64\nL:GPL-2.0-or-later\nF:etc\n\nP:libc\nV:1\nL:MIT\n\n")
    assert sbom.package_facts(tmp_path / "apk") == {
        "haproxy": PackageFacts("GPL-2.0-or-later", "", "x86_64"), "libc": PackageFacts("MIT", "", ""),
    }  # fmt: skip
    assert sbom.package_facts(tmp_path) == {}
