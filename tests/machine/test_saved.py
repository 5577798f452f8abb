"""Where the state of a machine is kept: another place for whatever would not fit it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ndakit.machine import saved
from ndakit.machine.accelerator import TCG, Accelerator, Qemu
from ndakit.machine.spec import Disk, Nic, VmSpec

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), (7, 2), "7.2.15 (Debian 1:7.2+dfsg-7+deb12u12)")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VmSpec:
    monkeypatch.setattr(saved, "find_qemu", lambda: QEMU)
    for name in ("kernel", "initrd", "root"):
        (tmp_path / name).write_text(name)
    disk = Disk(tmp_path / "root", read_only=True)
    card = Nic("seg0", "52:54:00:00:00:01")
    return VmSpec("one", 128, (disk,), (card,), kernel=tmp_path / "kernel", initrd=tmp_path / "initrd", append="quiet")


def place(spec: VmSpec, accelerator: Accelerator = TCG) -> Path | None:
    return saved.place(spec, accelerator, cache=Path("/cache"))


def test_machines_that_differ_in_their_name_and_cables_only_share_a_state(spec: VmSpec) -> None:
    class Cable:
        guest_path = switch_path = Path("/run/cable")

        def carrier(self, up: bool) -> None:
            """Nobody looks."""

    plugged = tuple(replace(nic, segment_port=Cable()) for nic in spec.nics)
    folder = place(spec)
    assert folder is not None
    assert folder.parent == Path("/cache/machines")
    assert place(replace(spec, name="two", nics=plugged)) == folder


def test_whatever_a_state_depends_on_leads_to_another_place(spec: VmSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [
        place(spec),
        place(replace(spec, memory_mib=256)),
        place(replace(spec, nics=(*spec.nics, Nic("seg1", "52:54:00:00:00:02")))),
        place(replace(spec, nics=(Nic("seg0", "52:54:00:00:00:09"),))),
        place(replace(spec, append="quiet mitigations=off")),
        place(replace(spec, agent_serial=True)),
        place(spec, _Slow("tcg", "asked for")),
    ]
    root = spec.disks[0].path
    root.write_text("toor")
    os.utime(root, (1, 1))
    folders.append(place(spec))
    monkeypatch.setattr(saved, "find_qemu", lambda: replace(QEMU, text="7.2.16"))
    folders.append(place(spec))
    assert None not in folders
    assert len(set(folders)) == len(folders)


class _Slow(Accelerator):
    """The same with another option of QEMU."""

    def arguments(self) -> list[str]:
        return ["-accel", "tcg,thread=single"]


def test_a_machine_that_writes_its_disk_or_has_a_real_processor_is_not_kept(spec: VmSpec) -> None:
    assert place(replace(spec, disks=(Disk(spec.disks[0].path),))) is None
    assert place(spec, Accelerator("kvm", "tried")) is None
