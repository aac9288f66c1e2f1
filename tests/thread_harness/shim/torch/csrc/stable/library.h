// Replacement of PyTorch's registration: the harness finds an operator's function by its name.
#pragma once

#include <map>
#include <string>

namespace harness {

using AnyFunction = void (*)();

inline std::map<std::string, AnyFunction>& operators() {
  static std::map<std::string, AnyFunction> registered;
  return registered;
}

struct Library {
  void def(const char*) {}
  template <typename F>
  void impl(const char* name, F* function) {
    operators()[name] = reinterpret_cast<AnyFunction>(function);
  }
};

struct Registration {
  explicit Registration(void (*fill)(Library&)) {
    Library library;
    fill(library);
  }
};

}  // namespace harness

#define TORCH_BOX(function) function
#define HARNESS_JOIN_(a, b) a##b
#define HARNESS_JOIN(a, b) HARNESS_JOIN_(a, b)
#define HARNESS_REGISTER(id, m)                                                 \
  static void HARNESS_JOIN(fill, id)(harness::Library&);                        \
  static harness::Registration HARNESS_JOIN(done, id)(&HARNESS_JOIN(fill, id)); \
  static void HARNESS_JOIN(fill, id)([[maybe_unused]] harness::Library & m)
#define STABLE_TORCH_LIBRARY(ns, m) HARNESS_REGISTER(__COUNTER__, m)
#define STABLE_TORCH_LIBRARY_FRAGMENT(ns, m) HARNESS_REGISTER(__COUNTER__, m)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) HARNESS_REGISTER(__COUNTER__, m)
