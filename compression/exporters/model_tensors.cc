#include "compression/exporters/model_tensors.h"

#include <cstring>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/kernels/apply_mask.h"
#include "compression/messages/names.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

absl::Status CheckTensor(const Layer& layer, const ExportTensor& tensor, size_t t) {
  if (tensor.dtype == layer.dtype && tensor.shape == layer.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensors[", t, "], the weight of layer ", Quoted(layer.name), ", is ",
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

// The names in the file.
absl::Status Rename(const nlohmann::json& options, std::vector<ModelTensor>& tensors) {
  const auto names = options.find(kNamesOption);
  if (names == options.end()) return absl::OkStatus();
  const std::string path = absl::StrCat("options.", kNamesOption);
  if (!names->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is ", Shown(*names),
                     "; it must be an object from names sent to names in the file"));
  }
  size_t used = 0;
  absl::flat_hash_set<std::string> sent;
  for (ModelTensor& tensor : tensors) {
    sent.insert(tensor.tensor.name);
    const auto name = names->find(tensor.tensor.name);
    if (name == names->end()) continue;
    if (!name->is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(path, "[", Quoted(tensor.tensor.name), "] is ",
                                                     Shown(*name), "; it must be a string"));
    }
    tensor.tensor.name = name->get<std::string>();
    ++used;
  }
  if (used == names->size()) return absl::OkStatus();
  for (const auto& [name, in_file] : names->items()) {
    if (sent.contains(name)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has ", Quoted(name), ", which is not a tensor that was sent"));
  }
  return absl::OkStatus();
}

Transform Masked(Mask mask, DataType dtype) {
  return [mask = std::move(mask), dtype](Buffer& bytes) {
    ApplyMask(mask.bits().data(), mask.elements(), dtype, bytes.data());
    return absl::OkStatus();
  };
}

// Computes the compressed weight of compressed layer i, of the same size. Unset: it passes
// unchanged.
absl::StatusOr<Transform> CompressedWeight(const Session& session, int i) {
  LayerSnapshot layer = session.Snapshot(i);
  if (session.algorithm().kind == AlgorithmKind::kPruner) {
    auto mask = MaskOf(session, i);
    if (!mask.ok()) return mask.status();
    return Masked(*std::move(mask), layer.layer().dtype);
  }
  if (!layer.rounds())
    return layer.mask() ? Masked(*layer.mask(), layer.layer().dtype) : Transform();
  return Transform([layer = std::move(layer)](Buffer& bytes) {
    auto result = layer.QuantizeWeight(bytes, QuantizeReply::kValues);
    if (!result.ok()) return result.status();
    if (!result->parameters) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", Quoted(layer.layer().name),
                                                        " is not quantized before its start step"));
    }
    bytes = std::move(result->data);
    if (const auto& mask = layer.mask()) {
      ApplyMask(mask->bits().data(), mask->elements(), layer.layer().dtype, bytes.data());
    }
    return absl::OkStatus();
  });
}

}  // namespace

absl::StatusOr<std::vector<ModelTensor>> ModelTensors(const Session& session,
                                                      absl::Span<const ExportTensor> tensors,
                                                      const nlohmann::json& options,
                                                      Cancelled cancelled) {
  std::vector<ModelTensor> result;
  absl::flat_hash_set<int> sent;
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (auto status = CheckWanted(cancelled); !status.ok()) return status;
    ModelTensor entry{tensors[t], std::nullopt};
    if (const auto i = session.IndexOf(tensors[t].name)) {
      auto status = CheckTensor(session.layer(*i), tensors[t], t);
      if (!status.ok()) return status;
      if (session.plan().layers[*i].planned != nullptr) entry.layer = *i;
      sent.insert(*i);
    }
    result.push_back(std::move(entry));
  }
  if (auto status = Rename(options, result); !status.ok()) return status;
  absl::flat_hash_set<std::string> names;
  for (size_t t = 0; t < result.size(); ++t) {
    const std::string path = absl::StrCat("tensors[", t, "].name");
    const std::string& name = result[t].tensor.name;
    if (auto status = CheckName(name, kMaxLayerNameBytes, path); !status.ok()) return status;
    if (!names.insert(name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is ", Quoted(name), "; names must be unique"));
    }
  }
  if (auto status = CheckComplete(session, sent); !status.ok()) return status;
  return result;
}

absl::Status CheckWanted(Cancelled cancelled) {
  return cancelled() ? absl::CancelledError("cancelled") : absl::OkStatus();
}

absl::StatusOr<Mask> MaskOf(const Session& session, int i) {
  if (session.state(i).mask) return *session.state(i).mask;
  if (session.state(i).counted) {
    return absl::FailedPreconditionError(
        absl::StrCat("the mask of layer ", Quoted(session.layer(i).name),
                     " is with the trainer, which has counted its weights: send it by CalcMask, "
                     "with TENSOR_ROLE_MASK, first"));
  }
  return absl::FailedPreconditionError(absl::StrCat("layer ", Quoted(session.layer(i).name),
                                                    " has no mask yet; call CalcMask first"));
}

Segment BitsSegment(const Mask& mask) {
  Segment segment;
  segment.byte_length = mask.bits().size();
  segment.memory = segment.byte_length;
  segment.fill = [mask](int64_t offset, absl::Span<uint8_t> out) {
    std::memcpy(out.data(), mask.bits().data() + offset, out.size());
  };
  return segment;
}

absl::Status CheckPruner(const Session& session) {
  if (session.algorithm().kind == AlgorithmKind::kPruner) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the session's algorithm is ", session.algorithm().name,
      ", a quantizer: it has no masks of its own; export the session of the model's pruner"));
}

absl::StatusOr<nlohmann::json> Encoding(const Session& session, int i, Activation activation) {
  if (!session.Quantizes(i, activation)) return nullptr;
  const auto answer = session.QuantizeActivation(i, activation);
  if (!answer.ok()) return answer.status();
  if (!answer->parameters || !answer->range) return nullptr;
  const QuantizationParameters& parameters = *answer->parameters;
  return nlohmann::json{{"bits", parameters.bits},
                        {"scale", parameters.scale[0]},
                        {"zero_point", parameters.zero_point[0]},
                        {"code_min", parameters.code_min},
                        {"code_max", parameters.code_max},
                        {"minimum", answer->range->minimum[0]},
                        {"maximum", answer->range->maximum[0]}};
}

absl::StatusOr<Segment> TensorSegment(const Session& session, const ModelTensor& tensor, size_t t) {
  Segment segment;
  segment.byte_length = tensor.tensor.byte_length;
  segment.tensor = static_cast<int>(t);
  if (tensor.layer) {
    auto transform = CompressedWeight(session, *tensor.layer);
    if (!transform.ok()) return transform.status();
    segment.transform = *std::move(transform);
    if (const auto& mask = session.state(*tensor.layer).mask) segment.memory = mask->bits().size();
  }
  return segment;
}

const char* FrameworkTag(const Session& session) {
  const std::string& framework = session.binding().framework;
  return framework == "tensorflow" || framework == "keras" ? "tf" : "pt";
}

}  // namespace nni_compression::compression
