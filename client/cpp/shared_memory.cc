#include "client/cpp/shared_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/time/clock.h"

namespace nni_compression::internal {
namespace {

constexpr int kMaxArenas = 8;  // concurrent calls that share memory; others use the network
constexpr int64_t kGranule = 2 << 20;
constexpr absl::Duration kSuspension = absl::Minutes(1);  // after sharing has failed

// Copies of at least so many bytes are worth several threads.
constexpr int64_t kParallelCopyBytes = 16 << 20;
constexpr int64_t kMaxCopyThreads = 4;

void Copy(uint8_t* to, absl::Span<const uint8_t> from) {
  const auto size = static_cast<int64_t>(from.size());
  const int64_t threads =
      std::min<int64_t>(std::max(1u, std::thread::hardware_concurrency()), kMaxCopyThreads);
  const int64_t step = size < kParallelCopyBytes ? size : (size / threads + 4095) / 4096 * 4096;
  std::vector<std::thread> others;
  for (int64_t start = step; start < size; start += step) {
    const int64_t part = std::min(step, size - start);
    others.emplace_back([=] { std::memcpy(to + start, from.data() + start, part); });
  }
  std::memcpy(to, from.data(), std::min(step, size));
  for (std::thread& other : others) other.join();
}

}  // namespace

absl::Status Arena::Reserve(int64_t weight_bytes, int64_t result_bytes, int64_t limit) {
  const int64_t results = results_ ? results_->memory.size() : 0;
  absl::Status status = Grow(&weights_, weight_bytes, limit - results, /*writable=*/false);
  if (!status.ok()) return status;
  const int64_t weights = weights_ ? weights_->memory.size() : 0;
  return Grow(&results_, result_bytes, limit - weights, /*writable=*/true);
}

absl::Status Arena::Grow(std::optional<File>* file, int64_t size, int64_t limit, bool writable) {
  const int64_t old = *file ? (*file)->memory.size() : 0;
  size = (size + kGranule - 1) / kGranule * kGranule;
  if (old >= std::min(size, limit)) return absl::OkStatus();
  if (*file) {
    if (absl::Status status = socket_->DropRegion((*file)->region); !status.ok()) return status;
    file->reset();
    size = std::max(size, 2 * old);
  }
  size = std::min(size, limit) / kGranule * kGranule;
  if (size <= 0) return absl::OkStatus();
  auto memory = SharedFile::Create(size);
  if (!memory.ok()) return memory.status();
  auto region = socket_->AddRegion(*memory, writable);
  if (!region.ok()) return region.status();
  file->emplace(File{*std::move(memory), *std::move(region)});
  return absl::OkStatus();
}

std::optional<v1::SharedPlace> Arena::File::Allocate(int64_t size) {
  if (size > memory.size() - used) return std::nullopt;
  v1::SharedPlace place;
  place.set_region(region);
  place.set_offset(static_cast<uint64_t>(used));
  used = (used + size + kPlaceSpacing - 1) / kPlaceSpacing * kPlaceSpacing;
  return place;
}

std::optional<v1::SharedPlace> Arena::Put(absl::Span<const uint8_t> bytes) {
  if (!weights_) return std::nullopt;
  auto place = weights_->Allocate(static_cast<int64_t>(bytes.size()));
  if (place) Copy(weights_->memory.data() + place->offset(), bytes);
  return place;
}

std::optional<v1::SharedPlace> Arena::PlaceResult(int64_t size) {
  if (!results_ || size == 0) return std::nullopt;
  auto place = results_->Allocate(size);
  if (place) place->set_capacity(static_cast<uint64_t>(size));
  return place;
}

absl::Span<const uint8_t> Arena::Result(const v1::SharedPlace& place, int64_t size) const {
  return {results_->memory.data() + place.offset(), static_cast<size_t>(size)};
}

int64_t Arena::size() const {
  return (weights_ ? weights_->memory.size() : 0) + (results_ ? results_->memory.size() : 0);
}

void Arena::Reset() {
  if (weights_) weights_->used = 0;
  if (results_) results_->used = 0;
}

void Arena::Drop() {
  for (std::optional<File>* file : {&weights_, &results_}) {
    // When the connection is gone, so are the regions.
    if (*file) socket_->DropRegion((*file)->region).IgnoreError();
    file->reset();
  }
}

std::unique_ptr<Arena> SharedMemory::Lease(int64_t weight_bytes, int64_t result_bytes) {
  if (paths_.empty()) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (absl::Now() < suspended_until_) return nullptr;
  if (process_ != getpid()) Disconnect();
  if (socket_ != nullptr && socket_->broken()) Disconnect();
  if (socket_ == nullptr && !Connect()) {
    Suspend();
    return nullptr;
  }
  if (leased_ >= kMaxArenas) return nullptr;
  std::unique_ptr<Arena> arena;
  if (idle_.empty()) {
    arena = std::make_unique<Arena>(socket_);
  } else {
    arena = std::move(idle_.back());
    idle_.pop_back();
  }
  int64_t room = socket_->max_bytes() - leased_bytes_;
  for (const auto& idle : idle_) room -= idle->size();
  if (!arena->Reserve(weight_bytes, result_bytes, room).ok()) {
    Suspend();
    return nullptr;
  }
  ++leased_;
  leased_bytes_ += arena->size();
  return arena;
}

void SharedMemory::Release(std::unique_ptr<Arena> arena) {
  arena->Reset();
  const std::lock_guard<std::mutex> lock(mutex_);
  --leased_;
  leased_bytes_ -= arena->size();
  if (arena->socket() != socket_) return;
  idle_.push_back(std::move(arena));
  std::sort(idle_.begin(), idle_.end(),
            [](const auto& a, const auto& b) { return a->size() < b->size(); });
}

void SharedMemory::Discard(std::unique_ptr<Arena> arena) {
  const std::lock_guard<std::mutex> lock(mutex_);  // all arenas use the socket
  --leased_;
  leased_bytes_ -= arena->size();
  arena->Drop();
}

void SharedMemory::OnUnknownRegion() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (socket_ != nullptr && socket_->broken()) {
    Disconnect();  // the server was restarted
  } else {
    Suspend();  // the socket belongs to another server
  }
}

bool SharedMemory::Connect() {
  for (const std::string& path : paths_) {
    auto socket = SharedMemorySocket::Connect(path, authorization_);
    if (!socket.ok()) continue;
    socket_ = *std::move(socket);
    process_ = getpid();
    return true;
  }
  return false;
}

void SharedMemory::Disconnect() {
  idle_.clear();
  socket_ = nullptr;
}

void SharedMemory::Suspend() {
  Disconnect();
  suspended_until_ = absl::Now() + kSuspension;
}

SharedCall::SharedCall(SharedMemory* shared, absl::Span<const Tensor* const> tensors,
                       ResultBytes result_bytes)
    : shared_(shared),
      result_bytes_(std::move(result_bytes)),
      wanted_(tensors.size()),
      used_(tensors.size()),
      results_(tensors.size()) {
  int64_t weights = 0;
  int64_t results = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor* const tensor = tensors[i];
    wanted_[i] = tensor != nullptr && tensor->role == TensorRole::kWeight &&
                 static_cast<int64_t>(tensor->bytes.size()) >= kMinSharedBytes;
    if (!wanted_[i]) continue;
    weights += static_cast<int64_t>(tensor->bytes.size()) + kPlaceSpacing;
    results += result_bytes_(*tensor) + kPlaceSpacing;
  }
  if (weights > 0) arena_ = shared_->Lease(weights, results);
}

SharedCall::~SharedCall() {
  if (arena_ == nullptr) return;
  if (answered_) {
    shared_->Release(std::move(arena_));
  } else {
    shared_->Discard(std::move(arena_));
  }
}

bool SharedCall::Share(size_t index, const Tensor& tensor, v1::TensorHeader* header) {
  if (arena_ == nullptr || !wanted_[index]) return false;
  const auto weight = arena_->Put(tensor.bytes);
  results_[index] = arena_->PlaceResult(result_bytes_(tensor));
  if (weight) *header->mutable_shared_memory() = *weight;
  if (results_[index]) *header->mutable_result_place() = *results_[index];
  used_[index] = weight || results_[index];
  return weight.has_value();
}

std::optional<absl::Span<const uint8_t>> SharedCall::Result(size_t index,
                                                            const v1::SharedPlace& place,
                                                            int64_t size) const {
  if (arena_ == nullptr || index >= results_.size() || !results_[index]) return std::nullopt;
  const v1::SharedPlace& ours = *results_[index];
  if (place.region() != ours.region() || place.offset() != ours.offset() ||
      static_cast<uint64_t>(size) > ours.capacity()) {
    return std::nullopt;
  }
  return arena_->Result(ours, size);
}

}  // namespace nni_compression::internal
