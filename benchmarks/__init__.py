"""Benchmark scripts (`python benchmarks/NAME.py --help`): run, rasterizer, referring, rgb and quality.

The other modules are what these share. Measured results are in docs/; the product imports nothing from here.
"""
