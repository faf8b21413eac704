// Between the types of TorchScript and ours. For script.cc: reading LibTorch's headers takes long.
#ifndef NNI_COMPRESSION_COMPRESSION_EXTENSIONS_SCRIPT_TYPES_H_
#define NNI_COMPRESSION_COMPRESSION_EXTENSIONS_SCRIPT_TYPES_H_

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compression/options/options.h"
#include "compression/statistics/statistic.h"
#include "compression/types/layer.h"

namespace nni_compression::compression {

// The options that a NamedTuple declares: float, int, bool, str, List[str] and List[float].
// `details` has properties of each by name: default, minimum, maximum, choices, description.
absl::StatusOr<std::vector<OptionSpec>> ReadOptionTypes(const c10::TypePtr& type,
                                                        const nlohmann::json& details);

// The statistics that a layer's type has fields of. INVALID_ARGUMENT unless it is a NamedTuple of
// fields that layers have: name, op_type, dtype: str; shape: List[int]; channel_axis: int; and, by
// the names of statistics, NamedTuples with any of values: Tensor; count, exponent: int.
absl::StatusOr<std::vector<const StatisticInfo*>> ReadLayerType(const c10::TypePtr& type);

// A NamedTuple's value. Its type has passed one of the functions above.
c10::IValue ToTuple(const c10::TypePtr& type, const Options& options);

// The same. A statistic that the layer does not have is empty, with the count 0.
c10::IValue ToTuple(const c10::TypePtr& type, const Layer& layer, const Statistics& statistics);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXTENSIONS_SCRIPT_TYPES_H_
