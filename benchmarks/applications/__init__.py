"""The applications that the benchmark runs on every server, one module for each.

None imports `typing` for the sake of its annotations: that is a megabyte of what is measured.
"""
