"""Sandboxes as the kernel sees them: namespaces, mounts, limits, disks, and who forks them.

`launcher` and what it uses run as root; `client` and `protocol` are what control needs of it.
"""
