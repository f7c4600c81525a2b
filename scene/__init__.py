"""What a scene is: COLMAP models, cameras, dataset layouts, Gaussians, the referring field, text, checkpoints.

Data flows from files to tensors here. Nothing in this folder renders, computes a loss or knows argparse.
"""
