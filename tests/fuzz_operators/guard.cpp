// Preloaded before PyTorch: its allocations end at a page that cannot be accessed. A read or write beyond the end is a
// segmentation fault, as is one in freed memory. Bytes between the end of an allocation and the page, and those before
// an allocation in its first page, are checked when it is freed.
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>

extern "C" {
void __libc_free(void*);
void* __libc_memalign(size_t, size_t);

// Set by the fuzzer: whether allocations are guarded, the byte that they contain, and the largest one that succeeds.
int pix2pixhd_guard_enabled = 0;
unsigned char pix2pixhd_guard_fill = 0;
size_t pix2pixhd_guard_largest = size_t{1} << 30;
}

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kArena = size_t{1} << 40;  // of addresses; they are used once
constexpr size_t kAlignment = 64;
constexpr unsigned char kCanary = 0xc7;

char* arena = nullptr;
uint32_t* sizes = nullptr;  // of the allocation that begins in this page, in bytes
std::atomic<size_t> used{0};

void* reserve(size_t bytes, int access) {
  void* memory = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  return memory;
}

__attribute__((constructor)) void start() {
  arena = static_cast<char*>(reserve(kArena, PROT_NONE));
  sizes = static_cast<uint32_t*>(reserve(kArena / kPage * sizeof(uint32_t), PROT_READ | PROT_WRITE));
}

size_t rounded(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

void check(const char* first, const char* last, const char* where) {
  for (; first < last; ++first) {
    if (static_cast<unsigned char>(*first) == kCanary) continue;
    fprintf(stderr, "GUARD: a write %s of an allocation\n", where);
    abort();
  }
}

}  // namespace

extern "C" int posix_memalign(void** result, size_t alignment, size_t size) {
  if (!pix2pixhd_guard_enabled || alignment > kAlignment) {
    *result = __libc_memalign(alignment, size);
    return *result == nullptr ? ENOMEM : 0;
  }
  if (size > pix2pixhd_guard_largest) return ENOMEM;
  const size_t pages = rounded(size > 0 ? size : 1, kPage);
  const size_t at = used.fetch_add(pages + kPage);
  if (at + pages + kPage > kArena) return ENOMEM;
  char* first = arena + at;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE) != 0) return ENOMEM;
  char* data = first + pages - rounded(size, kAlignment);
  memset(first, kCanary, pages);
  memset(data, pix2pixhd_guard_fill, size);
  sizes[at / kPage] = static_cast<uint32_t>(size + 1);  // 0: no allocation begins here
  *result = data;
  return 0;
}

extern "C" void free(void* pointer) {
  char* data = static_cast<char*>(pointer);
  if (data < arena || data > arena + kArena || arena == nullptr) return __libc_free(pointer);
  // An empty allocation is at the end of its page, which is the beginning of the next one.
  size_t page = static_cast<size_t>(data - arena) / kPage;
  if (sizes[page] == 0 && page > 0 && sizes[page - 1] == 1) --page;
  if (sizes[page] == 0) {
    fprintf(stderr, "GUARD: an invalid or repeated free\n");
    abort();
  }
  const size_t size = sizes[page] - 1;
  char* first = arena + page * kPage;
  const size_t pages = rounded(size > 0 ? size : 1, kPage);
  check(first, data, "before the beginning");
  check(data + size, first + pages, "beyond the end");
  sizes[page] = 0;
  mmap(first, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}
