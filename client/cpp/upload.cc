#include "client/cpp/upload.h"

#include <zlib.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::internal {
namespace {

namespace v1 = ::nni::compression::v1;

// Framing of many tiny tensors counts, too: a message of this size, with all that may still be
// appended to it, stays below wire::kMaxMessageBytes.
constexpr int64_t kFullMessageBytes = wire::kChunkBytes + wire::kChunkBytes / 4;

int64_t SizeOf(const Tensor& tensor) { return static_cast<int64_t>(tensor.bytes.size()); }

}  // namespace

grpc::Slice Loans::Lend(absl::Span<const uint8_t> bytes) {
  count_.fetch_add(1, std::memory_order_relaxed);
  return grpc::Slice(const_cast<uint8_t*>(bytes.data()), bytes.size(), &Loans::Return, this);
}

void Loans::Return(void* loans) {
  static_cast<Loans*>(loans)->count_.fetch_sub(1, std::memory_order_release);
}

absl::Status CheckTensor(const Tensor& tensor) {
  const auto expected = ByteLength(tensor.dtype, tensor.shape);
  if (!expected.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", tensor.name, ": ", expected.status().message()));
  }
  if (*expected != SizeOf(tensor)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", tensor.name, " has ", tensor.bytes.size(), " bytes; shape [",
                     absl::StrJoin(tensor.shape, ", "), "] of ", DataTypeName(tensor.dtype),
                     " needs ", *expected));
  }
  return absl::OkStatus();
}

Upload::Upload(const google::protobuf::MessageLite& open, std::vector<const Tensor*> tensors,
               Options options, Loans& loans)
    : tensors_(std::move(tensors)),
      options_(std::move(options)),
      shared_(tensors_.size()),
      loans_(loans) {
  writer_.Append(open);
}

grpc::ByteBuffer Upload::NextMessage() {
  first_ = false;
  if (AppendHeaders()) AppendPayloads();
  if (options_.on_message) options_.on_message(sent_bytes_);
  return writer_.Finish();
}

void Upload::AppendHeader(size_t index) {
  const Tensor& tensor = *tensors_[index];
  v1::CalcMaskRequest message;  // all streaming requests have the same fields
  v1::TensorHeader* header = message.add_headers();
  header->set_index(static_cast<uint32_t>(index));
  header->set_layer(tensor.name);
  header->set_role(static_cast<v1::TensorRole>(tensor.role));
  header->set_dtype(static_cast<v1::DataType>(tensor.dtype));
  for (const int64_t dimension : tensor.shape) header->add_shape(dimension);
  header->set_byte_length(tensor.bytes.size());
  if (options_.shared != nullptr) shared_[index] = options_.shared->Share(index, tensor, header);
  writer_.Append(message);
}

// Announces the tensors of the message: those that fit into it whole, or one that is larger than
// any message. Returns whether payloads may follow.
bool Upload::AppendHeaders() {
  int64_t room = wire::kChunkBytes;
  if (options_.headers_first) {
    while (announced_ < tensors_.size() && writer_.byte_size() < room) AppendHeader(announced_++);
    return announced_ == tensors_.size();
  }
  if (announced_ > committed_) return true;  // in the middle of a large one
  while (announced_ < tensors_.size() && writer_.byte_size() < wire::kChunkBytes) {
    const int64_t size = SizeOf(*tensors_[announced_]);
    if (size > room && announced_ > committed_) break;
    room -= size;
    AppendHeader(announced_++);
    if (room <= 0) break;
  }
  return true;
}

void Upload::AppendPayloads() {
  v1::CalcMaskRequest commits;
  int64_t room = wire::kChunkBytes;
  while (committed_ < announced_ && room > 0 && writer_.byte_size() < kFullMessageBytes) {
    const Tensor& tensor = *tensors_[committed_];
    if (offset_ == 0 && SizeOf(tensor) > room && room < wire::kChunkBytes) break;
    const bool shared = shared_[committed_];
    const int64_t size = shared ? SizeOf(tensor) : std::min(room, SizeOf(tensor) - offset_);
    const auto bytes = tensor.bytes.subspan(offset_, size);
    if (options_.checksum) crc32_ = crc32_z(crc32_, bytes.data(), bytes.size());
    if (!shared)
      writer_.AppendChunk(static_cast<uint32_t>(committed_), offset_, loans_.Lend(bytes));
    room -= size;
    offset_ += size;
    sent_bytes_ += size;
    if (offset_ < SizeOf(tensor)) break;
    v1::Commit* commit = commits.add_commits();
    commit->set_index(static_cast<uint32_t>(committed_));
    commit->set_byte_length(tensor.bytes.size());
    if (options_.checksum) commit->set_crc32(crc32_);
    ++committed_;
    offset_ = 0;
    crc32_ = 0;
  }
  writer_.Append(commits);
}

}  // namespace nni_compression::internal
