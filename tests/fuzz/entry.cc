// What libFuzzer calls; FUZZ_TARGET is the target's name.
#include "tests/fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nni_compression::fuzz::FUZZ_TARGET({data, size});
  return 0;
}
