// The choices of a fuzzer: all of them follow from one seed.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_RPC_RANDOM_H_
#define NNI_COMPRESSION_TESTS_FUZZ_RPC_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace nni_compression::fuzz {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  uint64_t Bits() { return engine_(); }
  size_t Below(size_t bound) { return engine_() % bound; }
  bool OneIn(size_t n) { return Below(n) == 0; }
  double Unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }

  template <typename T>
  const T& Pick(const std::vector<T>& values) {
    return values[Below(values.size())];
  }

  std::string Bytes(size_t size) {
    std::string bytes(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(engine_());
    return bytes;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace nni_compression::fuzz

#endif  // NNI_COMPRESSION_TESTS_FUZZ_RPC_RANDOM_H_
