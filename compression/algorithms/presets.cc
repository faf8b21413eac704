// The pruners that are built in: each is a choice of structure, score, scope and schedule. What a
// preset does not fix is an option of its rules.
#include "compression/algorithms/presets.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/algorithms/element_pruner.h"
#include "compression/algorithms/filter_pruner.h"
#include "compression/messages/suggest.h"
#include "compression/schedules/time.h"

namespace nni_compression::compression {
namespace {

using Choices = std::vector<std::string>;

struct Preset {
  const char* name;
  const char* summary;
  const char* reference;
  // The default first; one alone is fixed.
  Choices structures;
  Choices scores;
  Choices scopes;
  Choices normalizers;
  Choices schedules;
  nlohmann::json example;
};

// Those of single weights.
Choices Scores(const std::string& first) {
  Choices names = {first};
  for (const ScoreInfo& info : AllScores()) {
    if (info.create && info.name != first) names.push_back(info.name);
  }
  return names;
}

Choices Schedules(const std::string& first) {
  Choices names = {first};
  for (const ScheduleInfo& info : AllSchedules()) {
    if (info.name != first) names.push_back(info.name);
  }
  return names;
}

std::vector<Preset> Presets() {
  const Choices both = {"layer", "global"};
  const Choices none = {"none"};
  const Choices element = {"element"};
  const Choices filter = {"filter"};
  const Choices divisors = {"none", "mean", "l2"};
  const auto of_filters = [&](const char* name, const char* summary, const char* reference,
                              const char* score, const Choices& scopes) {
    return Preset{name,     summary,           reference,          filter, {score}, scopes,
                  divisors, Schedules("once"), {{"sparsity", 0.5}}};
  };
  return {
      {"level",
       "Removes a fixed share of each layer's smallest weights, once.",
       "",
       element,
       Scores("magnitude"),
       {"layer"},
       none,
       Schedules("once"),
       {{"sparsity", 0.8}}},
      {"agp",
       "Removes each layer's smallest weights gradually, quickly first and slowly last.",
       "Zhu & Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878",
       element,
       Scores("magnitude"),
       both,
       NormalizeNames(),
       {"agp"},
       {{"initial_sparsity", 0.0},
        {"final_sparsity", 0.8},
        {"start_epoch", 0},
        {"end_epoch", 10},
        {"frequency", 1}}},
      {"global_magnitude",
       "Removes the smallest weights of all layers together: one threshold, and each layer loses "
       "what is below it.",
       "Han et al., Learning both Weights and Connections, 2015, https://arxiv.org/abs/1506.02626",
       element,
       {"magnitude"},
       {"global"},
       NormalizeNames(),
       Schedules("once"),
       {{"sparsity", 0.8}}},
      {"lamp",
       "Removes the weights of all layers together that distort their layer's output least.",
       "Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021, "
       "https://arxiv.org/abs/2010.07611",
       element,
       {"magnitude"},
       {"global"},
       {"lamp"},
       Schedules("once"),
       {{"sparsity", 0.8}}},
      {"movement",
       "Removes the weights that training moves towards zero, gradually.",
       "Sanh et al., Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020, "
       "https://arxiv.org/abs/2005.07683",
       element,
       {"movement"},
       both,
       none,
       {"agp"},
       {{"initial_sparsity", 0.0},
        {"final_sparsity", 0.8},
        {"schedule_unit", "step"},
        {"start_step", 0},
        {"end_step", 1000},
        {"frequency", 100}}},
      {"lottery_ticket",
       "Removes the smallest weights in rounds, between which the trainer rewinds the others.",
       "Frankle & Carbin, The Lottery Ticket Hypothesis, 2019, https://arxiv.org/abs/1803.03635",
       element,
       {"magnitude"},
       both,
       NormalizeNames(),
       {"iterative"},
       {{"sparsity", 0.8}, {"rounds", 4}}},
      {"random",
       "Removes weights at random: what a score has to be better than.",
       "",
       {"element", "filter"},
       {"random"},
       both,
       none,
       Schedules("once"),
       {{"sparsity", 0.8}}},
      of_filters("l1_filter", "Removes the filters with the smallest sums of magnitudes.",
                 "Li et al., Pruning Filters for Efficient ConvNets, 2017, "
                 "https://arxiv.org/abs/1608.08710",
                 "l1", both),
      of_filters("l2_filter", "Removes the filters with the smallest Euclidean norms.",
                 "He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural "
                 "Networks, 2018, https://arxiv.org/abs/1808.06866",
                 "l2", both),
      of_filters("fpgm", "Removes the filters that are most like the other filters of their layer.",
                 "He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural "
                 "Networks Acceleration, 2019, https://arxiv.org/abs/1811.00250",
                 "fpgm", both),
      of_filters("slim",
                 "Removes the filters that the BatchNorm after them scales least, of all layers "
                 "together.",
                 "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, "
                 "2017, https://arxiv.org/abs/1708.06519",
                 "bn_scale", {"global", "layer"}),
      of_filters("taylor", "Removes the filters without which the loss changes least.",
                 "Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, "
                 "https://arxiv.org/abs/1906.10771",
                 "taylor", both),
      of_filters("apoz", "Removes the filters whose outputs are zero most often.",
                 "Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards "
                 "Efficient Deep Architectures, 2016, https://arxiv.org/abs/1607.03250",
                 "apoz", both),
      of_filters("mean_activation", "Removes the filters with the smallest mean outputs.",
                 "Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient "
                 "Inference, 2017, https://arxiv.org/abs/1611.06440",
                 "mean_activation", both),
  };
}

// Options of the dimensions that a preset leaves open, and of the choices.
class OptionTable {
 public:
  // `description` of an option whose choices are more than one.
  void AddDimension(const std::string& name, const Choices& choices, std::string description,
                    std::map<std::string, Choices> only_with = {}) {
    if (choices.size() == 1) {
      fixed_[name] = choices[0];
      return;
    }
    OptionSpec spec;
    spec.name = name;
    spec.type = OptionType::kString;
    spec.choices = choices;
    spec.default_value = choices[0];
    spec.description = std::move(description);
    spec.only_with = std::move(only_with);
    Add(std::move(spec));
  }

  // An option of one choice of a dimension; several choices may have the same.
  void AddOf(const std::string& dimension, const std::string& choice, OptionSpec spec) {
    const auto known = std::find_if(specs_.begin(), specs_.end(), [&](const OptionSpec& other) {
      return other.name == spec.name;
    });
    if (known == specs_.end()) {
      spec.only_with[dimension] = {choice};
      Add(std::move(spec));
    } else if (const auto choices = known->only_with.find(dimension);
               choices != known->only_with.end()) {
      choices->second.push_back(choice);
    }
  }

  // Without it if what is fixed rules it out.
  void Add(OptionSpec spec) {
    for (auto it = spec.only_with.begin(); it != spec.only_with.end();) {
      const auto fixed = fixed_.find(it->first);
      if (fixed == fixed_.end()) {
        ++it;
      } else if (std::count(it->second.begin(), it->second.end(), fixed->second) == 0) {
        return;
      } else {
        it = spec.only_with.erase(it);
      }
    }
    specs_.push_back(std::move(spec));
  }

  std::vector<OptionSpec> Take() { return std::move(specs_); }

 private:
  std::map<std::string, std::string> fixed_;
  std::vector<OptionSpec> specs_;
};

constexpr char kMinSparsity[] = "min_sparsity";
constexpr char kMaxSparsity[] = "max_sparsity";
constexpr char kRoundTo[] = "round_to";

std::vector<OptionSpec> OptionsOf(const Preset& preset) {
  const std::map<std::string, Choices> global = {{"scope", {"global"}}};
  OptionTable table;
  table.AddDimension("structure", preset.structures,
                     "What is removed at a time: a weight, or an output channel.");
  table.AddDimension("score", preset.scores, "What weights are ranked by.");
  for (const std::string& name : preset.scores) {
    for (const OptionSpec& spec : FindScore(name)->options) table.AddOf("score", name, spec);
  }
  table.AddDimension(
      "scope", preset.scopes,
      "What the sparsity is that of: each layer, or all layers of the rule together.");
  std::map<std::string, Choices> normalized = global;
  for (const std::string& name : preset.scores) {
    if (FindScore(name)->can_normalize) normalized["score"].push_back(name);
  }
  table.AddDimension("normalize", preset.normalizers,
                     "What scores are divided by before layers are compared.", normalized);
  OptionSpec least = SparsityOption(kMinSparsity, 0.0, "Share that each layer loses at least.");
  OptionSpec most = SparsityOption(kMaxSparsity, 1.0, "Share that each layer loses at most.");
  least.only_with = most.only_with = global;
  table.Add(std::move(least));
  table.Add(std::move(most));
  OptionSpec round_to;
  round_to.name = kRoundTo;
  round_to.type = OptionType::kInteger;
  round_to.default_value = 1;
  round_to.minimum = 1;
  round_to.maximum = 1024;
  round_to.description =
      "Of how many the filters that a layer, or a dependency group, keeps are a multiple.";
  round_to.only_with = {{"structure", {"filter"}}};
  table.Add(std::move(round_to));
  table.AddDimension("schedule", preset.schedules, "How the sparsity follows time.");
  for (const std::string& name : preset.schedules) {
    for (const OptionSpec& spec : FindSchedule(name)->options) table.AddOf("schedule", name, spec);
  }
  return table.Take();
}

// The choice of a rule, or what the preset fixes.
std::string Chosen(const Options& options, const char* dimension, const Choices& choices) {
  return options.Has(dimension) ? options.String(dimension) : choices[0];
}

// INVALID_ARGUMENT when the final sparsity cannot be met within the limits.
absl::Status CheckLimits(const Options& options, const SparsityLimits& limits, double final) {
  if (limits.least > final) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path(), ".", kMinSparsity, " is ", Shown(limits.least), "; it must be in [0, ",
        Shown(final), "], up to the sparsity of all layers together"));
  }
  if (limits.most < final) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path(), ".", kMaxSparsity, " is ", Shown(limits.most), "; it must be in [",
        Shown(final), ", 1], from the sparsity of all layers together"));
  }
  return absl::OkStatus();
}

bool RemovesFilters(const Preset& preset, const Options& options) {
  return Chosen(options, "structure", preset.structures) == "filter";
}

absl::StatusOr<std::unique_ptr<const Schedule>> ScheduleOf(const Preset& preset,
                                                           const Options& options) {
  return FindSchedule(Chosen(options, "schedule", preset.schedules))->create(options);
}

absl::StatusOr<std::unique_ptr<Compressor>> Create(const Preset& preset, const Options& options) {
  auto schedule = ScheduleOf(preset, options);
  if (!schedule.ok()) return schedule.status();
  const ScoreInfo& score = *FindScore(Chosen(options, "score", preset.scores));
  const bool by_step = CountsSteps(options);
  const bool filters = RemovesFilters(preset, options);
  const int64_t round_to = filters ? options.Integer(kRoundTo) : 1;
  if (Chosen(options, "scope", preset.scopes) == "layer") {
    if (filters) {
      return std::make_unique<FilterPruner>(score, options, *std::move(schedule), by_step, round_to,
                                            std::nullopt);
    }
    return std::make_unique<ElementPruner>(score, options, *std::move(schedule), by_step);
  }
  const SparsityLimits limits{options.Number(kMinSparsity), options.Number(kMaxSparsity)};
  if (auto s = CheckLimits(options, limits, (*schedule)->Final()); !s.ok()) return s;
  // A score that cannot be normalized has no such option.
  const Normalize normalize =
      *NormalizeFromName(options.Has("normalize") || preset.normalizers.size() == 1
                             ? Chosen(options, "normalize", preset.normalizers)
                             : "none");
  if (filters) {
    return std::make_unique<FilterPruner>(score, options, *std::move(schedule), by_step, round_to,
                                          FilterPruner::Global{normalize, limits});
  }
  return std::make_unique<GlobalPruner>(score, options, *std::move(schedule), by_step, normalize,
                                        limits);
}

absl::Status CheckLayer(const Preset& preset, const Options& options, const Layer& layer) {
  const ScoreInfo& score = *FindScore(Chosen(options, "score", preset.scores));
  if (RemovesFilters(preset, options) && layer.filters() > kMaxFilters) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.path(), " applies to layer ", Quoted(layer.name), ", which has ",
                     layer.filters(), " filters; it must have at most ", kMaxFilters));
  }
  if (!score.check_layer) return absl::OkStatus();
  const absl::Status status = score.check_layer(layer);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(options.path(), " applies to ", status.message()));
}

// Layers lose whole weights, of which a limit may leave small ones none.
absl::Status CheckLayers(const Preset& preset, const Options& options,
                         absl::Span<const Layer* const> layers) {
  if (!options.Has(kMaxSparsity) || RemovesFilters(preset, options)) return absl::OkStatus();
  const auto schedule = ScheduleOf(preset, options);
  if (!schedule.ok()) return schedule.status();
  int64_t elements = 0;
  int64_t most = 0;
  for (const Layer* layer : layers) {
    elements += layer->elements;
    most += CountToPrune(layer->elements, options.Number(kMaxSparsity));
  }
  const int64_t total = CountToPrune(elements, (*schedule)->Final());
  if (total <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(options.path(), ".", kMaxSparsity, " is ",
                                                 Shown(options.Number(kMaxSparsity)),
                                                 "; the layers of the rule lose at most ", most,
                                                 " weights with it, rounded down for each, and ",
                                                 total, " of ", elements, " are to be removed"));
}

}  // namespace

std::vector<AlgorithmInfo> PrunerPresets() {
  std::vector<AlgorithmInfo> algorithms;
  for (const Preset& preset : Presets()) {
    AlgorithmInfo info;
    info.name = preset.name;
    info.kind = AlgorithmKind::kPruner;
    info.summary = preset.summary;
    info.reference = preset.reference;
    info.options = OptionsOf(preset);
    info.example = preset.example;
    info.create = [preset](const Options& options) { return Create(preset, options); };
    info.check_layer = [preset](const Options& options, const Layer& layer) {
      return CheckLayer(preset, options, layer);
    };
    info.check_layers = [preset](const Options& options, absl::Span<const Layer* const> layers) {
      return CheckLayers(preset, options, layers);
    };
    algorithms.push_back(std::move(info));
  }
  return algorithms;
}

}  // namespace nni_compression::compression
