// "masks": the masks in force, of every compressed layer, in two files.
//   masks.safetensors         U8, the weight's shape, 1 = kept
//   masks.packed.safetensors  U8 [ceil(n / 8)], one bit per element; shapes in the metadata
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/exporters/segments.h"

namespace nni_compression::compression {
namespace {

constexpr char kMediaType[] = "application/octet-stream";

absl::Status CheckRequest(const Session& session, absl::Span<const ExportTensor> tensors,
                          const nlohmann::json& options) {
  if (auto status = CheckPruner(session); !status.ok()) return status;
  if (!tensors.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("format masks got ", tensors.size(), " tensors; it must have none"));
  }
  return Options::Check({}, {}, options, "options");
}

Segment PlainSegment(const Mask& mask) {
  Segment segment;
  segment.byte_length = mask.elements();
  segment.fill = [mask](int64_t offset, absl::Span<uint8_t> out) { mask.Unpack(offset, out); };
  return segment;
}

// Builds one of the two files.
struct File {
  std::string name;
  std::vector<ExportTensor> tensors;
  std::vector<Segment> segments;

  void Add(const std::string& layer, std::vector<int64_t> shape, Segment segment) {
    tensors.push_back({layer, DataType::kUInt8, std::move(shape), segment.byte_length});
    segments.push_back(std::move(segment));
  }

  absl::StatusOr<ExportFile> Finish(const std::map<std::string, std::string>& metadata) && {
    auto header = SafetensorsHeader(tensors, metadata);
    if (!header.ok()) return header.status();
    ExportFile file(std::move(name), kMediaType);
    file.Add(BytesSegment(*std::move(header)));
    for (Segment& segment : segments) file.Add(std::move(segment));
    return file;
  }
};

class Masks : public Exporter {
 public:
  absl::string_view format() const override { return "masks"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> tensors,
                                    const nlohmann::json& options,
                                    Cancelled cancelled) const override {
    if (auto status = CheckRequest(session, tensors, options); !status.ok()) return status;
    File plain{"masks.safetensors", {}, {}};
    File packed{"masks.packed.safetensors", {}, {}};
    nlohmann::json shapes = nlohmann::json::object();
    for (size_t i = 0; i < session.plan().layers.size(); ++i) {
      if (auto status = CheckWanted(cancelled); !status.ok()) return status;
      if (session.plan().layers[i].planned == nullptr) continue;
      const Layer& layer = session.layer(static_cast<int>(i));
      const auto mask = MaskOf(session, static_cast<int>(i));
      if (!mask.ok()) return mask.status();
      plain.Add(layer.name, layer.shape, PlainSegment(*mask));
      packed.Add(layer.name, {mask->bits().size()}, BitsSegment(*mask));
      shapes[layer.name] = layer.shape;
    }
    std::map<std::string, std::string> metadata = {
        {"nni_compression.algorithm", session.algorithm().name},
        {"nni_compression.meaning", "1 = kept"}};
    auto plain_file = std::move(plain).Finish(metadata);
    if (!plain_file.ok()) return plain_file.status();
    metadata["nni_compression.packing"] = "bit i % 8 of byte i / 8 is element i, C order";
    metadata["nni_compression.shapes"] = shapes.dump();
    auto packed_file = std::move(packed).Finish(metadata);
    if (!packed_file.ok()) return packed_file.status();
    ExportPlan plan;
    plan.files = {*std::move(plain_file), *std::move(packed_file)};
    return plan;
  }
};

}  // namespace

const Exporter* MasksExporter() {
  static const Masks* const exporter = new Masks;
  return exporter;
}

}  // namespace nni_compression::compression
