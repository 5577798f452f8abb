"""What lies beside an image: the right instructions for its platform, with commands that run as they stand."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from imagebuilder_fakes import PROFILE, workspace_folder
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.image import sidecars
from ndakit.image.artifacts import ImageFile
from ndakit.load import load
from ndakit.render.filters import FILTERS
from places import DATA

STEM = "openwrt-24.10.8-bakery-lb1-x86-64-generic-squashfs-combined-efi"
ENDINGS = {"img": "img.gz", "rootfs": "tar.gz"}
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
PLATFORMS = {
    "bare": ("img", {"On a real machine"}),
    "kvm": ("qcow2", {"With libvirt", "With Proxmox VE"}),
    "vmware": ("vmdk", {"With VMware"}),
    "virtualbox": ("vdi", {"With VirtualBox"}),
    "hyperv": ("vhdx", {"With Hyper-V"}),
    "xen": ("img", {"With Xen"}),
}
ALWAYS = {"The files", "Updating a node that runs"}


def texts(folder: Path, formats: str, *changes: tuple[str, str], warning: str | None = None) -> dict[str, str]:
    """The texts beside node lb1 of a profile with these formats; `changes` are made to its text."""
    text = PROFILE.replace("image: {rootfs_mib: 64}", f"image: {{formats: [{formats}]}}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    workspace = Workspace.at(workspace_folder(folder, text))
    profile = load.load(workspace, "bakery").profile
    sizes = {f: None if f == "rootfs" else 4096 for f in profile.image.formats}
    files = [
        ImageFile(f"{STEM}.{ENDINGS.get(f, f)}", "k", "squashfs", 1000, "ab" * 32, size, format=f)
        for f, size in sizes.items()
    ]
    return sidecars.texts(profile, "lb1", files, warning, workspace.templates)


def platform(name: str) -> tuple[str, str]:
    return ("image:", f"platform: {name}\nimage:")


def commands(text: str, section: str) -> list[str]:
    """The indented lines of a section of FLASH.md."""
    _, _, rest = text.partition(f"## {section}\n")
    return [line[4:] for line in rest.partition("\n## ")[0].splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("name", PLATFORMS)
def test_each_platform_has_its_own_sections_and_no_other(name: str, tmp_path: Path) -> None:
    formats, sections = PLATFORMS[name]
    text = texts(tmp_path, formats, platform(name))["FLASH.md"]
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == sections | ALWAYS
    assert "made by ndakit for bakery, node lb1, from templates/beside/FLASH.md.j2" in text.splitlines()[0]
    assert "ab" * 32 in text
    assert "\n\n\n" not in text


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_same_image_has_the_same_texts(name: str, tmp_path: Path) -> None:
    formats, _ = PLATFORMS[name]
    assert texts(tmp_path / "a", formats, platform(name)) == texts(tmp_path / "b", formats, platform(name))


@pytest.mark.parametrize("name", ["bare", "kvm", "vmware", "virtualbox"])
def test_a_shell_reads_every_command(name: str, tmp_path: Path) -> None:
    formats, sections = PLATFORMS[name]
    text = texts(tmp_path, f"{formats}, rootfs" + (", img" if formats != "img" else ""), platform(name))["FLASH.md"]
    for section in (*sections, "The files", "The root file system", "Updating a node that runs"):
        lines = commands(text, section)
        assert lines, section
        done = subprocess.run(["sh", "-n"], input="\n".join(lines), text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), section


def test_the_commands_for_a_real_machine_write_it_and_notice_a_bad_disk(tmp_path: Path) -> None:
    text = texts(tmp_path / "ws", "img", platform("bare"))["FLASH.md"]
    image = tmp_path / f"{STEM}.img.gz"
    content = bytes(range(256)) * 16
    image.write_bytes(gzip.compress(content) + b"metadata of OpenWrt")
    target = tmp_path / "disk"
    target.write_bytes(b"\xff" * 8192)
    write, check = (line.replace("/dev/sdX", "disk") for line in commands(text, "On a real machine"))
    write = write.replace("of=disk", "of=disk conv=notrunc")  # a real disk keeps its length

    def run(line: str) -> str:
        return subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    run(write)
    assert target.read_bytes() == content + b"\xff" * 4096
    assert run(check) == "written and read back\n"
    target.write_bytes(content[:-1] + b"!" + b"\xff" * 4096)
    assert "differ" in run(check)
    assert "written" not in run(check)


def test_libvirt_gets_the_cards_in_the_kernels_order(tmp_path: Path) -> None:
    change = ("networks: {lan: {nics: [eth0],", "networks: {lan: {nics: [eth1, eth2], bond: {mode: active-backup},")
    files = texts(tmp_path, "qcow2", platform("kvm"), change)
    root = ET.fromstring(files["bakery-lb1.libvirt.xml"])
    bridges = [node.attrib["bridge"] for node in root.iterfind("devices/interface/source")]
    assert bridges == ["br-unused", "br-lan", "br-lan"]
    assert root.findtext("name") == "bakery-lb1"
    facts = {e.tag: e.attrib for e in root.iterfind("devices/disk/*")}
    assert facts["driver"] == {"name": "qemu", "type": "qcow2"}
    assert facts["source"] == {"file": f"/var/lib/libvirt/images/{STEM}.qcow2"}
    assert facts["target"] == {"dev": "vda", "bus": "virtio"}
    rows = re.findall(r"^\| (eth\d) \| (.+) \|$", files["FLASH.md"], re.MULTILINE)
    assert [name for name, _ in rows] == ["eth0", "eth1", "eth2"]
    assert rows[0][1].startswith("nothing: the kernel counts cards without gaps")
    assert rows[1][1] == "network lan, one card of its bond"


@pytest.mark.parametrize(
    ("image", "firmware"), [("{formats: [qcow2]}", "efi"), ("{formats: [qcow2], firmware: bios}", None)]
)
def test_libvirt_starts_it_by_the_images_firmware_without_secure_boot(
    image: str, firmware: str | None, tmp_path: Path
) -> None:
    files = texts(tmp_path, "qcow2", platform("kvm"), ("image: {formats: [qcow2]}", f"image: {image}"))
    system = ET.fromstring(files["bakery-lb1.libvirt.xml"]).find("os")
    assert system is not None
    assert system.attrib.get("firmware") == firmware
    features = [f.attrib for f in system.iterfind("firmware/feature")]
    assert features == ([{"enabled": "no", "name": "secure-boot"}] if firmware else [])


def test_kvm_without_qcow2_starts_from_the_unpacked_raw_image(tmp_path: Path) -> None:
    files = texts(tmp_path, "img", platform("kvm"))
    assert f'file="/var/lib/libvirt/images/{STEM}.img"' in files["bakery-lb1.libvirt.xml"]
    assert f"gunzip -k {STEM}.img.gz" in commands(files["FLASH.md"], "With libvirt")


def test_vmware_imports_the_disk_that_lies_there_with_its_own_cards(tmp_path: Path) -> None:
    change = ("networks: {lan: {nics: [eth0],", "networks: {lan: {nics: [eth0, eth1], bond: {mode: 802.3ad},")
    files = texts(tmp_path, "vmdk", platform("vmware"), change)
    root = ET.fromstring(files["bakery-lb1.ovf"])
    file = root.find(f"{OVF}References/{OVF}File")
    disk = root.find(f"{OVF}DiskSection/{OVF}Disk")
    assert file is not None
    assert disk is not None
    assert (file.attrib[f"{OVF}href"], file.attrib[f"{OVF}size"]) == (f"{STEM}.vmdk", "1000")
    assert (disk.attrib[f"{OVF}capacity"], disk.attrib[f"{OVF}fileRef"]) == ("4096", file.attrib[f"{OVF}id"])
    items = [{e.tag.removeprefix(RASD): e.text for e in item} for item in root.iter(f"{OVF}Item")]
    cards = [item for item in items if item["ResourceType"] == "10"]
    assert [(c["ResourceSubType"], c["Connection"]) for c in cards] == [("VmxNet3", "lan")] * 2
    ids = [item["InstanceID"] for item in items]
    assert len(set(ids)) == len(ids)
    (holder,) = (item["InstanceID"] for item in items if item["ResourceType"] == "20")
    assert [item["Parent"] for item in items if item["ResourceType"] == "17"] == [holder]
    assert [n.attrib[f"{OVF}name"] for n in root.iter(f"{OVF}Network")] == ["lan"]
    assert "efi" in [c.attrib.get("{http://www.vmware.com/schema/ovf}value") for c in root.iter()]


def test_virtualbox_imports_a_vmdk_with_cards_that_it_has(tmp_path: Path) -> None:
    files = texts(tmp_path, "vmdk", platform("virtualbox"))
    assert "<rasd:ResourceSubType>E1000<" in files["bakery-lb1.ovf"]


@pytest.mark.parametrize(
    ("change", "generation"),
    [(("release", "release"), 2), (("formats: [vhdx]", "formats: [vhdx], firmware: bios"), 1),
     (("release: 24.10.8", "release: 24.10.8\ndevice: x86"), 1)],
)  # fmt: skip
def test_hyperv_gets_the_generation_that_boots_it(change: tuple[str, str], generation: int, tmp_path: Path) -> None:
    text = texts(tmp_path, "vhdx", platform("hyperv"), change)["FLASH.md"]
    assert f"-Generation {generation} -MemoryStartupBytes" in text
    assert ("-EnableSecureBoot Off" in text) == (generation == 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("release", "release"), "by EFI (without Secure Boot) and by BIOS."),
        (("[img]", "[img], firmware: bios"), "by BIOS only."),
        (("release: 24.10.8", "release: 24.10.8\ndevice: x86"), "by BIOS, and by EFI of 32 bits"),
    ],
)
def test_it_says_by_what_firmware_it_starts(change: tuple[str, str], says: str, tmp_path: Path) -> None:
    assert f"It starts {says}" in texts(tmp_path, "img", change)["FLASH.md"]


def test_customers_words_do_not_break_xml(tmp_path: Path) -> None:
    change = ("release", 'customer: "A -- <B> & \\"C\\" -->"\nrelease')
    files = texts(tmp_path, "qcow2, vmdk", platform("kvm"), change)
    for name in ("bakery-lb1.libvirt.xml", "bakery-lb1.ovf"):
        assert 'A -- <B> & "C" -->' in "".join(ET.fromstring(files[name]).itertext())


HOSTILE = [
    "<img src=x onerror=alert(1)>", "[click](https://evil.example)", "![x](https://evil.example/p.png)", "`rm -rf /`",
    "<https://evil.example>", "https://evil.example", "www.evil.example", "me@evil.example", "a | b", "*a* _b_ ~~c~~",
    "<!-- x", "&lt;b&gt;", "\\", "\\`", "# x", "[a]: https://evil.example", "$x$", "<script>", "a  ", "]( x",
]  # fmt: skip


@pytest.mark.parametrize("customer", HOSTILE)
def test_a_customers_words_are_words_in_flash_md(customer: str, tmp_path: Path) -> None:
    """By a reader of Markdown that makes links of bare addresses as GitHub does."""
    change = ("release", f"customer: {json.dumps('A ' + customer)}\nrelease")
    text = texts(tmp_path, "qcow2", platform("kvm"), change)["FLASH.md"]
    reader = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"])
    (paragraph,) = [t for t in reader.parse(text) if t.type == "inline" and t.content.startswith("Load balancer")]
    assert {child.type for child in paragraph.children or ()} <= {"text", "text_special"}
    assert f"(A {customer.rstrip()}" in "".join(child.content for child in paragraph.children or ())
    assert not re.search(r"(https?:|www\.|[^\\]@)", paragraph.content)


@pytest.mark.parametrize(
    "bad", ["\uffff", "\ufffe", "\U0001ffff", "\ufdd0", "\u202e", "\u2066", "\u200f", "\x9b", "\x85"]
)
def test_what_xml_or_a_terminal_takes_for_something_else_is_refused(bad: str, tmp_path: Path) -> None:
    change = (
        "release",
        f'customer: "A{json.dumps(bad)[1:-1] if ord(bad) < 0x10000 else f"{chr(92)}U{ord(bad):08X}"}B"\nrelease',
    )
    with pytest.raises(NdakitError, match=f"U\\+{ord(bad):04X}"):
        texts(tmp_path, "qcow2, vmdk", platform("kvm"), change)
    for name in ("xml", "comment", "markdown", "shell", "haproxy", "powershell"):
        with pytest.raises(ValueError, match="control character"):
            FILTERS[name](f"A{bad}B")


def test_names_of_every_script_are_no_control_characters() -> None:
    for name in ("Bäckerei Müller & Söhne", "Пекарня", "مخبز", "מאפייה", "パン屋", "👩‍🍳 Bakery", "a\u200cb"):
        assert FILTERS["comment"](name) == name
        assert ET.fromstring(f"<a>{FILTERS['xml'](name)}</a>").text == name


def test_a_lab_image_says_everywhere_that_it_is_one(tmp_path: Path) -> None:
    files = texts(tmp_path, "qcow2, vmdk", platform("kvm"), warning="Never flash it.")
    assert "**Never flash it.**" in files["FLASH.md"]
    assert all("for testing only" in text for text in files.values())


def test_updates_take_the_raw_image_only(tmp_path: Path) -> None:
    with_img = texts(tmp_path / "a", "qcow2, img", platform("kvm"))["FLASH.md"]
    copy, update = commands(with_img, "Updating a node that runs")
    assert copy == f"scp -O {STEM}.img.gz root@192.168.0.11:/tmp/"
    assert f"sysupgrade -T {STEM}.img.gz && sysupgrade -n {STEM}.img.gz" in update
    without = texts(tmp_path / "b", "qcow2", platform("kvm"))["FLASH.md"]
    assert commands(without, "Updating a node that runs") == []
    assert "write `img` into the profile's `image.formats`" in without


def test_an_ipv6_address_is_bracketed_where_a_port_could_follow(tmp_path: Path) -> None:
    changes = [("192.168.0.0/24, gateway: 192.168.0.254", '"2001:db8::/64", gateway: "2001:db8::fe"')]
    changes.append(("office: 192.168.0.0/24", 'office: "2001:db8::/64"'))
    changes += [(f"192.168.0.{n}", f'"2001:db8::{n}"') for n in (11, 12, 10, 21, 22)]
    text = texts(tmp_path, "img", *changes)["FLASH.md"]
    assert "root@[2001:db8::11]:/tmp/" in text
    assert "ssh root@2001:db8::11 " in text


def test_a_device_with_flash_is_told_which_file_is_written_how(tmp_path: Path) -> None:
    text = PROFILE.replace("image: {rootfs_mib: 64}", "device: dockstar")
    workspace = Workspace.at(workspace_folder(tmp_path, text))
    profile = load.load(workspace, "bakery").profile
    names = {kind: f"openwrt-24.10.8-bakery-lb1-x-squashfs-{kind}.bin" for kind in ("factory", "sysupgrade")}
    files = [ImageFile(name, kind, "squashfs", 1000, "ab" * 32) for kind, name in names.items()]
    text = sidecars.texts(profile, "lb1", files, None, workspace.templates)["FLASH.md"]
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == {"On the device"} | ALWAYS
    assert commands(text, "On the device")[-1] == f"ubiformat /dev/mtdN -y -f {names['factory']}"
    update = "\n".join(commands(text, "Updating a node that runs"))
    assert f"sysupgrade -n {names['sysupgrade']}" in update
    assert names["factory"] not in update
    assert "\n\n\n" not in text


def test_an_update_goes_to_the_ssh_port_of_the_profile(tmp_path: Path) -> None:
    usual = commands(texts(tmp_path / "usual", "img")[sidecars.FLASH], "Updating a node that runs")
    moved = commands(
        texts(tmp_path / "moved", "img", ("access:\n", "access:\n  ssh: {port: 2222}\n"))[sidecars.FLASH],
        "Updating a node that runs",
    )
    assert [line.split("root@")[0] for line in usual] == [f"scp -O {STEM}.img.gz ", "ssh "]
    assert [line.split("root@")[0] for line in moved] == [f"scp -O -P 2222 {STEM}.img.gz ", "ssh -p 2222 "]


BOND = ("networks: {lan: {nics: [eth0],", "networks: {lan: {nics: [eth0, eth1], bond: {mode: MODE},")


@pytest.mark.parametrize("mode", ["802.3ad", "active-backup"])
@pytest.mark.parametrize("name", PLATFORMS)
def test_each_platform_is_told_what_a_bond_needs(name: str, mode: str, tmp_path: Path) -> None:
    formats, _ = PLATFORMS[name]
    files = texts(tmp_path, formats, platform(name), (BOND[0], BOND[1].replace("MODE", mode)))
    flash = re.sub(r"\s+", " ", files["FLASH.md"])
    lacp = mode == "802.3ad"
    assert "| bond-lan | lan | eth0 eth1 | " in flash
    assert ("LACP (802.3ad), active, fast" in flash) == lacp
    assert ("MLAG pair" in flash) == lacp
    assert ("A bond belongs to the host here." in flash) == (name != "bare")
    assert ("keeps LACP to itself" in flash) == (lacp and name != "bare")
    assert ("speed=10000,duplex=full" in flash) == (lacp and name == "kvm")
    for text in (t for file, t in files.items() if file != "FLASH.md"):
        ET.fromstring(text)
        assert "are the bond bond-lan" in text and "FLASH.md" in text
        assert ("LACP" in text) == lacp
    assert "\n\n\n" not in files["FLASH.md"]


def test_without_a_bond_nothing_is_said_of_one(tmp_path: Path) -> None:
    assert not any("bond" in text.lower() for text in texts(tmp_path, "qcow2", platform("kvm")).values())


RSA_KEY = DATA.joinpath("golden/fw3-1907/lb1/etc/dropbear/authorized_keys")


@pytest.mark.parametrize(("release", "said"), [("19.07.10", True), ("24.10.8", False)])
def test_an_ssh_server_that_signs_with_sha_1_only_is_said(release: str, said: bool, tmp_path: Path) -> None:
    key = next(line for line in RSA_KEY.read_text().splitlines() if line.startswith("ssh-rsa"))
    old_key = next(line for line in PROFILE.splitlines() if "ssh-ed25519" in line)
    new_key = re.sub(r"ssh-ed25519 [^}]*", key, old_key)
    changes = [("release: 24.10.8", f"release: {release}"), (old_key, new_key)]
    text = texts(tmp_path, "img", *changes, ("formats: [img]", "firmware: bios, formats: [img]"))["FLASH.md"]
    assert ("-o HostKeyAlgorithms=+ssh-rsa -o PubkeyAcceptedAlgorithms=+ssh-rsa" in text) is said
