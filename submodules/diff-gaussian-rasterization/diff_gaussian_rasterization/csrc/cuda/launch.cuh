// What every launch needs: the device of the call, errors as a status, and scratch memory cut into arrays.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../dgr_cuda.h"

namespace dgr {

constexpr int kWarp = 32;

// Cuts one block of memory into arrays; without memory it only counts the bytes.
class Arena {
  public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    T* take(std::int64_t count) {
        T* place = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        used_ += (count * static_cast<std::int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
        return place;
    }

    bool empty() const { return memory_ == nullptr; }
    std::int64_t bytes() const { return std::max(used_, kAlignment); }  // no empty tensor, which has no address

  private:
    static constexpr std::int64_t kAlignment = 256;
    char* memory_;
    std::int64_t used_ = 0;
};

// Memory of the host of which the device knows: a copy to other memory takes twice as long.
struct Pinned {
    void* memory = nullptr;
    ~Pinned() {
        if (memory != nullptr) cudaFreeHost(memory);
    }
};

// Remembers the first error of a call.
class Checked {
  public:
    // Makes the call's device current, for the lifetime of this object.
    explicit Checked(const DgrExec& exec, DgrAllocate allocate = nullptr)
        : allocate_(allocate), stream_(static_cast<cudaStream_t>(exec.stream)) {
        check(cudaGetDevice(&previous_));
        changed_ = error_ == cudaSuccess && previous_ != exec.device;
        if (changed_) check(cudaSetDevice(exec.device));
    }
    ~Checked() {
        if (changed_) cudaSetDevice(previous_);
    }
    Checked(const Checked&) = delete;
    Checked& operator=(const Checked&) = delete;

    void check(cudaError_t error) {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // forget it, or the next launch would be blamed
        if (error_ == cudaSuccess) error_ = error;
    }

    // kernel<<<blocks, threads>>>(arguments...) unless something went wrong before or there is nothing to do.
    template <typename... Parameters, typename... Arguments>
    void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, Arguments... arguments) {
        if (error_ != cudaSuccess || blocks == 0) return;
        kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream_>>>(arguments...);
        check(cudaGetLastError());
    }

    // The same with one thread for each of `count` items.
    template <typename... Parameters, typename... Arguments>
    void launch_each(void (*kernel)(Parameters...), std::int64_t count, Arguments... arguments) {
        constexpr int kThreads = 256;
        launch(kernel, (count + kThreads - 1) / kThreads, kThreads, arguments...);
    }

    // Copy one number to the host and wait for it.
    template <typename T>
    void read(T* host, const T* device) {
        thread_local Pinned pinned;
        if (ok() && pinned.memory == nullptr) check(cudaHostAlloc(&pinned.memory, sizeof(T), cudaHostAllocPortable));
        if (!ok()) return;
        check(cudaMemcpyAsync(pinned.memory, device, sizeof(T), cudaMemcpyDeviceToHost, stream_));
        check(cudaStreamSynchronize(stream_));
        if (ok()) std::memcpy(host, pinned.memory, sizeof(T));
    }

    // Copy `count` values within the device.
    template <typename T>
    void copy(T* to, const T* from, std::int64_t count) {
        if (error_ != cudaSuccess || count == 0) return;
        check(
            cudaMemcpyAsync(to, from, sizeof(T) * static_cast<std::size_t>(count), cudaMemcpyDeviceToDevice, stream_));
    }

    // `count` zeros.
    template <typename T>
    void clear(T* device, std::int64_t count) {
        if (error_ != cudaSuccess || count == 0) return;
        check(cudaMemsetAsync(device, 0, sizeof(T) * static_cast<std::size_t>(count), stream_));
    }

    // Memory of the caller for what `take` takes from an arena.
    template <typename Take>
    void allocate(DgrSlot slot, const Take& take) {
        Arena sizes(nullptr);
        take(sizes);
        if (error_ != cudaSuccess) return;
        Arena memory(allocate_(slot, sizes.bytes()));
        if (memory.empty()) {
            refused_ = true;
            return check(cudaErrorMemoryAllocation);
        }
        take(memory);
    }

    template <typename Take>
    void scratch(const Take& take) {
        allocate(DGR_SLOT_SCRATCH, take);
    }

    // The same for one array.
    template <typename T>
    T* allocate(DgrSlot slot, std::int64_t count) {
        T* array = nullptr;
        allocate(slot, [&](Arena& arena) { array = arena.take<T>(count); });
        return array;
    }

    cudaStream_t stream() const { return stream_; }
    bool ok() const { return error_ == cudaSuccess; }

    std::int32_t status() const {
        if (refused_) return DGR_REFUSED;
        if (error_ == cudaErrorMemoryAllocation) return DGR_OUT_OF_MEMORY;
        return error_ == cudaSuccess ? DGR_OK : DGR_DEVICE_ERROR - static_cast<std::int32_t>(error_);
    }

  private:
    DgrAllocate allocate_;
    cudaStream_t stream_;
    int previous_ = 0;
    bool changed_ = false, refused_ = false;
    cudaError_t error_ = cudaSuccess;
};

// Index of this thread in a grid of launch_each.
__device__ inline std::int64_t thread_index() {
    return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace dgr
