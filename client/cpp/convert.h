// Small conversions between the wire's messages and the client's types.
#ifndef NNI_COMPRESSION_CLIENT_CPP_CONVERT_H_
#define NNI_COMPRESSION_CLIENT_CPP_CONVERT_H_

#include <google/protobuf/duration.pb.h>
#include <google/protobuf/struct.pb.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nni/compression/v1/compression.pb.h"
#include "nni_compression/client.h"

namespace nni_compression::internal {

absl::Duration ToDuration(const google::protobuf::Duration& duration);

template <typename Repeated>
std::vector<std::string> ToVector(const Repeated& strings) {
  return {strings.begin(), strings.end()};
}

// INVALID_ARGUMENT, beginning with `field`, for text that is not a JSON object.
absl::StatusOr<google::protobuf::Struct> ParseJsonObject(absl::string_view json,
                                                         absl::string_view field);

// The request without its masks. INVALID_ARGUMENT when config_list is not a JSON list of objects.
absl::StatusOr<v1::BindModelRequest> ToProto(const BindRequest& request);

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_CONVERT_H_
