"""General helpers: metrics of masks and images, image and video files, atomic file writing, the error class for user
mistakes, logging and console commands, devices, CUDA graphs, pretrained models, and the import path of submodules/.

Nothing here knows what a scene, a Gaussian or a flag is.
"""

from utils.submodules import use_own_packages

use_own_packages()
