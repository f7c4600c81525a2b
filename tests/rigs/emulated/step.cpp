// The kernels of csrc/dgr_step.h on the CPU, for tests without a GPU. Compiled by tests/training/test_step_kernels.py.
#define DGR_EMULATED

#include "emulate.h"

#define __shared__ static  // one block runs at a time

#include "dgr_step.h"

namespace dgr {

// As in launch.cuh, with the same number of threads.
class Stream {
  public:
    explicit Stream(const DgrExec&) : stream_(nullptr) {}

    template <typename Kernel, typename... Arguments>
    Stream& launch(Kernel kernel, int64_t blocks, int threads, Arguments... arguments) {
        stream_.launch(kernel, static_cast<unsigned>(blocks), threads, 0, arguments...);
        return *this;
    }

    template <typename Kernel, typename... Arguments>
    Stream& launch_each(Kernel kernel, int64_t count, Arguments... arguments) {
        return launch(kernel, (count + 255) / 256, 256, arguments...);
    }

    int32_t status() const { return stream_.status(); }

  private:
    emulated::Stream stream_;
};

}  // namespace dgr

#include "cuda/parameters.cu"
#include "cuda/photo_loss.cu"
