// The few things that both CUDA op files need of torch, over the stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
#include "stable_tensor.h"

namespace pix2pixhd {

using torch::stable::accelerator::DeviceGuard;

inline void check_launch(int error) {
  STD_TORCH_CHECK(error == 0, "pix2pixhd: a CUDA kernel could not be launched: ", cuda::error_text(error),
                  "; `pix2pixhd doctor` tells which GPUs it was built for");
}

inline cuda::Stream current_stream(Device device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &stream));
  return stream;
}

}  // namespace pix2pixhd
