// Calls by which simulator.cpp informs the sanitizers. It is compiled without them: they check the kernels' memory
// accesses, not the simulator's. They report switches between stacks, and the order that barriers establish.
#pragma once

#include <cstddef>

#if defined(HARNESS_ADDRESS)
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
#endif
#if defined(HARNESS_THREAD)
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif
