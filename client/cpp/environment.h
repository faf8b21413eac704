// Settings from environment variables.
#ifndef NNI_COMPRESSION_CLIENT_CPP_ENVIRONMENT_H_
#define NNI_COMPRESSION_CLIENT_CPP_ENVIRONMENT_H_

#include <cstdlib>
#include <string>

namespace nni_compression::internal {

// Empty when it is not set.
inline std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace nni_compression::internal

#endif  // NNI_COMPRESSION_CLIENT_CPP_ENVIRONMENT_H_
