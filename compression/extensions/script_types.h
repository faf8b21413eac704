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
#include "compression/types/layer.h"

namespace nni_compression::compression {

// The options that a NamedTuple declares: float, int, bool, str, List[str] and List[float].
// `details` has properties of each by name: default, minimum, maximum, choices, description.
absl::StatusOr<std::vector<OptionSpec>> ReadOptionTypes(const c10::TypePtr& type,
                                                        const nlohmann::json& details);

// A NamedTuple's value. Its type has passed the function above or CheckLayerType.
c10::IValue ToTuple(const c10::TypePtr& type, const Options& options);
c10::IValue ToTuple(const c10::TypePtr& type, const Layer& layer);

// INVALID_ARGUMENT unless the type is a NamedTuple of fields that layers have: name, op_type,
// dtype: str; shape: List[int]; channel_axis: int.
absl::Status CheckLayerType(const c10::TypePtr& type);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXTENSIONS_SCRIPT_TYPES_H_
