"""QEMU machines, their disks and their serial consoles."""
