// Messages of the streaming calls, good and bad ones, without ceremony.
#ifndef NNI_COMPRESSION_TESTS_TESTING_WIRE_MESSAGES_H_
#define NNI_COMPRESSION_TESTS_TESTING_WIRE_MESSAGES_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::testing {

namespace v1 = ::nni::compression::v1;

inline grpc::ByteBuffer ToBytes(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

inline std::string Bytes(const std::vector<float>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

inline std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// A float32 weight's header; tests change what they want wrong.
inline v1::TensorHeader Header(uint32_t index, const std::string& layer,
                               const std::vector<int64_t>& shape,
                               v1::TensorRole role = v1::TENSOR_ROLE_WEIGHT) {
  v1::TensorHeader header;
  header.set_index(index);
  header.set_layer(layer);
  header.set_role(role);
  header.set_dtype(v1::DATA_TYPE_FLOAT32);
  uint64_t bytes = sizeof(float);
  for (const int64_t dimension : shape) {
    header.add_shape(dimension);
    bytes *= static_cast<uint64_t>(dimension);
  }
  header.set_byte_length(bytes);
  return header;
}

// A message with any of its parts. `Request` is that of a streaming call.
template <typename Request>
class Message {
 public:
  Message() = default;

  Message& Open(const std::string& session_id) {
    request_.mutable_open()->set_session_id(session_id);
    return *this;
  }
  Message& Add(const v1::TensorHeader& header) {
    *request_.add_headers() = header;
    return *this;
  }
  Message& Chunk(uint32_t index, uint64_t offset, const std::string& payload) {
    v1::Chunk* chunk = request_.add_chunks();
    chunk->set_index(index);
    chunk->set_offset(offset);
    chunk->set_payload(payload);
    return *this;
  }
  Message& Commit(uint32_t index, uint64_t total, std::optional<uint32_t> crc32 = std::nullopt) {
    v1::Commit* commit = request_.add_commits();
    commit->set_index(index);
    commit->set_byte_length(total);
    if (crc32) commit->set_crc32(*crc32);
    return *this;
  }
  // A whole tensor.
  Message& Tensor(const v1::TensorHeader& header, const std::string& payload) {
    return Add(header).Chunk(header.index(), 0, payload).Commit(header.index(), payload.size());
  }

  Request& proto() { return request_; }
  grpc::ByteBuffer bytes() const { return ToBytes(request_); }

 private:
  Request request_;
};

using MaskMessage = Message<v1::CalcMaskRequest>;
using QuantizeMessage = Message<v1::QuantizeWeightRequest>;
using StatisticsMessage = Message<v1::AddStatisticsRequest>;
using StepMessage = Message<v1::StepRequest>;
using ExportMessage = Message<v1::ExportRequest>;

}  // namespace nni_compression::testing

#endif  // NNI_COMPRESSION_TESTS_TESTING_WIRE_MESSAGES_H_
