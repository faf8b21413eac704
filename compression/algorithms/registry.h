// The algorithms that a server offers.
#ifndef NNI_COMPRESSION_COMPRESSION_ALGORITHMS_REGISTRY_H_
#define NNI_COMPRESSION_COMPRESSION_ALGORITHMS_REGISTRY_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// Algorithms by name. Filled at start-up by one thread; const and thread-safe afterwards.
class Registry {
 public:
  // All algorithms of algorithms/.
  static const Registry& Builtin();

  // ALREADY_EXISTS for a duplicate name.
  absl::Status Add(const AlgorithmInfo& info);

  // INVALID_ARGUMENT, with a suggestion, for an unknown name.
  absl::StatusOr<const AlgorithmInfo*> Find(absl::string_view name) const;

  // By name.
  std::vector<const AlgorithmInfo*> List() const;

 private:
  std::map<std::string, AlgorithmInfo> algorithms_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_ALGORITHMS_REGISTRY_H_
