#include "recycler.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pix2pixhd::cpu {

#if defined(__linux__) && defined(MADV_HUGEPAGE)
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// A kept block is unmapped after this many other requests: a few training steps' worth.
constexpr uint64_t kPatience = 256;

struct Kept {
  void* block;
  size_t bytes;
  uint64_t since;  // request count when it was given back
};

class Recycler {
 public:
  void* acquire(size_t bytes) {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    const std::lock_guard<std::mutex> lock(mutex_);
    ++requests_;
    unmap_stale();
    for (size_t i = kept_.size(); i-- > 0;) {  // the latest first: the likeliest in cache
      if (kept_[i].bytes != bytes) continue;
      void* block = kept_[i].block;
      kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
      sizes_[block] = bytes;
      return block;
    }
    void* block = map(bytes);
    if (block != nullptr) sizes_[block] = bytes;
    return block;
  }

  void release(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(block);
    const size_t bytes = found->second;
    sizes_.erase(found);
    kept_.push_back({block, bytes, requests_});
  }

  size_t trim() {
    const std::lock_guard<std::mutex> lock(mutex_);
    size_t bytes = 0;
    for (const Kept& kept : kept_) {
      munmap(kept.block, kept.bytes);
      bytes += kept.bytes;
    }
    kept_.clear();
    return bytes;
  }

 private:
  // Huge pages need 2 MiB alignment, which mmap does not promise: map one page more and cut the ends off.
  static void* map(size_t bytes) {
    void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    const auto begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t block = (begin + kHugePage - 1) & ~(kHugePage - 1);
    if (block > begin) munmap(raw, block - begin);
    const uintptr_t end = begin + bytes + kHugePage;
    if (end > block + bytes) munmap(reinterpret_cast<void*>(block + bytes), end - block - bytes);
    madvise(reinterpret_cast<void*>(block), bytes, MADV_HUGEPAGE);
    return reinterpret_cast<void*>(block);
  }

  void unmap_stale() {
    for (size_t i = kept_.size(); i-- > 0;) {
      if (requests_ - kept_[i].since <= kPatience) continue;
      munmap(kept_[i].block, kept_[i].bytes);
      kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  std::mutex mutex_;
  std::vector<Kept> kept_;
  std::unordered_map<void*, size_t> sizes_;  // of blocks in use
  uint64_t requests_ = 0;
};

// Never destroyed: tensors may be freed after static destructors have run.
Recycler& recycler() {
  static auto* instance = new Recycler;
  return *instance;
}

bool enabled() {
  static const bool on = [] {
    const char* value = std::getenv("PIX2PIXHD_RECYCLE");
    return value == nullptr || std::strcmp(value, "0") != 0;
  }();
  return on;
}

}  // namespace

void* acquire_block(size_t bytes) { return enabled() && bytes >= kRecycledBytes ? recycler().acquire(bytes) : nullptr; }
void release_block(void* block) { recycler().release(block); }
size_t trim_blocks() { return recycler().trim(); }

#else

void* acquire_block(size_t) { return nullptr; }
void release_block(void*) {}
size_t trim_blocks() { return 0; }

#endif

}  // namespace pix2pixhd::cpu
