"""Walls. `base` is the contract, `registry` finds backends by entry point, one folder per tier."""
