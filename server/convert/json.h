// Conversion between google.protobuf.Struct and JSON.
#ifndef NNI_COMPRESSION_SERVER_CONVERT_JSON_H_
#define NNI_COMPRESSION_SERVER_CONVERT_JSON_H_

#include <google/protobuf/struct.pb.h>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace nni_compression::server {

// Struct has doubles only: a whole number below 2^53 becomes a JSON integer, since that is what the
// sender wrote (1 and 1.0 are the same to every option). NaN and infinities are kept, so that the
// error of the option can name them. INVALID_ARGUMENT, with `path` in the message, for more than 16
// levels and for a value without a kind.
absl::StatusOr<nlohmann::json> ToJson(const google::protobuf::Struct& object,
                                      absl::string_view path);

void ToProto(const nlohmann::json& value, google::protobuf::Value* out);
void ToProto(const nlohmann::json& object, google::protobuf::Struct* out);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CONVERT_JSON_H_
