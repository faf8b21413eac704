// What a message will take in memory, told from its bytes.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_
#define NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstdint>

#include "absl/strings/string_view.h"

namespace nni_compression::server {

// About how many bytes a message of `type` takes on the heap once `bytes` have been parsed into it:
// at least what it takes, and less than three times as much. An empty element of two bytes becomes
// an object of up to 200, so that the length of a message says little of this. Takes about as long
// as parsing, and allocates nothing to speak of. Of bytes that are no such message, what they take
// up to where parsing would end.
int64_t ParsedSize(const google::protobuf::Message& type, const grpc::ByteBuffer& bytes);
int64_t ParsedSize(const google::protobuf::Message& type, absl::string_view bytes);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_PARSED_SIZE_H_
