"""The host's hardware as the kernel describes it in /sys and /proc. Read-only; blocking.

Functions take the root of the file system, so that tests can use recorded trees.
"""
