// A layer of the model that a session is bound to.
#ifndef NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_
#define NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "compression/types/dtype.h"

namespace nni_compression::compression {

struct Layer {
  std::string name;
  std::string op_type;  // the framework's name: "Conv2d", "MatMul"
  DataType dtype = DataType::kFloat32;
  std::vector<int64_t> shape;        // of the weight, C order
  int channel_axis = 0;              // the dimension of per-channel quantization
  std::vector<std::string> aliases;  // further names of the same (tied) weight
  bool needs_filter = false;  // whether rules that filter neither by type nor by name leave it out
  std::vector<std::string> op_type_bases;  // further types that the layer is of

  int64_t elements = 0;  // product of `shape`; Session::Bind fills it in
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_TYPES_LAYER_H_
