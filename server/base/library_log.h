// Redirects messages of libraries to the log.
#ifndef NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_
#define NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_

namespace nni_compression::server {

// From now on, messages of Protocol Buffers and gRPC are logged as events `protobuf` and `grpc`
// instead of written to stderr. For the whole process. Newer versions of these libraries log
// through Abseil and are not redirected.
void CaptureLibraryLogs();

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_
