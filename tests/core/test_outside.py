"""Whatever reads what comes from outside ends in its own kind of error for every input, never in another exception."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mirror
from ndakit.build import lockfile  # fmt: skip
from ndakit.core import json_text
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.image import artifacts, disk, flash
from ndakit.imagebuilder import diagnosis, make_steps, output
from ndakit.imagebuilder.fetch import archive, gpg, usign
from ndakit.load import load
from ndakit.packages import apk, ipk

DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b"a = " + b"[" * 100_000, b"{" * 100_000, b"- " * 50_000, b"a: " * 50_000]
ODD = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"9" * 10_000,
    b"x" * 100_000,
    b"nan",
    b"\x1f\x8b",
    b"FWx0" + b"\xff" * 12,
]


def tar(**headers: str) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as sink:
        info = tarfile.TarInfo("top/control.tar.gz")
        info.size, info.pax_headers = 600, headers
        sink.addfile(info, io.BytesIO(b"x" * 600))
    return plain.getvalue()


TARS = [tar(), tar(mtime="nan"), tar(size="9" * 5000), tar(size="-1"), tar(**{"GNU.sparse.map": "1,x"}), tar(path="\0")]
PACKED = [*(gzip.compress(t) for t in TARS), *(gzip.compress(t)[:-9] for t in TARS[:2]), gzip.compress(b"x" * 700)]
LISTS = [b'Current Target: "x"\nAvailable Profiles:\n\na:\n  b\n  Packages: c\n', b"a - 1\n", b"PROFILE_NAMES = x\n"]


def to_file(reader: Callable[[Path], object], name: str = "file") -> Callable[[Path, bytes], object]:
    def read(folder: Path, data: bytes) -> object:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return reader(folder / name)

    return read


def unpack(path: Path) -> Path:
    into = path.parent / "into"
    into.mkdir(exist_ok=True)
    return archive.unpack(path, into, path.parent / "log")


def profile(path: Path) -> object:
    return load.load(Workspace(path.parents[1]), "a")


def text(reader: Callable[[str], object]) -> Callable[[Path, bytes], object]:
    return lambda _, data: reader(data.decode(errors="replace"))


Reader = Callable[[Path, bytes], object]
READERS: dict[str, tuple[Reader, tuple[type[Exception], ...], list[bytes]]] = {
    "ipk": (to_file(ipk.control), (ipk.NotAnIpk,), PACKED),
    "apk": (to_file(apk.header), (apk.NotAnApk,), [b"ADB.pckg\x20\0\0\0" + b"\xff" * 40, b"ADBd\0", b"ADBc\1\0x"]),
    "flash image": (to_file(flash.read), (NdakitError,), [*TARS, b"UBI#" + b"\0" * 5000]),
    "disk": (to_file(disk.inspect), (NdakitError,),
             [*PACKED, gzip.compress(b"\0" * 510 + b"\x55\xaa" + b"\xff" * 9000)]),
    "root archive": (to_file(disk.inspect_archive), (NdakitError,),
                     [*PACKED, *(PACKED[0][:length] for length in range(1, 14))]),
    "signature": (to_file(flash.cut_signature), (), [b"x" * 600 + b"FWx0" + bytes(10) + b"\2\x14"]),
    "imagebuilder": (to_file(unpack, "a.tar.xz"), (NdakitError,), [mirror.compressed(t, ".tar.xz") for t in TARS]),
    "lock file": (to_file(lockfile.read, "a.lock"), (NdakitError,),
                  [b"format = 1\nlab = 1\n", b"format = 1\n[lab]\nnodes = 1\n"]),
    "record": (to_file(lambda p: artifacts.Artifact.load(p.parent), "a/b/record.json"), (NdakitError,),
               [b'{"format": 2}']),
    "profile": (to_file(profile, "profiles/a.yaml"), (NdakitError,), [b"name: a\nrelease: [x\n", b"? [a]\n: b\n"]),
    "usign key": (text(usign.public_key), (ValueError,), [b"untrusted comment: x\nRWQ=\n"]),
    "usign signature": (text(usign.signature), (ValueError,), [b"untrusted comment: x\nRWQ=\n"]),
    "gpg": (text(lambda t: gpg.verdict(t, set())), (),
            [b"[GNUPG:] BADSIG\n", b"[GNUPG:] VALIDSIG\n[GNUPG:] NO_PUBKEY\n"]),
    "json": (lambda _, data: json_text.parse(data), (ValueError,), [b'{"a": NaN}']),
    "overview": (text(lambda t: output.overview(t, "a")), (ValueError,),
                 [b'{"profiles": {"a": {"images": [1]}}}', b"[]"]),
    "info": (text(output.info), (), LISTS),
    "manifest": (text(output.manifest), (), LISTS),
    "package list": (text(output.package_names), (), LISTS),
    "makefile": (text(make_steps.read), (), [b"_call_image: a\n\t$(MAKE) x\n\n"]),
    "output": (
        text(lambda t: diagnosis.diagnose(t, diagnosis.Context("log", "d", (), 64, tuple))), (),
        [b"Failed to download http://[::1, wget returned 9999999\nUnknown package 'a'.\n",
         b"error: a\n  where: b\n  fix:   c\n"],
    ),
}  # fmt: skip


def tried(name: str, folder: Path, data: bytes) -> None:
    reader, expected, _ = READERS[name]
    try:
        reader(folder, data)
    except expected as error:
        said = error.text() if isinstance(error, NdakitError) else str(error)
        assert said.strip()


@pytest.mark.parametrize("name", READERS)
def test_odd_inputs_end_in_the_readers_own_error(name: str, tmp_path: Path) -> None:
    for number, data in enumerate([*DEEP, *ODD, *READERS[name][2], *TARS, *PACKED]):
        folder = tmp_path / str(number)
        folder.mkdir()
        tried(name, folder, data)


@pytest.mark.parametrize("name", READERS)
def test_no_bytes_end_in_anything_but_the_readers_own_error(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    samples = st.sampled_from([*READERS[name][2], *ODD[1:], json.dumps({"format": 2, "images": []}).encode()])

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(samples, st.integers(0, 2**16), st.binary(max_size=12), st.integers(0, 40))
    def mutated(sample: bytes, at: int, piece: bytes, cut: int) -> None:
        place = at % (len(sample) + 1)
        tried(name, tmp_path_factory.mktemp("x"), sample[:place] + piece + sample[place + cut :])

    mutated()
