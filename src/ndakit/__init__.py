"""ndakit: OpenWrt load-balancer pairs from one YAML profile, built, booted and proved."""

__version__ = "0.1.0"
