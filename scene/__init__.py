"""What lies on disk, as objects: cameras, views and scenes, Gaussians, checkpoints and model folders.

`readers/` reads cameras and photos, `layouts/` the annotations of each dataset, `formats/` files of Gaussians;
`python -m scene.check` reports what a scene folder lacks. Nothing here renders, trains or knows the networks of the
referring field, whose parameters are plain tensors here. Generated scenes are in `synthetic/`.
"""

from utils.submodules import use_own_packages

use_own_packages()
