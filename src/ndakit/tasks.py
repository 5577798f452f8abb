"""What the tasks.py of a workspace imports: the tasks of ndakit."""

from ndakit.cli.tasks import namespace

__all__ = ["namespace"]
