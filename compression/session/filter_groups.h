// Dependency groups of BindModel: layers whose filters go together.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_FILTER_GROUPS_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_FILTER_GROUPS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

struct FilterGroup {
  struct Member {
    std::string layer;            // a name of it
    std::vector<uint32_t> units;  // for each filter, its unit; empty: filter i is of unit i
  };
  std::vector<Member> members;
  int64_t runs = 1;
};

// Sets Layer::group of the members. `index`: of all names of layers. INVALID_ARGUMENT, naming the
// field, the value and the allowed range, for a group without members, a layer that does not exist
// or is in two groups, units that do not fit its filters or do not all occur, and runs that do not
// divide them.
absl::Status AssignGroups(const std::vector<FilterGroup>& groups,
                          const absl::flat_hash_map<std::string, int>& index,
                          std::vector<Layer>& layers);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_FILTER_GROUPS_H_
