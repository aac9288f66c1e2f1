// Runs the harness tests named on the command line ("all" for all) and prints which kernels were executed. "stop" ends
// the process at the first failure; "quick" uses fewer sizes; "misuse NAME" runs a kernel that breaks a rule instead.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <string>
#include <vector>

#include "checks.h"
#include "simulator.h"

namespace {

struct Test {
  const char* name;
  void (*run)();
};

constexpr Test kTests[] = {
    {"shim", harness::test_shim},
    {"simulator", harness::test_simulator},
    {"plan", harness::test_plan},
    {"l1", harness::test_l1},
    {"pointwise", harness::test_pointwise},
    {"finish_sum", harness::test_finish_sum},
    {"perceptual", harness::test_perceptual},
    {"pool", harness::test_perceptual_pool},
    {"lpips", harness::test_lpips},
    {"norm_act", harness::test_norm_act},
    {"norm_act_extremes", harness::test_norm_act_extremes},
    {"huge_tensors", harness::test_huge_tensors},
};

bool contains(const std::vector<std::string>& words, const char* word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  if (words.size() == 2 && words[0] == "misuse") return harness::run_misuse(words[1].c_str()) ? 0 : 2;
  if (contains(words, "stop")) harness::stop_at_first_failure();
  if (contains(words, "quick")) harness::use_fewer_sizes();
  for (const Test& test : kTests) {
    if (contains(words, "all") || contains(words, test.name)) test.run();
  }
  harness::print_kernels();
  const harness::Totals totals = harness::totals();
  std::printf("%" PRId64 " kernels executed in %" PRId64 " launches of %" PRId64 " blocks; %" PRId64 " cases, %" PRId64
              " checks, %" PRId64 " failed\n",
              totals.kernels, totals.launches, totals.blocks, harness::cases(), harness::checks(), harness::failures());
  return harness::failures() == 0 ? 0 : 1;
}
