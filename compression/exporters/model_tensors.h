// What the formats share that hold a whole model.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_MODEL_TENSORS_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_MODEL_TENSORS_H_

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// The option of all these formats: an object from the names of tensors sent to their names in the
// file, where they differ ("conv1" to "conv1.weight").
inline constexpr char kNamesOption[] = "names";

struct ModelTensor {
  ExportTensor tensor;       // as sent, under its name in the file
  std::optional<int> layer;  // the compressed layer whose weight it is
};

// The tensors in the order sent. INVALID_ARGUMENT when one that is a bound layer's weight has
// another dtype or shape, when the weight of a compressed layer is missing, and for names that are
// not plain UTF-8 or duplicates.
absl::StatusOr<std::vector<ModelTensor>> ModelTensors(const Session& session,
                                                      absl::Span<const ExportTensor> tensors,
                                                      const nlohmann::json& options,
                                                      Cancelled cancelled);

// CANCELLED if `cancelled` returns true. Plans poll it once per tensor or layer.
absl::Status CheckWanted(Cancelled cancelled);

// The mask of compressed layer i. FAILED_PRECONDITION when there is none yet.
absl::StatusOr<Mask> MaskOf(const Session& session, int i);

// A mask's packed bits.
Segment BitsSegment(const Mask& mask);

// FAILED_PRECONDITION unless the session's algorithm is a pruner.
absl::Status CheckPruner(const Session& session);

// How the activations of compressed layer i are quantized: {"bits", "scale", "zero_point",
// "code_min", "code_max", "minimum", "maximum"}, the last two being the moving-average range; null
// if they are not quantized, or not yet.
absl::StatusOr<nlohmann::json> Encoding(const Session& session, int i, Activation activation);

// Converts the weight sent to the one in the file, in place or by replacing the buffer. It owns
// what it uses and outlives the session.
using Transform = std::function<absl::Status(Buffer& bytes)>;

// The segment of tensor t, compressed when it is a compressed layer's weight.
absl::StatusOr<Segment> TensorSegment(const Session& session, const ModelTensor& tensor, size_t t);

// "tf" or "pt": what the metadata of .safetensors files calls the framework.
const char* FrameworkTag(const Session& session);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_MODEL_TENSORS_H_
