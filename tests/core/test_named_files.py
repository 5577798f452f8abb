"""Files that a profile names reach the appliance, where clients see them: what is kept from others is refused."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12

from imagebuilder_fakes import PROFILE
from ndakit.core import exposure
from ndakit.core.errors import NdakitError
from ndakit.core.workspace import Workspace
from ndakit.load import load
from ndakit.model import package_plan
from ndakit.packages import feed
from ndakit.render import render

KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n-----END PRIVATE KEY-----\n"


class Place:
    """A workspace with one profile that names a file, below a folder with secrets of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "ws"
        (self.root / "profiles").mkdir(parents=True)
        self.outside = folder / "private.key"
        self.outside.write_text("s3cret")

    def put(self, path: str, text: str = "s3cret", mode: int = 0o644) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def named(self, path: str, key: str = "page", profile: str = "profiles/bakery.yaml") -> bytes:
        """Load the profile, which names the file as a sorry page or as a check's script; the file's content."""
        text = PROFILE
        if key == "page":
            text = text.replace("{check: http,", f"{{check: http, sorry: {{page: {path}}},")
        else:
            text = text.replace("check: http", f"check: {{type: script, script: {path}}}").replace(
                "protocol: http", "protocol: tcp, topology: nat"
            )
        file = self.root / profile
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        loaded = load.load(Workspace.at(self.root), str(file))
        pool = loaded.profile.pools["web"]
        page = pool.sorry.page if pool.sorry else None
        assert page is not None
        return page.content

    def refused(self, path: str, key: str, **more: str) -> str:
        with pytest.raises(NdakitError) as caught:
            self.named(path, key, **more)
        assert "s3cret" not in caught.value.text()
        return caught.value.text()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


KINDS = pytest.mark.parametrize("key", ["page", "script"])


def test_a_page_in_the_workspace_is_read(place: Place) -> None:
    place.put("profiles/pages/a.html", "<p>")
    place.put("shared/a.html", "<p>")
    assert place.named("pages/a.html") == place.named("../shared/a.html") == b"<p>"


@KINDS
def test_a_file_outside_of_the_workspace_is_refused(key: str, place: Place) -> None:
    assert "lies outside of" in place.refused("../../private.key", key)


@KINDS
def test_a_link_to_a_file_outside_is_refused(key: str, place: Place) -> None:
    (place.root / "profiles/page.html").symlink_to(place.outside)
    assert "lies outside of" in place.refused("page.html", key)
    (place.root / "profiles/more").symlink_to(place.folder)
    assert "lies outside of" in place.refused("more/private.key", key)


@KINDS
@pytest.mark.parametrize("path", ["secrets/bakery/tls.pem", ".git/config", ".ndakit/log/x", "profiles/.hidden"])
def test_a_file_in_a_folder_for_what_nobody_may_see_is_refused(path: str, key: str, place: Place) -> None:
    place.put(path)
    assert "what nobody may see" in place.refused(f"../{path}", key)
    (place.root / "profiles/page.html").symlink_to(place.root / path)
    assert "what nobody may see" in place.refused("page.html", key)


@KINDS
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o000])
def test_a_file_that_others_may_not_read_is_refused_and_the_fix_works(mode: int, key: str, place: Place) -> None:
    file = place.put("profiles/page.html", mode=mode)
    text = place.refused("page.html", key)
    if os.getuid() == 0 or mode:
        assert f"profiles/page.html may not be read by others (its mode is {mode:04o})" in text
    file.chmod(file.stat().st_mode | 0o004)
    if key == "page" and mode:
        assert place.named("page.html") == b"s3cret"


def test_under_a_umask_of_077_a_mode_says_nothing(place: Place) -> None:
    place.put("profiles/page.html", mode=0o600)
    before = os.umask(0o077)
    try:
        assert place.named("page.html") == b"s3cret"
    finally:
        os.umask(before)


@KINDS
def test_a_private_key_is_refused_wherever_it_lies(key: str, place: Place) -> None:
    for begin in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "):
        place.put("profiles/page.html", "<p>\n" + KEY.replace("PRIVATE", f"{begin}PRIVATE"))
        assert "holds a private key" in place.refused("page.html", key)


def der(form: serialization.PrivateFormat, password: bytes | None = None) -> bytes:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(serialization.Encoding.DER, form, lock)


PRIVATE = {
    "putty": b"PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\nComment: me\r\n",
    "age": b"# created: 2026-01-01\nAGE-SECRET-KEY-1QQPZRYXGF2TVDW0S3JN54KHCE6MUA7LQQPZRYXGF2TVDW0S3JN54KHCE6M\n",
    "age-plugin": b"AGE-PLUGIN-YUBIKEY-1QQPZRYXGF2TVDW0S3JN54KHCE6MUA7L\n",
    "jwk": b'{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", '
           b'"d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}',
    "jwk-oct": b'{"keys":[{"k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ","kty":"oct"}]}',
    "openpgp": b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQ==\n",
    "ssh2": b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nAAAA\n",
    "utf-16": "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n".encode("utf-16"),
    "usign": b"untrusted comment: our packages\nRWRCSwAAAAAkYZ0Nq6FjVLFhZ0Nq6FjV\n",
    "minisign": b"untrusted comment: minisign encrypted secret key\nRWRTY0Iy\n",
    "wireguard": b"[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n",
    "xml": b"<RSAKeyValue>\n<Modulus>AA==</Modulus>\n<D>AA==</D></RSAKeyValue>",
    "dropbear": b"\0\0\0\x0bssh-ed25519\0\0\0\x40" + bytes(range(64)),
    "pkcs8": der(serialization.PrivateFormat.PKCS8),
    "pkcs8-locked": der(serialization.PrivateFormat.PKCS8, b"a password"),
    "sec1": der(serialization.PrivateFormat.TraditionalOpenSSL),
    "pkcs12": pkcs12.serialize_key_and_certificates(
        b"me", ec.generate_private_key(ec.SECP256R1()), None, None, serialization.BestAvailableEncryption(b"a word")
    ),
    "jks": b"\xfe\xed\xfe\xed\0\0\0\2",
}  # fmt: skip

NOT_PRIVATE = {
    "jwk": b'{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "d"}',
    "certificate": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "usign": b"untrusted comment: public key 2461 of our packages\nRWQkYZ0Nq6FjVLFhZ0Nq6FjV\n",
    "about": b"<p>A key begins with AGE-SECRET-KEY-1, a file of PuTTY with PuTTY-User-Key-File-3: and so on.</p>",
    "xml": b"<RSAKeyValue><Modulus>AA==</Modulus></RSAKeyValue><D>x</D>",
    "ssh": b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me\n",
    "der": ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ),
    "digit": b"0 servers",
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("form", PRIVATE)
def test_a_private_key_of_any_form_is_refused(form: str, place: Place) -> None:
    place.put("profiles/page.html").write_bytes(PRIVATE[form])
    assert "holds a private key" in place.refused("page.html", "page")


@pytest.mark.parametrize("form", NOT_PRIVATE)
def test_what_is_no_private_key_is_not_taken_for_one(form: str) -> None:
    assert not exposure.private_key(NOT_PRIVATE[form])


@pytest.mark.parametrize("form", PRIVATE)
def test_a_private_key_in_a_template_is_refused_unless_only_root_reads_it_there(form: str, place: Place) -> None:
    file = place.put("templates/rootfs/etc/mine.key")
    file.write_bytes(PRIVATE[form])
    with pytest.raises(render.TemplateKept, match="holds a private key") as caught:
        rendered(place)
    told = re.search(r"move it to (\S+)/,", caught.value.fix or "")
    assert told is not None
    folder = place.root / told[1]
    folder.mkdir(parents=True)
    file.rename(folder / "mine.key")
    assert rendered(place)["/etc/ndakit/private/mine.key"].mode == 0o600


@pytest.mark.parametrize(
    "program",
    [
        b"\x7fELF\2\1\1\0-----BEGIN OPENSSH PRIVATE KEY-----\n\0",
        b"#!/bin/sh\ngrep -q -e '-----BEGIN PRIVATE KEY-----' \"$1\"\n",
        b"#!/bin/sh\ncase $line in *'BEGIN RSA PRIVATE KEY'*) exit 1;; -----BEGIN*PRIVATE\\ KEY*) ;; esac\n",
    ],
)
def test_a_program_that_knows_how_keys_begin_holds_none(program: bytes, place: Place) -> None:
    place.put("templates/rootfs/usr/bin/mine").write_bytes(program)
    assert rendered(place)["/usr/bin/mine"].content == program


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dropbear_ed25519_host_key", PRIVATE["dropbear"]),
        ("dropbear_rsa_host_key", b"in a form that nobody knows"),
        ("dropbear_ecdsa_host_key.j2", b"{{ node.name | comment }}"),
        ("old.key", PRIVATE["dropbear"]),
    ],
)
def test_a_host_key_of_ones_own_is_refused_because_every_node_would_have_it(
    name: str, content: bytes, place: Place
) -> None:
    file = place.put(f"templates/rootfs/etc/dropbear/{name}")
    file.write_bytes(content)
    with pytest.raises(render.TemplateKept, match="private key") as caught:
        rendered(place)
    assert "host keys of its own" in (caught.value.fix or "")
    file.unlink()
    rendered(place)


@pytest.mark.parametrize("name", ["my file", "a*b", "größe"])
def test_a_file_that_the_list_of_an_upgrade_cannot_hold_is_named_itself(name: str, place: Place) -> None:
    place.put(f"templates/rootfs/etc/{name}")
    place.put("templates/rootfs/etc/sysupgrade.conf.j2", "{% for path in kept %}{{ path | word }}\n{% endfor %}")
    with pytest.raises(render.TemplateBroken, match=r"cannot be written into /etc/sysupgrade\.conf") as caught:
        rendered(place)
    assert caught.value.where == f"templates/rootfs/etc/{name}"
    assert "rename the file" in (caught.value.fix or "")
    (place.root / f"templates/rootfs/etc/{name}").rename(place.root / "templates/rootfs/etc/my-file")
    assert "/etc/my-file" in rendered(place)


def test_a_profile_elsewhere_may_name_what_lies_beside_it(place: Place) -> None:
    elsewhere = "../elsewhere/deep/bakery.yaml"
    place.put("../elsewhere/deep/page.html", "<p>")
    place.put("../elsewhere/above.html")
    assert place.named("page.html", profile=elsewhere) == b"<p>"
    assert "lies outside of" in place.refused("../above.html", "page", profile=elsewhere)
    place.put("profiles/page.html")
    assert "lies outside of" in place.refused("../../ws/profiles/page.html", "page", profile=elsewhere)


@pytest.mark.parametrize("what", ["loop", "folder", "fifo", "long", "nothing", "parent is a file"])
def test_what_is_no_file_is_said(what: str, place: Place) -> None:
    path = place.root / "profiles/page"
    named = "page"
    if what == "loop":
        path.symlink_to("page")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "long":
        named = "a" * 300
    elif what == "parent is a file":
        path.write_text("")
        named = "page/b"
    text = place.refused(named, "page")
    assert "cannot be read" in text or "is not a file" in text


# -- the profile itself ------------------------------------------------------------------------------------------------


def test_a_profile_that_is_a_dangling_link_is_said_to_be_one_and_the_fix_works(place: Place) -> None:
    link = place.root / "profiles/zz.yaml"
    link.symlink_to("nowhere.yaml")
    for name in ("zz", str(link)):
        with pytest.raises(load.ProfileLinkBroken) as caught:
            load.load(Workspace.at(place.root), name)
        assert "is a link to 'nowhere.yaml', and no file is there" in caught.value.what
    subprocess.run(["sh", "-c", caught.value.fix.rpartition(": ")[2]], check=True)
    assert not link.is_symlink()


def test_a_profile_that_is_a_link_to_itself_is_said_to_be_one(place: Place) -> None:
    (place.root / "profiles/zz.yaml").symlink_to("zz.yaml")
    with pytest.raises(load.ProfileLinkBroken):
        load.load(Workspace.at(place.root), "zz")


def test_a_fragment_that_is_a_dangling_link_is_said_to_be_one(place: Place) -> None:
    (place.root / "profiles/_house.yaml").symlink_to("nowhere.yaml")
    place.put("profiles/a.yaml", f"extends: _house\n{PROFILE.replace('name: bakery', 'name: a')}")
    with pytest.raises(NdakitError, match=r"'_house' is a link to 'nowhere\.yaml', and no file is there"):
        load.load(Workspace.at(place.root), "a")


@pytest.mark.parametrize(
    "name", ["a" * 300, "a/" * 3000, "\udcff", "x\x9b31m", "..", "/", "/dev/zero", "/dev/null/x", "\0", "a" * 5000]
)
def test_a_name_that_no_profile_has_is_said(name: str, place: Place) -> None:
    with pytest.raises(NdakitError) as caught:
        load.load(Workspace.at(place.root), name)
    assert caught.value.exit_code == 2
    assert caught.value.text().replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "..", "a\\0b"])
def test_a_name_that_no_fragment_has_is_said(name: str, place: Place) -> None:
    place.put("profiles/a.yaml", f'extends: "{name}"\n{PROFILE.replace("name: bakery", "name: a")}')
    with pytest.raises(NdakitError) as caught:
        load.load(Workspace.at(place.root), "a")
    assert caught.value.exit_code == 2


# -- templates and packages --------------------------------------------------------------------------------------------


def template(place: Place, text: str = "s3cret") -> Path:
    return place.put("templates/rootfs/etc/mine", text)


def rendered(place: Place) -> render.Tree:
    workspace = Workspace.at(place.root)
    place.put("profiles/bakery.yaml", PROFILE)
    return render.render(load.load(workspace, "bakery").profile, "lb1", workspace.templates)


@pytest.mark.parametrize("suffix", ["", ".j2"])
@pytest.mark.parametrize("to", ["outside", "secrets/x", ".git/config"])
def test_a_template_that_is_a_link_to_what_others_may_not_see_is_refused(to: str, suffix: str, place: Place) -> None:
    link = template(place).with_name(f"linked{suffix}")
    link.symlink_to(place.outside if to == "outside" else place.put(to))
    with pytest.raises(render.TemplateKept, match=r"templates/rootfs/etc/linked.* (lies outside|what nobody may see)"):
        rendered(place)


def test_a_template_that_others_may_not_read_is_refused_unless_the_node_keeps_it_so(place: Place) -> None:
    private = template(place)
    private.chmod(0o600)
    with pytest.raises(render.TemplateKept, match=r"may not be read by others \(its mode is 0600\)"):
        rendered(place)
    private.unlink()
    place.put("templates/rootfs/etc/ndakit/private/mine", mode=0o600)
    assert rendered(place)["/etc/ndakit/private/mine"].mode == 0o600


def test_a_template_that_is_a_link_inside_the_workspace_is_read(place: Place) -> None:
    template(place).with_name("linked").symlink_to(place.put("shared/motd", "hello"))
    assert rendered(place)["/etc/linked"].content == b"hello"


MAKEFILE = """\
include $(TOPDIR)/rules.mk
PKG_NAME:=clock
PKG_VERSION:=1.2
PKG_RELEASE:=1
include $(INCLUDE_DIR)/package.mk
define Package/clock
  SECTION:=utils
  CATEGORY:=Utilities
  TITLE:=x
  PKGARCH:=all
endef
define Build/Compile
endef
define Package/clock/install
	$(INSTALL_DIR) $(1)/etc
	$(INSTALL_DATA) ./files/data $(1)/etc/data
endef
$(eval $(call BuildPackage,clock))
"""


def package(place: Place, folder: str = "packages/clock", mode: int = 0o644) -> None:
    place.put(f"{folder}/Makefile", MAKEFILE)
    place.put(f"{folder}/files/data", mode=mode)


def chosen(place: Place) -> list[str]:
    place.put("profiles/bakery.yaml", PROFILE.replace("{rootfs_mib: 64}", "{packages: {clock: add}}"))
    workspace = Workspace.at(place.root)
    loaded = load.load(workspace, "bakery")
    return [one.name for one in feed.choose(workspace, loaded, package_plan.plan(loaded.profile, "lb1"))]


def test_a_package_in_the_workspace_is_taken(place: Place) -> None:
    package(place)
    assert chosen(place) == ["clock"]


def test_a_package_that_is_a_link_inside_the_workspace_is_taken(place: Place) -> None:
    package(place, "shared/clock")
    (place.root / "packages").mkdir()
    (place.root / "packages/clock").symlink_to("../shared/clock")
    assert chosen(place) == ["clock"]


@pytest.mark.parametrize("to", ["../elsewhere/clock", "secrets/clock", ".hidden/clock"])
def test_a_package_that_is_a_link_to_elsewhere_is_refused(to: str, place: Place) -> None:
    package(place, to)
    (place.root / "packages").mkdir()
    (place.root / "packages/clock").symlink_to(place.root / to)
    with pytest.raises(feed.PackageFileUnusable, match=r"lies outside of|what nobody may see"):
        chosen(place)


def test_a_ready_package_that_is_a_link_to_elsewhere_is_refused(place: Place) -> None:
    place.put("packages/README.md")
    (place.root / "packages/clock_1_all.ipk").symlink_to(place.outside)
    with pytest.raises(feed.PackageFileUnusable, match="lies outside of"):
        chosen(place)


def test_a_file_of_a_package_that_others_may_not_read_is_refused_unless_the_image_keeps_it_so(place: Place) -> None:
    package(place, mode=0o600)
    with pytest.raises(NdakitError, match=r"data may not be read by others \(its mode is 0600\)"):
        chosen(place)
    place.put("packages/clock/Makefile", MAKEFILE.replace("INSTALL_DATA", "INSTALL_CONF"))
    assert chosen(place) == ["clock"]


@pytest.mark.parametrize("form", PRIVATE)
def test_a_private_key_in_a_package_is_refused_unless_only_root_reads_it_there(form: str, place: Place) -> None:
    package(place)
    (place.root / "packages/clock/files/data").write_bytes(PRIVATE[form])
    with pytest.raises(NdakitError, match="data holds a private key"):
        chosen(place)
    place.put("packages/clock/Makefile", MAKEFILE.replace("INSTALL_DATA", "INSTALL_CONF"))
    assert chosen(place) == ["clock"]
