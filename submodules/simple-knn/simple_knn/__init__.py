"""Nearest-neighbour distances that give new Gaussians their size.

Only `simple_knn._C.distCUDA2` lives here, under the name that 3D Gaussian splatting code imports.
"""

__project__ = "refersplat"
