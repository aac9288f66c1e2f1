// Replacement of PyTorch's header: a failed check ends the process.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

inline void print_part(const char* text) { std::fputs(text, stderr); }
inline void print_part(const std::string& text) { print_part(text.c_str()); }
inline void print_part(int64_t number) { print_part(std::to_string(number)); }

template <typename... Args>
[[noreturn]] void fail_check(const Args&... args) {
  print_part("CHECK: ");
  (print_part(args), ...);
  std::abort();
}

#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) fail_check(__VA_ARGS__)
#define TORCH_ERROR_CODE_CHECK(call) STD_TORCH_CHECK((call) == TORCH_SUCCESS, #call)
