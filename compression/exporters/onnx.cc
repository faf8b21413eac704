// "onnx": what nni_compression.onnx.apply writes into the ONNX graph of a model, as one
// .safetensors file. A float32 weight NAME that is quantized by the affine formula becomes
//   NAME.codes       U8, I8, U16 or I16, in the weight's shape
//   NAME.scale       F32, [1] or, per channel, [channels] or, per group, [channels * groups]
//   NAME.zero_point  of the codes' type, shaped as the scales
// and all other tensors are there under their names: masked, with their quantized values, or as
// they were sent. Of the metadata, nni_compression.onnx is "1", the version, and
// nni_compression.weights a JSON object from the name of each compressed weight to {"axis",
// "group_size", "output", "input"}: the dimension that has a scale for each slice, or null; how
// many consecutive weights have one instead, or null; and the encodings of the layer's outputs and
// inputs, as Encoding() has them.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/exporters/coded_model.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/kernels/quantize.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

// The zero points, in the type of the codes.
Segment ZeroPointSegment(const std::shared_ptr<Coded>& coded) {
  const auto zero_point = [coded](int64_t i) {
    return static_cast<uint16_t>(coded->parameters.zero_point[i]);
  };
  const int64_t count = coded->snapshot.scales();
  return ByteLength(CodeType(coded->parameters), 1) == 1
             ? NumbersSegment<uint8_t>(count, zero_point)
             : NumbersSegment<uint16_t>(count, zero_point);
}

class Onnx : public Exporter {
 public:
  absl::string_view format() const override { return "onnx"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const json& given, Cancelled cancelled) const override {
    const auto options = Options::Parse({}, {kNamesOption}, given, "options");
    if (!options.ok()) return options.status();
    const auto tensors = ModelTensors(session, sent, given, cancelled);
    if (!tensors.ok()) return tensors.status();

    File file;
    for (size_t t = 0; t < tensors->size(); ++t) {
      if (absl::Status status = CheckWanted(cancelled); !status.ok()) return status;
      if (absl::Status status = Add(session, (*tensors)[t], t, &file); !status.ok()) return status;
    }
    std::vector<ExportTensor> entries = std::move(file.entries);
    entries.insert(entries.end(), file.number_entries.begin(), file.number_entries.end());
    auto header = SafetensorsHeader(entries, {{"format", FrameworkTag(session)},
                                              {"nni_compression.onnx", "1"},
                                              {"nni_compression.weights", file.weights.dump()}});
    if (!header.ok()) return header.status();
    ExportFile out("model.onnx.safetensors", "application/octet-stream");
    out.Add(BytesSegment(*std::move(header)));
    for (Segment& segment : file.segments) out.Add(std::move(segment));
    for (Segment& segment : file.number_segments) out.Add(std::move(segment));
    ExportPlan plan;
    plan.files.push_back(std::move(out));
    return plan;
  }

  // Builds the file. Scales and zero points follow all weights.
  struct File {
    json weights = json::object();
    std::vector<ExportTensor> entries, number_entries;
    std::vector<Segment> segments, number_segments;
  };

  static absl::Status Add(const Session& session, const ModelTensor& tensor, size_t t, File* file) {
    const std::string& name = tensor.tensor.name;
    std::optional<QuantizationParameters> parameters;
    if (tensor.layer) {
      const auto output = Encoding(session, *tensor.layer, Activation::kOutput);
      if (!output.ok()) return output.status();
      const auto input = Encoding(session, *tensor.layer, Activation::kInput);
      if (!input.ok()) return input.status();
      const LayerSnapshot layer = session.Snapshot(*tensor.layer);
      if (layer.rounds()) {
        auto common = layer.CommonParameters();
        if (!common.ok()) return common.status();
        parameters = *std::move(common);
      }
      json axis = nullptr, group_size = nullptr;
      if (parameters && parameters->channel_axis) axis = *parameters->channel_axis;
      if (parameters && parameters->group_size > 0) group_size = parameters->group_size;
      file->weights[name] = {
          {"axis", axis}, {"group_size", group_size}, {"output", *output}, {"input", *input}};
    }
    if (!parameters || parameters->formula != Formula::kAffine ||
        tensor.tensor.dtype != DataType::kFloat32) {
      auto segment = TensorSegment(session, tensor, t);
      if (!segment.ok()) return segment.status();
      file->entries.push_back(tensor.tensor);
      file->segments.push_back(*std::move(segment));
      return absl::OkStatus();
    }
    const auto coded = std::make_shared<Coded>(
        Coded{tensor.tensor, session.Snapshot(*tensor.layer), *std::move(parameters)});
    const DataType type = CodeType(coded->parameters);
    Segment codes;
    codes.tensor = static_cast<int>(t);
    codes.byte_length = ByteLength(type, coded->layer().elements);
    codes.transform = Codes(coded);
    file->entries.push_back(
        {absl::StrCat(name, ".codes"), type, coded->layer().shape, codes.byte_length});
    file->segments.push_back(std::move(codes));

    const auto add = [&](const char* what, DataType dtype, Segment segment) {
      file->number_entries.push_back(
          {absl::StrCat(name, what), dtype, {coded->snapshot.scales()}, segment.byte_length});
      file->number_segments.push_back(std::move(segment));
    };
    add(".scale", DataType::kFloat32, ScaleSegment(coded));
    add(".zero_point", type, ZeroPointSegment(coded));
    return absl::OkStatus();
  }
};

}  // namespace

const Exporter* OnnxExporter() {
  static const Onnx* const exporter = new Onnx;
  return exporter;
}

}  // namespace nni_compression::compression
