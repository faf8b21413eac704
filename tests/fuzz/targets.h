// What reads untrusted bytes, for fuzzers. Each target says whether it took the input, and ends the
// program when a promise of the code under test is broken.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_TARGETS_H_
#define NNI_COMPRESSION_TESTS_FUZZ_TARGETS_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/types/span.h"

namespace nni_compression::fuzz {

using Target = bool (*)(absl::Span<const uint8_t> input);

bool ConfigList(absl::Span<const uint8_t> input);
bool Frames(absl::Span<const uint8_t> input);
bool Safetensors(absl::Span<const uint8_t> input);
bool State(absl::Span<const uint8_t> input);

}  // namespace nni_compression::fuzz

// Fuzzers know a failure by the program's end.
#define FUZZ_CHECK(condition)                                                                  \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      std::fprintf(stderr, "%s:%d: this does not hold: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                            \
    }                                                                                          \
  } while (false)

#endif  // NNI_COMPRESSION_TESTS_FUZZ_TARGETS_H_
