// "safetensors": model.safetensors with the trainer's tensors, in the order sent and in their own
// types. Weights of compressed layers have zeros, or quantized values, written in; everything else
// passes through. (Some readers want each tensor aligned to its element size: send large element
// types first.)
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/exporters/formats.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/kernels/apply_mask.h"
#include "compression/suggest.h"

namespace nni_compression::compression {
namespace {

using Transform = std::function<absl::Status(Buffer&)>;

// How the weight of compressed layer i is changed. What it needs outlives the session.
absl::StatusOr<Transform> TransformOf(const Session& session, int i) {
  const Layer& layer = session.layer(i);
  const LayerState& state = session.state(i);
  if (session.algorithm().kind == AlgorithmKind::kPruner) {
    if (!state.mask) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", Quoted(layer.name), " has no mask yet: ask for one first"));
    }
    return Transform([mask = *state.mask, dtype = layer.dtype](Buffer& bytes) {
      ApplyMask(mask, dtype, bytes.data());
      return absl::OkStatus();
    });
  }
  auto quantizer = std::static_pointer_cast<const Quantizer>(
      std::shared_ptr<const Compressor>(session.plan().layers[i].planned->compressor));
  if (quantizer->bits() == 0) return Transform();  // weights pass unchanged
  return Transform([quantizer, layer, state, clock = session.clock()](Buffer& bytes) {
    LayerState scratch = state;
    auto result = quantizer->QuantizeWeight(layer, bytes.AsTensor(layer.dtype, layer.shape),
                                            QuantizeReply::kValues, clock, scratch);
    if (!result.ok()) return result.status();
    if (!result->parameters) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", Quoted(layer.name), " is not quantized before its start step"));
    }
    bytes = std::move(result->data);
    return absl::OkStatus();
  });
}

absl::Status CheckTensor(const Layer& layer, const ExportTensor& tensor, size_t i) {
  if (tensor.dtype == layer.dtype && tensor.shape == layer.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensors[", i, "], the weight of layer ", Quoted(layer.name), ", is ",
      DataTypeName(tensor.dtype), " [", absl::StrJoin(tensor.shape, ", "), "]; it must be ",
      DataTypeName(layer.dtype), " [", absl::StrJoin(layer.shape, ", "), "], as bound"));
}

absl::Status CheckComplete(const Session& session, const absl::flat_hash_set<int>& sent) {
  for (int i = 0; i < static_cast<int>(session.plan().layers.size()); ++i) {
    if (session.plan().layers[i].planned == nullptr || sent.contains(i)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("tensors lack the weight of layer ", Quoted(session.layer(i).name),
                     "; every compressed layer's weight must be sent"));
  }
  return absl::OkStatus();
}

class Safetensors : public Exporter {
 public:
  absl::string_view format() const override { return "safetensors"; }

  absl::StatusOr<std::vector<ExportFile>> Plan(const Session& session,
                                               absl::Span<const ExportTensor> tensors,
                                               const nlohmann::json& options) const override {
    if (auto status = Options::Check({}, {}, options, "options"); !status.ok()) return status;
    const std::string& framework = session.binding().framework;
    const bool tensorflow = framework == "tensorflow" || framework == "keras";
    auto header =
        SafetensorsHeader(tensors, {{"format", tensorflow ? "tf" : "pt"},
                                    {"nni_compression.algorithm", session.algorithm().name}});
    if (!header.ok()) return header.status();
    ExportFile file{"model.safetensors", "application/octet-stream", {}};
    file.segments.push_back(BytesSegment(*std::move(header)));
    absl::flat_hash_set<int> sent;
    for (size_t t = 0; t < tensors.size(); ++t) {
      Segment segment;
      segment.byte_length = tensors[t].byte_length;
      segment.tensor = static_cast<int>(t);
      if (const auto i = session.IndexOf(tensors[t].name)) {
        auto status = CheckTensor(session.layer(*i), tensors[t], t);
        if (!status.ok()) return status;
        if (session.plan().layers[*i].planned != nullptr) {
          auto transform = TransformOf(session, *i);
          if (!transform.ok()) return transform.status();
          segment.transform = *std::move(transform);
        }
        sent.insert(*i);
      }
      file.segments.push_back(std::move(segment));
    }
    if (auto status = CheckComplete(session, sent); !status.ok()) return status;
    return std::vector<ExportFile>{std::move(file)};
  }
};

}  // namespace

const Exporter* SafetensorsExporter() {
  static const Safetensors* const exporter = new Safetensors;
  return exporter;
}

}  // namespace nni_compression::compression
