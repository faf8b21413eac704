// What commands print: text, or JSON for programs.
#ifndef NNI_COMPRESSION_CLIENT_CLI_REPORT_H_
#define NNI_COMPRESSION_CLIENT_CLI_REPORT_H_

#include <google/protobuf/message.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::cli {

namespace v1 = ::nni::compression::v1;

// The message with the field names of the .proto, default values included, on one line.
std::string ToJson(const google::protobuf::Message& message);

std::string AlgorithmsText(const v1::ListAlgorithmsResponse& response);
std::string SessionsText(const std::vector<v1::Session>& sessions);
std::string SessionText(const v1::GetSessionResponse& response);

// "error: INVALID_ARGUMENT: ...", or {"error": {"code": ..., "message": ...}}.
std::string ErrorText(const absl::Status& status);
std::string ErrorJson(const absl::Status& status);

// "weight_gradient", of the enum's name.
std::string StatisticName(v1::StatisticKind kind);

// "active", "closed" or "expired".
std::string StateName(v1::SessionState state);

// "key=value,key=value", by key.
std::string LabelsText(const v1::Session& session);

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_REPORT_H_
