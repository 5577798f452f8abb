"""Backups and builds whose JSON somebody wrote by hand: whatever stands in it, there is a text and no traceback, and
one broken backup never hides the others."""

from __future__ import annotations

import copy
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import fake_box
from ndakit.build import from_recipe, pipeline, plan
from ndakit.cli import backup as cli_backup
from ndakit.cli.flash import flash_node
from ndakit.core.errors import NdakitError
from ndakit.core.files import file_sha256
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts
from ndakit.image.artifacts import Artifact, ImageFile
from ndakit.imagebuilder.request import check_request, wanted_knobs
from ndakit.load import load
from ndakit.load.load import Loaded
from ndakit.operate import backup, backups, rebuild
from ndakit.operate.backup import AtHand, Wanted
from ndakit.operate.backups import Backup, BackupBroken
from ndakit.operate.import_ import importer, sources
from ndakit.operate.tar_files import ArchiveRefused

PROFILE = """\
name: shop
release: 24.10.8
access: {ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me},
  sources: {noc: 192.168.0.0/24}}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}
nodes: {lb1: {addresses: {lan: 192.168.0.11}}}
"""
HUGE = "a number of 5000 digits"
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 10**30, HUGE, 1.5, 1e308, "", "x", "\ud800", "\x1b[2J\n\u202e", "../../x", "/", "a b",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "\u0662\u0664.10.8", "99.99.1",
    "a" * 5000, [], ["x"], [[]], ["../x", "/etc", "/usr/share/ndakit"], {}, {"x": []}, {"/a": "0644 " + "0" * 64},
    {"\ud800": "\ud800"}, {"x": {"x": {"x": []}}},
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("work")
    (root / "profiles").mkdir()
    (root / "profiles/shop.yaml").write_text(PROFILE)
    return Workspace(root)


@pytest.fixture(scope="module")
def shop(place: Workspace) -> Loaded:
    return load.load(place, "shop")


@pytest.fixture(scope="module")
def whole(place: Workspace, shop: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Backup:
    box = fake_box.make(tmp_path_factory.mktemp("tree") / "box", place, shop, "lb1")
    box.write("/etc/config/snmpd", "config agent\n")
    wanted = Wanted("shop", "lb1", "the box", "192.0.2.11", ("ssh-ed25519 SHA256:AAAA",))
    return backup.take(fake_box.TreeShell(box), wanted, tmp_path_factory.mktemp("whole") / "backups", known=AtHand())


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a JSON value, from the top."""
    yield at
    if isinstance(value, dict):
        for key in list(value)[:30]:
            yield from places(value[key], (*at, key))
    if isinstance(value, list):
        for number in range(min(len(value), 1)):
            yield from places(value[number], (*at, number))


def forged(value: Any) -> Iterator[tuple[str, bytes]]:
    """The value with something else at each of its places, as JSON; also with each key left out."""
    for at in places(value):
        for other in (*(VALUES if len(at) < 2 else VALUES[::3]), ...):
            told = copy.deepcopy(value)
            if not at:
                told = other
            else:
                inner = told
                for step in at[:-1]:
                    inner = inner[step]
                if other is ...:
                    del inner[at[-1]]
                else:
                    inner[at[-1]] = other
            if told is not ...:
                yield f"{at}: {other!r:.40}", _json(told)


def _json(value: object) -> bytes:
    return json.dumps(value).replace(f'"{HUGE}"', "9" * 5000).encode()  # Python writes no such number itself


def copied(whole: Backup, folder: Path, record: bytes) -> Path:
    """A backup with another record. Its files are hard links to those of the whole one."""
    folder.mkdir(parents=True)
    for file in whole.record.files:
        (folder / file.name).hardlink_to(whole.folder / file.name)
    (folder / backups.RECORD).write_bytes(record)
    return folder


@pytest.mark.long
def test_whatever_stands_in_backup_json_the_others_are_listed_and_no_task_breaks(
    whole: Backup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`backups`, `rebuild` and `import` with each hostile value in each field."""
    elsewhere = Workspace(tmp_path / "fresh")
    (elsewhere.root / "profiles").mkdir(parents=True)
    node = elsewhere.backups / "shop/lb1"
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    count = 0
    taken: list[str] = []
    for words, record in forged(json.loads((whole.folder / backups.RECORD).read_text())):
        count += 1
        folder = copied(whole, node / (begin + timedelta(seconds=count)).strftime("%Y%m%dT%H%M%SZ"), record)
        try:
            one = backups.load(folder)
        except BackupBroken as broken:
            assert str(folder) in broken.where, words
            with pytest.raises(BackupBroken):
                sources.read(str(folder))
            continue
        taken.append(words)
        with_files = sources.read(str(folder))
        if any(f"('{field}'" in words for field in ("node", "release", "target", "hostname", "board")):
            _quietly(lambda: importer.convert(elsewhere, "e2", [with_files], [], ""), words)  # noqa: B023  # at once
        _prepared(one, tmp_path / "scratch", words)
    copied(whole, node / "20270101T000000Z", (whole.folder / backups.RECORD).read_bytes())
    elsewhere.backups.chmod(0o700)
    cli_backup.show_backups(elsewhere, None, None, as_json=False)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == count + 3, "a line for each, and the head"
    assert len(taken) > 20, "what decides nothing may say anything"
    cli_backup.show_backups(elsewhere, None, None, as_json=True)
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) == count + 1
    assert listed[-1]["whole"]


def _quietly(act: Any, words: str) -> Any:
    try:
        return act()
    except NdakitError as error:
        assert error.fix, words
        return None


def _prepared(one: Backup, scratch: Path, words: str) -> None:
    """As `rebuild` does it, until the ImageBuilder begins."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()

    def act() -> None:
        made_of = rebuild.prepare(one, (), scratch, as_built=False).made_of
        facts = from_recipe.facts_of(made_of)
        request = made_of.asked.request(scratch / "files")
        check_request(request, facts.release)
        wanted_knobs(request)
        pipeline.put_facts(scratch / "files", made_of)

    _quietly(act, words)


@pytest.mark.parametrize("field", ["image_id", "builder", "fingerprint", "recipients", "original", "node", "taken_at"])
def test_whether_a_backup_matches_its_profile_is_said_whatever_its_record_says(
    place: Workspace, whole: Backup, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "backups"
    root.mkdir(mode=0o700)
    record = json.loads((whole.folder / backups.RECORD).read_text())
    for number, value in enumerate(VALUES):
        copied(whole, root / f"shop/lb1/20260101T0000{number:02}Z", _json({**record, field: value}))
    cli_backup.show_backups(place, None, root, as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == len(VALUES) + 2


@pytest.mark.long
def test_whatever_stands_in_a_recipe_rebuild_ends_with_a_text(whole: Backup, tmp_path: Path) -> None:
    path = "image/usr/share/ndakit/recipe.json"
    with tarfile.open(whole.folder / "image.tar.gz") as tar:
        inside = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    (recipe,) = [json.loads(content) for member, content in inside if member.name == path]
    for words, text in forged(recipe):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w") as out:
            for member, content in inside:
                now = text if member.name == path else content
                member.size = len(now)
                out.addfile(member, io.BytesIO(now))
        shutil.rmtree(tmp_path / "forged", ignore_errors=True)
        _prepared(replaced(whole, tmp_path / "forged", "image.tar.gz", sink.getvalue()), tmp_path / "scratch", words)


def replaced(whole: Backup, folder: Path, name: str, content: bytes, **more: object) -> Backup:
    """A backup in which somebody has replaced a file, and its size and hash with it."""
    shutil.copytree(whole.folder, folder)
    (folder / name).write_bytes(content)
    record = json.loads((folder / backups.RECORD).read_text())
    for file in record["files"]:
        if file["name"] == name:
            file |= {"size_bytes": len(content), "sha256": file_sha256(folder / name)}
    (folder / backups.RECORD).write_text(json.dumps(record | more))
    return backups.load(folder)


def test_whatever_stands_in_the_record_of_a_build_there_is_a_text(
    place: Workspace, shop: Loaded, tmp_path: Path
) -> None:
    image = tmp_path / "x.img"
    image.write_bytes(b"x" * 100)
    told = artifacts.Record(
        id="0" * 64, inputs={"release": "24.10.8", "image": {"rootfs_mib": 1}}, profile="shop", node="lb1",
        hostname="shop-lb1", release="24.10.8", target="x86/64", device="generic", builder="lab", imagebuilder="lab",
        source={"fingerprint": "x"}, revision="r1", warning=None, argv=("make",), overlay="0",
        packages={"haproxy": "1"}, lock={}, sources={"a": "b"},
        images=(ImageFile("x.img", "combined", "squashfs", 100, file_sha256(image), 100),),
        warnings=(), tools={"make": "4"}, built_at="2026-01-01T00:00:00+00:00", elapsed_s=1.0, verify=(),
    )  # fmt: skip
    (tmp_path / "scratch").mkdir()
    folder = artifacts.store(told, [image], place.images / "shop/lb1", tmp_path / "scratch").folder
    for words, text in forged(json.loads((folder / artifacts.RECORD).read_text())):
        (folder / artifacts.RECORD).write_bytes(text)

        def act() -> None:
            artifact = Artifact.load(folder)
            artifact.verify()
            plan.outdated(place, shop, "lb1", artifact.record)

        _quietly(act, words)
        backup.at_hand(place, shop, "lb1")
        to = tmp_path / "disk.img"
        _quietly(
            lambda: flash_node(place, str(folder), None, str(to), "disk.img", as_built=False, as_json=False),  # noqa: B023
            words,
        )


def member(name: str, content: bytes = b"x", mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    one = tarfile.TarInfo(name)
    one.size, one.mode = len(content), mode
    return one, content


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as out:
        for one, content in members:
            out.addfile(one, io.BytesIO(content))
    return sink.getvalue()


@pytest.mark.parametrize(("mode", "kept"), [(0o1644, 0o644), (0o6777, 0o777), (0o4755, 0o755)])
def test_a_mode_that_no_file_of_an_image_has_is_told_with_its_file(
    whole: Backup, tmp_path: Path, mode: int, kept: int
) -> None:
    config = packed(member("etc/config/snmpd", mode=mode))
    one = replaced(whole, tmp_path / "forged", "config.tar.gz", config)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    prepared = rebuild.prepare(one, (), scratch, as_built=False)
    assert prepared.changes.added == ("/etc/config/snmpd",)
    assert prepared.changes.left_out == (f"/etc/config/snmpd: of its mode {mode:04o} the image gets {kept:04o}",)
    assert (prepared.files / "etc/config/snmpd").stat().st_mode & 0o7777 == kept
    assert prepared.made_of.files["/etc/config/snmpd"].startswith(f"{kept:04o} ")


def test_such_a_mode_of_a_file_of_the_images_own_is_told_too(place: Workspace, shop: Loaded, tmp_path: Path) -> None:
    box = fake_box.make(tmp_path / "box", place, shop, "lb1")
    (box.root / "etc/banner").chmod(0o1644)
    wanted = Wanted("shop", "lb1", "the box", "192.0.2.11", ())
    one = backup.take(fake_box.TreeShell(box), wanted, tmp_path / "backups", known=AtHand())
    assert one.record.differences.changed == ("/etc/banner",)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    changes = rebuild.prepare(one, (), scratch, as_built=False).changes
    assert changes.left_out == ("/etc/banner: of its mode 1644 the image gets 0644",)


@pytest.mark.parametrize(
    "path", ["etc/banner/x", "etc/config", "usr/share/ndakit", "usr/share/ndakit/image.json/x", "etc/" + "a" * 400]
)
def test_a_file_where_the_image_has_a_folder_is_refused_as_an_archive(whole: Backup, tmp_path: Path, path: str) -> None:
    differences = json.loads((whole.folder / backups.RECORD).read_text())["differences"] | {"added": [f"/{path}"]}
    config = packed(member(path))
    one = replaced(whole, tmp_path / "forged", "config.tar.gz", config, differences=differences)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ArchiveRefused, match="this archive is refused") as refused:
        rebuild.prepare(one, (), scratch, as_built=False)
    assert str(scratch) not in refused.value.text()
    assert refused.value.exit_code == 2


def test_what_a_record_says_was_installed_and_cannot_be_is_the_records_fault(whole: Backup, tmp_path: Path) -> None:
    differences = json.loads((whole.folder / backups.RECORD).read_text())["differences"]
    content = (whole.folder / "packages.txt").read_bytes()
    differences["packages_added"] = ["haproxy;reboot"]
    one = replaced(whole, tmp_path / "forged", "packages.txt", content, differences=differences)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BackupBroken, match="no image can be made of what it says of the box: its packages is"):
        rebuild.prepare(one, (), tmp_path / "scratch", as_built=False)
