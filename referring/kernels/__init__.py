"""GPU kernels of the referring field: scores and their gradients without anything of size N x L or N x D."""

from utils.submodules import use_own_packages

use_own_packages()
