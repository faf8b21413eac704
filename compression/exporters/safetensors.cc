// "safetensors": the trainer's tensors, in the order sent and in their own types. Weights of
// compressed layers have zeros, or quantized values, written in; everything else passes through.
// One file, model.safetensors, or, where that would be larger than max_shard_bytes, shards
// model-00001-of-00003.safetensors with model.safetensors.index.json. (Some readers want each
// tensor aligned to its element size: send large element types first.)
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/exporters/segments.h"

namespace nni_compression::compression {
namespace {

OptionSpec MaxShardBytes() {
  OptionSpec spec;
  spec.name = "max_shard_bytes";
  spec.type = OptionType::kInteger;
  spec.default_value = 5'000'000'000;
  spec.minimum = 1;
  spec.description = "Tensor bytes per file; only a single larger tensor exceeds it.";
  return spec;
}

// The index of the first tensor of each shard; the last entry is the number of tensors.
std::vector<size_t> ShardsOf(const std::vector<ModelTensor>& tensors, int64_t max_bytes) {
  std::vector<size_t> begins = {0};
  int64_t bytes = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t size = tensors[t].tensor.byte_length;
    if (bytes > 0 && size > max_bytes - bytes) {
      begins.push_back(t);
      bytes = 0;
    }
    bytes += size;
  }
  begins.push_back(tensors.size());
  return begins;
}

absl::StatusOr<ExportFile> ShardOf(const Session& session, const std::vector<ModelTensor>& tensors,
                                   size_t begin, size_t end, std::string name,
                                   Cancelled cancelled) {
  ExportFile file(std::move(name), "application/octet-stream");
  std::vector<ExportTensor> entries;
  for (size_t t = begin; t < end; ++t) entries.push_back(tensors[t].tensor);
  auto header = SafetensorsHeader(
      entries,
      {{"format", FrameworkTag(session)}, {"nni_compression.algorithm", session.algorithm().name}});
  if (!header.ok()) return header.status();
  file.Add(BytesSegment(*std::move(header)));
  for (size_t t = begin; t < end; ++t) {
    if (auto status = CheckWanted(cancelled); !status.ok()) return status;
    auto segment = TensorSegment(session, tensors[t], t);
    if (!segment.ok()) return segment.status();
    file.Add(*std::move(segment));
  }
  return file;
}

class Safetensors : public Exporter {
 public:
  absl::string_view format() const override { return "safetensors"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const nlohmann::json& given,
                                    Cancelled cancelled) const override {
    const auto options = Options::Parse({MaxShardBytes()}, {kNamesOption}, given, "options");
    if (!options.ok()) return options.status();
    const auto tensors = ModelTensors(session, sent, given, cancelled);
    if (!tensors.ok()) return tensors.status();
    const std::vector<size_t> shards = ShardsOf(*tensors, options->Integer("max_shard_bytes"));
    const size_t count = shards.size() - 1;
    nlohmann::json weight_map = nlohmann::json::object();
    int64_t total = 0;
    ExportPlan plan;
    for (size_t s = 0; s < count; ++s) {
      std::string name = count == 1
                             ? "model.safetensors"
                             : absl::StrFormat("model-%05d-of-%05d.safetensors", s + 1, count);
      for (size_t t = shards[s]; t < shards[s + 1]; ++t) {
        weight_map[(*tensors)[t].tensor.name] = name;
        total += (*tensors)[t].tensor.byte_length;
      }
      auto file = ShardOf(session, *tensors, shards[s], shards[s + 1], std::move(name), cancelled);
      if (!file.ok()) return file.status();
      plan.files.push_back(*std::move(file));
    }
    if (count > 1) {
      const nlohmann::json index = {{"metadata", {{"total_size", total}}},
                                    {"weight_map", std::move(weight_map)}};
      ExportFile file("model.safetensors.index.json", "application/json");
      file.Add(BytesSegment(absl::StrCat(index.dump(2), "\n")));
      plan.files.push_back(std::move(file));
    }
    return plan;
  }
};

}  // namespace

const Exporter* SafetensorsExporter() {
  static const Safetensors* const exporter = new Safetensors;
  return exporter;
}

}  // namespace nni_compression::compression
