"""The two training stages and the loop that runs them.

`session` is the loop: logs, checkpoints, signals, --resume. `rgb` is the RGB stage, with its photos, colour transforms
and loss (`photos`), optimiser and densification (`densification`, `mcmc`). `referring` is the referring stage, with its
sentences, masks and test mIoU (`referrals`) and its gradients as CUDA graphs (`field_steps`); `two_stage` trains it
twice. `preflight` checks flags and scene before training.
Flags are parsed in arguments/, scene files are read in scene/, trained models are used in inference/.
"""

from utils.submodules import use_own_packages

use_own_packages()
