#include "client/cli/compress.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/config.h"
#include "client/cli/progress.h"
#include "client/cli/report.h"

namespace nni_compression::cli {
namespace {

// Of weights whose answers are in memory. Those that are decided about together have no limit: the
// server holds all of them at once, and the client their masks, a bit for each weight.
constexpr int64_t kBatchBytes = int64_t{256} << 20;

bool IsWeightType(DataType dtype) {
  return dtype == DataType::kFloat32 || dtype == DataType::kFloat16 ||
         dtype == DataType::kBFloat16 || dtype == DataType::kFloat64;
}

absl::string_view KindName(v1::AlgorithmKind kind) {
  return kind == v1::ALGORITHM_KIND_PRUNER ? "pruner" : "quantizer";
}

// INVALID_ARGUMENT unless the algorithm exists and is of the kind that the command needs.
absl::Status CheckKind(const Client& client, const CompressJob& job) {
  const auto listed = client.ListAlgorithms();
  if (!listed.ok()) return listed.status();
  std::vector<std::string> fitting;
  for (const v1::Algorithm& algorithm : listed->algorithms()) {
    if (algorithm.kind() == job.kind) fitting.push_back(algorithm.name());
    if (algorithm.name() != job.algorithm || algorithm.kind() == job.kind) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(job.algorithm, " is a ", KindName(algorithm.kind()), ", not a ",
                     KindName(job.kind), "; use ",
                     job.kind == v1::ALGORITHM_KIND_PRUNER ? "`compressionctl quantize`"
                                                           : "`compressionctl prune`"));
  }
  if (std::find(fitting.begin(), fitting.end(), job.algorithm) != fitting.end()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--algorithm is ", job.algorithm, "; it must be one of ", absl::StrJoin(fitting, ", ")));
}

std::optional<int64_t> IntegerOption(const v1::PlannedRule& rule, const std::string& option) {
  const auto found = rule.options().fields().find(option);
  if (found == rule.options().fields().end() || !found->second.has_number_value()) return {};
  return static_cast<int64_t>(found->second.number_value());
}

// When the last schedule that counts epochs, or steps, ends: `unit` is "epoch" or "step".
std::optional<int64_t> EndOfRules(const v1::Plan& plan, const std::string& unit) {
  std::optional<int64_t> end = LargestOption(plan, "end_" + unit);
  for (const v1::PlannedRule& rule : plan.rules()) {
    const auto start = IntegerOption(rule, "start_" + unit);
    const auto rounds = IntegerOption(rule, "rounds");
    if (!start || !rounds) continue;
    const int64_t last = *start + *rounds * IntegerOption(rule, "frequency").value_or(1);
    end = std::max(end.value_or(last), last);
  }
  return end;
}

// FAILED_PRECONDITION for an algorithm that decides by what only a training makes.
absl::Status CheckNeedsOnlyWeights(const v1::Plan& plan, const CompressJob& job) {
  for (const v1::LayerPlan& layer : plan.layers()) {
    if (layer.statistics().empty()) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(job.algorithm, " decides about ", layer.name(), " by its statistic ",
                     StatisticName(layer.statistics(0).kind()),
                     ", which a training makes and a checkpoint does not have; "
                     "prune in the training, or choose another algorithm"));
  }
  return absl::OkStatus();
}

// Sets the epoch and step for which the result is wanted.
absl::Status Advance(const Session& session, const CompressJob& job) {
  const v1::Plan& plan = session.plan();
  const auto epoch = job.epoch ? job.epoch : EndOfRules(plan, "epoch");
  if (epoch && (job.epoch || plan.needs_update_epoch())) {
    const auto stale = session.UpdateEpoch(*epoch);
    if (!stale.ok()) return stale.status();
  }
  const auto begin = LargestOption(plan, "quant_start_step");
  const auto step = job.step ? job.step : begin ? begin : EndOfRules(plan, "step");
  if (step && (job.step || plan.needs_step())) {
    const auto stale = session.Step(*step);
    if (!stale.ok()) return stale.status();
  }
  return absl::OkStatus();
}

LayerOutcome NewOutcome(const Tensor& tensor) {
  LayerOutcome outcome;
  outcome.name = tensor.name;
  outcome.shape = tensor.shape;
  outcome.elements = 1;
  for (const int64_t dimension : tensor.shape) outcome.elements *= dimension;
  return outcome;
}

std::vector<LayerOutcome> Prune(const Session& session, absl::Span<const Tensor> weights,
                                const CallOptions& options) {
  const auto masks = session.CalcMask(weights, options);
  std::vector<LayerOutcome> outcomes;
  for (size_t i = 0; i < weights.size(); ++i) {
    LayerOutcome outcome = NewOutcome(weights[i]);
    outcome.status = masks[i].status();
    if (masks[i].ok()) {
      outcome.target_sparsity = masks[i]->target_sparsity();
      outcome.achieved_sparsity = masks[i]->sparsity();
    }
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

// The codes stay on the server, which writes them to the export: only parameters are returned.
std::vector<LayerOutcome> Quantize(const Session& session, absl::Span<const Tensor> weights,
                                   const CallOptions& options) {
  const auto quantized = session.QuantizeWeight(weights, QuantizeReply::kParameters, options);
  std::vector<LayerOutcome> outcomes;
  for (size_t i = 0; i < weights.size(); ++i) {
    LayerOutcome outcome = NewOutcome(weights[i]);
    outcome.status = quantized[i].status();
    if (quantized[i].ok() && !quantized[i]->unquantized) {
      outcome.bits = quantized[i]->parameters.bits;
    }
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

// Computes the answers for all weights, a batch at a time.
std::vector<LayerOutcome> Outcomes(const Session& session, const CompressJob& job,
                                   const Checkpoint& checkpoint, absl::Span<const Tensor> weights) {
  const bool prunes = job.kind == v1::ALGORITHM_KIND_PRUNER;
  ProgressBar bar(job.output.progress, prunes ? "masks " : "ranges");
  const int64_t total = TotalBytes(weights);
  const auto& rules = session.plan().rules();
  const bool joint = std::any_of(rules.begin(), rules.end(),
                                 [](const v1::PlannedRule& rule) { return rule.joint(); });
  const int64_t limit = joint ? total : kBatchBytes;
  int64_t before = 0;
  std::vector<LayerOutcome> outcomes;
  while (!weights.empty()) {
    size_t count = 1;
    int64_t bytes = TotalBytes(weights.first(1));
    while (count < weights.size()) {
      const int64_t next = TotalBytes(weights.subspan(count, 1));
      if (bytes + next > limit) break;
      bytes += next;
      ++count;
    }
    const auto batch = weights.first(count);
    const CallOptions options = SendingOptions(bar, checkpoint, before, total);
    auto answers = prunes ? Prune(session, batch, options) : Quantize(session, batch, options);
    std::move(answers.begin(), answers.end(), std::back_inserter(outcomes));
    weights.remove_prefix(count);
    before += bytes;
  }
  return outcomes;
}

// What Conv1D of transformers means for a quantizer's result; empty: nothing. `transposed` are its
// weights. They cannot be loaded from compressed-tensors, which is an error.
absl::StatusOr<std::string> CheckTransposed(const std::vector<std::string>& transposed,
                                            const CompressJob& job, const v1::Plan& plan) {
  if (transposed.empty() || job.kind == v1::ALGORITHM_KIND_PRUNER) return "";
  const std::string names = absl::StrCat(
      "weight ", transposed[0],
      transposed.size() > 1 ? absl::StrCat(" and ", transposed.size() - 1, " more") : "");
  if (job.output.format == "compressed-tensors") {
    return absl::InvalidArgumentError(absl::StrCat(
        names,
        ": transformers does not load compressed-tensors into its Conv1D, which holds its outputs "
        "in the last dimension; exclude them, or use the format safetensors"));
  }
  const bool slices =
      std::any_of(plan.rules().begin(), plan.rules().end(),
                  [](const v1::PlannedRule& rule) { return rule.range_per_channel(); });
  if (!slices) return "";
  return absl::StrCat(
      names,
      ": Conv1D of transformers holds its outputs in the last dimension; the scales "
      "of channels and groups are those of the first, its inputs");
}

}  // namespace

std::vector<Layer> LayersOf(const SafetensorsHeader& header) {
  std::vector<Layer> layers;
  for (const FileTensor& tensor : header.tensors) {
    const auto dtype = ToDataType(tensor.dtype);
    if (!dtype || !IsWeightType(*dtype) || !ByteLength(*dtype, tensor.shape).ok()) continue;
    Layer layer;
    layer.name = tensor.name;
    layer.dtype = *dtype;
    layer.shape = tensor.shape;
    layer.op_type =
        absl::EndsWith(tensor.name, kWeightSuffix) && tensor.shape.size() >= 2 ? "weight" : "other";
    layers.push_back(std::move(layer));
  }
  return layers;
}

std::optional<int64_t> LargestOption(const v1::Plan& plan, const std::string& option) {
  std::optional<int64_t> largest;
  for (const v1::PlannedRule& rule : plan.rules()) {
    const auto value = IntegerOption(rule, option);
    if (value) largest = std::max(largest.value_or(*value), *value);
  }
  return largest;
}

absl::StatusOr<CompressResult> Compress(const Client& client, const CompressJob& job) {
  const absl::Time start = absl::Now();
  auto config_list = ReadConfigList(job.config_path);
  if (!config_list.ok()) return config_list.status();
  const auto model = OpenModel(job.input_path, job.output);
  if (!model.ok()) return model.status();
  const Checkpoint& checkpoint = model->checkpoint;
  if (absl::Status checked = CheckKind(client, job); !checked.ok()) return checked;

  BindRequest request;
  request.algorithm = job.algorithm;
  request.config_list = *config_list;
  request.layers = LayersOf(checkpoint.header());
  request.labels = job.labels;
  request.vectors_need_filter = true;  // biases and statistics of norms are layers here, too
  if (request.layers.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(job.input_path, " has no floating-point tensor"));
  }
  const auto session = client.BindModel(request);
  if (!session.ok()) return session.status();
  const auto closer = absl::MakeCleanup([&] { session->Close().IgnoreError(); });
  if (auto status = CheckNeedsOnlyWeights(session->plan(), job); !status.ok()) return status;
  if (absl::Status advanced = Advance(*session, job); !advanced.ok()) return advanced;

  CompressResult result;
  result.session_id = session->id();
  result.warnings.assign(session->plan().warnings().begin(), session->plan().warnings().end());
  const std::vector<Tensor> weights = WeightsOf(checkpoint, session->plan());
  if (weights.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("no tensor is compressed: no rule matches; ",
                                                      absl::StrJoin(result.warnings, "; ")));
  }
  result.coverage = CoverageOf(checkpoint.header(), session->plan());
  const auto embeddings =
      EmbeddingsWarning(checkpoint.header(), session->plan(), nlohmann::json::parse(*config_list));
  if (embeddings) result.warnings.push_back(*embeddings);
  const auto transposed =
      CheckTransposed(TransposedWeights(checkpoint.header(), session->plan(),
                                        model->config ? model->config->model_type() : ""),
                      job, session->plan());
  if (!transposed.ok()) return transposed.status();
  if (!transposed->empty()) result.warnings.push_back(*transposed);
  result.layers = Outcomes(*session, job, checkpoint, weights);
  const bool all_ok = std::all_of(result.layers.begin(), result.layers.end(),
                                  [](const LayerOutcome& layer) { return layer.status.ok(); });
  if (all_ok) {
    auto exported = ExportCheckpoint(*session, *model, job.output);
    if (!exported.ok()) return exported.status();
    result.exported = *std::move(exported);
    result.warnings.insert(result.warnings.end(), result.exported.warnings.begin(),
                           result.exported.warnings.end());
  }
  result.exported.sent_bytes += TotalBytes(weights);
  result.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return result;
}

}  // namespace nni_compression::cli
