// Selection of the instruction set at run time.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace pix2pixhd::cpu {
namespace {

struct Candidates {
  const Kernels* table[3];
  int count;
};

Candidates candidates() {
  Candidates found{{&kBaseline, nullptr, nullptr}, 1};
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Everything that setup.py lets the compiler use. These checks include the operating system's support for the wider
  // registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")) {
    found.table[found.count++] = &kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      found.table[found.count++] = &kAvx512;
    }
  }
#elif defined(__aarch64__)
  found.table[found.count++] = &kNeon;  // every 64-bit Arm processor has it
#endif
  return found;
}

const Kernels* find(const char* name) {
  const Candidates found = candidates();
  if (name == nullptr || *name == '\0' || std::strcmp(name, "auto") == 0) return found.table[found.count - 1];
  for (int i = 0; i < found.count; ++i) {
    if (std::strcmp(found.table[i]->name, name) == 0) return found.table[i];
  }
  return nullptr;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{[] {
    const Kernels* asked = find(std::getenv("PIX2PIXHD_CPU_ISA"));
    return asked != nullptr ? asked : find("auto");
  }()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed); }

const char* supported_instruction_sets() {
#if defined(__aarch64__)
  static const char* const names[] = {"baseline", "baseline,neon"};
#else
  static const char* const names[] = {"baseline", "baseline,avx2", "baseline,avx2,avx512"};
#endif
  return names[candidates().count - 1];
}

bool select_kernels(const char* name) {
  const Kernels* table = find(name);
  if (table == nullptr) return false;
  current().store(table, std::memory_order_relaxed);
  return true;
}

}  // namespace pix2pixhd::cpu
