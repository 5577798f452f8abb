"""Balancers as people build and post them: what becomes of each is kept beside it, the lines that no key says with it.

After a change: `python tests/operate/test_import_corpus.py --accept` rewrites tests/data/imports/*/profile.yaml; read
the difference as the customer would.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ndakit.core.workspace import Workspace
from ndakit.operate.import_ import importer, sources
from ndakit.operate.import_.refine import Imported

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted(p for p in (ROOT / "tests/data/imports").iterdir() if p.is_dir())
SECRETS = ("1111", "sEcReT", "geheim", "0123456789abcdef", "$6$salt$hash", "insecure-password gast")


def read(case: Path) -> Imported:
    """A case: one folder for each node."""
    nodes = [sources.read(str(node)) for node in sorted(case.iterdir()) if node.is_dir()]
    for node in nodes:
        node.source = Path(node.source).name
    return importer.convert(Workspace(ROOT), case.name, nodes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_balancer_as_people_post_it_becomes_this_profile(case: Path) -> None:
    assert read(case).text == (case / "profile.yaml").read_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_line_is_accounted_for(case: Path) -> None:
    result = read(case)
    files = {(f.node, f.path): f for f in result.ledger.files}
    for node in (p for p in sorted(case.iterdir()) if p.is_dir()):
        name = result.draft.node_names[sorted(p.name for p in case.iterdir() if p.is_dir()).index(node.name)]
        for path, content in sources.read(str(node)).files.items():
            file = files[name, path]
            told = {line for line, _, _ in file.account()}
            wanted = content.decode(errors="replace").split("\n")
            wanted.pop()  # what follows the last line end
            assert file.lines == wanted
            assert told == set(range(1, len(wanted) + 1))
            said_by_nobody = {line for line, kind, _ in file.account() if kind == "comment"}
            assert all(
                not wanted[line - 1].strip(" \t{}") or wanted[line - 1].lstrip()[0] in "#!" for line in said_by_nobody
            )
    # What is accounted for as unsaid stands in the profile, with its place.
    for one in result.unsaid:
        assert f"{one.path}:{one.first}" in " ".join(result.text.replace("#", " ").split())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_password_gets_into_the_profile(case: Path) -> None:
    text = read(case).text
    assert not [secret for secret in SECRETS if secret in text]


def test_the_corpus_has_the_passwords_that_are_looked_for() -> None:
    everything = "".join(p.read_text() for p in (ROOT / "tests/data/imports").rglob("*") if p.is_file())
    assert [secret for secret in SECRETS if secret not in everything] == []


if __name__ == "__main__" and "--accept" in sys.argv:
    for one in CASES:
        (one / "profile.yaml").write_text(read(one).text)
