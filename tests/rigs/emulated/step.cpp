// The kernels of csrc/dgr_step.h on the CPU, for tests without a GPU. Compiled by tests/training/test_step_kernels.py.
#define DGR_EMULATED

#include "emulate.h"

#define __shared__ static  // one block runs at a time

inline void __syncthreads() {
    emulated::barrier();
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return shuffle_xor(value, mask);
}

inline double __shfl_xor_sync(unsigned, double value, int mask) {
    emulated::Payload mine = {};
    std::memcpy(mine.words, &value, sizeof value);
    std::memcpy(&value, emulated::exchange(mine)[emulated::lane() ^ mask].words, sizeof value);
    return value;
}

#include "dgr_step.h"

namespace dgr {

constexpr int kWarp = 32;

// As in launch.cuh, with as many threads.
class Checked {
  public:
    explicit Checked(const DgrExec&) {}

    template <typename... Parameters, typename... Arguments>
    void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, Arguments... arguments) {
        ::launch(kernel, {static_cast<unsigned>(blocks), 1}, static_cast<unsigned>(threads), 0, nullptr, arguments...);
    }

    template <typename... Parameters, typename... Arguments>
    void launch_each(void (*kernel)(Parameters...), std::int64_t count, Arguments... arguments) {
        launch(kernel, (count + 255) / 256, 256, arguments...);
    }

    std::int32_t status() const { return DGR_OK; }
};

}  // namespace dgr

#include "cuda/parameters.cu"
#include "cuda/photo_loss.cu"
