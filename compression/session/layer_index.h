// The layers that BindModel is given.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_LAYER_INDEX_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_LAYER_INDEX_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// Checks the layers ("layers[3].shape[1] is -2; ..."), fills in `elements`, and returns each name's
// index, aliases included.
absl::StatusOr<absl::flat_hash_map<std::string, int>> IndexLayers(std::vector<Layer>& layers);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_LAYER_INDEX_H_
