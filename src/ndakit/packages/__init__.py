"""Packages of ours and the user's: read, built into .ipk and .apk, put into an ImageBuilder."""
