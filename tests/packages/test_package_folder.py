"""What a package folder may say, and that everything beyond is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import feeds
from ndakit.core.errors import ErrorGroup, NdakitError
from ndakit.core.release import Release
from ndakit.packages import folder
from ndakit.packages.folder import Package, PackageUnusable
from places import ROOT

INSTALL = "\t$(LN) tell $(1)/usr/bin/say\n"


def read(base: Path, *changes: tuple[str, str]) -> Package:
    return folder.read(feeds.folder(base, "clock", *changes), "packages/clock")


def refused(base: Path, *changes: tuple[str, str]) -> NdakitError:
    with pytest.raises(NdakitError) as caught:
        read(base, *changes)
    return caught.value


def test_a_makefile_becomes_files_with_modes_links_scripts_and_conffiles(tmp_path: Path) -> None:
    package = read(tmp_path)
    shown = {path: (m.kind, f"{m.mode:o}", m.target) for path, m in package.members.items() if m.kind != "dir"}
    assert shown == {
        "usr/bin/tell": ("file", "755", ""),
        "usr/bin/say": ("link", "777", "tell"),
        "etc/init.d/clock": ("file", "755", ""),
        "etc/clock.conf": ("file", "600", ""),
        "lib/upgrade/keep.d/clock": ("file", "644", ""),
    }
    assert (package.conffiles, package.kept) == (("/etc/clock.conf",), ("/etc/clock.d/",))
    assert package.members["lib/upgrade/keep.d/clock"].content == b"/etc/clock.d/\n"
    assert package.depends == ("libc", "busybox")
    assert package.description == "Tells the time to whoever asks."
    assert package.scripts == {"postinst": '#!/bin/sh\ntouch "${IPKG_INSTROOT}/etc/clock-installed"\n'}


@pytest.mark.parametrize(("release", "version"), [("23.05.5", "1.2-3"), ("24.10.8", "1.2-r3"), ("25.12.5", "1.2-r3")])
def test_a_version_is_written_as_the_release_writes_it(release: str, version: str, tmp_path: Path) -> None:
    assert read(tmp_path).version(Release.parse(release)) == version


def test_whole_folders_and_patterns_are_copied_with_what_git_keeps_of_modes(tmp_path: Path) -> None:
    place = feeds.folder(
        tmp_path, "clock", (INSTALL, "\t$(CP) ./files/root/* $(1)/\n\t$(INSTALL_DATA) files/*.txt $(1)/etc/\n")
    )
    (place / "files/root/usr/share/clock").mkdir(parents=True)
    (place / "files/root/usr/share/clock/run").write_text("x")
    (place / "files/root/usr/share/clock/run").chmod(0o711)
    (place / "files/root/usr/share/clock/edited~").write_text("x")
    (place / "files/root/usr/share/clock/to").symlink_to("run")
    (place / "files/a.txt").write_text("a")
    (place / "files/b.txt").write_text("b")
    members = folder.read(place, "packages/clock").members
    assert (members["usr/share/clock/run"].mode, members["usr/share/clock/to"].target) == (0o755, "run")
    assert {"etc/a.txt", "etc/b.txt"} <= members.keys()
    assert "usr/share/clock/edited~" not in members


def test_the_example_of_the_readme_is_understood(tmp_path: Path) -> None:
    (text,) = re.findall(r"```make\n(.*?)```", (ROOT / "packages/README.md").read_text(), re.DOTALL)
    place = feeds.folder(tmp_path, "clock")
    (place / "Makefile").write_text(text)
    package = folder.read(place, "packages/clock")
    assert {"usr/bin/tell", "etc/clock.conf"} <= package.members.keys()
    assert (package.depends, package.conffiles) == (("libc", "curl"), ("/etc/clock.conf",))


def test_the_digest_follows_the_content_and_nothing_else(tmp_path: Path) -> None:
    one, other = read(tmp_path / "one"), read(tmp_path / "other")
    assert one.digest == other.digest
    (tmp_path / "other/clock/files/tell").chmod(0o700)
    assert folder.read(tmp_path / "other/clock", "x").digest == one.digest
    (tmp_path / "other/clock/files/tell").write_text("#!/bin/sh\nexit 1\n")
    assert folder.read(tmp_path / "other/clock", "x").digest != one.digest


WRONG: dict[str, tuple[str, str, str]] = {
    "something to download": ("PKG_LICENSE:=", "PKG_SOURCE:=x.tar.gz\nPKG_LICENSE:=", "PKG_SOURCE:=x.tar.gz"),
    "something to compile": ("define Build/Compile\n", "define Build/Compile\n\tmake\n", "define Build/Compile"),
    "a package for one architecture": ("  PKGARCH:=all\n", "", "PKGARCH:=all"),
    "a dependency of some targets": ("+busybox", "+@TARGET_x86:busybox", "depends on the target"),
    "another include": ("include $(INCLUDE_DIR)/package.mk", "include ../luci.mk", "include ../luci.mk"),
    "a condition": ("PKG_RELEASE:=3", "PKG_RELEASE:=3\nifdef X\nendif", "ifdef X"),
    "a variable of make": ("PKG_VERSION:=1.2", "PKG_VERSION:=$(X)", "$(X) is not known"),
    "a version that apk refuses": ("PKG_VERSION:=1.2", "PKG_VERSION:=git-abc", "the version is 'git-abc-3'"),
    "a release that is no number": ("PKG_RELEASE:=3", "PKG_RELEASE:=$(AUTORELEASE)", "$(AUTORELEASE)"),
    "two packages": ("$(eval ", "$(eval $(call BuildPackage,NAME))\n$(eval ", "a second package"),
    "no end": ("$(eval $(call BuildPackage,NAME))", "", "not whole"),
    "a block without end": ("endef\n\n$(eval", "\n$(eval", "no endef"),
    "a block twice": ("define Build/Compile", "define Package/NAME", "defined twice"),
    "an unknown block": ("define Build/Compile\n", "define Package/NAME/config\n", "define Package/clock/config"),
    "another name than the folder's": ("PKG_NAME:=NAME", "PKG_NAME:=watch", "the folder is clock"),
    "a script make would expand": ("$${IPKG_INSTROOT}", "$IPKG_INSTROOT", "a single $"),
    "a script without a shell": ("#!/bin/sh\ntouch", "touch", "does not begin with #!/bin/sh"),
    "a conffile outside": ("/etc/NAME.d/", "/etc/../../x", "is not a path"),
    "a shell command": (INSTALL, "\trm -rf $(1)/usr\n", "more than ndakit understands: rm -rf"),
    "a shell behind a command": (INSTALL, "\t$(CP) ./files/tell $(1)/usr/; reboot\n", "more than ndakit understands"),
    "a source outside": (INSTALL, "\t$(INSTALL_BIN) ../../etc/passwd $(1)/usr/bin/\n", "is no file of this folder"),
    "an absolute source": (INSTALL, "\t$(INSTALL_BIN) /etc/passwd $(1)/usr/bin/\n", "is no file of this folder"),
    "a source that is not there": (INSTALL, "\t$(INSTALL_BIN) ./files/tel $(1)/usr/bin/\n", "there is no ./files/tel"),
    "a place outside": (INSTALL, "\t$(INSTALL_BIN) ./files/tell $(1)/../x\n", "is no place in the package"),
    "a place that is emptied": (INSTALL, "\t$(INSTALL_DIR) $(1)/var/lib/x\n", "would not be in the image"),
    "a place on this machine": (INSTALL, "\t$(INSTALL_BIN) ./files/tell /usr/bin/x\n", "is no place in the package"),
    "a folder that was not made": (INSTALL, "\t$(INSTALL_BIN) ./files/tell $(1)/sbin/\n", "no folder $(1)/sbin/ yet"),
    "several files to one": (INSTALL, "\t$(INSTALL_BIN) ./files/tell ./files/tell.init $(1)/usr/x\n", "no folder"),
    "a folder in a file's place": (INSTALL, "\t$(INSTALL_DIR) $(1)/usr/bin/tell\n", "a file and a folder at once"),
    "a file in a folder's place": (INSTALL, "\t$(LN) x $(1)/etc/x\n\t$(INSTALL_DIR) $(1)/etc/x/y\n", "at once"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_beyond_is_refused_with_its_place(name: str, tmp_path: Path) -> None:
    old, new, said = WRONG[name]
    error = refused(tmp_path, (old, new))
    assert said in error.text()
    assert "packages/clock/Makefile" in error.where
    assert error.exit_code == 2


def test_the_line_is_the_one_that_is_wrong(tmp_path: Path) -> None:
    error = refused(tmp_path, (INSTALL, "\tls\n"))
    lines = (tmp_path / "clock/Makefile").read_text().splitlines()
    assert error.location is not None
    assert lines[error.location.line - 1] == "\tls"


def test_every_mistake_is_said_at_once(tmp_path: Path) -> None:
    error = refused(tmp_path, ("PKG_LICENSE:=", "PKG_SOURCE:=x\nPKG_HASH:=y\nPKG_LICENSE:="))
    assert isinstance(error, ErrorGroup)
    assert len(error.errors) == 2


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    place = feeds.folder(tmp_path, "clock")
    (place / "files/tell").unlink()
    (place / "files/tell").symlink_to("/etc/passwd")
    with pytest.raises(PackageUnusable, match="there is no"):
        folder.read(place, "packages/clock")


def test_a_folder_without_makefile_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageUnusable, match="No such file"):
        folder.read(tmp_path / "empty", "packages/empty")
