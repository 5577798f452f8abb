"""Silent failures of OpenWrt's programs as rules on rendered text; the real daemons as judges."""
