#include "compression/algorithms/weight_error.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "compression/kernels/dispatch.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {

absl::Status NonFiniteError(const Layer& layer, const void* weight, bool as_float32) {
  return DispatchWeight(layer.dtype, [&](auto tag) -> absl::Status {
    using T = typename decltype(tag)::Type;
    for (int64_t i = 0; i < layer.elements; ++i) {
      T element;
      std::memcpy(&element, static_cast<const char*>(weight) + i * int64_t{sizeof(T)},
                  sizeof element);
      const auto value = static_cast<double>(element);
      if (!std::isfinite(value)) {
        return absl::InvalidArgumentError(
            absl::StrCat("weight of layer ", Quoted(layer.name), ": element ", i, " is ",
                         Shown(nlohmann::json(value)), "; it must be finite"));
      }
      if (as_float32 && !std::isfinite(static_cast<float>(value))) {
        return absl::InvalidArgumentError(
            absl::StrCat("weight of layer ", Quoted(layer.name), ": element ", i, " is ",
                         Shown(nlohmann::json(value)), "; it must be in the range of float32"));
      }
    }
    // The caller found one, so the bytes have changed since.
    return absl::InvalidArgumentError(
        absl::StrCat("weight of layer ", Quoted(layer.name), " changed while it was read"));
  });
}

}  // namespace nni_compression::compression
