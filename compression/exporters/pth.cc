// "pth": model.pth, a state_dict that torch.load(weights_only=True) opens, with zeros or quantized
// values in the weights; and of pruners masks.pth, {layer: {"weight": mask, "bias": None}} as NNI
// writes it, where a mask has the weight's shape and type, 1 = kept.
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "compression/exporters/exporter.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/segments.h"
#include "compression/exporters/state_dict.h"
#include "compression/kernels/dispatch.h"

namespace nni_compression::compression {
namespace {

// The mask in the element type of the weight.
Segment MaskSegment(const Mask& mask, DataType dtype) {
  return DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return NumbersSegment<T>(mask.elements(),
                             [mask, values = std::array<T, 2>{T(0), T(1)}](int64_t i) {
                               return values[mask.kept(i) ? 1 : 0];
                             });
  });
}

absl::StatusOr<ExportFile> Masks(const Session& session, Cancelled cancelled) {
  StateDict masks("masks.pth");
  for (int i = 0; i < static_cast<int>(session.plan().layers.size()); ++i) {
    if (auto status = CheckWanted(cancelled); !status.ok()) return status;
    if (session.plan().layers[i].planned == nullptr) continue;
    const Layer& layer = session.layer(i);
    const auto mask = MaskOf(session, i);
    if (!mask.ok()) return mask.status();
    auto status =
        masks.AddMask({layer.name, layer.dtype, layer.shape, 0}, MaskSegment(*mask, layer.dtype));
    if (!status.ok()) return status;
  }
  return std::move(masks).Finish();
}

class Pth : public Exporter {
 public:
  absl::string_view format() const override { return "pth"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const nlohmann::json& options,
                                    Cancelled cancelled) const override {
    if (auto s = Options::Check({}, {kNamesOption}, options, "options"); !s.ok()) return s;
    const auto tensors = ModelTensors(session, sent, options, cancelled);
    if (!tensors.ok()) return tensors.status();
    StateDict model("model.pth");
    for (size_t t = 0; t < tensors->size(); ++t) {
      if (auto status = CheckWanted(cancelled); !status.ok()) return status;
      auto segment = TensorSegment(session, (*tensors)[t], t);
      if (!segment.ok()) return segment.status();
      auto status = model.Add((*tensors)[t].tensor, *std::move(segment));
      if (!status.ok()) return status;
    }
    ExportPlan plan;
    plan.files.push_back(std::move(model).Finish());
    if (session.algorithm().kind != AlgorithmKind::kPruner) return plan;
    auto masks = Masks(session, cancelled);
    if (!masks.ok()) return masks.status();
    plan.files.push_back(*std::move(masks));
    return plan;
  }
};

}  // namespace

const Exporter* PthExporter() {
  static const Pth* const exporter = new Pth;
  return exporter;
}

}  // namespace nni_compression::compression
