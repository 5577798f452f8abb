"""What is wrong with a certificate is found before anything is built, and told with the certificate's own facts."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519

from certificate_files import CLIENT_AUTH, NOW, Party, ec_key, issue, revoked, rsa_key
from ndakit.core.mistakes import ProfileMistake, ProfileWarning
from ndakit.core.workspace import Workspace
from ndakit.load import certificate_checks, load, secrets
from ndakit.load.certificates import Unusable, covers, make_self_signed, names_wanted, read

ROOT = issue("Test Root", ca=True, days=3650)
MIDDLE = issue("Test CA", ROOT, ca=True, days=365)
LEAF = issue("shop", MIDDLE, ["shop.example", "*.shop.example"])
GOOD = LEAF.bundle(MIDDLE, ROOT)

PROFILE = """\
name: shop
release: 24.10.8
access:
  ssh_keys: {me: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me}
  sources: {office: 192.168.0.0/24}
system: {ntp: []}
networks: {lan: {nics: [eth0], subnet: 192.168.0.0/24, gateway: 192.168.0.254}}
nodes: {lb1: {addresses: {lan: 192.168.0.11}}, lb2: {addresses: {lan: 192.168.0.12}}}
vips: {www: {network: lan, address: 192.168.0.10}}
pools: {web: {check: http, servers: {web1: 192.168.0.21, web2: 192.168.0.22}}}
services:
  web:
    vip: www
    port: 443
    protocol: http
    hostnames: [shop.example, www.shop.example]
    tls: {certificates: [{secret: shop.pem}]}
    pool: web
"""


def told(text: bytes, folder: Path, profile: str = PROFILE) -> tuple[list[str], list[str]]:
    """What is wrong and what is doubtful about a secret of the profile, as shown."""
    workspace = Workspace(folder)
    (folder / "profiles").mkdir(exist_ok=True)
    (folder / "profiles/shop.yaml").write_text(profile)
    loaded = load.load(workspace, "shop")
    held = secrets.Secrets({"shop.pem": secrets.Secret(text, "a test")})
    wrong, doubts = certificate_checks.check(loaded, held, NOW)
    everything: list[ProfileMistake | ProfileWarning] = [*wrong, *doubts]
    for one in everything:
        body = "".join(line for line in text.decode(errors="replace").splitlines() if not line.startswith("-"))
        words = one.what + one.fix
        assert not any(body[at : at + 24] in words for at in range(0, max(0, len(body) - 24), 8)), words
    return [e.text() for e in wrong], [w.text() for w in doubts]


def short(party: Party) -> str:
    return f"{party.certificate.fingerprint(hashes.SHA256()).hex()[:16]}…"


def test_a_right_certificate_has_nothing_to_be_told(tmp_path: Path) -> None:
    assert told(GOOD, tmp_path) == ([], [])
    assert told(b"remarks before\n" + LEAF.key_pem() + LEAF.pem + MIDDLE.pem + ROOT.pem, tmp_path) == ([], [])


def test_the_message_is_three_lines_with_the_facts(tmp_path: Path) -> None:
    late = issue("shop", ROOT, ["shop.example", "*.shop.example"], begins=NOW - timedelta(days=400), days=90)
    assert told(late.bundle(ROOT), tmp_path)[0] == [
        "error: certificate shop.pem: it is out of date since 2026-01-24 (CN=shop, for shop.example, *.shop.example, "
        f"from 2025-10-26 to 2026-01-24, SHA-256 {short(late)})\n"
        "  where: profiles/shop.yaml:17:26, services.web.tls.certificates[0]\n"
        "  fix:   renew it at its CA, and put the new certificate and its chain in its place"
    ]


OTHER = issue("other", ROOT, ["other.example"])
LATE = issue("Late CA", ROOT, ca=True, begins=NOW - timedelta(days=9), days=8)
NAMES = ["shop.example", "*.shop.example"]
KOBLITZ = issue("Koblitz CA", ca=True, key=ec_key(ec.SECP256K1()))
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b" \n", "it is empty"),
    "no PEM": (b"hello", "it is no PEM text"),
    "PKCS #12": (b"\x30\x82\x01\x01\x02\x01\x03", "it looks like DER or PKCS #12"),
    "key only": (LEAF.key_pem(), "there is no certificate in it"),
    "no key": (LEAF.pem + MIDDLE.pem + ROOT.pem, "there is no private key in it"),
    "two keys": (GOOD + OTHER.key_pem(), "it holds 2 private keys"),
    "encrypted key": (LEAF.pem + MIDDLE.pem + ROOT.pem + LEAF.key_pem(b"secret"), "its private key needs a password"),
    "another's key": (LEAF.pem + MIDDLE.pem + ROOT.pem + OTHER.key_pem(), "its private key belongs to another"),
    "cut off": (GOOD[:300] + b"\n-----END CERTIFICATE-----\n" + LEAF.key_pem(), "certificate 1 in it is damaged"),
    "damaged key": (
        LEAF.pem + MIDDLE.pem + ROOT.pem + b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "its private key is damaged",
    ),
    "CA first": (MIDDLE.pem + LEAF.pem + ROOT.pem + LEAF.key_pem(), "the private key belongs to CN=shop"),
    "chain in disorder": (LEAF.bundle(ROOT, MIDDLE), "the chain is in the wrong order"),
    "gap": (LEAF.bundle(ROOT), "the chain has a gap"),
    "beyond the root": (LEAF.bundle(MIDDLE, ROOT, OTHER), "the chain goes on after its root"),
    "early": (issue("shop", ROOT, NAMES, begins=NOW + timedelta(days=2)).bundle(ROOT), "not valid before 2026-12-02"),
    "old chain": (issue("shop", LATE, NAMES).bundle(LATE, ROOT), "of the chain"),
    "RSA 1024": (issue("shop", ROOT, NAMES, key=rsa_key(1024)).bundle(ROOT), "an RSA key of 1024 bits"),
    "EC 192": (issue("shop", ROOT, NAMES, key=ec_key(ec.SECP192R1())).bundle(ROOT), "on the curve secp192r1"),
    "secp256k1": (issue("shop", ROOT, NAMES, key=ec_key(ec.SECP256K1())).bundle(ROOT), "on the curve secp256k1"),
    "brainpool": (issue("shop", ROOT, NAMES, key=ec_key(ec.BrainpoolP384R1())).bundle(ROOT), "brainpoolP384r1"),
    "curve of the chain": (issue("shop", KOBLITZ, NAMES).bundle(KOBLITZ), "on the curve secp256k1"),
    "Ed25519": (
        issue("shop", ROOT, NAMES, key=ed25519.Ed25519PrivateKey.generate()).bundle(ROOT), "browsers take no Ed25519",
    ),
    "DSA": (issue("shop", ROOT, NAMES, key=dsa.generate_private_key(2048)).bundle(ROOT), "neither RSA nor EC"),
    "no names": (issue("shop.example", ROOT).bundle(ROOT), "it has no names"),
    "for clients": (issue("shop", ROOT, NAMES, usage=CLIENT_AUTH).bundle(ROOT), "it is not for servers"),
    "another's name": (OTHER.bundle(ROOT), "no certificate of service web covers shop.example"),
    "two labels": (
        issue("shop", ROOT, ["*.example"]).bundle(ROOT),
        "covers www.shop.example: shop.pem is for *.example (the * of a certificate is one whole label)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_nothing_is_built_with_it(kind: str, tmp_path: Path) -> None:
    text, words = WRONG[kind]
    wrong, _ = told(text, tmp_path)
    assert any(words in one for one in wrong), wrong
    assert all("profiles/shop.yaml:17:" in one for one in wrong)


@pytest.mark.parametrize(("last", "name"), [(b"\x05", "SHA1"), (b"\x04", "MD5")])
def test_a_weak_signature_is_refused(last: bytes, name: str, tmp_path: Path) -> None:
    """No library signs like that any more: the number of the algorithm is changed (RFC 8017, A.2.4)."""
    signer = issue("RSA CA", ca=True, key=rsa_key())
    good = issue("shop", signer, NAMES)
    rsa_with = bytes.fromhex("2a864886f70d0101")
    changed = good.certificate.public_bytes(serialization.Encoding.DER).replace(rsa_with + b"\x0b", rsa_with + last)
    weak = Party(x509.load_der_x509_certificate(changed), good.key)
    wrong, _ = told(weak.bundle(signer), tmp_path)
    assert any(f"it is signed with {name}, which can be forged" in one for one in wrong), wrong


def test_what_works_and_may_not_be_meant_is_a_warning(tmp_path: Path) -> None:
    soon = issue("shop", ROOT, NAMES, begins=NOW - timedelta(days=60), days=80).bundle(ROOT)
    assert told(soon, tmp_path)[0] == []
    assert "it ends in 20 days" in told(soon, tmp_path)[1][0]
    exactly = issue("shop", ROOT, NAMES, begins=NOW - timedelta(days=60), days=90).bundle(ROOT)
    assert told(exactly, tmp_path) == ([], [])
    own = issue("shop", None, NAMES).bundle()
    assert "it signs itself" in told(own, tmp_path)[1][0]
    alone = LEAF.bundle()
    wrong, doubts = told(alone, tmp_path)
    assert wrong == [] and "which is no CA that browsers know" in doubts[0]
    wrong, doubts = told(GOOD.replace(b"\n", b"\r\n"), tmp_path)
    assert wrong == [] and len(doubts) == 1 and "line ends of DOS" in doubts[0]


def test_curves_that_browsers_take_pass_and_p521_is_told(tmp_path: Path) -> None:
    for curve in (ec.SECP256R1(), ec.SECP384R1()):
        assert told(issue("shop", ROOT, NAMES, key=ec_key(curve)).bundle(ROOT), tmp_path) == ([], [])
    wrong, (doubt,) = told(issue("shop", ROOT, NAMES, key=ec_key(ec.SECP521R1())).bundle(ROOT), tmp_path)
    assert wrong == [] and "on the curve P-521, which Chrome does not take" in doubt


def test_a_name_of_a_route_has_to_be_covered_too(tmp_path: Path) -> None:
    routes = "    routes: [{host: [www.shop.example, api.other.example], pool: api}]\n    pool: web\n"
    profile = PROFILE.replace("    pool: web\n", routes).replace(
        "pools: {", "pools: {api: {servers: {a: 192.168.0.31}}, "
    )
    (wrong,), _ = told(GOOD, tmp_path, profile)
    assert "no certificate of service web covers api.other.example" in wrong
    assert "or take api.other.example out of routes" in wrong
    names = names_wanted(load.load(Workspace(tmp_path), "shop").profile, "shop.pem")
    assert names == ("shop.example", "www.shop.example", "api.other.example")
    own = make_self_signed(names, NOW - timedelta(hours=1), 90)
    assert told(own, tmp_path, profile)[0] == []


def test_one_of_several_certificates_has_to_cover_a_name(tmp_path: Path) -> None:
    profile = PROFILE.replace("[{secret: shop.pem}]", "[{secret: shop.pem}, {secret: other.pem}]")
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/shop.yaml").write_text(profile.replace("www.shop.example", "other.example"))
    loaded = load.load(Workspace(tmp_path), "shop")
    held = {"shop.pem": secrets.Secret(GOOD, "a test"), "other.pem": secrets.Secret(OTHER.bundle(ROOT), "a test")}
    assert certificate_checks.check(loaded, secrets.Secrets(held), NOW) == ((), ())
    held["other.pem"] = held["shop.pem"]
    (wrong,) = certificate_checks.check(loaded, secrets.Secrets(held), NOW)[0]
    assert "covers other.example: shop.pem is for shop.example, *.shop.example; other.pem is for" in wrong.what


def test_files_of_cas_and_revocations_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    old = issue("Old CA", ca=True, begins=NOW - timedelta(days=20), days=10)
    (tmp_path / "profiles/ca.pem").write_bytes(old.pem)
    (tmp_path / "profiles/crl.pem").write_bytes(revoked(ROOT, begins=NOW - timedelta(days=20), days=10))
    (tmp_path / "profiles/servers.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    profile = PROFILE.replace(
        "{certificates:", "{client_certificates: {ca: ca.pem, revoked: crl.pem}, certificates:"
    ).replace("{check: http,", "{check: https, to_servers: {tls: true, verify: servers.pem},")
    wrong, _ = told(GOOD, tmp_path, profile)
    assert "ca.pem: its CA certificate is out of date since 2026-11-20 (CN=Old CA" in wrong[0]
    assert "crl.pem: its revocation list is out of date since 2026-11-20" in wrong[1]
    assert "a block CERTIFICATE in servers.pem is damaged" in wrong[2]
    assert "pools.web.to_servers.verify" in wrong[2]
    loaded = load.load(Workspace(tmp_path), "shop")
    none = secrets.placeholders(loaded.profile, lambda name, place: b"a placeholder")
    assert [one.text() for one in certificate_checks.check(loaded, none, NOW)[0]] == wrong


def test_a_subject_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    hostile = issue("a\x1b[31m\nerror: forged", ROOT, NAMES, days=0.5)
    wrong, _ = told(hostile.bundle(ROOT), tmp_path)
    assert "\x1b" not in wrong[0] and wrong[0].count("\n") == 2


@pytest.mark.parametrize(
    ("name", "host", "good"),
    [
        ("shop.example", "shop.example", True),
        ("*.example", "shop.example", True),
        ("*.example", "example", False),
        ("*.example", "a.shop.example", False),
        ("*.example", "*.example", True),
        ("shop.example", "*.example", False),
        ("*.example", "*.shop.example", False),
    ],
)
def test_a_wildcard_is_one_whole_label(name: str, host: str, good: bool) -> None:
    assert covers(read(issue("x", ROOT, [name]).bundle()), host) is good


def test_what_is_made_to_begin_with_is_right_but_for_its_signer(tmp_path: Path) -> None:
    made = make_self_signed(["shop.example", "www.shop.example"], NOW - timedelta(hours=1), 90)
    wrong, doubts = told(made, tmp_path)
    assert wrong == [] and len(doubts) == 1 and "it signs itself" in doubts[0]
    assert read(make_self_signed(["192.0.2.1", "2001:db8::1"], NOW, 1)).names == ("192.0.2.1", "2001:db8::1")


def test_what_cannot_be_read_is_no_bundle() -> None:
    with pytest.raises(Unusable):
        read(b"")
