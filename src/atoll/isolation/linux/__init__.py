"""Thin wrappers over Linux: system calls, mounts, capabilities, seccomp, cgroups, loopback. Mechanism only, no policy.

Every function raises OSError with the call's name and object; nothing here knows what a sandbox is.
"""
