"""GPU kernels of the referring field, in Triton: scores and their gradients without anything of size N x L or N x D.

Importing it raises ImportError where there is no Triton that can compile them.
"""

import os

import triton

OLDEST = (3, 6)  # what PyTorch 2.10 comes with; the first with products of float32 in three of bfloat16

if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}, of PyTorch 2.10")

# Matrix products by mma.sync. The tiles here are too small to gain from the instructions of newer GPUs, and what Triton
# 3.6 makes of them for Hopper reads outside of shared memory. Read whenever Triton compiles.
os.environ.setdefault("DISABLE_MMA_V3", "1")
os.environ.setdefault("DISABLE_MMA_V5", "1")
