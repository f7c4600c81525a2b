"""Losses, metrics, images, logging, atomic files and the one exception of user mistakes.

Small things with no better home. Nothing here knows a scene, a Gaussian or argparse.
"""

from utils.submodules import use_own_packages

use_own_packages()
