#include "compression/kernels/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>

namespace nni_compression::compression {
namespace {

std::atomic<int>& Chosen() {
  static std::atomic<int> chosen{static_cast<int>(SupportedIsas().back())};
  return chosen;
}

#if defined(__x86_64__)
// __builtin_cpu_supports of clang 14 does not know it.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "AVX2";
    case Isa::kAvx512:
      return "AVX-512";
    default:
      return "portable";
  }
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas = {Isa::kPortable};
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && HasF16c();
  if (avx2) isas.push_back(Isa::kAvx2);
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    isas.push_back(Isa::kAvx512);
  }
#endif
  return isas;
}

Isa CurrentIsa() { return static_cast<Isa>(Chosen().load(std::memory_order_relaxed)); }

void SetIsaForTesting(std::optional<Isa> isa) {
  Chosen() = static_cast<int>(isa.value_or(SupportedIsas().back()));
}

}  // namespace nni_compression::compression
