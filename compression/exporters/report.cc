// "report": report.json, and report.html, which shows it. Per layer: before and after, compression
// ratio, error against the weight sent, quantization of its activations; the sparsity curve of
// rules that depend on the epoch; totals. A layer is serialized as soon as its weight was streamed,
// and both files share the text.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "compression/algorithms/weight_error.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/report_page.h"
#include "compression/exporters/segments.h"
#include "compression/exporters/weight_figures.h"
#include "compression/kernels/apply_mask.h"
#include "compression/kernels/finite.h"
#include "compression/structures/filters.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

constexpr int64_t kMaxCurvePoints = 500;        // of a rule
constexpr int64_t kMaxAllCurvePoints = 20'000;  // of all rules, but for two of each
constexpr int64_t kMaxScales = 256;             // listed one by one

// Upper bound of the text of a layer, without its scales and histogram.
constexpr int64_t kFigureBytes = 1536;
constexpr int64_t kScaleBytes = 40;  // of a scale and its zero point

OptionSpec Bins() {
  OptionSpec spec;
  spec.name = "bins";
  spec.type = OptionType::kInteger;
  spec.default_value = 48;
  spec.minimum = 1;
  spec.maximum = 1000;
  spec.description = "Bars of a histogram.";
  return spec;
}

json Optional(std::optional<double> value) { return value ? json(*value) : json(); }

json Series(const std::vector<float>& values) {
  json series = {{"count", values.size()}};
  if (values.empty()) return series;
  series["minimum"] = *std::min_element(values.begin(), values.end());
  series["maximum"] = *std::max_element(values.begin(), values.end());
  if (static_cast<int64_t>(values.size()) <= kMaxScales) series["values"] = values;
  return series;
}

// The target sparsity of a rule over its epochs, and up to the present one, in a limited number of
// points.
json Curve(const Session& session, const PlannedRule& rule, int64_t most) {
  const int64_t epoch = session.clock().epoch;
  int64_t last = epoch;
  if (rule.options.json().contains("end_epoch")) {
    last = std::max(last, rule.options.Integer("end_epoch"));
  }
  json epochs = json::array(), targets = json::array();
  const int64_t stride = last / most + 1;
  for (int64_t k = 0; k <= last / stride; ++k) {
    epochs.push_back(k * stride);
    targets.push_back(Optional(session.TargetSparsity(rule, k * stride)));
  }
  return {{"rule", rule.rule}, {"epochs", epochs}, {"targets", targets}, {"epoch", epoch}};
}

// JSON that cannot end the HTML element that contains it.
std::string Text(const json& value) {
  return absl::StrReplaceAll(value.dump(), {{"<", "\\u003c"}});
}

// Merges two nonempty objects with different keys.
std::string Joined(std::string object, absl::string_view more) {
  object.back() = ',';
  absl::StrAppend(&object, more.substr(1));
  object.shrink_to_fit();
  return object;
}

struct Totals {
  int64_t elements = 0;
  bool masked = false;  // whether any layer has a mask
  int64_t pruned = 0;
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  SquareSum signal;
  SquareSum noise;

  json ToJson() const {
    json result = {{"elements", elements},
                   {"bytes_before", bytes_before},
                   {"bytes_after", bytes_after},
                   {"mse", elements == 0 ? 0 : noise.value() / static_cast<double>(elements)},
                   {"sqnr_db", Optional(Sqnr(signal, noise))}};
    if (masked) {
      result["pruned"] = pruned;
      result["achieved_sparsity"] =
          elements == 0 ? 0 : static_cast<double>(pruned) / static_cast<double>(elements);
    }
    return result;
  }
};

// Filled while the weights are streamed. Owns what it needs of the session.
class Reporter {
 public:
  static absl::StatusOr<std::shared_ptr<Reporter>> Create(const Session& session,
                                                          std::vector<ModelTensor> tensors,
                                                          int bins, Cancelled cancelled) {
    std::shared_ptr<Reporter> reporter(new Reporter(session, std::move(tensors), bins));
    for (int i = 0; i < static_cast<int>(session.plan().layers.size()); ++i) {
      if (auto status = CheckWanted(cancelled); !status.ok()) return status;
      auto entry = EntryOf(session, i);
      if (!entry.ok()) return entry.status();
      reporter->layers_.push_back(Text(*entry));
      reporter->snapshots_.emplace_back();
      if (session.plan().layers[i].planned != nullptr) {
        reporter->snapshots_.back() = session.Snapshot(i);
      }
    }
    return reporter;
  }

  // Upper bound of the final memory of the reporter and its files.
  int64_t memory() const {
    auto bytes = static_cast<int64_t>(head_.capacity());
    for (const ModelTensor& tensor : tensors_) {
      bytes += static_cast<int64_t>(sizeof tensor + tensor.tensor.name.capacity() +
                                    sizeof(int64_t) * tensor.tensor.shape.size());
    }
    for (size_t i = 0; i < layers_.size(); ++i) {
      bytes += static_cast<int64_t>(layers_[i].capacity() + sizeof(std::string) + sizeof(int64_t) +
                                    sizeof snapshots_[i]);
      if (snapshots_[i]) bytes += FigureBytes(*snapshots_[i]);
    }
    return bytes;
  }

  absl::Status Observe(int t, const Buffer& bytes) {
    const auto i = tensors_[t].layer;
    if (!i) return absl::OkStatus();
    const LayerSnapshot& snapshot = *snapshots_[*i];
    const Layer& layer = snapshot.layer();
    if (!AllFinite(layer.dtype, bytes.data(), layer.elements)) {
      return NonFiniteError(layer, bytes.data());
    }
    json figures = json::object();
    std::string histogram;
    if (pruner_) {
      histogram = ObservePruned(snapshot, bytes, figures);
    } else {
      auto observed = ObserveQuantized(snapshot, bytes, figures);
      if (!observed.ok()) return observed.status();
      histogram = *std::move(observed);
    }
    std::string text = Text(figures);
    if (!histogram.empty()) text = Joined(std::move(text), histogram);
    layers_[*i] = Joined(std::move(layers_[*i]), text);
    return absl::OkStatus();
  }

  std::vector<ExportFile> Conclude() {
    std::vector<std::string> parts;
    parts.reserve(layers_.size() + 2);
    head_.back() = ',';
    parts.push_back(std::move(head_));
    parts.back().append("\n\"layers\":[\n");
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].append(i + 1 < layers_.size() ? ",\n" : "],\n");
      parts.push_back(std::move(layers_[i]));
    }
    parts.push_back(absl::StrCat("\"totals\":", Text(totals_.ToJson()), "}\n"));
    const auto report = std::make_shared<const Parts>(std::move(parts));
    ExportFile data("report.json", "application/json");
    data.Add(PartsSegment(report));
    return {std::move(data), ReportPage(PartsSegment(report))};
  }

 private:
  Reporter(const Session& session, std::vector<ModelTensor> tensors, int bins)
      : tensors_(std::move(tensors)),
        bins_(bins),
        pruner_(session.algorithm().kind == AlgorithmKind::kPruner) {
    totals_.masked = pruner_;
    json curves = json::array();
    const auto rules = static_cast<int64_t>(session.plan().rules.size());
    for (const auto& rule : session.plan().rules) {
      if (!pruner_ || !rule->traits().needs_epoch) continue;
      curves.push_back(Curve(session, *rule,
                             std::clamp<int64_t>(kMaxAllCurvePoints / rules, 2, kMaxCurvePoints)));
    }
    head_ = Text({{"algorithm", session.algorithm().name},
                  {"kind", pruner_ ? "pruner" : "quantizer"},
                  {"framework", session.binding().framework},
                  {"epoch", session.clock().epoch},
                  {"step", session.clock().step},
                  {"config_list", session.binding().config_list},
                  {"warnings", session.plan().warnings},
                  {"curves", std::move(curves)}});
  }

  // What is known of a layer before its weight is received.
  static absl::StatusOr<json> EntryOf(const Session& session, int i) {
    const Layer& layer = session.layer(i);
    const LayerPlan& plan = session.plan().layers[i];
    json entry = {{"name", layer.name},
                  {"op_type", layer.op_type},
                  {"dtype", DataTypeName(layer.dtype)},
                  {"shape", layer.shape},
                  {"elements", layer.elements},
                  {"compressed", plan.planned != nullptr},
                  {"rule", plan.rule ? json(*plan.rule) : json()},
                  {"bytes_before", ByteLength(layer.dtype, layer.elements)}};
    if (plan.planned == nullptr) return entry;
    for (const auto& [name, activation] :
         {std::pair("output", Activation::kOutput), std::pair("input", Activation::kInput)}) {
      auto encoding = Encoding(session, i, activation);
      if (!encoding.ok()) return encoding.status();
      if (!encoding->is_null()) entry[name] = *std::move(encoding);
    }
    return entry;
  }

  // The longest text that Observe can add.
  int64_t FigureBytes(const LayerSnapshot& snapshot) const {
    const int64_t n = snapshot.layer().elements;
    // Each bin of a histogram takes a comma and a digit, nonempty ones more; the maximum is reached
    // when all have the same count.
    const auto filled = static_cast<double>(std::min<int64_t>(bins_, n));
    const auto digits = static_cast<int64_t>(filled * std::log10(static_cast<double>(n) / filled));
    const int64_t histograms = 2 * (2 * bins_ + digits + 2);
    const int64_t scales = snapshot.rounds() ? std::min(kMaxScales, snapshot.scales()) : 0;
    return kFigureBytes + histograms + kScaleBytes * scales;
  }

  // Both return the histogram as an object with that one key.
  std::string ObservePruned(const LayerSnapshot& snapshot, const Buffer& bytes, json& figures) {
    const Layer& layer = snapshot.layer();
    const Mask& mask = *snapshot.mask();
    const int64_t kept = mask.elements() - mask.pruned();
    figures["target_sparsity"] = Optional(snapshot.TargetSparsity());
    AddMask(layer, mask, figures);
    // As in the format "sparse".
    AddSizes(layer, ByteLength(layer.dtype, kept) + mask.bits().size(), figures);
    return AddFigures(layer, figures,
                      [&](int64_t begin, absl::Span<double> before, absl::Span<double> after) {
                        ReadDoubles(layer.dtype, bytes.data(), begin, before);
                        for (size_t j = 0; j < before.size(); ++j) {
                          after[j] = mask.kept(begin + static_cast<int64_t>(j)) ? before[j] : 0;
                        }
                      });
  }

  void AddMask(const Layer& layer, const Mask& mask, json& figures) {
    figures["achieved_sparsity"] = mask.sparsity();
    const std::vector<bool> removed = RemovedFilters(layer, &mask);
    figures["filters"] = removed.size();
    figures["removed_filters"] = std::count(removed.begin(), removed.end(), true);
    totals_.masked = true;
    totals_.pruned += mask.pruned();
  }

  absl::StatusOr<std::string> ObserveQuantized(const LayerSnapshot& snapshot, const Buffer& bytes,
                                               json& figures) {
    const Layer& layer = snapshot.layer();
    std::optional<QuantizedWeight> values;
    if (snapshot.rounds()) {
      auto answer = snapshot.QuantizeWeight(bytes, QuantizeReply::kValues);
      if (!answer.ok()) return answer.status();
      if (answer->parameters) values = *std::move(answer);
    }
    figures["quantized"] = values.has_value();
    if (snapshot.mask()) AddMask(layer, *snapshot.mask(), figures);
    if (!values) {
      AddSizes(layer, ByteLength(layer.dtype, layer.elements), figures);
      return "";
    }
    if (const auto& mask = snapshot.mask()) {
      ApplyMask(mask->bits().data(), mask->elements(), layer.dtype, values->data.data());
    }
    const QuantizationParameters& parameters = *values->parameters;
    figures["bits"] = parameters.bits;
    figures["code_min"] = parameters.code_min;
    figures["code_max"] = parameters.code_max;
    figures["scale"] = Series(parameters.scale);
    if (parameters.group_size > 0) figures["group_size"] = parameters.group_size;
    figures["zero_point"] = Series({parameters.zero_point.begin(), parameters.zero_point.end()});
    // Packed codes, and a scale and a zero point per channel or group.
    const auto numbers = static_cast<int64_t>(parameters.scale.size());
    AddSizes(layer, (layer.elements * parameters.bits + 7) / 8 + 8 * numbers, figures);
    return AddFigures(layer, figures,
                      [&](int64_t begin, absl::Span<double> before, absl::Span<double> after) {
                        ReadDoubles(layer.dtype, bytes.data(), begin, before);
                        ReadDoubles(layer.dtype, values->data.data(), begin, after);
                      });
  }

  void AddSizes(const Layer& layer, int64_t after, json& figures) {
    figures["bytes_after"] = after;
    totals_.elements += layer.elements;
    totals_.bytes_before += ByteLength(layer.dtype, layer.elements);
    totals_.bytes_after += after;
  }

  std::string AddFigures(const Layer& layer, json& figures, WeightReader read) {
    const WeightFigures found = Compare(layer.elements, bins_, read);
    figures["mse"] = found.noise.value() / static_cast<double>(layer.elements);
    figures["sqnr_db"] = Optional(Sqnr(found.signal, found.noise));
    totals_.signal += found.signal;
    totals_.noise += found.noise;
    // Not through JSON values, which take many times the memory of a bin's text.
    return absl::StrCat("{\"histogram\":{\"minimum\":", json(found.minimum).dump(),
                        ",\"maximum\":", json(found.maximum).dump(), ",\"before\":[",
                        absl::StrJoin(found.before, ","), "],\"after\":[",
                        absl::StrJoin(found.after, ","), "]}}");
  }

  const std::vector<ModelTensor> tensors_;
  const int bins_;
  const bool pruner_;
  std::string head_;                                     // an object
  std::vector<std::string> layers_;                      // objects
  std::vector<std::optional<LayerSnapshot>> snapshots_;  // of layers_; nullopt: not compressed
  Totals totals_;
};

class Report : public Exporter {
 public:
  absl::string_view format() const override { return "report"; }

 private:
  absl::StatusOr<ExportPlan> DoPlan(const Session& session, absl::Span<const ExportTensor> sent,
                                    const json& given, Cancelled cancelled) const override {
    const auto options = Options::Parse({Bins()}, {kNamesOption}, given, "options");
    if (!options.ok()) return options.status();
    auto tensors = ModelTensors(session, sent, given, cancelled);
    if (!tensors.ok()) return tensors.status();
    for (const ModelTensor& tensor : *tensors) {
      if (!tensor.layer || session.algorithm().kind != AlgorithmKind::kPruner) continue;
      if (const auto mask = MaskOf(session, *tensor.layer); !mask.ok()) return mask.status();
    }
    auto created = Reporter::Create(session, *std::move(tensors),
                                    static_cast<int>(options->Integer("bins")), cancelled);
    if (!created.ok()) return created.status();
    ExportPlan plan;
    plan.memory = (*created)->memory();
    plan.observe = [reporter = *created](int t, const Buffer& bytes) {
      return reporter->Observe(t, bytes);
    };
    plan.conclude = [reporter = *created] { return reporter->Conclude(); };
    return plan;
  }
};

}  // namespace

const Exporter* ReportExporter() {
  static const Report* const exporter = new Report;
  return exporter;
}

}  // namespace nni_compression::compression
