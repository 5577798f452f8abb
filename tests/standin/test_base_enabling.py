"""Every init script of the lab's packages can be enabled where images are built: nothing of the image lies there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from places import LAB

BASE = LAB / "base/packages"
SCRIPTS = sorted(p for p in BASE.glob("*/etc/init.d/*") if p.read_bytes().startswith(b"#!/bin/sh /etc/rc.common"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parents[2].name}-{p.name}")
def test_an_init_script_is_enabled_as_an_image_is_built(script: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(BASE / "base-files", root, symlinks=True)
    for folder in ("etc/init.d", "etc/rc.d", "usr/lib/lab"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "usr/lib/lab/family").write_text("release=24.10.8\nnumber=2410\n")
    shutil.copy(script, root / "etc/init.d" / script.name)
    argv = ["/bin/sh", str(root / "etc/rc.common"), f"./etc/init.d/{script.name}", "enable"]
    environment = {"PATH": "/usr/bin:/bin", "IPKG_INSTROOT": str(root)}
    done = subprocess.run(argv, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert list((root / "etc/rc.d").glob(f"[SK]*{script.name}"))
