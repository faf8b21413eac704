#include "compression/session/check_answer.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/str_cat.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/quantize.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

// Twice the size of two moments of the weight, and room for small values.
constexpr int64_t kStatePerWeight = 4;
constexpr int64_t kSmallState = 1 << 20;

template <typename... Parts>
absl::Status InvalidAnswer(absl::string_view algorithm, const Layer& layer, const Parts&... parts) {
  return absl::InternalError(absl::StrCat("the algorithm ", algorithm, " answered layer ",
                                          Quoted(layer.name), " with ", parts...));
}

absl::Status CheckParameters(absl::string_view algorithm, const Layer& layer,
                             const QuantizationParameters& p, int64_t channels) {
  if ((p.formula != Formula::kAffine && p.formula != Formula::kDoReFa) ||
      p.rounding < Rounding::kHalfEven || p.rounding > Rounding::kDoReFa) {
    return InvalidAnswer(algorithm, layer, "an unknown formula or rounding");
  }
  if (p.bits < 1 || p.bits > kMaxBits) {
    return InvalidAnswer(algorithm, layer, p.bits, " bits; it must be in [1, ", kMaxBits, "]");
  }
  const int32_t least = p.code_min < 0 ? -(1 << (p.bits - 1)) : 0;
  const int32_t most = least + (1 << p.bits) - 1;
  if (p.code_min > p.code_max || p.code_min < least || p.code_max > most) {
    return InvalidAnswer(algorithm, layer, "codes from ", p.code_min, " to ", p.code_max, " in ",
                         p.bits, " bits; they must be in [", least, ", ", most, "]");
  }
  if (p.formula == Formula::kDoReFa && (p.code_min != 0 || p.code_max != most)) {
    return InvalidAnswer(algorithm, layer, "codes from ", p.code_min, " to ", p.code_max,
                         " by DoReFa's formula; they must be all of ", p.bits, " bits");
  }
  const auto scales = static_cast<int64_t>(p.scale.size());
  if (p.formula == Formula::kDoReFa) channels = 0;
  if (scales != channels || p.zero_point.size() != p.scale.size()) {
    return InvalidAnswer(algorithm, layer, scales, " scales and ", p.zero_point.size(),
                         " zero points; there must be ", channels, " of each");
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (!std::isfinite(p.scale[c]) || p.scale[c] <= 0) {
      return InvalidAnswer(algorithm, layer, "scale[", c, "] = ", Shown(double{p.scale[c]}),
                           "; it must be finite and above 0");
    }
    if (p.rounding == Rounding::kHalfEven && !std::isfinite(1 / p.scale[c])) {
      return InvalidAnswer(algorithm, layer, "scale[", c, "] = ", Shown(double{p.scale[c]}),
                           "; its reciprocal, which weights are multiplied with, must be finite");
    }
    if (p.zero_point[c] < p.code_min || p.zero_point[c] > p.code_max) {
      return InvalidAnswer(algorithm, layer, "zero_point[", c, "] = ", p.zero_point[c],
                           "; it must be in [", p.code_min, ", ", p.code_max, "]");
    }
  }
  return absl::OkStatus();
}

// Checks the codes or values themselves.
absl::Status CheckContents(const Answerer& answerer, const Layer& layer, QuantizeReply reply,
                           const QuantizedWeight& result) {
  if (reply == QuantizeReply::kValues) {
    if (AllFinite(result.dtype, result.data.data(), layer.elements)) return absl::OkStatus();
    return InvalidAnswer(answerer.algorithm, layer, "values that are not all finite");
  }
  const auto outside = [&](const auto* codes) -> std::optional<int32_t> {
    for (int64_t i = 0; i < layer.elements; ++i) {
      if (codes[i] < result.parameters->code_min || codes[i] > result.parameters->code_max) {
        return codes[i];
      }
    }
    return std::nullopt;
  };
  const uint8_t* const data = result.data.data();
  std::optional<int32_t> found;
  switch (result.dtype) {
    case DataType::kInt8:
      found = outside(reinterpret_cast<const int8_t*>(data));
      break;
    case DataType::kUInt8:
      found = outside(data);
      break;
    case DataType::kInt16:
      found = outside(reinterpret_cast<const int16_t*>(data));
      break;
    default:
      found = outside(reinterpret_cast<const uint16_t*>(data));
  }
  if (!found) return absl::OkStatus();
  return InvalidAnswer(answerer.algorithm, layer, "the code ", *found, "; codes must be in [",
                       result.parameters->code_min, ", ", result.parameters->code_max, "]");
}

absl::Status CheckQuantized(const Answerer& answerer, const Quantizer& quantizer,
                            const Layer& layer, QuantizeReply reply,
                            const QuantizedWeight& result) {
  const std::string& algorithm = answerer.algorithm;
  DataType dtype = layer.dtype;
  int64_t size = 0;
  if (result.parameters) {
    const QuantizationParameters& p = *result.parameters;
    auto status = CheckParameters(algorithm, layer, p, quantizer.channels(layer));
    if (!status.ok()) return status;
    const Traits& traits = quantizer.traits();
    if (p.bits != traits.bits) {
      return InvalidAnswer(algorithm, layer, p.bits, " bits; it must be the rule's ", traits.bits);
    }
    if (p.channel_axis != quantizer.channel_axis(layer)) {
      return InvalidAnswer(algorithm, layer, "the channel axis ", p.channel_axis.value_or(-1),
                           "; it must be the rule's, ", quantizer.channel_axis(layer).value_or(-1));
    }
    if (p.group_size != traits.group_size) {
      return InvalidAnswer(algorithm, layer, "groups of ", p.group_size,
                           "; they must be the rule's, of ", traits.group_size);
    }
    if (reply == QuantizeReply::kCodes) dtype = CodeType(*result.parameters);
    if (reply != QuantizeReply::kParameters) size = ByteLength(dtype, layer.elements);
  }
  if (result.data.size() != size || (size != 0 && result.dtype != dtype)) {
    return InvalidAnswer(algorithm, layer, result.data.size(), " bytes of ",
                         DataTypeName(result.dtype), "; it must be ", size, " of ",
                         DataTypeName(dtype));
  }
  if (!answerer.loaded || size == 0) return absl::OkStatus();
  return CheckContents(answerer, layer, reply, result);
}

absl::Status CheckActivation(absl::string_view algorithm, const Layer& layer,
                             const ActivationAnswer& answer) {
  if (answer.range && (answer.range->minimum.size() != 1 || answer.range->maximum.size() != 1)) {
    return InvalidAnswer(algorithm, layer, "a range of activations of ",
                         answer.range->minimum.size(), " minima and ", answer.range->maximum.size(),
                         " maxima; it must be one of each");
  }
  if (!answer.parameters) return absl::OkStatus();
  if (answer.parameters->formula != Formula::kAffine) {
    return InvalidAnswer(algorithm, layer, "a formula for activations other than the affine one");
  }
  return CheckParameters(algorithm, layer, *answer.parameters, /*channels=*/1);
}

}  // namespace

absl::Status CheckKind(const AlgorithmInfo& info, const Compressor* compressor) {
  const bool pruner = info.kind == AlgorithmKind::kPruner;
  const bool fits = pruner ? dynamic_cast<const Pruner*>(compressor) != nullptr
                           : dynamic_cast<const Quantizer*>(compressor) != nullptr;
  const auto bad = [&](const auto&... parts) {
    return absl::InternalError(absl::StrCat("the algorithm ", info.name, " is a ",
                                            pruner ? "pruner" : "quantizer", " and ", parts...));
  };
  if (!fits) return bad("created none for this rule");
  const Traits& traits = compressor->traits();
  const bool prunes = traits.joint || traits.takes_groups || traits.takes_counts;
  const bool quantizes =
      traits.bits != 0 || traits.accepts_range || traits.wants_range_in_step ||
      traits.per_channel || traits.group_size != 0 ||
      std::any_of(traits.observes.begin(), traits.observes.end(),
                  [](Observation::Kind kind) { return kind != Observation::Kind::kGradient; });
  if (pruner ? quantizes : prunes) return bad("has traits of the other kind");
  return absl::OkStatus();
}

absl::Status CheckGroups(absl::string_view algorithm, const Traits& traits, const Layer& layer) {
  const int64_t size = traits.group_size;
  if (size == 0) return absl::OkStatus();
  const int axis = traits.per_channel ? layer.channel_axis : -1;
  const int64_t columns = layer.elements / layer.shape[0];
  if (axis == 0 && size > 0 && columns % size == 0) return absl::OkStatus();
  return InvalidAnswer(algorithm, layer, "groups of ", size, " along the channel axis ", axis,
                       "; the axis must be 0 and the size divide ", columns);
}

absl::Status CheckMask(absl::string_view algorithm, const Layer& layer, const Mask& mask) {
  if (mask.elements() == layer.elements &&
      mask.bits().size() == ByteLength(DataType::kBit, layer.elements)) {
    return absl::OkStatus();
  }
  return InvalidAnswer(algorithm, layer, "a mask of ", mask.elements(),
                       " elements; it must have the weight's ", layer.elements);
}

absl::StatusOr<QuantizedWeight> CheckedQuantize(
    const Answerer& answerer, const Quantizer& quantizer, const Layer& layer, QuantizeReply reply,
    absl::FunctionRef<absl::StatusOr<QuantizedWeight>()> call) {
  auto result = CatchAll<QuantizedWeight>(call);
  if (!result.ok()) return result;
  auto status = CheckQuantized(answerer, quantizer, layer, reply, *result);
  if (!status.ok()) return status;
  return result;
}

absl::StatusOr<ActivationAnswer> CheckedActivation(const Answerer& answerer,
                                                   const Quantizer& quantizer, const Layer& layer,
                                                   Activation activation, Clock clock,
                                                   const LayerState& state) {
  auto answer = CatchAll<ActivationAnswer>(
      [&] { return quantizer.QuantizeActivation(activation, clock, state); });
  if (!answer.ok()) return answer;
  auto status = CheckActivation(answerer.algorithm, layer, *answer);
  if (!status.ok()) return status;
  return answer;
}

std::optional<double> CheckedTarget(const Pruner& pruner, Clock clock) {
  const auto target = CatchAll<std::optional<double>>(
      [&]() -> absl::StatusOr<std::optional<double>> { return pruner.TargetSparsity(clock); });
  if (!target.ok() || !*target || !(**target >= 0 && **target <= 1)) return std::nullopt;
  return *target;
}

absl::Status CheckState(absl::string_view algorithm, const Layer& layer, const LayerState& state) {
  auto bytes = static_cast<int64_t>(state.opaque.size());
  for (const auto& [name, values] : state.memory) {
    bytes += static_cast<int64_t>(name.size() + values.size() * sizeof(float));
  }
  const int64_t limit = kSmallState + kStatePerWeight * ByteLength(layer.dtype, layer.elements);
  if (bytes <= limit) return absl::OkStatus();
  return InvalidAnswer(algorithm, layer, bytes, " bytes of state; it may have at most ", limit);
}

}  // namespace nni_compression::compression
