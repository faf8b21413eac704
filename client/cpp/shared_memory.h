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
#include "client/cpp/shared_memory_socket.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/types.h"

namespace nni_compression::internal {

// Smaller tensors are sent with the call: sharing them would not be faster.
constexpr int64_t kMinSharedBytes = 256 << 10;

// What a place may take in addition to its bytes.
constexpr int64_t kPlaceSpacing = 64;

// Shared memory for one call at a time: a file for weights and one for results. Places are
// allocated in order, and all are freed after the call. Thread-compatible.
class Arena {
 public:
  explicit Arena(std::shared_ptr<SharedMemorySocket> socket) : socket_(std::move(socket)) {}

  // Grows the files to hold so much, but both together to at most `limit`.
  absl::Status Reserve(int64_t weight_bytes, int64_t result_bytes, int64_t limit);

  // Copies a weight; nullopt when it does not fit.
  std::optional<v1::SharedPlace> Put(absl::Span<const uint8_t> bytes);

  // Reserves a place for a result of at most `size` bytes; nullopt when it does not fit.
  std::optional<v1::SharedPlace> PlaceResult(int64_t size);

  // What the server wrote at a place of PlaceResult. `size` is at most the place's capacity.
  absl::Span<const uint8_t> Result(const v1::SharedPlace& place, int64_t size) const;

  int64_t size() const;
  const std::shared_ptr<SharedMemorySocket>& socket() const { return socket_; }

  // Frees all places.
  void Reset();

  // Drops the regions on the server and empties the arena.
  void Drop();

 private:
  struct File {
    SharedFile memory;
    std::string region;
    int64_t used = 0;

    std::optional<v1::SharedPlace> Allocate(int64_t size);
  };

  absl::Status Grow(std::optional<File>* file, int64_t size, int64_t limit, bool writable);

  const std::shared_ptr<SharedMemorySocket> socket_;
  std::optional<File> weights_;
  std::optional<File> results_;
};

// One client's connection to the shared-memory socket and its idle arenas. Thread-safe. A missing
// socket, or a server that refuses, is not an error: Lease returns null, and tensors go over the
// network. A forked child opens a connection of its own.
class SharedMemory {
 public:
  // The socket is at the first of `paths` where one answers; without paths nothing is ever shared.
  // `authorization` is the value of that key in the socket's hello; empty: the key is left out.
  SharedMemory(std::vector<std::string> paths, std::string authorization)
      : paths_(std::move(paths)), authorization_(std::move(authorization)) {}

  // An arena for one attempt of a call, to be passed to Release or Discard. It may be smaller than
  // asked for. The first lease of a size creates its files, which takes longer.
  std::unique_ptr<Arena> Lease(int64_t weight_bytes, int64_t result_bytes);

  // The server has answered everything that was in the arena.
  void Release(std::unique_ptr<Arena> arena);

  // The server may still read or write the arena, so it is not reused.
  void Discard(std::unique_ptr<Arena> arena);

  // The server that calls go to did not know the regions.
  void OnUnknownRegion();

 private:
  // With the mutex held. Connect returns whether a socket answers; Suspend also keeps Lease from
  // connecting for a while.
  bool Connect();
  void Disconnect();
  void Suspend();

  const std::vector<std::string> paths_;
  const std::string authorization_;
  std::mutex mutex_;  // guards all below
  pid_t process_ = 0;
  std::shared_ptr<SharedMemorySocket> socket_;
  std::vector<std::unique_ptr<Arena>> idle_;
  int leased_ = 0;
  int64_t leased_bytes_ = 0;
  absl::Time suspended_until_ = absl::InfinitePast();
};

// The shared memory of one attempt of a call: where its tensors went, and where their results are.
// Thread-compatible. Destroying it discards the arena, unless Answered was called.
class SharedCall {
 public:
  // The most bytes that the answer to a tensor can have.
  using ResultBytes = std::function<int64_t(const Tensor& tensor)>;

  // Leases an arena for those of `tensors` that are large enough and not null. `shared` outlives
  // the call.
  SharedCall(SharedMemory* shared, absl::Span<const Tensor* const> tensors,
             ResultBytes result_bytes);
  ~SharedCall();
  SharedCall(const SharedCall&) = delete;
  SharedCall& operator=(const SharedCall&) = delete;

  // Adds to the header of tensor `index` where its bytes are and where its result goes. True when
  // the bytes are in shared memory, so that no chunks are to be sent.
  bool Share(size_t index, const Tensor& tensor, v1::TensorHeader* header);

  // The bytes that a reply's header claims to be the result of tensor `index`; nullopt unless the
  // place was reserved for it.
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
