// Libraries that a server must refuse; MISFIT says which.
#include <cstdlib>

#define WRONG_STAMP 1
#define MISSING_SYMBOL 2
#define NO_PLUGIN 3
#define BUILT_IN_NAME 4
#define THROWS 5
#define NO_EXAMPLE 6

#if MISFIT == WRONG_STAMP
#pragma GCC visibility push(default)
extern "C" {
extern const char nni_compression_plugin_stamp[] = "NniCompression 0.0.0 of long ago";
void nni_compression_plugin_algorithms(void*) { std::abort(); }  // not called
}
#pragma GCC visibility pop
#elif MISFIT == MISSING_SYMBOL
extern "C" void nobody_has_this_function();
void Use() { nobody_has_this_function(); }
#elif MISFIT == NO_PLUGIN
void Unrelated() {}
#else
#include <stdexcept>

#include "compression/plugin.h"

NNI_COMPRESSION_PLUGIN() {
  nni_compression::compression::AlgorithmInfo info;
#if MISFIT == THROWS
  throw std::runtime_error("no licence");
#elif MISFIT == BUILT_IN_NAME
  info.name = "level";
  info.example = nlohmann::json::object();
#else
  info.name = "lonely";
#endif
  info.create = [](const auto&)
      -> absl::StatusOr<std::unique_ptr<nni_compression::compression::Compressor> > {
    return absl::UnimplementedError("never asked");
  };
  return {info};
}
#endif
