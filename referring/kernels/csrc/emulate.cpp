// All kernels compiled for the CPU, see emulate.h.
#define FIELD_EMULATED

#include "forms_backward.cu"
#include "networks_backward.cu"
#include "pack.cu"
#include "pool.cu"
#include "products.cu"
#include "score.cu"
#include "top_k.cu"
