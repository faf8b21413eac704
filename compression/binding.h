// What BindModel checks about layers.
#ifndef NNI_COMPRESSION_COMPRESSION_BINDING_H_
#define NNI_COMPRESSION_COMPRESSION_BINDING_H_

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/layer.h"

namespace nni_compression::compression {

// The maximum length of the name of a layer or a tensor.
constexpr size_t kMaxLayerNameBytes = 1024;

// 1 to `max_bytes` bytes of UTF-8 without control characters. INVALID_ARGUMENT begins with `path`.
absl::Status CheckName(absl::string_view name, size_t max_bytes, absl::string_view path);

// Checks the layers ("layers[3].shape[1] is -2; ..."), fills in `elements`, and returns each name's
// index, aliases included.
absl::StatusOr<absl::flat_hash_map<std::string, int>> IndexLayers(std::vector<Layer>& layers);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_BINDING_H_
