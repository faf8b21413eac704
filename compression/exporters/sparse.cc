// "sparse": model.sparse.safetensors, where the weight NAME of a pruned layer is two tensors,
//   NAME.values   the kept elements in C order, in the weight's type
//   NAME.bitmask  U8 [ceil(n / 8)]: bit i % 8 of byte i / 8 says whether element i is kept
// and all other tensors are as they were sent; docs/exports.md has the bytes. The bitmasks come
// last, so that they push no other tensor off its alignment.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/exporters/segments.h"
#include "compression/kernels/gather.h"

namespace nni_compression::compression {
namespace {

Segment ValuesSegment(const Mask& mask, const ExportTensor& tensor, size_t t) {
  Segment segment;
  segment.byte_length = ByteLength(tensor.dtype, mask.elements() - mask.pruned());
  segment.tensor = static_cast<int>(t);
  segment.transform = [mask, dtype = tensor.dtype, kept = segment.byte_length](Buffer& bytes) {
    GatherKept(mask.bits().data(), mask.elements(), dtype, bytes.data());
    bytes = Buffer::Alias(bytes.data(), kept, std::make_shared<Buffer>(bytes));
    return absl::OkStatus();
  };
  return segment;
}

class Sparse : public Exporter {
 public:
  absl::string_view format() const override { return "sparse"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const nlohmann::json& options,
                                    Cancelled cancelled) const override {
    if (auto status = CheckPruner(session); !status.ok()) return status;
    if (auto s = Options::Check({}, {kNamesOption}, options, "options"); !s.ok()) return s;
    const auto tensors = ModelTensors(session, sent, options, cancelled);
    if (!tensors.ok()) return tensors.status();
    std::vector<ExportTensor> entries, bitmasks;
    std::vector<Segment> segments, bits;
    nlohmann::json shapes = nlohmann::json::object();
    for (size_t t = 0; t < tensors->size(); ++t) {
      if (auto status = CheckWanted(cancelled); !status.ok()) return status;
      const auto& [tensor, layer] = (*tensors)[t];
      if (!layer) {
        auto segment = TensorSegment(session, (*tensors)[t], t);
        if (!segment.ok()) return segment.status();
        entries.push_back(tensor);
        segments.push_back(*std::move(segment));
        continue;
      }
      const auto mask = MaskOf(session, *layer);
      if (!mask.ok()) return mask.status();
      shapes[tensor.name] = tensor.shape;
      segments.push_back(ValuesSegment(*mask, tensor, t));
      bits.push_back(BitsSegment(*mask));
      entries.push_back({absl::StrCat(tensor.name, ".values"),
                         tensor.dtype,
                         {mask->elements() - mask->pruned()},
                         segments.back().byte_length});
      bitmasks.push_back({absl::StrCat(tensor.name, ".bitmask"),
                          DataType::kUInt8,
                          {mask->bits().size()},
                          mask->bits().size()});
    }
    entries.insert(entries.end(), bitmasks.begin(), bitmasks.end());
    auto header =
        SafetensorsHeader(entries, {{"format", FrameworkTag(session)},
                                    {"nni_compression.algorithm", session.algorithm().name},
                                    {"nni_compression.sparse", "1"},
                                    {"nni_compression.shapes", shapes.dump()}});
    if (!header.ok()) return header.status();
    ExportFile file("model.sparse.safetensors", "application/octet-stream");
    file.Add(BytesSegment(*std::move(header)));
    for (Segment& segment : segments) file.Add(std::move(segment));
    for (Segment& segment : bits) file.Add(std::move(segment));
    ExportPlan plan;
    plan.files.push_back(std::move(file));
    return plan;
  }
};

}  // namespace

const Exporter* SparseExporter() {
  static const Sparse* const exporter = new Sparse;
  return exporter;
}

}  // namespace nni_compression::compression
