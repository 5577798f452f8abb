"""./inv bench: figures of this machine."""
