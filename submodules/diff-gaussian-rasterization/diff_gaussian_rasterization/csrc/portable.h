// Functions that the C++ compiler and nvcc share.
#pragma once

#if defined(__CUDACC__)
#define DGR_HD __host__ __device__
#else
#define DGR_HD
#endif
