"""The stand-in's sysupgrade without a VM: backups, and how it looks at images and disks."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path

import pytest
from standin import disk

from labrig import PROCD, MakeRoot

RELEASES = ("18.06.9", "19.07.10", "21.02.7", "22.03.7", "23.05.6", "24.10.8", "25.12.5")
PACKAGES, DISABLED = "etc/backup/installed_packages.txt", "etc/uci-defaults/10_disable_services"


def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.mark.parametrize("release", RELEASES)
def test_a_backup_of_each_release(make_root: MakeRoot, release: str) -> None:
    """The list of packages from 19.07 on; what is switched off from 24.10 on (openwrt `sbin/sysupgrade` of each)."""
    root = make_root(release=release)
    number = int(release[:2]) * 100 + int(release[3:5])
    root.put("etc/own file", "x\n")
    root.put("etc/sysupgrade.conf", "# mine\n/etc/own*\n\n")
    root.put("etc/sysctl.d/90-mine.conf", "x\n")
    option = "-k " if number >= 1907 else ""
    said = root.run(
        f"{PROCD}/etc/init.d/haproxy enable; sysupgrade {option}-b /root/b.tgz || exit 3\n"
        "sysupgrade -l >/root/listed; ls -a /etc/backup /etc/uci-defaults/10_disable_services\n"
        f"sysupgrade {option}-b - >/root/streamed.tgz\n"
    )
    assert said.code == 0
    assert said.out == ""
    assert "upgrade: Saving config files..." in said.err
    members = _members(root.path / "root/b.tgz")
    assert _members(root.path / "root/streamed.tgz").keys() == members.keys()
    made = {name for name in (PACKAGES, DISABLED) if name in members}
    assert made == ({PACKAGES} if number >= 1907 else set()) | ({DISABLED} if number >= 2410 else set())
    listed = (root.path / "root/listed").read_text().split("\n")[:-1]
    assert {f"/{name}" for name in members.keys() - made} == set(listed)
    # A line of the list is a pattern for a shell: it takes names with blanks, and cannot name one.
    assert {"/etc/config/firewall", "/etc/sysctl.conf", "/etc/passwd", "/etc/own file"} <= set(listed)
    assert "/etc/sysctl.d/90-mine.conf" not in listed
    if number >= 1907:
        lines = members[PACKAGES].decode().splitlines()
        assert "haproxy\tunknown" in lines  # without /rom nobody knows
        assert all(line.count("\t") == 1 for line in lines)
    if number >= 2410:
        assert "/etc/init.d/keepalived disable" in members[DISABLED].decode().splitlines()
        assert "haproxy" not in members[DISABLED].decode()


def test_what_was_added_to_the_image_is_told_apart(make_root: MakeRoot) -> None:
    root = make_root()
    said = root.run(
        "mkdir -p /rom/usr/lib/lab; grep -vxF haproxy /usr/lib/lab/installed >/rom/usr/lib/lab/installed\n"
        f"sysupgrade -k -b - | tar -xzOf - {PACKAGES}"
    )
    lines = said.out.splitlines()
    assert "haproxy\toverlay" in lines
    assert "keepalived\trom" in lines


def test_a_backup_is_put_back(make_root: MakeRoot) -> None:
    said = make_root().run(
        "echo one >/etc/rc.local; sysupgrade -b /tmp/b.tgz; echo two >/etc/rc.local; sysupgrade -r /tmp/b.tgz; "
        "cat /etc/rc.local; sysupgrade -r - </tmp/b.tgz; echo $?; sysupgrade -r /tmp/none; echo $?"
    )
    assert said.out == "one\n0\n1\n"
    assert "Backup archive '/tmp/none' not found." in said.err


def test_a_backup_that_has_no_room_is_none(make_root: MakeRoot) -> None:
    said = make_root().run(
        "head -c 20000 /dev/urandom >/etc/rc.local; mkdir /tmp/small; mount -t tmpfs -o size=4k tmpfs /tmp/small\n"
        "sysupgrade -b /tmp/small/b.tgz; echo $?; ls /tmp/small; sysupgrade -b - >/dev/full; echo $?"
    )
    assert said.out == "1\n1\n"
    assert said.err.count("Failed to create the configuration backup.") == 2


@pytest.mark.parametrize(
    ("release", "options", "says"),
    [
        ("18.06.9", "-k -b /tmp/x", "Invalid option: -k"),
        ("18.06.9", "-u -b /tmp/x", "Invalid option: -u"),
        ("24.10.8", "--frobnicate x", "Invalid option: --frobnicate"),
        ("23.05.6", "-s x", "Invalid option: -s"),
        ("24.10.8", "-c -b /tmp/x", "the lab's stand-in does not know -c"),
        ("24.10.8", "-b /tmp/x /tmp/image", ""),
        ("24.10.8", "", ""),
    ],
)
def test_what_a_release_does_not_know_is_refused(make_root: MakeRoot, release: str, options: str, says: str) -> None:
    said = make_root(release=release).run(f"sysupgrade {options}; echo $?; ls /tmp/x")
    assert said.out.splitlines()[-1] == "1"
    assert says in said.err


# -- images ------------------------------------------------------------------------------------------------------------


def _disk(gpt: bool, root_mib: int) -> bytes:
    """The beginning of a disk as the lab's images have it."""
    where, who, code = disk.layout(16, root_mib), disk.identity("x"), b"\xeb\x63" + bytes(438)
    head = disk.gpt(code, who, where)[0] if gpt else disk.mbr(code, who, where)
    return head + bytes(40000 - len(head))


@pytest.mark.parametrize("gpt", [False, True], ids=["mbr", "gpt"])
def test_partition_tables_are_read_and_compared(make_root: MakeRoot, gpt: bool) -> None:
    """Packed or not, whatever follows the gzip stream; a disk may have more partitions than the image."""
    root = make_root()
    (root.path / "disk").write_bytes(_disk(gpt, 104))
    more = bytearray(_disk(gpt, 104))
    if not gpt:
        more[446 + 32 : 446 + 48] = struct.pack("<8xII", 400000, 2048)
    (root.path / "more").write_bytes(more)
    for name, mib in (("same", 104), ("larger", 112)):
        (root.path / name).write_bytes(_disk(gpt, mib))
        (root.path / f"{name}.gz").write_bytes(gzip.compress(_disk(gpt, mib)) + b"OpenWrt's own data behind it")
    said = root.run(
        ". /lib/upgrade/platform.sh\npartitions /larger\n"
        "for image in same same.gz larger larger.gz; do same_layout /$image /disk; echo $image $?; done\n"
        "same_layout /same /more; echo more $?; same_layout /more /same; echo fewer $?\n"
    )
    bios = ["128 34 478"] if gpt else []
    assert said.out.splitlines() == [
        "1 512 32768", "2 33280 229376", *bios, "same 0", "same.gz 0", "larger 1", "larger.gz 1", "more 0",
        f"fewer {0 if gpt else 1}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("-T /tmp/none", 1, "Image file '/tmp/none' not found."),
        ("-T /tmp/text", 1, "Invalid image type"),
        ("/tmp/text", 1, "Image check failed."),
        ("-T -f /tmp/text /tmp/image", 1, "Unable to determine upgrade device"),
        ("https://example.com/image", 1, "the lab's stand-in does not know an address as an image"),
    ],
)
def test_images_that_cannot_be_written_are_refused(make_root: MakeRoot, options: str, code: int, says: str) -> None:
    root = make_root()
    made = "echo text >/tmp/text; { printf '\\353\\143'; head -c 40000 /dev/zero; } >/tmp/image"
    said = root.run(f"{made}; sysupgrade {options}; echo $?")
    assert said.out.splitlines()[-1] == str(code)
    assert says in said.err


def test_what_was_kept_is_found_on_the_boot_partition_by_its_short_name(make_root: MakeRoot) -> None:
    """At every boot somebody looks: without a disk of its own a system just goes on."""
    said = make_root().run(". /lib/upgrade/platform.sh; restore_config; echo $?")
    assert (said.out, said.err) == ("0\n", "")
