// What may be said of an exception to those who call a server.
#ifndef NNI_COMPRESSION_COMPRESSION_MESSAGES_EXCEPTION_TEXT_H_
#define NNI_COMPRESSION_COMPRESSION_MESSAGES_EXCEPTION_TEXT_H_

#include <exception>
#include <string>

namespace nni_compression::compression {

// The message without the rest of what(): LibTorch's exceptions append the stack, with addresses of
// this process, and those of scripts a traceback, with paths of the machine that compiled them.
std::string TextOf(const std::exception& e);

// The payload of a status that has all of what(), for logs.
inline constexpr char kTracebackPayload[] = "nni.compression/traceback";

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_MESSAGES_EXCEPTION_TEXT_H_
