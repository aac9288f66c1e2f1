// CUDA streams, devices and launch errors for the CUDA operators, through the stable ABI.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
#include "stable_tensor.h"

namespace pix2pixhd {

using torch::stable::accelerator::DeviceGuard;

inline void check_launch(int error) {
  STD_TORCH_CHECK(error == 0, "pix2pixhd: cannot launch a CUDA kernel: ", cuda::error_text(error),
                  "; run `pix2pixhd doctor` to see which GPUs this build supports");
}

inline cuda::Stream current_stream(Device device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device.index, &stream));
  return stream;
}

}  // namespace pix2pixhd
