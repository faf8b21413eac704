// "report": report.json, and report.html, which shows it. Per layer what it was and has become, how
// much smaller and how far from the weight sent, and how its outputs and inputs are quantized; the
// curve of rules that go by epochs; totals.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compression/exporters/formats.h"
#include "compression/exporters/model_tensors.h"
#include "compression/exporters/report_page.h"
#include "compression/exporters/safetensors_header.h"
#include "compression/exporters/weight_figures.h"
#include "compression/kernels/apply_mask.h"
#include "compression/kernels/finite.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

constexpr int64_t kMaxCurvePoints = 500;
constexpr size_t kMaxScales = 256;  // listed one by one

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
  if (values.size() <= kMaxScales) series["values"] = values;
  return series;
}

// The targets of a rule over the epochs that it lasts, and up to the present one.
json Curve(const PlannedRule& rule, const Pruner& pruner, int64_t epoch) {
  int64_t last = epoch;
  if (rule.options.json().contains("end_epoch")) {
    last = std::max(last, rule.options.Integer("end_epoch"));
  }
  json epochs = json::array(), targets = json::array();
  const int64_t stride = last / kMaxCurvePoints + 1;
  for (int64_t e = 0; e <= last; e += stride) {
    epochs.push_back(e);
    targets.push_back(Optional(pruner.TargetSparsity({e, 0})));
  }
  return {{"rule", rule.rule}, {"epochs", epochs}, {"targets", targets}, {"epoch", epoch}};
}

struct Totals {
  int64_t elements = 0;
  bool masked = false;  // whether any layer has a mask
  int64_t pruned = 0;
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  double signal = 0;
  double noise = 0;

  json ToJson() const {
    json result = {{"elements", elements},
                   {"bytes_before", bytes_before},
                   {"bytes_after", bytes_after},
                   {"mse", elements == 0 ? 0 : noise / static_cast<double>(elements)},
                   {"sqnr_db", Optional(Sqnr(signal, noise))}};
    if (masked) {
      result["pruned"] = pruned;
      result["achieved_sparsity"] =
          elements == 0 ? 0 : static_cast<double>(pruned) / static_cast<double>(elements);
    }
    return result;
  }
};

// Filled in while the weights pass. Owns all that it needs of the session.
class Reporter {
 public:
  static absl::StatusOr<std::shared_ptr<Reporter>> Create(const Session& session,
                                                          std::vector<ModelTensor> tensors,
                                                          int bins) {
    std::shared_ptr<Reporter> reporter(new Reporter(session, std::move(tensors), bins));
    for (const ModelTensor& tensor : reporter->tensors_) {
      if (!tensor.layer) continue;
      json& entry = reporter->report_["layers"][*tensor.layer];
      for (const auto& [name, activation] :
           {std::pair("output", Activation::kOutput), std::pair("input", Activation::kInput)}) {
        auto encoding = Encoding(session, *tensor.layer, activation);
        if (!encoding.ok()) return encoding.status();
        if (!encoding->is_null()) entry[name] = *std::move(encoding);
      }
    }
    return reporter;
  }

  absl::Status Observe(int t, const Buffer& bytes) {
    const auto i = tensors_[t].layer;
    if (!i) return absl::OkStatus();
    const Layer& layer = layers_[*i];
    if (!AllFinite(layer.dtype, bytes.data(), layer.elements)) {
      return NonFiniteError(layer, bytes.data());
    }
    json& entry = report_["layers"][*i];
    if (const auto* pruner = dynamic_cast<const Pruner*>(compressors_[*i].get())) {
      ObservePruned(*pruner, layer, *states_[*i].mask, bytes, entry);
      return absl::OkStatus();
    }
    return ObserveQuantized(static_cast<const Quantizer&>(*compressors_[*i]), layer, states_[*i],
                            bytes, entry);
  }

  std::vector<ExportFile> Conclude() {
    report_["totals"] = totals_.ToJson();
    ExportFile data{"report.json", "application/json", {}};
    data.segments.push_back(BytesSegment(absl::StrCat(report_.dump(1), "\n")));
    ExportFile page{"report.html", "text/html", {}};
    page.segments.push_back(BytesSegment(ReportPage(report_)));
    return {std::move(data), std::move(page)};
  }

 private:
  Reporter(const Session& session, std::vector<ModelTensor> tensors, int bins)
      : tensors_(std::move(tensors)), bins_(bins), clock_(session.clock()) {
    const bool pruner = session.algorithm().kind == AlgorithmKind::kPruner;
    totals_.masked = pruner;
    report_ = {{"algorithm", session.algorithm().name},
               {"kind", pruner ? "pruner" : "quantizer"},
               {"framework", session.binding().framework},
               {"epoch", clock_.epoch},
               {"step", clock_.step},
               {"config_list", session.binding().config_list},
               {"warnings", session.plan().warnings},
               {"curves", json::array()},
               {"layers", json::array()}};
    for (size_t i = 0; i < session.plan().layers.size(); ++i) {
      layers_.push_back(session.layer(static_cast<int>(i)));
      states_.push_back(session.state(static_cast<int>(i)));
      const LayerPlan& plan = session.plan().layers[i];
      compressors_.push_back(plan.planned == nullptr ? nullptr : plan.planned->compressor);
      const Layer& layer = layers_.back();
      report_["layers"].push_back({{"name", layer.name},
                                   {"op_type", layer.op_type},
                                   {"dtype", DataTypeName(layer.dtype)},
                                   {"shape", layer.shape},
                                   {"elements", layer.elements},
                                   {"compressed", plan.planned != nullptr},
                                   {"rule", plan.rule ? json(*plan.rule) : json()},
                                   {"bytes_before", ByteLength(layer.dtype, layer.elements)}});
    }
    if (!pruner) return;
    for (const auto& rule : session.plan().rules) {
      if (!rule->compressor->needs_epoch()) continue;
      report_["curves"].push_back(
          Curve(*rule, static_cast<const Pruner&>(*rule->compressor), clock_.epoch));
    }
  }

  void ObservePruned(const Pruner& pruner, const Layer& layer, const Mask& mask,
                     const Buffer& bytes, json& entry) {
    const int64_t kept = mask.elements() - mask.pruned();
    entry["target_sparsity"] = Optional(pruner.TargetSparsity(clock_));
    AddMask(mask, entry);
    // As in the format "sparse".
    AddSizes(layer, ByteLength(layer.dtype, kept) + mask.bits().size(), entry);
    AddFigures(layer, entry,
               [&](int64_t begin, absl::Span<double> before, absl::Span<double> after) {
                 ReadDoubles(layer.dtype, bytes.data(), begin, before);
                 for (size_t j = 0; j < before.size(); ++j) {
                   after[j] = mask.kept(begin + static_cast<int64_t>(j)) ? before[j] : 0;
                 }
               });
  }

  void AddMask(const Mask& mask, json& entry) {
    entry["achieved_sparsity"] = mask.sparsity();
    totals_.masked = true;
    totals_.pruned += mask.pruned();
  }

  absl::Status ObserveQuantized(const Quantizer& quantizer, const Layer& layer, LayerState state,
                                const Buffer& bytes, json& entry) {
    auto values = quantizer.QuantizeWeight(layer, bytes.AsTensor(layer.dtype, layer.shape),
                                           QuantizeReply::kValues, clock_, state);
    if (!values.ok()) return values.status();
    entry["quantized"] = values->parameters.has_value();
    if (state.mask) AddMask(*state.mask, entry);
    if (!values->parameters) {
      AddSizes(layer, ByteLength(layer.dtype, layer.elements), entry);
      return absl::OkStatus();
    }
    if (state.mask) ApplyMask(*state.mask, layer.dtype, values->data.data());
    const QuantizationParameters& parameters = *values->parameters;
    entry["bits"] = parameters.bits;
    entry["code_min"] = parameters.code_min;
    entry["code_max"] = parameters.code_max;
    entry["scale"] = Series(parameters.scale);
    if (parameters.group_size > 0) entry["group_size"] = parameters.group_size;
    entry["zero_point"] = Series({parameters.zero_point.begin(), parameters.zero_point.end()});
    // Codes side by side, and a scale and a zero point for each channel or group.
    const auto numbers = static_cast<int64_t>(parameters.scale.size());
    AddSizes(layer, (layer.elements * parameters.bits + 7) / 8 + 8 * numbers, entry);
    AddFigures(layer, entry,
               [&](int64_t begin, absl::Span<double> before, absl::Span<double> after) {
                 ReadDoubles(layer.dtype, bytes.data(), begin, before);
                 ReadDoubles(layer.dtype, values->data.data(), begin, after);
               });
    return absl::OkStatus();
  }

  void AddSizes(const Layer& layer, int64_t after, json& entry) {
    entry["bytes_after"] = after;
    totals_.elements += layer.elements;
    totals_.bytes_before += ByteLength(layer.dtype, layer.elements);
    totals_.bytes_after += after;
  }

  void AddFigures(const Layer& layer, json& entry, WeightReader read) {
    const WeightFigures figures = Compare(layer.elements, bins_, read);
    entry["mse"] = figures.noise / static_cast<double>(layer.elements);
    entry["sqnr_db"] = Optional(Sqnr(figures.signal, figures.noise));
    entry["histogram"] = {{"minimum", figures.minimum},
                          {"maximum", figures.maximum},
                          {"before", figures.before},
                          {"after", figures.after}};
    totals_.signal += figures.signal;
    totals_.noise += figures.noise;
  }

  const std::vector<ModelTensor> tensors_;
  const int bins_;
  const Clock clock_;
  std::vector<Layer> layers_;
  std::vector<LayerState> states_;
  std::vector<std::shared_ptr<const Compressor>> compressors_;  // null: not compressed
  json report_;
  Totals totals_;
};

class Report : public Exporter {
 public:
  absl::string_view format() const override { return "report"; }

  absl::StatusOr<ExportPlan> Plan(const Session& session, absl::Span<const ExportTensor> sent,
                                  const json& given) const override {
    const auto options = Options::Parse({Bins()}, {kNamesOption}, given, "options");
    if (!options.ok()) return options.status();
    auto tensors = ModelTensors(session, sent, given);
    if (!tensors.ok()) return tensors.status();
    for (const ModelTensor& tensor : *tensors) {
      if (!tensor.layer || session.algorithm().kind != AlgorithmKind::kPruner) continue;
      if (const auto mask = MaskOf(session, *tensor.layer); !mask.ok()) return mask.status();
    }
    auto created =
        Reporter::Create(session, *std::move(tensors), static_cast<int>(options->Integer("bins")));
    if (!created.ok()) return created.status();
    ExportPlan plan;
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
