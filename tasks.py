"""The tasks of this workspace: those of ndakit. A private workspace has the same two lines, and may add its own."""

from ndakit.tasks import namespace  # noqa: F401  # Invoke looks for this name
