"""The stand-in ImageBuilder: lab images out of Debian packages, behind the interface of OpenWrt's ImageBuilder."""
