#include "server/tensors/tensor_receiver.h"

#include <zlib.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/names.h"
#include "server/base/errors.h"
#include "server/base/log.h"

namespace nni_compression::server {
namespace {

using ::nni::compression::v1::Commit;
using ::nni::compression::v1::TensorHeader;

constexpr size_t kMaxOpenTensors = 65536;
constexpr int64_t kMaxOpenHeaderBytes = 8 << 20;

// Terms of BookkeepingBytes: per tensor, and per byte of the layer's name and per dimension, which
// header, result and message all store.
constexpr int64_t kTensorBytes = 1024;
constexpr int64_t kNameBytes = 4;
constexpr int64_t kDimensionBytes = 4 * sizeof(int64_t);

// Bookkeeping is reserved in pieces up to this size.
constexpr int64_t kMaxPieceBytes = 64 << 10;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status NoHeader(absl::string_view field, uint32_t index) {
  return Invalid(field, ": tensor ", index, " has no header or was committed before");
}

// Unknown fields would be kept until the tensor is answered, in memory that is not counted.
template <typename Message>
void DropUnknownFields(Message* message) {
  message->GetReflection()->MutableUnknownFields(message)->Clear();
}

std::string Describe(const TensorHeader& header) {
  return absl::StrCat("tensor ", header.index(), " ('", Printable(header.layer(), 128), "')");
}

}  // namespace

int64_t BookkeepingBytes(const TensorHeader& header) {
  return kTensorBytes + kNameBytes * static_cast<int64_t>(header.layer().size()) +
         kDimensionBytes * header.shape_size();
}

bool IndexSet::contains(uint32_t index) const {
  const auto page = pages_.find(index / kPageBits);
  if (page == pages_.end()) return false;
  const uint32_t bit = index % kPageBits;
  return (page->second.words[bit / kWordBits] >> (bit % kWordBits) & 1) != 0;
}

void IndexSet::Insert(uint32_t index, Reservation memory) {
  Page& page = pages_[index / kPageBits];
  const uint32_t bit = index % kPageBits;
  page.words[bit / kWordBits] |= uint64_t{1} << (bit % kWordBits);
  if (memory.bytes() > 0) page.memory = std::move(memory);
}

uint32_t Crc32(const compression::Buffer& bytes) {
  return static_cast<uint32_t>(crc32_z(0, bytes.data(), static_cast<size_t>(bytes.size())));
}

absl::Status VerifyChecksum(const ReceivedTensor& tensor) {
  if (!tensor.crc32) return absl::OkStatus();
  const uint32_t actual = Crc32(tensor.bytes);
  if (actual == *tensor.crc32) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(Describe(tensor.header), " has crc32 ", actual,
                                          ", its commit says ", *tensor.crc32));
}

TensorReceiver::TensorReceiver(TensorSink* sink, MemoryBudget* budget, MemoryQuota memory_quota,
                               UploadQuota upload_quota)
    : sink_(sink),
      budget_(budget),
      memory_quota_(std::move(memory_quota)),
      upload_quota_(std::move(upload_quota)) {}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Receive(const grpc::ByteBuffer& message) {
  message_ = message;
  reader_.emplace(message);
  stage_ = Stage::kFrames;
  commits_.clear();
  finished_commits_ = 0;
  return Continue();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Resume(Reservation memory) {
  granted_ = std::move(memory);
  return Continue();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Ready() {
  if (absl::Status status = sink_->OnReady(); !status.ok()) return status;
  return Continue();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Continue() {
  absl::StatusOr<Progress> progress = ReadOn();
  spare_.ShrinkTo(0);
  next_piece_ = 0;
  return progress;
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::ReadOn() {
  if (stage_ == Stage::kFrames) {
    const absl::StatusOr<Progress> progress = ReadFrames();
    if (!progress.ok() || *progress != Progress::kDone) return progress;
    reader_.emplace(message_);
    stage_ = Stage::kChunks;
  }
  if (stage_ == Stage::kChunks) {
    const absl::StatusOr<Progress> progress = ReadChunks();
    if (!progress.ok() || *progress != Progress::kDone) return progress;
    reader_.reset();
    message_.Clear();
    stage_ = Stage::kCommits;
  }
  return FinishCommits();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::ReadFrames() {
  while (true) {
    const absl::StatusOr<int> field = reader_->Next();
    if (!field.ok()) return field.status();
    if (*field == 0) break;
    absl::Status status;
    if (*field == wire::kOpenOrResult) {
      if (std::exchange(opened_, true)) return Invalid("duplicate open");
      const absl::StatusOr<bool> ready = sink_->OnOpen(*reader_);
      if (ready.ok() && !*ready) return Progress::kNeedsSession;
      status = ready.ok() ? sink_->OnReady() : ready.status();
    } else if (!opened_) {
      status = Invalid("the first field must be open");
    } else if (*field == wire::kHeader) {
      TensorHeader header;
      status = reader_->Parse(&header);
      DropUnknownFields(&header);
      if (header.has_shared_memory()) DropUnknownFields(header.mutable_shared_memory());
      if (header.has_result_place()) DropUnknownFields(header.mutable_result_place());
      if (status.ok()) status = CheckHeader(header);
      if (status.ok()) status = HandleHeader(std::move(header));
    } else if (*field == wire::kCommit) {
      Commit commit;
      status = reader_->Parse(&commit);
      DropUnknownFields(&commit);
      if (status.ok() && tensors_.contains(commit.index())) {
        status = HandleCommit(commit);
      } else if (status.ok()) {
        if (early_commits_.size() >= kMaxOpenTensors) return NoHeader("commits", commit.index());
        early_commits_.push_back(std::move(commit));
      }
    } else {
      status = reader_->Skip();
    }
    if (!status.ok()) return status;
  }
  for (const Commit& commit : std::exchange(early_commits_, {})) {
    if (absl::Status status = HandleCommit(commit); !status.ok()) return status;
  }
  return Progress::kDone;
}

uint64_t TensorReceiver::BytesNeeded(const Incoming& tensor) {
  const uint64_t payload = tensor.admission.present ? 0 : tensor.header.byte_length();
  return payload + static_cast<uint64_t>(tensor.admission.extra_bytes);
}

bool TensorReceiver::NeedsNoChunks(const Incoming& tensor) {
  return tensor.admission.present || tensor.header.has_shared_memory();
}

absl::Status TensorReceiver::CheckHeader(const TensorHeader& header) const {
  const uint32_t index = header.index();
  if (index >= kMaxTensors) {
    return Invalid("headers: index is ", index, "; it must be below ", kMaxTensors);
  }
  if (used_.contains(index)) {
    return Invalid("headers: index ", index, " was used before in this call");
  }
  if (header.layer().empty() || header.layer().size() > compression::kMaxLayerNameBytes) {
    return Invalid("headers: layer of tensor ", index, " has ", header.layer().size(),
                   " bytes; it must have 1 to ", compression::kMaxLayerNameBytes);
  }
  if (static_cast<size_t>(header.shape_size()) > compression::kMaxDimensions) {
    return Invalid("headers: shape of tensor ", index, " has ", header.shape_size(),
                   " dimensions; it must have at most ", compression::kMaxDimensions);
  }
  for (const auto* place : {&header.shared_memory(), &header.result_place()}) {
    const size_t size = place->region().size();
    if (size != 0 && size != wire::kRegionIdBytes) {
      return Invalid("headers: region of tensor ", index, " has ", size, " bytes; it must have ",
                     wire::kRegionIdBytes);
    }
  }
  if (!header.digest().empty() && header.digest().size() != 32) {
    return Invalid("headers: digest of tensor ", index, " has ", header.digest().size(),
                   " bytes; it must have 0 or 32");
  }
  if (const size_t size = header.fingerprint().size(); size != 0 && (size < 8 || size > 32)) {
    return Invalid("headers: fingerprint of tensor ", index, " has ", size,
                   " bytes; it must have 0, or 8 to 32");
  }
  if (tensors_.size() >= kMaxOpenTensors || header_bytes_ > kMaxOpenHeaderBytes) {
    return Invalid("headers: too many tensors are not committed; at most ", kMaxOpenTensors,
                   " with headers of ", kMaxOpenHeaderBytes, " bytes in all may be open");
  }
  return absl::OkStatus();
}

absl::Status TensorReceiver::HandleHeader(TensorHeader header) {
  const uint32_t index = header.index();
  const int64_t own = BookkeepingBytes(header);
  absl::StatusOr<Reservation> bookkeeping = Bookkeep(own + used_.BytesFor(index), header);
  if (!bookkeeping.ok()) return bookkeeping.status();
  auto tensor = std::make_unique<Incoming>();
  tensor->bookkeeping = bookkeeping->Split(own);
  used_.Insert(index, *std::move(bookkeeping));
  tensor->header = std::move(header);
  tensor->header_bytes = static_cast<int64_t>(tensor->header.ByteSizeLong());
  header_bytes_ += tensor->header_bytes;

  absl::StatusOr<TensorSink::Admission> admission =
      sink_->OnHeader(tensor->header, tensor->bookkeeping);
  if (!admission.ok()) return admission.status();
  if (tensor->header.has_shared_memory() && admission->accepted && !admission->present) {
    return Invalid("headers: ", Describe(tensor->header),
                   " has shared_memory, which this call does not support");
  }
  tensor->admission = *std::move(admission);
  if (tensor->admission.accepted) {
    const uint64_t need = BytesNeeded(*tensor);
    if (need > static_cast<uint64_t>(budget_->limit())) {
      return absl::ResourceExhaustedError(absl::StrCat(Describe(tensor->header), " needs ", need,
                                                       " bytes; the server has a memory budget of ",
                                                       budget_->limit()));
    }
  }
  tensors_.emplace(index, std::move(tensor));
  return absl::OkStatus();
}

absl::Status TensorReceiver::HandleCommit(const Commit& commit) {
  const auto it = tensors_.find(commit.index());
  if (it == tensors_.end()) return NoHeader("commits", commit.index());
  Incoming& tensor = *it->second;
  if (tensor.commit) return Invalid("commits: ", Describe(tensor.header), " is committed twice");
  if (commit.byte_length() != tensor.header.byte_length()) {
    return Invalid("commits: byte_length of ", Describe(tensor.header), " is ",
                   commit.byte_length(), "; its header says ", tensor.header.byte_length());
  }
  tensor.commit = commit;
  // The whole payload was in earlier messages.
  if (tensor.received == commit.byte_length()) return Deliver(tensor);
  commits_.push_back(commit.index());
  return absl::OkStatus();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::ReadChunks() {
  while (true) {
    if (chunk_tensor_ == nullptr) {
      const absl::StatusOr<int> field = reader_->Next();
      if (!field.ok()) return field.status();
      if (*field == 0) return Progress::kDone;
      if (*field != wire::kChunk) {
        if (absl::Status status = reader_->Skip(); !status.ok()) return status;
        continue;
      }
      const absl::StatusOr<wire::ChunkPrefix> chunk = reader_->BeginChunk();
      if (!chunk.ok()) return chunk.status();
      chunk_ = *chunk;
      const absl::StatusOr<Incoming*> tensor = CheckChunk(chunk_);
      if (!tensor.ok()) return tensor.status();
      if (chunk_.offset == 0) {
        if (absl::Status status = CountUpload(); !status.ok()) return status;
      }
      chunk_tensor_ = *tensor;
    }
    Incoming& tensor = *chunk_tensor_;
    if (chunk_.offset == 0 && tensor.admission.accepted) {
      const absl::StatusOr<Progress> progress = Admit(tensor);
      if (!progress.ok() || *progress == Progress::kNeedsMemory) return progress;
      if (absl::Status status = Allocate(tensor); !status.ok()) return status;
    }
    chunk_tensor_ = nullptr;
    if (absl::Status status = ReadChunk(tensor); !status.ok()) return status;
  }
}

// Delivers the tensors that the message committed and that need no chunks.
absl::StatusOr<TensorReceiver::Progress> TensorReceiver::FinishCommits() {
  for (; finished_commits_ < commits_.size(); ++finished_commits_) {
    const auto it = tensors_.find(commits_[finished_commits_]);
    if (it == tensors_.end()) continue;
    Incoming& tensor = *it->second;
    if (!NeedsNoChunks(tensor)) {
      if (!tensor.header.digest().empty() && tensor.received == 0) {  // the answer was SEND
        if (absl::Status status = sink_->OnAbandoned(tensor.header); !status.ok()) return status;
        header_bytes_ -= tensor.header_bytes;
        tensors_.erase(it);
        continue;
      }
      return Invalid("commits: ", Describe(tensor.header), " was committed after ", tensor.received,
                     " of ", tensor.header.byte_length(), " bytes");
    }
    if (tensor.admission.accepted) {
      const absl::StatusOr<Progress> progress = Admit(tensor);
      if (!progress.ok() || *progress == Progress::kNeedsMemory) return progress;
    }
    if (absl::Status status = Deliver(tensor); !status.ok()) return status;
  }
  return Progress::kDone;
}

absl::StatusOr<Reservation> TensorReceiver::Bookkeep(int64_t bytes, const TensorHeader& header) {
  if (spare_.bytes() < bytes) {
    for (const int64_t piece : {bytes + next_piece_, bytes}) {
      auto memory = budget_->TryReserve(piece, memory_quota_, MemoryUse::kBookkeeping);
      if (!memory.ok() && piece == bytes) return memory.status();
      if (!memory.ok() || !*memory) continue;
      spare_.Merge(**std::move(memory));
      break;
    }
    next_piece_ = std::min(2 * (next_piece_ + bytes), kMaxPieceBytes);
  }
  if (spare_.bytes() < bytes)
    return budget_->Refusal(bytes, MemoryUse::kBookkeeping, Describe(header));
  return spare_.Split(bytes);
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Admit(Incoming& tensor) {
  bytes_needed_ = static_cast<int64_t>(BytesNeeded(tensor));
  if (!granted_) {
    auto memory = budget_->TryReserve(bytes_needed_, memory_quota_);
    if (!memory.ok()) return memory.status();
    granted_ = *std::move(memory);
  }
  if (granted_) {
    tensor.memory = *std::exchange(granted_, std::nullopt);
    return Progress::kDone;
  }
  if (incomplete_ > 0 || sink_->HoldsTensors())
    return budget_->Refusal(bytes_needed_, MemoryUse::kPayload, Describe(tensor.header));
  return Progress::kNeedsMemory;
}

absl::Status TensorReceiver::CountUpload() {
  if (upload_quota_.meter == nullptr) return absl::OkStatus();
  return upload_quota_.meter->Add(!std::exchange(uploading_, true), upload_quota_.limit);
}

absl::StatusOr<TensorReceiver::Incoming*> TensorReceiver::CheckChunk(
    const wire::ChunkPrefix& chunk) {
  const auto it = tensors_.find(chunk.index);
  if (it == tensors_.end()) {
    return NoHeader("chunks", chunk.index);
  }
  Incoming& tensor = *it->second;
  const auto name = [&tensor] { return Describe(tensor.header); };
  if (NeedsNoChunks(tensor)) {
    return Invalid("chunks: ", name(), " is on the server already; send its commit only");
  }
  if (chunk.payload_bytes == 0) return Invalid("chunks: a chunk of ", name(), " is empty");
  if (chunk.offset != tensor.received) {
    return Invalid("chunks: offset of ", name(), " is ", chunk.offset, ", which ",
                   chunk.offset < tensor.received ? "overlaps" : "leaves a gap", "; it must be ",
                   tensor.received);
  }
  if (static_cast<uint64_t>(chunk.payload_bytes) > tensor.header.byte_length() - tensor.received) {
    return Invalid("chunks: a chunk of ", name(), " runs past the end: ", chunk.payload_bytes,
                   " bytes at ", chunk.offset, " of ", tensor.header.byte_length());
  }
  return &tensor;
}

absl::Status TensorReceiver::Allocate(Incoming& tensor) {
  ++incomplete_;
  return CatchExceptions([&] {
    tensor.bytes = compression::Buffer::Allocate(static_cast<int64_t>(tensor.header.byte_length()));
    return absl::OkStatus();
  });
}

absl::Status TensorReceiver::ReadChunk(Incoming& tensor) {
  const size_t size = static_cast<size_t>(chunk_.payload_bytes);
  const absl::Status status =
      tensor.admission.accepted
          ? reader_->ReadPayload(absl::MakeSpan(tensor.bytes.data() + tensor.received, size))
          : reader_->SkipPayload();
  if (!status.ok()) return status;
  tensor.received += size;
  const bool complete = tensor.received == tensor.header.byte_length();
  return complete && tensor.commit ? Deliver(tensor) : absl::OkStatus();
}

absl::Status TensorReceiver::Deliver(Incoming& incoming) {
  const auto it = tensors_.find(incoming.header.index());
  const std::unique_ptr<Incoming> tensor = std::move(it->second);
  tensors_.erase(it);
  header_bytes_ -= tensor->header_bytes;
  if (!tensor->admission.accepted) return absl::OkStatus();
  if (!tensor->admission.present) --incomplete_;
  ReceivedTensor received;
  received.header = std::move(tensor->header);
  received.bytes =
      std::move(tensor->admission.present ? *tensor->admission.present : tensor->bytes);
  received.memory = std::move(tensor->memory);
  received.layer = tensor->admission.layer;
  received.bookkeeping = std::move(tensor->bookkeeping);
  received.uploaded = !tensor->admission.present;
  received.statistics = std::move(tensor->admission.statistics);
  if (tensor->commit->has_crc32()) received.crc32 = tensor->commit->crc32();
  return sink_->OnTensor(std::move(received));
}

absl::Status TensorReceiver::Finish() const {
  if (!opened_) return Invalid("open is missing");
  const Incoming* first = nullptr;  // the lowest index, so that the message is deterministic
  for (const auto& [index, tensor] : tensors_) {
    // A tensor that was answered with an error needs no commit.
    if (!tensor->admission.accepted) continue;
    if (first == nullptr || index < first->header.index()) first = tensor.get();
  }
  if (first == nullptr) return absl::OkStatus();
  return Invalid(Describe(first->header), " was not committed; ", first->received, " of ",
                 first->header.byte_length(), " bytes were received");
}

void TensorReceiver::Reset() {
  tensors_.clear();
  header_bytes_ = 0;
  incomplete_ = 0;
  used_ = IndexSet();
  granted_.reset();
  message_.Clear();
  reader_.reset();
  chunk_tensor_ = nullptr;
  early_commits_ = {};
  commits_ = {};
  finished_commits_ = 0;
}

}  // namespace nni_compression::server
