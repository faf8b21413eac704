// A layer of the model that a session is bound to.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compression/types/dtype.h"

namespace nni_compression::compression {

// Filters of a layer, at most, that are pruned as a whole.
constexpr int64_t kMaxFilters = int64_t{1} << 20;

// What a layer has to do with a dependency group: layers whose filters, their slices along the
// channel axis, go together. Units go at a time, each of which is some filters of each layer.
struct InFilterGroup {
  int index = 0;                // of the group
  int64_t count = 0;            // units of the group
  int64_t runs = 1;             // into which these are divided; each loses the same number
  std::vector<uint32_t> units;  // for each filter of the layer, its unit
};

struct Layer {
  std::string name;
  std::string op_type;  // the framework's name: "Conv2d", "MatMul"
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;        // of the weight, C order
  int channel_axis = 0;              // the dimension of per-channel quantization
  std::vector<std::string> aliases;  // further names of the same (tied) weight
  bool needs_filter = false;  // whether rules that filter neither by type nor by name leave it out
  std::vector<std::string> op_type_bases;      // further types that the layer is of
  std::shared_ptr<const InFilterGroup> group;  // null: none; Session::Bind fills it in

  int64_t elements = 0;  // product of `shape`; Session::Bind fills it in

  // Slices of the weight along the channel axis.
  int64_t filters() const { return shape[static_cast<size_t>(channel_axis)]; }

  // The dimension of the weight that its input channels are; nullopt: it has none.
  std::optional<int> input_axis() const {
    const int rank = static_cast<int>(shape.size());
    if (rank < 2) return std::nullopt;
    if (channel_axis == 0) return 1;
    // Kernels in the layout of TensorFlow end with the input and the output channels.
    return channel_axis == rank - 1 ? rank - 2 : 0;
  }
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_
