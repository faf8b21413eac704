// What libraries print goes into the log as lines like all others.
#ifndef NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_
#define NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_

namespace nni_compression::server {

// From now on messages of Protocol Buffers and gRPC, which would go to stderr as they are, are
// logged as events `protobuf` and `grpc`. For the whole process. Newer versions of these libraries
// log through Abseil and are left alone.
void CaptureLibraryLogs();

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_BASE_LIBRARY_LOG_H_
