#include "server/base/library_log.h"

#include <google/protobuf/stubs/common.h>
#if GOOGLE_PROTOBUF_VERSION < 4022000
#include <google/protobuf/stubs/logging.h>
#endif
#include <grpc/support/log.h>
#include <grpcpp/version_info.h>

#include <string>

#include "server/base/log.h"

namespace nni_compression::server {
namespace {

#if GOOGLE_PROTOBUF_VERSION < 4022000
// Any caller can cause these, for example by a name that is not UTF-8, and the call's failure is
// logged anyway.
void OnProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  LogLimited(LogLevel::kDebug, "protobuf", "", {{"message", message}});
}
#endif

#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 65
void OnGrpc(gpr_log_func_args* args) {
  // Unauthenticated peers cause some of these, by connections that fail.
  LogLimited(args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug,
             "grpc", args->file, {{"message", args->message}});
}
#endif

}  // namespace

void CaptureLibraryLogs() {
#if GOOGLE_PROTOBUF_VERSION < 4022000
  google::protobuf::SetLogHandler(OnProtobuf);
#endif
#if GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR < 65
  gpr_set_log_function(OnGrpc);
#endif
}

}  // namespace nni_compression::server
