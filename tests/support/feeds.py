"""Package folders for tests, and a stand-in for an ImageBuilder's apk."""

from __future__ import annotations

from pathlib import Path

MAKEFILE = """\
# A package of scripts, as OpenWrt's SDK would build it too.
include $(TOPDIR)/rules.mk

PKG_NAME:=NAME
PKG_VERSION:=1.2
PKG_RELEASE:=3
PKG_LICENSE:=Apache-2.0
PKG_MAINTAINER:=Someone <someone@example.com>

include $(INCLUDE_DIR)/package.mk

define Package/NAME
  SECTION:=utils
  CATEGORY:=Utilities
  TITLE:=Tells the time
  DEPENDS:=+busybox
  PKGARCH:=all
endef

define Package/NAME/description
  Tells the time
  to whoever asks.
endef

define Package/NAME/conffiles
/etc/NAME.conf
/etc/NAME.d/
endef

define Build/Compile
endef

define Package/NAME/install
	$(INSTALL_DIR) $(1)/usr/bin $(1)/etc/init.d
	$(INSTALL_BIN) ./files/tell $(1)/usr/bin/
	$(INSTALL_BIN) ./files/tell.init $(1)/etc/init.d/NAME
	$(INSTALL_CONF) ./files/tell.conf $(1)/etc/NAME.conf
	$(LN) tell $(1)/usr/bin/say
endef

define Package/NAME/postinst
#!/bin/sh
touch "$${IPKG_INSTROOT}/etc/NAME-installed"
endef

$(eval $(call BuildPackage,NAME))
"""


def folder(base: Path, name: str = "clock", *changes: tuple[str, str]) -> Path:
    """A package folder `base/NAME`; each change is text of its Makefile and what takes its place."""
    text = MAKEFILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    files = base / name / "files"
    files.mkdir(parents=True)
    (base / name / "Makefile").write_text(text.replace("NAME", name).replace(f"PKG_{name}", "PKG_NAME"))
    (files / "tell").write_text("#!/bin/sh\ndate\n")
    (files / "tell.conf").write_text("zone=UTC\n")
    (files / "tell.init").write_text("#!/bin/sh /etc/rc.common\nSTART=99\nstart() { :; }\n")
    return base / name
