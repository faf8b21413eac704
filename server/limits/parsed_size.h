// The memory of a parsed message, estimated from its bytes.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_
#define NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Estimates the heap memory of a message of `type` once `bytes` are parsed into it: never less than
// the true value, and less than three times as much. (An empty element of two bytes becomes an
// object of up to 200 bytes, so the length of a message does not bound it.) Takes about as long as
// parsing and allocates almost nothing. For malformed bytes, the memory up to where parsing would
// fail.
int64_t ParsedSize(const google::protobuf::Message& type, const grpc::ByteBuffer& bytes);
int64_t ParsedSize(const google::protobuf::Message& type, absl::string_view bytes);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_
