// "pth": model.pth, a state_dict that torch.load(weights_only=True) opens, with zeros or quantized
// values in the weights; and of pruners masks.pth, {layer: {"weight": mask, "bias": None}} as NNI
// writes it, where a mask has the weight's shape and type, 1 = kept.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "compression/exporters/formats.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/state_dict.h"
#include "compression/kernels/dispatch.h"

namespace nni_compression::compression {
namespace {

// The mask as numbers of type T, from byte `offset` on.
template <class T>
void FillMask(const Mask& mask, int64_t offset, absl::Span<uint8_t> out) {
  constexpr int64_t kWidth = sizeof(T);
  const T values[2] = {T(0), T(1)};
  for (size_t at = 0; at < out.size();) {
    const auto byte = offset + static_cast<int64_t>(at);
    const size_t size = std::min<size_t>(kWidth - byte % kWidth, out.size() - at);
    const auto* value = reinterpret_cast<const uint8_t*>(&values[mask.kept(byte / kWidth)]);
    std::memcpy(out.data() + at, value + byte % kWidth, size);
    at += size;
  }
}

Segment MaskSegment(const Mask& mask, DataType dtype) {
  Segment segment;
  segment.byte_length = ByteLength(dtype, mask.elements());
  DispatchWeight(dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    segment.fill = [mask](int64_t offset, absl::Span<uint8_t> out) {
      FillMask<T>(mask, offset, out);
    };
  });
  return segment;
}

absl::StatusOr<ExportFile> Masks(const Session& session) {
  StateDict masks("masks.pth");
  for (int i = 0; i < static_cast<int>(session.plan().layers.size()); ++i) {
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

  absl::StatusOr<ExportPlan> Plan(const Session& session, absl::Span<const ExportTensor> sent,
                                  const nlohmann::json& options) const override {
    if (auto s = Options::Check({}, {kNamesOption}, options, "options"); !s.ok()) return s;
    const auto tensors = ModelTensors(session, sent, options);
    if (!tensors.ok()) return tensors.status();
    StateDict model("model.pth");
    for (size_t t = 0; t < tensors->size(); ++t) {
      auto segment = TensorSegment(session, (*tensors)[t], t);
      if (!segment.ok()) return segment.status();
      auto status = model.Add((*tensors)[t].tensor, *std::move(segment));
      if (!status.ok()) return status;
    }
    ExportPlan plan;
    plan.files.push_back(std::move(model).Finish());
    if (session.algorithm().kind != AlgorithmKind::kPruner) return plan;
    auto masks = Masks(session);
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
