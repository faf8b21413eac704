// Weights as codes, of which the numbers are known once a weight has passed.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_CODED_MODEL_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_CODED_MODEL_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/segments.h"

namespace nni_compression::compression {

constexpr absl::string_view kWeightSuffix = ".weight";

// A quantized weight of the file.
struct Coded {
  ExportTensor tensor;
  LayerSnapshot snapshot;
  QuantizationParameters
      parameters;  // as planned, without scales; complete once the weight was streamed

  const Layer& layer() const { return snapshot.layer(); }
  bool symmetric() const { return parameters.code_min < 0; }
  bool per_channel() const { return parameters.channel_axis.has_value(); }  // or per group
  int64_t rows() const { return layer().shape[0]; }
  int64_t columns() const { return layer().shape[1]; }
  int64_t per_word() const { return 32 / parameters.bits; }
  int64_t groups() const {  // per row; 1: one scale per row
    return parameters.group_size > 0 ? columns() / parameters.group_size : 1;
  }
  absl::string_view Prefix() const { return absl::StripSuffix(tensor.name, kWeightSuffix); }
  std::string Name(absl::string_view what) const { return absl::StrCat(Prefix(), ".", what); }
  nlohmann::json Scheme() const {
    const int64_t group_size = parameters.group_size;
    return {{"num_bits", parameters.bits},
            {"type", "int"},
            {"symmetric", symmetric()},
            {"strategy", group_size > 0  ? "group"
                         : per_channel() ? "channel"
                                         : "tensor"},
            {"group_size", group_size > 0 ? nlohmann::json(group_size) : nlohmann::json()},
            {"dynamic", false}};
  }
};

// Replaces the weight by its codes, with zero points for masked elements, and sets
// `coded->parameters`. The planned formula is kAffine; FAILED_PRECONDITION when the parameters
// differ from the planned ones in more than scales and zero points.
Transform Codes(const std::shared_ptr<Coded>& coded);

// The scales. Its memory includes the scales and zero points in `coded`, held until the file is
// complete.
Segment ScaleSegment(const std::shared_ptr<Coded>& coded);

// Builds the model.safetensors of "compressed-tensors". Scales and zero points follow all weights.
struct CodedModel {
  bool packed = false;
  std::vector<ExportTensor> entries, number_entries;
  std::vector<Segment> segments, number_segments;

  // Adds the weight, which is tensor t.
  void AddWeight(const std::shared_ptr<Coded>& coded, size_t t);

 private:
  void AddNumbers(std::string name, DataType dtype, std::vector<int64_t> shape, Segment segment);
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_CODED_MODEL_H_
