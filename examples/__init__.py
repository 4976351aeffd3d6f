"""Applications to try serve-zig with.

A package proper, so that another one called "examples" among those installed does not come first.
"""
