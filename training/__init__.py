"""The two training stages and the loop that drives them.

`rgb` and `referring` know how to take one step, `uploads` keeps what they look at on the GPU; `referrals` has the
sentences as tensors, and `field_steps` does with them what a step needs of the referring field. `session` knows logs,
checkpoints, signals and --resume. Nothing here parses flags or reads scene files.
"""

from utils.submodules import use_own_packages

use_own_packages()
