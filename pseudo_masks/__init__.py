"""Pseudo masks for training: what `pseudo_mask.py` is made of.

What to make (`plan`), where masks come from (`grounded_sam` with `detector` and `segmenter`, or `imported`), which
candidate becomes the mask (`selection`), the files (`records`), and looking at them (`check`, `sheets`). Nothing here
knows flags or argparse, and nothing here trains.
"""
