"""A record of a built image, for tests that build none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ndakit.core.files import file_sha256
from ndakit.image import artifacts
from ndakit.image.artifacts import ImageFile, Record


def record(image: Path, **changes: object) -> Record:
    facts = image.stat()
    file = ImageFile(
        image.name, "combined-efi", "squashfs", facts.st_size, file_sha256(image), mtime_ns=facts.st_mtime_ns
    )
    inputs = {"release": "24.10.8", "files": {"/etc/banner": "0644 abc"}}
    made = Record(
        id=artifacts.identity(inputs), inputs=inputs, profile="bakery", node="lb1", hostname="bakery-lb1",
        release="24.10.8", target="x86/64", device="generic", builder="lab", imagebuilder="the lab's",
        source={"fingerprint": "f" * 64}, revision="r1",
        warning="for testing only", argv=("make", "image"), overlay="d" * 64, packages={"haproxy": "3.0"}, lock={},
        images=(file,), sources={"profiles/bakery.yaml": "s" * 64}, warnings=("w",), tools={"ndakit": "0"},
        built_at="2026-01-01T00:00:00+00:00", elapsed_s=1.0, verify=("sha256sum -c SHA256SUMS",),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]  # each test names fields of the dataclass
