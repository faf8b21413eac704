#include "client/cpp/replies.h"

#include <zlib.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::internal {

absl::Status BadReply(absl::string_view why) {
  return absl::InternalError(absl::StrCat("the server's reply is malformed: ", why));
}

absl::Status StatusOf(const v1::LayerError& error) {
  if (error.code() == 0) return BadReply("a layer's error has code 0");
  return absl::Status(static_cast<absl::StatusCode>(error.code()), error.message());
}

absl::Status Arrival::CheckChunk(const wire::ChunkPrefix& chunk) const {
  if (chunk.payload_bytes == 0) return BadReply("an empty chunk");
  if (chunk.offset != static_cast<uint64_t>(received_)) {
    return BadReply(absl::StrCat("a chunk is at ", chunk.offset, ", not at ", received_));
  }
  if (chunk.payload_bytes > byte_length_ - received_) return BadReply("a chunk runs past the end");
  return absl::OkStatus();
}

void Arrival::Advance(absl::Span<const uint8_t> payload) {
  received_ += static_cast<int64_t>(payload.size());
  crc32_ = static_cast<uint32_t>(crc32_z(crc32_, payload.data(), payload.size()));
}

void Arrival::Complete(absl::Span<const uint8_t> bytes) {
  received_ = static_cast<int64_t>(bytes.size());
  whole_ = bytes;
}

absl::Status Arrival::CheckCommit(const v1::Commit& commit) const {
  if (commit.byte_length() != static_cast<uint64_t>(byte_length_) || received_ != byte_length_) {
    return BadReply(absl::StrCat("a commit of ", commit.byte_length(), " bytes, ", byte_length_,
                                 " were announced and ", received_, " arrived"));
  }
  if (!commit.has_crc32()) return absl::OkStatus();
  const uint32_t crc32 =
      whole_.empty() ? crc32_ : static_cast<uint32_t>(crc32_z(0, whole_.data(), whole_.size()));
  return commit.crc32() == crc32 ? absl::OkStatus()
                                 : absl::DataLossError("the CRC-32 of a reply differs");
}

template <typename Result>
absl::Status ReplyReader<Result>::Read(const grpc::ByteBuffer& message) {
  wire::MessageReader reader(message);
  while (true) {
    const auto field = reader.Next();
    if (!field.ok()) return BadReply(field.status().message());
    absl::Status status;
    if (*field == 0) {
      return absl::OkStatus();
    } else if (*field == wire::kOpenOrResult) {
      Result result;
      status = reader.Parse(&result);
      if (status.ok()) status = OnResult(std::move(result));
    } else if (*field == wire::kHeader) {
      v1::TensorHeader header;
      status = reader.Parse(&header);
      if (status.ok()) status = OnHeader(header);
    } else if (*field == wire::kChunk) {
      status = OnChunk(reader);
    } else if (*field == wire::kCommit) {
      v1::Commit commit;
      status = reader.Parse(&commit);
      if (status.ok()) status = OnCommit(commit);
    } else {
      status = reader.Skip();
    }
    if (status.code() == absl::StatusCode::kInvalidArgument) return BadReply(status.message());
    if (!status.ok()) return status;
  }
}

template <typename Result>
absl::Status ReplyReader<Result>::OnResult(Result result) {
  const uint32_t index = result.answers();
  if (index >= sent_.size() || answered_[index] || pending_.contains(index)) {
    return BadReply(absl::StrCat("a result for tensor ", index));
  }
  Answer answer;
  if (!result.has_error()) {
    const auto expected = ExpectedTensors(*sent_[index], result);
    if (!expected.ok()) return expected.status();
    answer.expected_tensors = *expected;
  }
  answer.result = std::move(result);
  pending_.emplace(index, std::move(answer));
  return FinishIfComplete(index);
}

template <typename Result>
absl::Status ReplyReader<Result>::OnHeader(const v1::TensorHeader& header) {
  const auto answer = pending_.find(header.answers());
  if (answer == pending_.end()) {
    return BadReply(absl::StrCat("a tensor answers ", header.answers()));
  }
  auto& tensors = answer->second.tensors;
  if (static_cast<int64_t>(tensors.size()) >= answer->second.expected_tensors) {
    return BadReply("more tensors than announced");
  }
  ReceivedTensor tensor;
  tensor.role = static_cast<TensorRole>(header.role());
  tensor.dtype = static_cast<DataType>(header.dtype());
  tensor.shape.assign(header.shape().begin(), header.shape().end());
  const auto byte_length = ByteLength(tensor.dtype, tensor.shape);
  if (!byte_length.ok()) return BadReply(byte_length.status().message());
  if (header.byte_length() != static_cast<uint64_t>(*byte_length)) {
    return BadReply("a tensor's byte length disagrees with its shape");
  }
  absl::Status checked = CheckHeader(*sent_[header.answers()], answer->second.result, tensor);
  if (!checked.ok()) return checked;
  const Incoming incoming{header.answers(), tensors.size(), Arrival(*byte_length)};
  const auto [placed, inserted] = incoming_.emplace(header.index(), incoming);
  if (!inserted) return BadReply(absl::StrCat("index ", header.index(), " is a duplicate"));
  tensor.bytes = Bytes::Uninitialized(*byte_length);
  if (header.has_shared_memory()) {
    checked = CopyShared(header, tensor.bytes, placed->second.arrival);
    if (!checked.ok()) return checked;
  }
  tensors.push_back(std::move(tensor));
  return absl::OkStatus();
}

template <typename Result>
absl::Status ReplyReader<Result>::CopyShared(const v1::TensorHeader& header, Bytes& bytes,
                                             Arrival& arrival) {
  const auto written =
      shared_ == nullptr ? std::nullopt
                         : shared_->Result(header.answers(), header.shared_memory(), bytes.size());
  if (!written) return BadReply("a tensor is not at the place reserved for it");
  std::memcpy(bytes.data(), written->data(), written->size());
  arrival.Complete(bytes.span());
  return absl::OkStatus();
}

template <typename Result>
absl::Status ReplyReader<Result>::OnChunk(wire::MessageReader& reader) {
  const auto chunk = reader.BeginChunk();
  if (!chunk.ok()) return chunk.status();
  const auto found = incoming_.find(chunk->index);
  if (found == incoming_.end()) {
    return BadReply(absl::StrCat("a chunk of tensor ", chunk->index));
  }
  Incoming& incoming = found->second;
  absl::Status status = incoming.arrival.CheckChunk(*chunk);
  if (!status.ok()) return status;
  Bytes& bytes = pending_.find(incoming.answers)->second.tensors[incoming.slot].bytes;
  const absl::Span<uint8_t> out(bytes.data() + chunk->offset, chunk->payload_bytes);
  status = reader.ReadPayload(out);
  if (status.ok()) incoming.arrival.Advance(out);
  return status;
}

template <typename Result>
absl::Status ReplyReader<Result>::OnCommit(const v1::Commit& commit) {
  const auto found = incoming_.find(commit.index());
  if (found == incoming_.end()) {
    return BadReply(absl::StrCat("a commit of tensor ", commit.index()));
  }
  absl::Status status = found->second.arrival.CheckCommit(commit);
  if (!status.ok()) return status;
  const uint32_t answers = found->second.answers;
  incoming_.erase(found);
  ++commits_[answers];
  return FinishIfComplete(answers);
}

template <typename Result>
absl::Status ReplyReader<Result>::FinishIfComplete(uint32_t index) {
  const auto found = pending_.find(index);
  if (commits_[index] < found->second.expected_tensors) return absl::OkStatus();
  Answer answer = std::move(found->second);
  pending_.erase(found);
  commits_.erase(index);
  answered_[index] = true;
  ++answered_count_;
  return OnAnswer(index, std::move(answer));
}

template class ReplyReader<v1::MaskResult>;
template class ReplyReader<v1::QuantizeResult>;

namespace {

absl::Status CheckMaskHeader(const std::vector<int64_t>& shape, const ReceivedTensor& tensor) {
  if (tensor.role == TensorRole::kMask && tensor.dtype == DataType::kBit && tensor.shape == shape) {
    return absl::OkStatus();
  }
  return BadReply("a mask does not have its weight's shape");
}

absl::StatusOr<Mask> ToMask(const std::string& layer, const v1::MaskResult& result,
                            ReceivedTensor bits) {
  int64_t elements = 1;
  for (const int64_t dimension : bits.shape) elements *= dimension;
  if (elements % 8 != 0 && bits.bytes.span().back() >> (elements % 8) != 0) {
    return BadReply("a mask has bits after its last element");
  }
  return Mask(layer, std::move(bits.shape), std::move(bits.bytes), result.target_sparsity(),
              result.epoch());
}

}  // namespace

absl::StatusOr<int64_t> MaskReader::ExpectedTensors(const Tensor&, const v1::MaskResult&) {
  return 1;
}

absl::Status MaskReader::CheckHeader(const Tensor& sent, const v1::MaskResult&,
                                     const ReceivedTensor& tensor) {
  return CheckMaskHeader(sent.shape, tensor);
}

absl::Status MaskReader::OnAnswer(size_t index, Answer answer) {
  if (answer.result.has_error()) {
    results_[index] = StatusOf(answer.result.error());
    return absl::OkStatus();
  }
  auto mask = ToMask(sent_tensor(index).name, answer.result, std::move(answer.tensors[0]));
  if (!mask.ok()) return mask.status();
  results_[index] = *std::move(mask);
  return absl::OkStatus();
}

absl::StatusOr<int64_t> ThresholdReader::ExpectedTensors(const Tensor&,
                                                         const v1::MaskResult& result) {
  return result.has_threshold() ? 0 : 1;
}

absl::Status ThresholdReader::CheckHeader(const Tensor& sent, const v1::MaskResult&,
                                          const ReceivedTensor& tensor) {
  return CheckMaskHeader(shapes_.at(sent.name), tensor);
}

absl::Status ThresholdReader::OnAnswer(size_t index, Answer answer) {
  if (answer.result.has_error()) {
    results_[index] = StatusOf(answer.result.error());
  } else if (answer.result.has_threshold()) {
    results_[index] = Result(std::move(answer.result));
  } else {
    auto mask = ToMask(sent_tensor(index).name, answer.result, std::move(answer.tensors[0]));
    if (!mask.ok()) return mask.status();
    results_[index] = Result(*std::move(mask));
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::internal
