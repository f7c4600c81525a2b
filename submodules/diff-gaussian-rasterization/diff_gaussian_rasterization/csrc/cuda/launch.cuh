// Launching kernels: the device and stream of a call, its errors as a status, and its memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../dgr_cuda.h"
#include "warp.cuh"

namespace dgr {

// Divides one block of memory into arrays; without memory it only counts the bytes.
class Arena {
  public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}

    template <typename T>
    T* take(int64_t count) {
        T* place = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
        used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
        return place;
    }

    bool empty() const { return memory_ == nullptr; }
    int64_t bytes() const { return std::max(used_, kAlignment); }  // an empty tensor would have no address

  private:
    static constexpr int64_t kAlignment = 256;
    char* memory_;
    int64_t used_ = 0;
};

// Page-locked memory of the host: a copy to pageable memory takes twice as long.
struct Pinned {
    void* memory = nullptr;
    ~Pinned() {
        if (memory != nullptr) cudaFreeHost(memory);
    }
};

// The stream of one call. Remembers the first error; after that, nothing more is launched.
class Stream {
  public:
    // Makes the device of the call current for the lifetime of this object.
    explicit Stream(const DgrExec& exec, DgrAllocate allocate = nullptr)
        : allocate_(allocate), handle_(static_cast<cudaStream_t>(exec.stream)) {
        check(cudaGetDevice(&previous_));
        changed_ = error_ == cudaSuccess && previous_ != exec.device;
        if (changed_) check(cudaSetDevice(exec.device));
    }
    ~Stream() {
        if (changed_) cudaSetDevice(previous_);
    }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    void check(cudaError_t error) {
        if (error == cudaSuccess) return;
        cudaGetLastError();  // clear it, or the next launch would be blamed
        if (error_ == cudaSuccess) error_ = error;
    }

    template <typename... Parameters, typename... Arguments>
    Stream& launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Arguments... arguments) {
        if (error_ != cudaSuccess || blocks == 0) return *this;
        kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, handle_>>>(arguments...);
        check(cudaGetLastError());
        return *this;
    }

    // Launch a thread for each of `count` items.
    template <typename... Parameters, typename... Arguments>
    Stream& launch_each(void (*kernel)(Parameters...), int64_t count, Arguments... arguments) {
        constexpr int kThreads = 256;
        return launch(kernel, (count + kThreads - 1) / kThreads, kThreads, arguments...);
    }

    // Copy one number to the host and wait for it.
    template <typename T>
    void read(T* host, const T* device) {
        thread_local Pinned pinned;
        if (ok() && pinned.memory == nullptr) check(cudaHostAlloc(&pinned.memory, sizeof(T), cudaHostAllocPortable));
        if (!ok()) return;
        check(cudaMemcpyAsync(pinned.memory, device, sizeof(T), cudaMemcpyDeviceToHost, handle_));
        check(cudaStreamSynchronize(handle_));
        if (ok()) std::memcpy(host, pinned.memory, sizeof(T));
    }

    // Copy `count` values within the device.
    template <typename T>
    void copy(T* to, const T* from, int64_t count) {
        if (error_ != cudaSuccess || count == 0) return;
        check(cudaMemcpyAsync(to, from, sizeof(T) * static_cast<size_t>(count), cudaMemcpyDeviceToDevice, handle_));
    }

    // Set `count` values to zero.
    template <typename T>
    void clear(T* device, int64_t count) {
        if (error_ != cudaSuccess || count == 0) return;
        check(cudaMemsetAsync(device, 0, sizeof(T) * static_cast<size_t>(count), handle_));
    }

    // Request memory from the caller for the arrays that `take` takes from an arena.
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

    // Request memory for one array.
    template <typename T>
    T* allocate(DgrSlot slot, int64_t count) {
        T* array = nullptr;
        allocate(slot, [&](Arena& arena) { array = arena.take<T>(count); });
        return array;
    }

    cudaStream_t handle() const { return handle_; }
    bool ok() const { return error_ == cudaSuccess; }

    int32_t status() const {
        if (refused_) return DGR_REFUSED;
        if (error_ == cudaErrorMemoryAllocation) return DGR_OUT_OF_MEMORY;
        return error_ == cudaSuccess ? DGR_OK : DGR_DEVICE_ERROR - static_cast<int32_t>(error_);
    }

  private:
    DgrAllocate allocate_;
    cudaStream_t handle_;
    int previous_ = 0;
    bool changed_ = false, refused_ = false;
    cudaError_t error_ = cudaSuccess;
};

}  // namespace dgr
