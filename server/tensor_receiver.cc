#include "server/tensor_receiver.h"

#include <zlib.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/binding.h"
#include "server/log.h"
#include "server/status.h"

namespace nni_compression::server {
namespace {

using ::nni::compression::v1::Commit;
using ::nni::compression::v1::TensorHeader;

constexpr size_t kMaxOpenTensors = 65536;
constexpr int64_t kMaxOpenHeaderBytes = 8 << 20;

template <typename... Args>
absl::Status Invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

std::string Describe(const TensorHeader& header) {
  return absl::StrCat("tensor ", header.index(), " ('", Printable(header.layer(), 128), "')");
}

}  // namespace

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

TensorReceiver::TensorReceiver(TensorSink* sink, MemoryBudget* budget, MemoryShare share,
                               UploadShare uploads)
    : sink_(sink), budget_(budget), share_(std::move(share)), uploads_(std::move(uploads)) {}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Receive(const grpc::ByteBuffer& message) {
  // A message means the same in whatever order its fields come: open, headers, chunks, commits.
  if (absl::Status status = ReadFrames(message); !status.ok()) return status;
  reader_.emplace(message);
  return ReadChunks();
}

absl::Status TensorReceiver::ReadFrames(const grpc::ByteBuffer& message) {
  wire::MessageReader reader(message);
  std::vector<Commit> commits;
  while (true) {
    const absl::StatusOr<int> field = reader.Next();
    if (!field.ok()) return field.status();
    if (*field == 0) break;
    absl::Status status;
    if (*field == wire::kOpenOrResult) {
      if (std::exchange(opened_, true)) return Invalid("open was sent twice");
      status = sink_->OnOpen(reader);
    } else if (!opened_) {
      status = Invalid("open has to come first");
    } else if (*field == wire::kHeader) {
      TensorHeader header;
      status = reader.Parse(&header);
      if (status.ok()) status = TakeHeader(std::move(header));
    } else if (*field == wire::kCommit) {
      status = reader.Parse(&commits.emplace_back());
    } else {
      status = reader.Skip();
    }
    if (!status.ok()) return status;
  }
  commits_.clear();
  for (const Commit& commit : commits) {
    if (absl::Status status = TakeCommit(commit); !status.ok()) return status;
  }
  return absl::OkStatus();
}

uint64_t TensorReceiver::BytesNeeded(const Incoming& tensor) {
  const uint64_t payload = tensor.admission.present ? 0 : tensor.header.byte_length();
  return payload + static_cast<uint64_t>(tensor.admission.extra_bytes);
}

bool TensorReceiver::NeedsNoChunks(const Incoming& tensor) {
  return tensor.admission.present || tensor.header.has_shared_memory();
}

absl::Status TensorReceiver::TakeHeader(TensorHeader header) {
  const uint32_t index = header.index();
  if (index >= kMaxTensors) {
    return Invalid("headers: index is ", index, "; it must be below ", kMaxTensors);
  }
  if (index >= used_.size()) used_.resize(std::max<size_t>(index + 1, used_.size() * 2));
  if (used_[index]) return Invalid("headers: index ", index, " was used before in this call");
  if (header.layer().empty() || header.layer().size() > compression::kMaxLayerNameBytes) {
    return Invalid("headers: layer of tensor ", index, " has ", header.layer().size(),
                   " bytes; it must have 1 to ", compression::kMaxLayerNameBytes);
  }
  if (!header.digest().empty() && header.digest().size() != 32) {
    return Invalid("headers: digest of tensor ", index, " has ", header.digest().size(),
                   " bytes; it must have 0 or 32");
  }
  if (const size_t size = header.fingerprint().size(); size != 0 && (size < 8 || size > 32)) {
    return Invalid("headers: fingerprint of tensor ", index, " has ", size,
                   " bytes; it must have 0, or 8 to 32");
  }
  header_bytes_ += static_cast<int64_t>(header.ByteSizeLong());
  if (tensors_.size() >= kMaxOpenTensors || header_bytes_ > kMaxOpenHeaderBytes) {
    return Invalid("headers: too many run ahead of their payloads; at most ", kMaxOpenTensors,
                   " of ", kMaxOpenHeaderBytes, " bytes in all may");
  }
  used_[index] = true;

  absl::StatusOr<TensorSink::Admission> admission = sink_->OnHeader(header);
  if (!admission.ok()) return admission.status();
  if (header.has_shared_memory() && admission->accepted && !admission->present) {
    return Invalid("headers: ", Describe(header), " has shared_memory, which this call cannot use");
  }
  auto tensor = std::make_unique<Incoming>();
  tensor->admission = *std::move(admission);
  tensor->header = std::move(header);
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

absl::Status TensorReceiver::TakeCommit(const Commit& commit) {
  const auto it = tensors_.find(commit.index());
  if (it == tensors_.end()) {
    return Invalid("commits: tensor ", commit.index(), " has no header or was committed before");
  }
  Incoming& tensor = *it->second;
  if (tensor.commit) return Invalid("commits: ", Describe(tensor.header), " is committed twice");
  if (commit.byte_length() != tensor.header.byte_length()) {
    return Invalid("commits: byte_length of ", Describe(tensor.header), " is ",
                   commit.byte_length(), "; its header says ", tensor.header.byte_length());
  }
  tensor.commit = commit;
  commits_.push_back(commit.index());
  // All payload came with earlier messages.
  return tensor.received == commit.byte_length() ? Deliver(tensor) : absl::OkStatus();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Resume(Reservation memory) {
  if (absl::Status status = memory.ChargeTo(share_); !status.ok()) return status;
  Incoming& tensor = *chunk_tensor_;
  if (tensor.admission.present) {
    tensor.memory = std::move(memory);
    if (absl::Status status = Deliver(tensor); !status.ok()) return status;
    return FinishCommits();
  }
  absl::Status status = Allocate(tensor, std::move(memory));
  if (status.ok()) status = ReadChunk(tensor);
  if (!status.ok()) return status;
  return ReadChunks();
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::ReadChunks() {
  while (true) {
    const absl::StatusOr<int> field = reader_->Next();
    if (!field.ok()) return field.status();
    if (*field == 0) break;
    if (*field != wire::kChunk) {
      if (absl::Status status = reader_->Skip(); !status.ok()) return status;
      continue;
    }
    const absl::StatusOr<wire::ChunkPrefix> chunk = reader_->BeginChunk();
    if (!chunk.ok()) return chunk.status();
    chunk_ = *chunk;
    const absl::StatusOr<Incoming*> tensor = CheckChunk(chunk_);
    if (!tensor.ok()) return tensor.status();
    chunk_tensor_ = *tensor;
    if (chunk_.offset == 0) {
      if (absl::Status status = CountUpload(); !status.ok()) return status;
    }
    if (chunk_.offset == 0 && chunk_tensor_->admission.accepted) {
      const absl::StatusOr<Progress> progress = Admit(*chunk_tensor_);
      if (!progress.ok() || *progress == Progress::kNeedsMemory) return progress;
    }
    if (absl::Status status = ReadChunk(*chunk_tensor_); !status.ok()) return status;
  }
  reader_.reset();
  return FinishCommits();
}

// Delivers what the message committed and needed no chunks for.
absl::StatusOr<TensorReceiver::Progress> TensorReceiver::FinishCommits() {
  for (const uint32_t index : commits_) {
    const auto it = tensors_.find(index);
    if (it == tensors_.end()) continue;
    Incoming& tensor = *it->second;
    if (!NeedsNoChunks(tensor)) {
      if (!tensor.header.digest().empty() && tensor.received == 0) {  // the answer was SEND
        header_bytes_ -= static_cast<int64_t>(tensor.header.ByteSizeLong());
        tensors_.erase(it);
        continue;
      }
      return Invalid("commits: ", Describe(tensor.header), " was committed after ", tensor.received,
                     " of ", tensor.header.byte_length(), " bytes");
    }
    if (tensor.admission.accepted) {
      chunk_tensor_ = &tensor;
      const absl::StatusOr<Progress> progress = Admit(tensor);
      if (!progress.ok() || *progress == Progress::kNeedsMemory) return progress;
    }
    if (absl::Status status = Deliver(tensor); !status.ok()) return status;
  }
  return Progress::kDone;
}

absl::Status TensorReceiver::CountUpload() {
  if (uploads_.meter == nullptr) return absl::OkStatus();
  return uploads_.meter->Add(!std::exchange(uploading_, true), uploads_.limit);
}

absl::StatusOr<TensorReceiver::Incoming*> TensorReceiver::CheckChunk(
    const wire::ChunkPrefix& chunk) {
  const auto it = tensors_.find(chunk.index);
  if (it == tensors_.end()) {
    return Invalid("chunks: tensor ", chunk.index, " has no header or was committed before");
  }
  Incoming& tensor = *it->second;
  const std::string name = Describe(tensor.header);
  if (NeedsNoChunks(tensor)) return Invalid("chunks: ", name, " is here already");
  if (chunk.payload_bytes == 0) return Invalid("chunks: a chunk of ", name, " is empty");
  if (chunk.offset != tensor.received) {
    return Invalid("chunks: offset of ", name, " is ", chunk.offset, ", which ",
                   chunk.offset < tensor.received ? "overlaps" : "leaves a gap", "; it must be ",
                   tensor.received);
  }
  if (static_cast<uint64_t>(chunk.payload_bytes) > tensor.header.byte_length() - tensor.received) {
    return Invalid("chunks: a chunk of ", name, " runs past the end: ", chunk.payload_bytes,
                   " bytes at ", chunk.offset, " of ", tensor.header.byte_length());
  }
  return &tensor;
}

absl::StatusOr<TensorReceiver::Progress> TensorReceiver::Admit(Incoming& tensor) {
  bytes_needed_ = static_cast<int64_t>(BytesNeeded(tensor));
  std::optional<Reservation> memory = budget_->TryReserve(bytes_needed_);
  if (memory) {
    if (absl::Status status = memory->ChargeTo(share_); !status.ok()) return status;
    if (tensor.admission.present) {
      tensor.memory = *std::move(memory);
      return Progress::kDone;
    }
    if (absl::Status status = Allocate(tensor, *std::move(memory)); !status.ok()) return status;
    return Progress::kDone;
  }
  if (incomplete_ > 0 || sink_->HoldsTensors()) {
    return ExhaustedFor(kRetryWait, absl::StrCat("no memory now for ", Describe(tensor.header),
                                                 ", which needs ", bytes_needed_, " bytes"));
  }
  return Progress::kNeedsMemory;
}

absl::Status TensorReceiver::Allocate(Incoming& tensor, Reservation memory) {
  tensor.memory = std::move(memory);
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
  header_bytes_ -= static_cast<int64_t>(tensor->header.ByteSizeLong());
  if (!tensor->admission.accepted) return absl::OkStatus();
  if (!tensor->admission.present) --incomplete_;
  ReceivedTensor received;
  received.header = std::move(tensor->header);
  received.bytes =
      std::move(tensor->admission.present ? *tensor->admission.present : tensor->bytes);
  received.memory = std::move(tensor->memory);
  received.came = !tensor->admission.present;
  received.statistics = std::move(tensor->admission.statistics);
  if (tensor->commit->has_crc32()) received.crc32 = tensor->commit->crc32();
  return sink_->OnTensor(std::move(received));
}

absl::Status TensorReceiver::Finish() const {
  if (!opened_) return Invalid("open is missing");
  const Incoming* first = nullptr;  // the lowest index, so that the message is the same every time
  for (const auto& [index, tensor] : tensors_) {
    // A tensor that was answered with an error needs no end.
    if (!tensor->admission.accepted) continue;
    if (first == nullptr || index < first->header.index()) first = tensor.get();
  }
  if (first == nullptr) return absl::OkStatus();
  return Invalid(Describe(first->header), " was not committed; ", first->received, " of ",
                 first->header.byte_length(), " bytes came");
}

void TensorReceiver::Reset() {
  tensors_.clear();
  reader_.reset();
  chunk_tensor_ = nullptr;
  incomplete_ = 0;
}

}  // namespace nni_compression::server
