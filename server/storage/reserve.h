// Disk space that is held back for when the disk is full.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_

#include <sys/types.h>

#include <string>
#include <utility>

namespace nni_compression::server {

// Freeing disk space begins with a write that records what is removed; the reserve makes that
// possible. Thread-compatible.
class Reserve {
 public:
  static constexpr off_t kBytes = 1 << 20;

  // Holds no space yet.
  explicit Reserve(std::string path) : path_(std::move(path)) {}

  // Holds kBytes, or as much of that as is free.
  void Fill();

  // Frees the space; false when none was held.
  bool Release();

 private:
  std::string path_;
  off_t bytes_ = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_
