// What this machine, or the container that the process runs in, has.
#ifndef NNI_COMPRESSION_SERVER_PLATFORM_HOST_RESOURCES_H_
#define NNI_COMPRESSION_SERVER_PLATFORM_HOST_RESOURCES_H_

#include <cstdint>
#include <string>

namespace nni_compression::server {

// Bytes that the process may use: the limit of its cgroup (v2 or v1) or the machine's memory,
// whichever is smaller. `root` is "/", or a copy of the files in a test.
int64_t MemoryLimit(const std::string& root = "/");

// Cores that the process may keep busy, at least 1: those that it may run on, or its cgroup's quota
// rounded up, whichever is smaller. `root` as above.
int CpuLimit(const std::string& root = "/");

// Lets the process have as many file descriptors as it may allow itself, which is more than
// programs begin with.
void RaiseDescriptorLimit();

// What this process has used so far, and holds now.
struct ProcessUse {
  double cpu_seconds = 0;
  int64_t resident_bytes = 0;
  int open_files = 0;
  double start_seconds = 0;  // since the epoch
};
ProcessUse ReadProcessUse();

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_PLATFORM_HOST_RESOURCES_H_
