"""What a scene is: COLMAP models, cameras, dataset layouts, Gaussians, model folders, checkpoints.

Data flows from files to tensors here. Nothing in this folder renders, computes a loss or knows argparse.
"""

from utils.submodules import use_own_packages

use_own_packages()
