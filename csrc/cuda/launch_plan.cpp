#include "launch_plan.h"

#include <stdexcept>
#include <string>

namespace pix2pixhd::cuda {
namespace {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // limit of gridDim.x

// The template arguments of a kernel are the dtypes and whether signs are packed. A launch uses one kernel.
bool same_kernel(const PlanEntry& a, const PlanEntry& b) {
  const bool both_signs = (a.tensor.signs != nullptr) == (b.tensor.signs != nullptr);
  return a.type[0] == b.type[0] && a.type[1] == b.type[1] && both_signs;
}

}  // namespace

Plan make_plan(const std::vector<PlanEntry>& entries) {
  Plan plan{{}, 0};
  std::vector<bool> placed(entries.size(), false);
  for (size_t first = 0; first < entries.size(); ++first) {
    if (placed[first]) continue;
    // One group: this entry and all later entries with the same kernel.
    Launch* open = nullptr;
    for (size_t k = first; k < entries.size(); ++k) {
      if (placed[k] || !same_kernel(entries[k], entries[first])) continue;
      placed[k] = true;
      const int64_t blocks = (entries[k].tensor.numel + kBlockChunk - 1) / kBlockChunk;
      if (blocks == 0) continue;
      if (blocks > kMaxBlocks) {
        throw std::length_error("pix2pixhd: a tensor of " + std::to_string(entries[k].tensor.numel) +
                                " elements exceeds the limit of one launch (" +
                                std::to_string(kMaxBlocks * kBlockChunk) + "); split the tensor");
      }
      if (open == nullptr || open->args.count == kMaxTensors ||
          open->args.block_begin[open->args.count] + blocks > kMaxBlocks) {
        plan.launches.push_back({});
        open = &plan.launches.back();
        open->type[0] = entries[first].type[0];
        open->type[1] = entries[first].type[1];
        open->args.first_partial = plan.partials;
      }
      LaunchArgs& args = open->args;
      args.tensor[args.count] = entries[k].tensor;
      args.block_begin[args.count + 1] = static_cast<int32_t>(args.block_begin[args.count] + blocks);
      ++args.count;
      plan.partials += blocks;
    }
  }
  return plan;
}

}  // namespace pix2pixhd::cuda
