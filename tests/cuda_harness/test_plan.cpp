// Host side of the launches: division by a number that the host knows, and the launch plan: the assignment of blocks to
// chunks of tensors, and the split over launches.
#include <exception>

#include "../../csrc/cuda/device.cuh"
#include "tensors.h"

namespace harness {
namespace {

using namespace pix2pixhd;

constexpr int64_t kMostBlocks = 0x7fffffff;  // CUDA's limit of gridDim.x

int64_t blocks_of(int64_t numel) { return (numel + kBlockChunk - 1) / kBlockChunk; }

// The constant of a tensor holds its index in the list.
cuda::Plan plan_of(const std::vector<Shape>& shapes) {
  std::vector<cuda::PlanEntry> entries;
  for (size_t k = 0; k < shapes.size(); ++k) {
    entries.push_back({{{nullptr, nullptr}, nullptr, shapes[k].numel, 1.0, static_cast<double>(k), 1},
                       {shapes[k].type[0], shapes[k].type[1]}});
  }
  return cuda::make_plan(entries);
}

// Checks that a plan holds all tensors in order, each with its dtypes and blocks, and partial sums without gaps.
void run(const char* list, const std::vector<Shape>& shapes, size_t launches) {
  set_case(std::string("plan ") + list);
  const cuda::Plan plan = plan_of(shapes);
  check(plan.launches.size() == launches, "%zu launches instead of %zu", plan.launches.size(), launches);
  std::vector<size_t> order;
  int64_t partials = 0;
  for (const cuda::Launch& launch : plan.launches) {
    const cuda::LaunchArgs& args = launch.args;
    check(args.count >= 1 && args.count <= kMaxTensors, "%d tensors in a launch", args.count);
    check(args.first_partial == partials, "partial sums begin at %ld, not %ld", static_cast<long>(args.first_partial),
          static_cast<long>(partials));
    check(args.block_begin[0] == 0, "the first block is %d", args.block_begin[0]);
    int64_t blocks = 0;
    for (int32_t i = 0; i < args.count; ++i) {
      const auto k = static_cast<size_t>(args.tensor[i].constant);
      order.push_back(k);
      check(args.tensor[i].numel == shapes[k].numel, "tensor %zu has another size", k);
      check(launch.type[0] == shapes[k].type[0] && launch.type[1] == shapes[k].type[1], "tensor %zu has other types",
            k);
      blocks += blocks_of(shapes[k].numel);
      check(args.block_begin[i + 1] == blocks, "tensor %zu ends at block %d instead of %ld", k, args.block_begin[i + 1],
            static_cast<long>(blocks));
    }
    check(blocks > 0 && blocks <= kMostBlocks, "%ld blocks in a launch", static_cast<long>(blocks));
    partials += blocks;
  }
  check(plan.partials == partials, "%ld partial sums instead of %ld", static_cast<long>(plan.partials),
        static_cast<long>(partials));
  check(order == planned_order(shapes), "tensors are missing, duplicated or in another order");
}

// The first tensor of a launch decides whether its kernel packs signs, so all tensors of a launch must have signs or
// none.
void run_with_and_without_signs() {
  set_case("plan of tensors alternately with and without signs");
  uint32_t signs = 0;
  std::vector<cuda::PlanEntry> entries;
  for (int k = 0; k < 2 * kMaxTensors + 2; ++k) {
    entries.push_back({{{nullptr, nullptr}, k % 2 == 0 ? &signs : nullptr, 5, 1.0, static_cast<double>(k), 1},
                       {DType::kFloat32, DType::kFloat32}});
  }
  const cuda::Plan plan = cuda::make_plan(entries);
  check(plan.launches.size() == 4, "%zu launches instead of 4", plan.launches.size());
  for (const cuda::Launch& launch : plan.launches) {
    for (int32_t i = 1; i < launch.args.count; ++i) {
      check((launch.args.tensor[i].signs == nullptr) == (launch.args.tensor[0].signs == nullptr),
            "one launch has tensors with and without signs");
    }
  }
}

// Numbers around multiples of the divisor, on both sides of 2^31, which separates two ways of dividing.
void run_division() {
  set_case("division");
  constexpr int64_t kLimit = int64_t{1} << 31;
  for (const int64_t d : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{96}, int64_t{641}, int64_t{1 << 20},
                          int64_t{1000003}, kLimit - 1, kLimit, kLimit + 1, 3 * kLimit + 5}) {
    const cuda::Divisor divisor(d);
    Random random(static_cast<uint64_t>(d));
    for (const int64_t about : {int64_t{0}, d, 5 * d, kLimit / d * d, kLimit, 2 * kLimit + 5 * d, kLimit * 513}) {
      for (int64_t k = -3; k <= 3; ++k) {
        const int64_t n = about + k + (k == 3 ? random.below(d) : 0);
        if (n < 0) continue;
        const cuda::Division<int64_t> got = divisor.divide(n);
        check(got.quotient == n / d && got.remainder == n % d, "%ld / %ld is %ld, remainder %ld", static_cast<long>(n),
              static_cast<long>(d), static_cast<long>(got.quotient), static_cast<long>(got.remainder));
      }
    }
  }
}

}  // namespace

void test_plan() {
  run_division();
  run_with_and_without_signs();
  const DType f32 = DType::kFloat32;
  run("of nothing", {}, 0);
  run("of empty tensors", of_types({0, 0, 0}, f32, f32), 0);
  run("of one element", of_types({1}, f32, f32), 1);
  run("of awkward sizes", of_types(awkward_sizes(), f32, f32), 1);
  run("with empty tensors", with_empty(f32, f32), 1);
  run("of mixed types", mixed_types(), 16);
  for (const int count : {1, kMaxTensors - 1, kMaxTensors, kMaxTensors + 1, 2 * kMaxTensors, 2 * kMaxTensors + 1}) {
    const auto launches = static_cast<size_t>((count + kMaxTensors - 1) / kMaxTensors);
    run("of as many tensors as a launch takes, or more",
        of_types(std::vector<int64_t>(static_cast<size_t>(count), 5), f32, f32), launches);
  }
  std::vector<int64_t> empty_at_the_border(kMaxTensors + 2, 5);
  empty_at_the_border[kMaxTensors] = 0;
  empty_at_the_border[kMaxTensors + 1] = 0;
  run("with empty tensors after a full launch", of_types(empty_at_the_border, f32, f32), 1);
  // Alternating dtypes, more tensors of each than one launch takes.
  std::vector<Shape> alternating;
  for (int k = 0; k < 4 * kMaxTensors + 2; ++k) alternating.push_back({k + 1, {kTypes[k % 2], f32}});
  run("of two alternating dtypes", alternating, 6);

  const int64_t most = kMostBlocks * kBlockChunk;
  run("of 2^31 - 1, 2^31 and 2^32 + 1 elements",
      of_types({(int64_t{1} << 31) - 1, int64_t{1} << 31, (int64_t{1} << 32) + 1}, f32, f32), 1);
  run("of as many blocks as a launch takes", of_types({most - kBlockChunk, kBlockChunk}, f32, f32), 1);
  run("of one block more", of_types({most - kBlockChunk, kBlockChunk + 1}, f32, f32), 2);
  run("of a tensor after the largest", of_types({most, 1, 1}, f32, f32), 2);

  set_case("plan of a tensor that no launch takes");
  bool refused = false;
  try {
    plan_of(of_types({1, most + 1}, f32, f32));
  } catch (const std::exception&) {
    refused = true;
  }
  check(refused, "a tensor of more blocks than a launch takes is accepted");
}

}  // namespace harness
