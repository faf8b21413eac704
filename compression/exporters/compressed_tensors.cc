// "compressed-tensors": config.json and model.safetensors as the package of that name reads them.
// A quantized weight PREFIX.weight of shape [rows, columns] becomes, in the layout
//   int-quantized   PREFIX.weight         I8 [rows, columns]: codes less 2^(bits-1) where unsigned
//   pack-quantized  PREFIX.weight_packed  I32 [rows, ceil(columns / (32 / bits))]: unsigned codes,
//                                         the first in the lowest bits, each row padded with 0
//                   PREFIX.weight_shape   I64 [2]
// and in both PREFIX.weight_scale, F32 [1] or, per channel, [rows, 1] or, with groups in the rows,
// [rows, groups]; and of affine weights PREFIX.weight_zero_point, which is I8 like the codes, or,
// per channel or group and packed, I32 [ceil(rows / (32 / bits)), 1 or groups]. All other tensors
// pass through.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "compression/exporters/coded_model.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

constexpr char kInt[] = "int-quantized";
constexpr char kPack[] = "pack-quantized";

OptionSpec Layout() {
  OptionSpec spec;
  spec.name = "layout";
  spec.type = OptionType::kString;
  spec.default_value = "auto";
  spec.choices = {"auto", kInt, kPack};
  spec.description = "Layout of codes; auto: int-quantized if all weights have 8 bits.";
  return spec;
}

absl::Status CheckFits(const Coded& coded) {
  const auto refuse = [&](const auto&... why) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", Quoted(coded.layer().name), why...,
                     ", which compressed-tensors cannot hold; exclude it, or use safetensors"));
  };
  const QuantizationParameters& parameters = coded.parameters;
  if (!absl::EndsWith(coded.tensor.name, kWeightSuffix)) {
    return refuse("'s weight is named ", Quoted(coded.tensor.name), "; it must be NAME.weight");
  }
  if (coded.layer().shape.size() != 2) {
    return refuse(" has the shape [", absl::StrJoin(coded.layer().shape, ", "), "]");
  }
  if (parameters.formula != Formula::kAffine) return refuse(" is quantized by DoReFa's formula");
  if (parameters.bits != 2 && parameters.bits != 4 && parameters.bits != 8) {
    return refuse(" has ", parameters.bits, " bits");
  }
  if (coded.per_channel() && *parameters.channel_axis != 0) {
    return refuse(" has a scale for each slice of dimension ", *parameters.channel_axis);
  }
  return absl::OkStatus();
}

// Known limits of runtimes: transformers 5 with compressed-tensors 0.20 loads the files of these
// warnings only if it is told to dequantize them, and vLLM has no kernels for some.
std::vector<std::string> Warnings(const std::vector<std::shared_ptr<Coded>>& weights, bool packed) {
  std::vector<const Coded*> unloaded, slow;
  for (const auto& coded : weights) {
    const bool packed_zero_points = !coded->symmetric() && coded->per_channel();
    if (packed && (packed_zero_points || coded->layer().op_type == "Embedding")) {
      unloaded.push_back(coded.get());
    }
    if (!packed || !coded->per_channel() || coded->parameters.bits == 2) {
      slow.push_back(coded.get());
    }
  }
  std::vector<std::string> warnings;
  const auto warn = [&](const std::vector<const Coded*>& layers, absl::string_view text) {
    if (layers.empty()) return;
    warnings.push_back(absl::StrCat(
        "layer ", Quoted(layers[0]->layer().name),
        layers.size() > 1 ? absl::StrCat(" and ", layers.size() - 1, " more") : "", ": ", text));
  };
  warn(unloaded,
       "transformers loads packed zero points of channels or groups, and packed embeddings, only "
       "with CompressedTensorsConfig(dequantize=True); it is not needed for 8 bits, or for a "
       "symmetric scheme in layers other than embeddings");
  warn(slow,
       "vLLM has kernels for weights alone in the layout pack-quantized, per channel or in groups, "
       "with 4 or 8 bits, and loads no others; transformers dequantizes these");
  return warnings;
}

// config.json: a group for each kind of quantization that there is. Readers before version 0.13 of
// compressed-tensors read the layout from the `format` of the config, later ones from that of each
// group.
json Config(const std::vector<std::shared_ptr<Coded>>& weights,
            const std::vector<std::string>& ignored, bool packed) {
  json groups = json::object();
  std::map<std::string, json*> targets;  // by scheme
  for (const auto& coded : weights) {
    const json scheme = coded->Scheme();
    json*& list = targets[scheme.dump()];
    if (list == nullptr) {
      json& group = groups[absl::StrCat("group_", groups.size())];
      group = {{"targets", json::array()},
               {"format", packed ? kPack : kInt},
               {"weights", scheme},
               {"input_activations", nullptr},
               {"output_activations", nullptr}};
      list = &group["targets"];
    }
    list->push_back(coded->Prefix());
  }
  return {{"quantization_config",
           {{"quant_method", "compressed-tensors"},
            {"format", packed ? kPack : kInt},
            {"quantization_status", "compressed"},
            {"global_compression_ratio", nullptr},
            {"kv_cache_scheme", nullptr},
            {"ignore", ignored},
            {"config_groups", std::move(groups)}}}};
}

class CompressedTensors : public Exporter {
 public:
  absl::string_view format() const override { return "compressed-tensors"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const json& given, Cancelled cancelled) const override {
    if (session.algorithm().kind != AlgorithmKind::kQuantizer) {
      return absl::FailedPreconditionError(
          absl::StrCat("the session's algorithm is ", session.algorithm().name,
                       ", a pruner; compressed-tensors holds quantized weights: use sparse, or "
                       "export the session "
                       "of the model's quantizer with the masks"));
    }
    const auto options = Options::Parse({Layout()}, {kNamesOption}, given, "options");
    if (!options.ok()) return options.status();
    const auto tensors = ModelTensors(session, sent, given, cancelled);
    if (!tensors.ok()) return tensors.status();

    std::vector<std::shared_ptr<Coded>> weights(tensors->size());
    std::vector<std::string> ignored;
    bool packed = options->String("layout") == kPack;
    for (size_t t = 0; t < tensors->size(); ++t) {
      if (absl::Status status = CheckWanted(cancelled); !status.ok()) return status;
      const ModelTensor& tensor = (*tensors)[t];
      if (!tensor.layer) {
        const absl::string_view name = tensor.tensor.name;
        if (absl::EndsWith(name, kWeightSuffix))
          ignored.emplace_back(absl::StripSuffix(name, kWeightSuffix));
        continue;
      }
      LayerSnapshot layer = session.Snapshot(*tensor.layer);
      std::optional<QuantizationParameters> parameters;
      if (layer.rounds()) {
        auto common = layer.CommonParameters();
        if (!common.ok()) return common.status();
        parameters = *std::move(common);
      }
      if (!parameters) {
        return absl::FailedPreconditionError(
            absl::StrCat("layer ", Quoted(layer.layer().name),
                         " is not quantized, or not yet; call QuantizeWeight first"));
      }
      weights[t] =
          std::make_shared<Coded>(Coded{tensor.tensor, std::move(layer), *std::move(parameters)});
      if (auto status = CheckFits(*weights[t]); !status.ok()) return status;
      const int bits = weights[t]->parameters.bits;
      if (bits == 8) continue;
      if (options->String("layout") == kInt) {
        return absl::InvalidArgumentError(absl::StrCat(
            "options.layout is int-quantized, and layer ", Quoted(weights[t]->layer().name),
            " has ", bits, " bits; it must have 8, or layout be pack-quantized"));
      }
      packed = true;
    }

    CodedModel model;
    model.packed = packed;
    for (size_t t = 0; t < tensors->size(); ++t) {
      if (absl::Status status = CheckWanted(cancelled); !status.ok()) return status;
      const ModelTensor& tensor = (*tensors)[t];
      if (weights[t] != nullptr) {
        model.AddWeight(weights[t], t);
        continue;
      }
      auto segment = TensorSegment(session, tensor, t);
      if (!segment.ok()) return segment.status();
      model.entries.push_back(tensor.tensor);
      model.segments.push_back(*std::move(segment));
    }
    std::vector<ExportTensor> entries = std::move(model.entries);
    entries.insert(entries.end(), model.number_entries.begin(), model.number_entries.end());
    auto header = SafetensorsHeader(entries, {{"format", FrameworkTag(session)}});
    if (!header.ok()) return header.status();
    weights.erase(std::remove(weights.begin(), weights.end(), nullptr), weights.end());

    ExportFile config("config.json", "application/json");
    config.Add(BytesSegment(absl::StrCat(Config(weights, ignored, packed).dump(2), "\n")));
    config.Warn(Warnings(weights, packed));
    ExportFile file("model.safetensors", "application/octet-stream");
    file.Add(BytesSegment(*std::move(header)));
    for (Segment& segment : model.segments) file.Add(std::move(segment));
    for (Segment& segment : model.number_segments) file.Add(std::move(segment));
    ExportPlan plan;
    plan.files = {std::move(config), std::move(file)};
    return plan;
  }
};

}  // namespace

const Exporter* CompressedTensorsExporter() {
  static const CompressedTensors* const exporter = new CompressedTensors;
  return exporter;
}

}  // namespace nni_compression::compression
