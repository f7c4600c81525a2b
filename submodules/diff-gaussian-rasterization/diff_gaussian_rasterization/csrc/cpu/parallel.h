// Loops over OpenMP threads. Each index writes its own outputs, so that results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "../dgr.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace dgr {

inline int thread_count(const DgrExec& exec) {
#ifdef _OPENMP
    return exec.threads > 0 ? exec.threads : 1;
#else
    (void)exec;
    return 1;
#endif
}

// Call body(i) for 0 <= i < count; free threads take `chunk` indices at a time.
template <typename Body>
void parallel_for(const DgrExec& exec, int64_t count, int chunk, const Body& body) {
#ifdef _OPENMP
    const int threads = thread_count(exec);
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads) if (count > chunk)
#else
    (void)exec;
    (void)chunk;
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
}

// Scratch memory for each thread.
class Scratch {
  public:
    Scratch(const DgrExec& exec, int64_t floats)
        : stride_((floats + 31) / 16 * 16), memory_(new (std::nothrow) float[stride_ * thread_count(exec)]) {}

    bool ok() const { return memory_ != nullptr; }

    float* own() const {
#ifdef _OPENMP
        return memory_.get() + stride_ * omp_get_thread_num();
#else
        return memory_.get();
#endif
    }

  private:
    int64_t stride_;
    std::unique_ptr<float[]> memory_;
};

}  // namespace dgr
