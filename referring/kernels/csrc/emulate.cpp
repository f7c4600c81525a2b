// All kernels for the CPU, see emulate.h.

#define FIELD_EMULATED

#include "forms.cu"
#include "networks.cu"
#include "pack.cu"
#include "pool.cu"
#include "products.cu"
#include "score.cu"
#include "select.cu"
#include "sums.cu"
