// Room on a disk that is held back for when there is no other.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_
#define NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_

#include <sys/types.h>

#include <string>
#include <utility>

namespace nni_compression::server {

// What frees room on a disk has to write first, to say what is gone. Thread-compatible.
class Reserve {
 public:
  static constexpr off_t kBytes = 1 << 20;

  // Takes no room yet.
  explicit Reserve(std::string path) : path_(std::move(path)) {}

  // Takes kBytes, or what is there of them; nothing on a disk that is full.
  void Fill();

  // Gives the room back; false when there was none.
  bool Release();

 private:
  std::string path_;
  off_t bytes_ = 0;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_RESERVE_H_
