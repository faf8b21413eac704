// Tensors handed to a server on this host through shared memory; docs/wire-protocol.md has the
// protocol.
#ifndef NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_H_
#define NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/cpp/side_socket.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/types.h"

namespace nni_compression::internal {

// Smaller tensors go with the call: what they save does not pay for a place of their own.
constexpr int64_t kMinSharedBytes = 256 << 10;

// What a place may take beside its bytes.
constexpr int64_t kPlaceSpacing = 64;

// Shared memory of one call at a time: a file for weights and one for results. Places are handed
// out in order, and all are free again after the call. Thread-compatible.
class Arena {
 public:
  explicit Arena(std::shared_ptr<SideSocket> side) : side_(std::move(side)) {}

  // Makes room, as far as both files together may grow to `limit`.
  absl::Status Reserve(int64_t weight_bytes, int64_t result_bytes, int64_t limit);

  // Copies a weight; nothing when there is no room.
  std::optional<v1::SharedPlace> Put(absl::Span<const uint8_t> bytes);

  // Room for a result of at most `size` bytes; nothing when there is none.
  std::optional<v1::SharedPlace> PlaceResult(int64_t size);

  // What the server wrote at a place of PlaceResult. `size` is at most the place's capacity.
  absl::Span<const uint8_t> Result(const v1::SharedPlace& place, int64_t size) const;

  int64_t size() const;
  const std::shared_ptr<SideSocket>& side() const { return side_; }

  // All places are free.
  void Reset();

  // Gives the regions back to the server; the arena is empty then.
  void Drop();

 private:
  struct File {
    SharedFile memory;
    std::string region;
    int64_t used = 0;

    std::optional<v1::SharedPlace> Take(int64_t size);
  };

  absl::Status Grow(std::optional<File>* file, int64_t size, int64_t limit, bool writable);

  const std::shared_ptr<SideSocket> side_;
  std::optional<File> weights_;
  std::optional<File> results_;
};

// One client's side socket and its idle arenas. Thread-safe. A socket that is not there, or a
// server that refuses, is no error: Lease answers null then, and tensors go over the network. A
// forked child begins anew.
class SharedMemory {
 public:
  // Without a path there is never any. `authorization` is what the socket's hello carries under
  // that key; empty: nothing.
  SharedMemory(std::string path, std::string authorization)
      : path_(std::move(path)), authorization_(std::move(authorization)) {}

  // An arena for one attempt of a call, to be given to Release or Discard. It may be smaller than
  // asked for. The first lease of a size costs the making of its files.
  std::unique_ptr<Arena> Lease(int64_t weight_bytes, int64_t result_bytes);

  // The server has answered all that it was given in the arena.
  void Release(std::unique_ptr<Arena> arena);

  // The server may still read or write: the arena is not used again.
  void Discard(std::unique_ptr<Arena> arena);

  // The server of the calls did not know the regions.
  void Disown();

 private:
  // With the mutex held.
  void LetGo();
  void Pause();

  const std::string path_;
  const std::string authorization_;
  std::mutex mutex_;  // of all below
  pid_t process_ = 0;
  std::shared_ptr<SideSocket> side_;
  std::vector<std::unique_ptr<Arena>> idle_;
  int leased_ = 0;
  int64_t leased_bytes_ = 0;
  absl::Time not_before_ = absl::InfinitePast();
};

// The shared memory of one attempt of a call: where its tensors went, and where their results are.
// Thread-compatible. Destroying it discards the arena, unless Answered was called.
class SharedCall {
 public:
  // The most that the large tensor of an answer takes.
  using ResultBytes = std::function<int64_t(const Tensor& tensor)>;

  // Takes an arena for those of `tensors` that are worth it and not null. `shared` outlives the
  // call.
  SharedCall(SharedMemory* shared, absl::Span<const Tensor* const> tensors,
             ResultBytes result_bytes);
  ~SharedCall();
  SharedCall(const SharedCall&) = delete;
  SharedCall& operator=(const SharedCall&) = delete;

  // Adds to the header of tensor `index` where its bytes and its result are; whether the bytes are
  // there, so that no chunks are sent.
  bool Share(size_t index, const Tensor& tensor, v1::TensorHeader* header);

  // What a reply's header says to have written for tensor `index`; nothing if it cannot be so.
  std::optional<absl::Span<const uint8_t>> Result(size_t index, const v1::SharedPlace& place,
                                                  int64_t size) const;

  // Whether Share has used the arena for tensor `index`.
  bool Used(size_t index) const { return index < used_.size() && used_[index]; }

  void Answered() { answered_ = true; }

 private:
  SharedMemory* const shared_;
  const ResultBytes result_bytes_;
  std::unique_ptr<Arena> arena_;
  std::vector<bool> wanted_;                             // by tensor
  std::vector<bool> used_;                               // by tensor
  std::vector<std::optional<v1::SharedPlace>> results_;  // by tensor
  bool answered_ = false;
};

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_SHARED_MEMORY_H_
