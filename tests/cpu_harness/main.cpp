// Runs all kernels of the given instruction sets ("all" for those that this processor supports) on random shapes.
//
//   kernels SHAPES SEED all|NAME...
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cases.h"

namespace {

std::vector<std::string> supported() {
  std::vector<std::string> names;
  std::string rest = pix2pixhd::cpu::supported_instruction_sets();
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    names.push_back(rest.substr(0, comma));
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
  }
  return names;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::fprintf(stderr, "usage: %s SHAPES SEED all|NAME...\n", arguments[0]);
    return 2;
  }
  std::vector<std::string> names(arguments + 3, arguments + count);
  if (names[0] == "all") names = supported();
  for (const std::string& name : names) {
    if (!pix2pixhd::cpu::select_kernels(name.c_str())) {
      std::fprintf(stderr, "%s is not supported by this processor, which has %s\n", name.c_str(),
                   pix2pixhd::cpu::supported_instruction_sets());
      return 2;
    }
    const int64_t cases = harness::cases();
    const int64_t checks = harness::checks();
    const int64_t failures = harness::failures();
    harness::Run run{pix2pixhd::cpu::kernels(), harness::Random(std::strtoull(arguments[2], nullptr, 10)),
                     std::atoll(arguments[1])};
    for (const auto test : {harness::test_l1, harness::test_pointwise, harness::test_relu, harness::test_lpips,
                            harness::test_pool, harness::test_norm_act}) {
      test(run);
    }
    std::printf("%s: %" PRId64 " cases, %" PRId64 " checks, %" PRId64 " failed, digest %016" PRIx64 "\n",
                run.kernels.name, harness::cases() - cases, harness::checks() - checks, harness::failures() - failures,
                run.digest);
  }
  return harness::failures() == 0 ? 0 : 1;
}
