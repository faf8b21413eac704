// What a plugin includes, as "compression/plugin.h": a shared library outside the tree with
// algorithms for a server that was built from the same headers. See docs/plugins.md.
//
//   NNI_COMPRESSION_PLUGIN() { return {TopAlgorithm()}; }  // std::vector<AlgorithmInfo>
#ifndef NNI_COMPRESSION_COMPRESSION_EXTENSIONS_PLUGIN_H_
#define NNI_COMPRESSION_COMPRESSION_EXTENSIONS_PLUGIN_H_

#include <torch/csrc/api/include/torch/version.h>

#include <vector>

#include "absl/base/config.h"
#include "compression/algorithms/algorithm.h"
#include "compression/extensions/headers_version.h"

#define NNI_COMPRESSION_TEXT(value) NNI_COMPRESSION_TEXT_OF(value)
#define NNI_COMPRESSION_TEXT_OF(value) #value

// Objects with virtual methods, of the standard library, LibTorch, Abseil and the JSON library pass
// between a plugin and the server, so that all that decides on their layout has to agree. The
// server compares the stamp with its own before it calls anything.
#define NNI_COMPRESSION_PLUGIN_STAMP \
  "NniCompression " NNI_COMPRESSION_HEADERS_VERSION                                          \
  ", C++ " NNI_COMPRESSION_TEXT(__cplusplus) ", ABI " NNI_COMPRESSION_TEXT(__GXX_ABI_VERSION) \
  ", libstdc++ " NNI_COMPRESSION_TEXT(_GLIBCXX_RELEASE)                                      \
  " with _GLIBCXX_USE_CXX11_ABI " NNI_COMPRESSION_TEXT(_GLIBCXX_USE_CXX11_ABI)               \
  ", LibTorch " TORCH_VERSION ", Abseil " NNI_COMPRESSION_TEXT(ABSL_LTS_RELEASE_VERSION)     \
  ", JSON " NNI_COMPRESSION_TEXT(NLOHMANN_JSON_VERSION_MAJOR) "." NNI_COMPRESSION_TEXT(      \
      NLOHMANN_JSON_VERSION_MINOR)

// Exports the symbols that the server looks up.
#define NNI_COMPRESSION_PLUGIN()                                                              \
  static std::vector<nni_compression::compression::AlgorithmInfo> NniCompressionAlgorithms(); \
  extern "C" {                                                                                \
  __attribute__((visibility("default"))) extern const char nni_compression_plugin_stamp[] =   \
      NNI_COMPRESSION_PLUGIN_STAMP;                                                           \
  __attribute__((visibility("default"))) void nni_compression_plugin_algorithms(              \
      std::vector<nni_compression::compression::AlgorithmInfo>* algorithms) {                 \
    *algorithms = NniCompressionAlgorithms();                                                 \
  }                                                                                           \
  }                                                                                           \
  static std::vector<nni_compression::compression::AlgorithmInfo> NniCompressionAlgorithms()

#endif  // NNI_COMPRESSION_COMPRESSION_EXTENSIONS_PLUGIN_H_
