#include "compression/algorithms/range_quantizer.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/quantize.h"
#include "compression/kernels/range.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

absl::StatusOr<QuantizedWeight> RangeQuantizer::QuantizeWeight(const Layer& layer,
                                                               const Weight& weight,
                                                               QuantizeReply reply, Clock clock,
                                                               LayerState& state) const {
  const void* data = weight.values.data_ptr();
  const WeightStatistics::Granularity granularity = {channel_axis(layer), traits_.group_size};
  const Channels channels = Channels::Of(layer.shape, granularity.axis, granularity.group_size);
  std::optional<Range> range;
  if (weight.statistics != nullptr) range = weight.statistics->range(granularity);
  if (!range) {
    range = FindRange(layer.dtype, data, channels);
    if (!range) return NonFiniteError(layer, data, /*as_float32=*/true);
    if (weight.statistics != nullptr) weight.statistics->SetRange(granularity, *range);
  }

  QuantizedWeight result;
  result.parameters = ParametersFor(layer, *range, clock, state);
  if (!result.parameters || reply == QuantizeReply::kParameters) return result;
  result.dtype = reply == QuantizeReply::kValues ? layer.dtype : CodeType(*result.parameters);
  result.data = Buffer::Allocate(ByteLength(result.dtype, layer.elements));
  float max_tanh = 0;
  for (size_t c = 0; c < range->minimum.size(); ++c) {
    max_tanh = std::max(max_tanh, std::tanh(MaxMagnitude(*range, c)));
  }
  QuantizeTo(layer.dtype, data, channels, *result.parameters, reply, max_tanh, result.data.data());
  return result;
}

absl::StatusOr<QuantizedWeight> RangeQuantizer::QuantizeRange(const Layer& layer,
                                                              const Range& range, Clock clock,
                                                              LayerState& state) const {
  QuantizedWeight result;
  result.parameters = ParametersFor(layer, range, clock, state);
  return result;
}

float RangeQuantizer::MaxMagnitude(const Range& range, size_t c) {
  return std::max(std::fabs(range.minimum[c]), std::fabs(range.maximum[c]));
}

OptionSpec QuantBits(int minimum, int maximum) {
  OptionSpec spec;
  spec.name = "quant_bits";
  spec.type = OptionType::kIntegerPerType;
  spec.default_value = 8;
  spec.minimum = minimum;
  spec.maximum = maximum;
  spec.description = "Bits of a code: a number, or one per type.";
  spec.aliases = {"q_bits"};
  return spec;
}

OptionSpec QuantTypes(std::vector<std::string> types) {
  OptionSpec spec;
  spec.name = "quant_types";
  spec.type = OptionType::kStringList;
  spec.default_value = std::vector<std::string>{"weight"};
  spec.choices = std::move(types);
  spec.description = "What is quantized.";
  return spec;
}

absl::StatusOr<int> BitsFor(const Options& options, const std::string& type) {
  const std::vector<std::string> types = options.StringList("quant_types");
  if (std::count(types.begin(), types.end(), type) == 0) return 0;
  if (auto status = CheckHas(options, "quant_bits", "a number", type); !status.ok()) return status;
  return static_cast<int>(options.IntegerFor("quant_bits", type));
}

absl::Status CheckHas(const Options& options, const std::string& name, absl::string_view what,
                      const std::string& type) {
  const nlohmann::json& value = options.json().at(name);
  if (!value.is_object() || value.contains(type)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(options.path(), ".", name, " is ", Shown(value),
                                                 "; it must have ", what, " for ", Quoted(type),
                                                 ", which quant_types names"));
}

}  // namespace nni_compression::compression
