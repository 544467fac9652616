"""Thin wrappers over Linux: system calls, mounts, capabilities, seccomp, cgroups, loopback. Mechanism only, no policy.

Every function raises OSError with the call's name and object. Only `sandbox` (what is alike in the life of every
sandbox on Linux) and `run_dir` know what a sandbox is.
"""
