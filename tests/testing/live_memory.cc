// Counts the memory that a process has allocated and mapped: a library for LD_PRELOAD, so that what
// is counted is the program as it is shipped. LIVE_MEMORY names a file of two int64: the bytes that
// are live, and the most there were since the reader last set that number back.
//
// A block counts with what the allocator gave for it and its header. glibc's own mappings of large
// blocks are not seen here and so do not count twice; neither do thread stacks and libraries.
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

// glibc's allocator under the names that it keeps for libraries like this one.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* block, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
void __libc_free(void* block);
}

namespace {

constexpr int64_t kHeader = sizeof(size_t);

struct Counts {
  std::atomic<int64_t> live;
  std::atomic<int64_t> peak;
};

// Until the file is mapped: the loader allocates before any constructor runs.
Counts early;
std::atomic<Counts*> counts = &early;

void Add(int64_t bytes) {
  Counts* const to = counts.load(std::memory_order_acquire);
  const int64_t live = to->live.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t peak = to->peak.load(std::memory_order_relaxed);
  while (live > peak && !to->peak.compare_exchange_weak(peak, live, std::memory_order_relaxed)) {
  }
}

int64_t SizeOf(void* block) {
  return block == nullptr ? 0 : static_cast<int64_t>(malloc_usable_size(block)) + kHeader;
}

void* Counted(void* block) {
  if (block != nullptr) Add(SizeOf(block));
  return block;
}

// Whole pages, as the kernel maps them.
int64_t Pages(size_t size) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return static_cast<int64_t>((size + page - 1) / page * page);
}

}  // namespace

extern "C" {

void* malloc(size_t size) noexcept { return Counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) noexcept { return Counted(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) noexcept {
  return Counted(__libc_memalign(alignment, size));
}
void* aligned_alloc(size_t alignment, size_t size) noexcept { return memalign(alignment, size); }
void* valloc(size_t size) noexcept {
  return memalign(static_cast<size_t>(sysconf(_SC_PAGESIZE)), size);
}

int posix_memalign(void** block, size_t alignment, size_t size) noexcept {
  if (alignment < sizeof(void*) || (alignment & (alignment - 1)) != 0) return EINVAL;
  void* const made = memalign(alignment, size);
  if (made == nullptr) return ENOMEM;
  *block = made;
  return 0;
}

void* realloc(void* block, size_t size) noexcept {
  const int64_t before = SizeOf(block);
  void* const made = __libc_realloc(block, size);
  if (made == nullptr && size != 0) return nullptr;  // the old block is as it was
  Add(SizeOf(made) - before);
  return made;
}

void* reallocarray(void* block, size_t count, size_t size) noexcept {
  size_t bytes = 0;
  if (__builtin_mul_overflow(count, size, &bytes)) {
    errno = ENOMEM;
    return nullptr;
  }
  return realloc(block, bytes);
}

void free(void* block) noexcept {
  Add(-SizeOf(block));
  __libc_free(block);
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  void* const made =
      reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
  if (made != MAP_FAILED && (flags & MAP_FIXED) == 0) Add(Pages(size));
  return made;
}

void* mmap64(void* address, size_t size, int protection, int flags, int file,
             off64_t offset) noexcept {
  return mmap(address, size, protection, flags, file, offset);
}

int munmap(void* address, size_t size) noexcept {
  const auto result = static_cast<int>(syscall(SYS_munmap, address, size));
  if (result == 0) Add(-Pages(size));
  return result;
}

}  // extern "C"

namespace {

__attribute__((constructor)) void MapCounts() {
  const char* const path = std::getenv("LIVE_MEMORY");
  if (path == nullptr) return;
  const int file = open(path, O_RDWR | O_CLOEXEC);
  if (file < 0) return;
  void* const mapped = reinterpret_cast<void*>(
      syscall(SYS_mmap, nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
  close(file);
  if (mapped == MAP_FAILED) return;
  auto* const shared = static_cast<Counts*>(mapped);
  shared->live.store(early.live.load(), std::memory_order_relaxed);
  shared->peak.store(early.peak.load(), std::memory_order_relaxed);
  counts.store(shared, std::memory_order_release);
}

}  // namespace
