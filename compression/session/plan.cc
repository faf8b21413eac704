#include "compression/session/plan.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compression/messages/suggest.h"
#include "compression/session/check_answer.h"
#include "compression/session/name_patterns.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

constexpr size_t kMaxRules = 1024;
constexpr size_t kMaxWarnings = 100;
constexpr size_t kLayersBetweenPolls = 256;      // polls of `cancelled`
constexpr size_t kBytesBetweenPolls = 64 << 10;  // of names that are matched
constexpr char kDefault[] = "default";

std::string RulePath(int rule) { return absl::StrCat("config_list[", rule, "]"); }

// A parsed rule, before matching.
struct Rule {
  std::optional<absl::flat_hash_set<std::string>> op_types;
  std::vector<std::string> named_types;  // those of op_types that were named, not from `default`
  std::optional<std::vector<std::string>> op_names;  // without patterns
  bool exclude = false;
  std::optional<Options> options;  // unless exclude
  std::shared_ptr<const Compressor> compressor;
  bool matches = false;
  bool wins = false;
  int skipped = 0;  // one-dimensional weights that a rule without filters skips
  std::string first_skipped;
  int unfit = 0;            // layers that the algorithm leaves out
  std::string first_unfit;  // with the reason

  bool filters() const { return op_types.has_value() || op_names.has_value(); }
};

absl::Status ReadOpTypes(const json& value, absl::string_view path, absl::string_view framework,
                         const std::vector<std::string>& defaults, Rule& rule) {
  auto given = ReadStrings(value, path);
  if (!given.ok()) return given.status();
  absl::flat_hash_set<std::string>& types = rule.op_types.emplace();
  for (size_t i = 0; i < given->size(); ++i) {
    if ((*given)[i] == kDefault) {
      types.insert(defaults.begin(), defaults.end());
    } else if (framework == "generic") {
      return absl::InvalidArgumentError(
          absl::StrCat(path, "[", i, "] is ", Quoted((*given)[i]),
                       "; it must be \"default\": a checkpoint alone (framework generic) does not "
                       "have the types of its layers"));
    } else if (types.insert((*given)[i]).second) {
      rule.named_types.push_back((*given)[i]);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadOpNames(const json& config, const std::string& path, int index,
                         NamePatterns& patterns, Rule& rule) {
  if (const auto it = config.find("op_names"); it != config.end()) {
    auto names = ReadStrings(*it, path + ".op_names");
    if (!names.ok()) return names.status();
    rule.op_names.emplace();
    for (size_t i = 0; i < names->size(); ++i) {
      std::string& name = (*names)[i];
      if (!absl::StartsWith(name, kPatternPrefix)) {
        rule.op_names->push_back(std::move(name));
        continue;
      }
      auto status = patterns.Add(name.substr(std::strlen(kPatternPrefix)), index,
                                 absl::StrCat(path, ".op_names[", i, "]"));
      if (!status.ok()) return status;
    }
  }
  if (const auto it = config.find("op_names_re"); it != config.end()) {
    auto given = ReadStrings(*it, path + ".op_names_re");
    if (!given.ok()) return given.status();
    if (!rule.op_names) rule.op_names.emplace();
    for (size_t i = 0; i < given->size(); ++i) {
      auto status = patterns.Add((*given)[i], index, absl::StrCat(path, ".op_names_re[", i, "]"));
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Rule> ReadRule(const AlgorithmInfo& algorithm, const json& config, int index,
                              absl::string_view framework,
                              const std::vector<std::string>& default_types,
                              NamePatterns& patterns) {
  const std::string path = RulePath(index);
  Rule rule;
  if (auto status = Options::Check(algorithm.options, CommonKeys(), config, path); !status.ok()) {
    return status;
  }
  if (const auto it = config.find("exclude"); it != config.end()) {
    if (!it->is_boolean()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ".exclude is ", Shown(*it), "; it must be true or false"));
    }
    rule.exclude = it->get<bool>();
  }
  if (const auto it = config.find("op_types"); it != config.end()) {
    auto status = ReadOpTypes(*it, path + ".op_types", framework, default_types, rule);
    if (!status.ok()) return status;
  }
  if (auto status = ReadOpNames(config, path, index, patterns, rule); !status.ok()) return status;
  if (rule.exclude) return rule;

  auto options = Options::Parse(algorithm.options, CommonKeys(), config, path);
  if (!options.ok()) return options.status();
  auto compressor = algorithm.create(*options);
  if (!compressor.ok()) return compressor.status();
  if (auto status = CheckKind(algorithm, compressor->get()); !status.ok()) return status;
  rule.options = *std::move(options);
  rule.compressor = *std::move(compressor);
  return rule;
}

// Finds the last rule that matches without trying every rule on every layer: its total time is
// linear in the names of rules and layers, in the rules per type and in the patterns that match.
class Matcher {
 public:
  Matcher(std::vector<Rule>& rules, NamePatterns& patterns, Unfiltered unfiltered)
      : rules_(rules), patterns_(patterns), unfiltered_(unfiltered) {
    for (int i = 0; i < static_cast<int>(rules.size()); ++i) {
      if (rules[i].op_names) {
        for (const std::string& name : *rules[i].op_names) by_name_[name].push_back(i);
      } else if (rules[i].op_types) {
        for (const std::string& type : *rules[i].op_types) by_type_[type].push_back(i);
      } else {
        everywhere_.push_back(i);
      }
    }
  }

  // The index of the winning rule for a layer under one of its names; -1: none. Called once per
  // name.
  absl::StatusOr<int> Match(const std::string& name, const Layer& layer) {
    int winner = MatchType(layer);
    std::vector<int> named;
    if (auto status = patterns_.Match(name, named); !status.ok()) return status;
    if (const auto found = by_name_.find(name); found != by_name_.end()) {
      named.insert(named.end(), found->second.begin(), found->second.end());
    }
    for (const int i : named) {
      if (rules_[i].op_types && !IsOfType(layer, *rules_[i].op_types)) continue;
      rules_[i].matches = true;
      winner = std::max(winner, i);
    }
    return winner;
  }

  // Records, for the warnings, that no rule won the layer.
  void Unmatched(const Layer& layer) {
    for (int i : everywhere_) {
      if (!LeavesOut(rules_[i], layer) || !LeavesVectorOut(layer)) continue;
      if (rules_[i].skipped++ == 0) rules_[i].first_skipped = layer.name;
    }
  }

 private:
  bool LeavesOut(const Rule& rule, const Layer& layer) const {
    return !rule.filters() && !rule.exclude && (layer.needs_filter || LeavesVectorOut(layer));
  }
  bool LeavesVectorOut(const Layer& layer) const {
    return unfiltered_ == Unfiltered::kMatrices && IsVector(layer);
  }
  static bool IsVector(const Layer& layer) { return layer.shape.size() < 2; }
  static bool IsOfType(const Layer& layer, const absl::flat_hash_set<std::string>& types) {
    return types.contains(layer.op_type) ||
           std::any_of(layer.op_type_bases.begin(), layer.op_type_bases.end(),
                       [&types](const std::string& base) { return types.contains(base); });
  }

  // The winner among rules without names: the same for all layers of a type that rules without
  // filters leave out, and for all others of it.
  int MatchType(const Layer& layer) {
    // No name of a type has a control character.
    std::string types = absl::StrCat(layer.op_type, "\n", absl::StrJoin(layer.op_type_bases, "\n"));
    const auto [known, fresh] = type_winners_.try_emplace(
        {std::move(types), LeavesVectorOut(layer) || layer.needs_filter}, -1);
    if (!fresh) return known->second;
    const auto match = [&, &winner = known->second](const std::vector<int>& candidates) {
      for (const int i : candidates) {
        if (LeavesOut(rules_[i], layer)) continue;
        rules_[i].matches = true;
        winner = std::max(winner, i);
      }
    };
    const auto match_type = [&](const std::string& type) {
      if (const auto found = by_type_.find(type); found != by_type_.end()) match(found->second);
    };
    match_type(layer.op_type);
    for (const std::string& base : layer.op_type_bases) match_type(base);
    match(everywhere_);
    return known->second;
  }

  std::vector<Rule>& rules_;
  NamePatterns& patterns_;
  const Unfiltered unfiltered_;
  absl::flat_hash_map<std::string, std::vector<int>> by_name_;
  absl::flat_hash_map<std::string, std::vector<int>> by_type_;
  absl::flat_hash_map<std::pair<std::string, bool>, int> type_winners_;
  std::vector<int> everywhere_;
};

// Ids of what rules do to a layer: equal for equal effects.
class Effects {
 public:
  explicit Effects(const std::vector<Rule>& rules) : rules_(rules), known_(rules.size(), -1) {}

  int Of(int rule) {
    if (known_[rule] < 0) {
      const std::string text =
          rules_[rule].exclude ? "" : rules_[rule].options->json().dump(-1, ' ', false, kReplace);
      known_[rule] = numbers_.try_emplace(text, static_cast<int>(numbers_.size())).first->second;
    }
    return known_[rule];
  }

 private:
  static constexpr auto kReplace = json::error_handler_t::replace;

  const std::vector<Rule>& rules_;
  std::vector<int> known_;
  absl::flat_hash_map<std::string, int> numbers_;
};

// The winning rule over all names of a weight; -1: none.
absl::StatusOr<int> MatchLayer(const Layer& layer, Matcher& matcher, Effects& effects) {
  const auto first = matcher.Match(layer.name, layer);
  if (!first.ok()) return first.status();
  int winner = *first;
  const std::string* winner_name = &layer.name;
  for (const std::string& alias : layer.aliases) {
    const auto match = matcher.Match(alias, layer);
    if (!match.ok()) return match.status();
    const int other = *match;
    if (other < 0 || other == winner) continue;
    if (winner >= 0 && effects.Of(winner) != effects.Of(other)) {
      return absl::InvalidArgumentError(
          absl::StrCat(RulePath(winner), " applies to ", Quoted(*winner_name), " and ",
                       RulePath(other), " to ", Quoted(alias),
                       "; they are names of one weight and must get the same options, so a rule "
                       "that names one must name all of them"));
    }
    if (other > winner) {
      winner = other;
      winner_name = &alias;
    }
  }
  return winner;
}

// Keys of magnitudes are comparable only then.
bool HaveOneDtype(const std::vector<int>& indices, absl::Span<const Layer> layers) {
  return std::all_of(indices.begin(), indices.end(),
                     [&](int i) { return layers[i].dtype == layers[indices.front()].dtype; });
}

// Checks that the rule's layers have the statistics that it wants.
absl::Status CheckStatistics(const PlannedRule& rule, absl::Span<const Layer> layers) {
  std::set<StatisticKind> kinds;
  for (const StatisticKind kind : rule.traits().statistics) {
    const bool known = FindStatistic(static_cast<int>(kind)) != nullptr;
    if (known && kinds.insert(kind).second) continue;
    return absl::InternalError(absl::StrCat("the algorithm declares the statistic ",
                                            static_cast<int>(kind),
                                            known ? " twice" : ", which is unknown"));
  }
  for (const int i : rule.layers) {
    for (const StatisticInfo* info : rule.StatisticsOf(layers[i])) {
      const auto shape = PlannedShape(*info, layers[i]);
      if (!shape.ok()) return shape.status();
      if (shape->empty()) continue;  // a histogram, of any number of bins
      if (const auto elements = CountElements(*shape); !elements.ok()) {
        return absl::InvalidArgumentError(absl::StrCat(
            info->name, " of layer ", Quoted(layers[i].name), ": ", elements.status().message()));
      }
    }
  }
  return absl::OkStatus();
}

// Takes the layers of groups that keep all filters out of `won`, the layers of each rule, and adds
// warnings. INVALID_ARGUMENT for a group whose layers several rules compress, or one that does not
// prune filters.
absl::Status ApplyGroups(const AlgorithmInfo& algorithm, const std::vector<Rule>& rules,
                         absl::Span<const Layer> layers, std::vector<LayerPlan>& plans,
                         std::vector<std::vector<int>>& won, std::vector<std::string>& warnings) {
  std::map<int, std::vector<int>> groups;  // layers, by the index of their group
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].group) groups[layers[i].group->index].push_back(static_cast<int>(i));
  }
  for (const auto& [group, members] : groups) {
    const std::string path = absl::StrCat("filter_groups[", group, "]");
    const auto compressed = [&](int i) {
      return plans[i].rule && !rules[*plans[i].rule].exclude && plans[i].left_out.empty();
    };
    const auto with = std::find_if(members.begin(), members.end(), compressed);
    if (with == members.end()) continue;
    const int rule = *plans[*with].rule;
    if (!rules[rule].compressor->traits().takes_groups) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " has layer ", Quoted(layers[*with].name), ", to which ",
                       RulePath(rule), " applies, where ", algorithm.name,
                       " prunes no filters; groups are for algorithms and options that do"));
    }
    const auto without = std::find_if_not(members.begin(), members.end(), compressed);
    if (without != members.end()) {
      for (const int i : members) {
        if (compressed(i)) plans[i].left_out = absl::StrCat(path, " keeps all its filters");
      }
      if (warnings.size() >= kMaxWarnings) continue;
      warnings.push_back(
          absl::StrCat("filter_groups[", group, "] keeps all its filters, among them those of ",
                       Quoted(layers[*with].name), ": config_list does not compress ",
                       Quoted(layers[*without].name), ", whose filters go with them"));
      continue;
    }
    for (const int i : members) {
      if (*plans[i].rule == rule) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          RulePath(rule), " applies to ", Quoted(layers[*with].name), " and ",
          RulePath(*plans[i].rule), " to ", Quoted(layers[i].name), ", whose filters go together (",
          "filter_groups[", group, "]); one rule must apply to all layers of a group"));
    }
  }
  for (std::vector<int>& own : won) {
    own.erase(
        std::remove_if(own.begin(), own.end(), [&](int i) { return !plans[i].left_out.empty(); }),
        own.end());
  }
  return absl::OkStatus();
}

absl::Status CheckLayers(const AlgorithmInfo& algorithm, const Rule& rule,
                         const std::vector<int>& won, absl::Span<const Layer> layers) {
  if (!algorithm.check_layers) return absl::OkStatus();
  std::vector<const Layer*> chosen;
  chosen.reserve(won.size());
  for (const int i : won) chosen.push_back(&layers[i]);
  return algorithm.check_layers(*rule.options, chosen);
}

std::vector<std::string> Warnings(const std::vector<Rule>& rules, const NamePatterns& patterns,
                                  absl::Span<const Layer> layers) {
  absl::flat_hash_set<absl::string_view> known;
  absl::flat_hash_set<absl::string_view> known_types;
  std::vector<std::string> names;  // the first ones, for suggestions
  std::vector<std::string> types;
  const auto add = [](const std::string& name, auto& all, std::vector<std::string>& first) {
    if (all.insert(name).second && first.size() < kMaxSuggestions) first.push_back(name);
  };
  for (const Layer& layer : layers) {
    add(layer.name, known, names);
    for (const std::string& alias : layer.aliases) add(alias, known, names);
    add(layer.op_type, known_types, types);
    for (const std::string& base : layer.op_type_bases) add(base, known_types, types);
  }
  std::vector<std::string> warnings;
  const auto warn_of_unknown = [&](const std::string& path, const std::vector<std::string>& given,
                                   const absl::flat_hash_set<absl::string_view>& all,
                                   absl::string_view lack,
                                   const std::vector<std::string>& similar) {
    for (const std::string& name : given) {
      if (warnings.size() >= kMaxWarnings) return;
      if (all.contains(name)) continue;
      warnings.push_back(
          absl::StrCat(path, " names ", Quoted(name), lack, Suggestion(name, similar)));
    }
  };
  for (int i = 0; i < static_cast<int>(rules.size()) && warnings.size() < kMaxWarnings; ++i) {
    if (!rules[i].matches) {
      warnings.push_back(absl::StrCat(RulePath(i), " matches no layer"));
    } else if (!rules[i].wins) {
      warnings.push_back(absl::StrCat(
          RulePath(i), " has no effect: later rules win for every layer that it matches"));
    }
    if (rules[i].unfit > 0 && warnings.size() < kMaxWarnings) {
      warnings.push_back(absl::StrCat(
          RulePath(i), " leaves ", rules[i].unfit,
          rules[i].unfit == 1 ? " layer out, " : " layers out, such as ", rules[i].first_unfit));
    }
    if (rules[i].skipped > 0 && warnings.size() < kMaxWarnings) {
      warnings.push_back(absl::StrCat(
          RulePath(i), " has neither op_types nor op_names and leaves ", rules[i].skipped,
          rules[i].skipped == 1 ? " weight" : " weights", " of one dimension out, ",
          rules[i].skipped == 1 ? "" : "such as ", Quoted(rules[i].first_skipped),
          ": such weights, like the scales of norms, are compressed only when a rule names their "
          "type or name"));
    }
    warn_of_unknown(RulePath(i) + ".op_types", rules[i].named_types, known_types,
                    ", which is the type of no layer", types);
    if (!rules[i].op_names) continue;
    warn_of_unknown(RulePath(i) + ".op_names", *rules[i].op_names, known,
                    ", which the model does not have", names);
  }
  for (const std::string& pattern : patterns.Unmatched()) {
    if (warnings.size() >= kMaxWarnings) break;
    warnings.push_back(pattern + ", which matches the name of no layer");
  }
  return warnings;
}

}  // namespace

std::vector<const StatisticInfo*> PlannedRule::StatisticsOf(const Layer& layer) const {
  std::vector<const StatisticInfo*> statistics;
  if (layer.shape.size() == 1 && !traits().statistics_of_vectors) return statistics;
  for (const StatisticKind kind : traits().statistics) {
    statistics.push_back(FindStatistic(static_cast<int>(kind)));
  }
  return statistics;
}

absl::StatusOr<std::vector<std::string>> DefaultOpTypes(absl::string_view framework) {
  if (framework == "pytorch") {
    return std::vector<std::string>{
        "Conv1d", "Conv2d",   "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d",
        "Linear", "Bilinear", "PReLU",  "Embedding",       "EmbeddingBag"};
  }
  if (framework == "tensorflow") {
    return std::vector<std::string>{"Conv2D", "Conv3D", "DepthwiseConv2dNative", "MatMul"};
  }
  if (framework == "keras") {
    return std::vector<std::string>{"Conv1D",          "Conv2D",          "Conv3D",
                                    "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose",
                                    "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D",
                                    "Dense",           "Embedding"};
  }
  if (framework == "generic") return std::vector<std::string>{"weight"};
  return absl::InvalidArgumentError(absl::StrCat(
      "framework is ", Quoted(framework), "; it must be one of pytorch, tensorflow, keras, generic",
      Suggestion(framework, {"pytorch", "tensorflow", "keras", "generic"})));
}

absl::StatusOr<Plan> MakePlan(const AlgorithmInfo& algorithm, absl::Span<const json> config_list,
                              absl::string_view framework, absl::Span<const Layer> layers,
                              Unfiltered unfiltered, const std::function<bool()>& cancelled) {
  const auto stopped = [&] { return cancelled != nullptr && cancelled(); };
  if (config_list.empty() || config_list.size() > kMaxRules) {
    return absl::InvalidArgumentError(absl::StrCat("config_list has ", config_list.size(),
                                                   " rules; it must have 1 to ", kMaxRules));
  }
  auto default_types = DefaultOpTypes(framework);
  if (!default_types.ok()) return default_types.status();
  std::vector<Rule> rules;
  NamePatterns patterns;
  for (size_t i = 0; i < config_list.size(); ++i) {
    if (stopped()) return absl::CancelledError("cancelled");
    auto rule = ReadRule(algorithm, config_list[i], static_cast<int>(i), framework, *default_types,
                         patterns);
    if (!rule.ok()) return rule.status();
    rules.push_back(*std::move(rule));
  }

  if (auto status = patterns.Compile(); !status.ok()) return status;

  Plan plan;
  plan.layers.resize(layers.size());
  Matcher matcher(rules, patterns, unfiltered);
  Effects effects(rules);
  size_t matched = 0;  // bytes of names since the last poll
  for (size_t i = 0; i < layers.size(); ++i) {
    matched += layers[i].name.size();
    for (const std::string& alias : layers[i].aliases) matched += alias.size();
    if (i % kLayersBetweenPolls == 0 || matched >= kBytesBetweenPolls) {
      matched = 0;
      if (stopped()) return absl::CancelledError("cancelled");
    }
    auto winner = MatchLayer(layers[i], matcher, effects);
    if (!winner.ok()) return winner.status();
    if (*winner < 0) {
      matcher.Unmatched(layers[i]);
      continue;
    }
    Rule& rule = rules[*winner];
    rule.wins = true;
    plan.layers[i].rule = *winner;
    if (rule.exclude) continue;
    if (algorithm.leaves_out) {
      std::string why = algorithm.leaves_out(*rule.options, layers[i]);
      if (!why.empty() && rule.op_names) {
        return absl::InvalidArgumentError(absl::StrCat(RulePath(*winner), " names layer ",
                                                       Quoted(layers[i].name), ", which ",
                                                       algorithm.name, " cannot prune: ", why));
      }
      if (!why.empty()) {
        if (rule.unfit++ == 0) {
          rule.first_unfit = absl::StrCat(Quoted(layers[i].name), ": ", why);
        }
        plan.layers[i].left_out = std::move(why);
        continue;
      }
    }
    if (!algorithm.check_layer) continue;
    if (auto status = algorithm.check_layer(*rule.options, layers[i]); !status.ok()) return status;
  }

  std::vector<std::vector<int>> won(rules.size());
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const LayerPlan& layer = plan.layers[i];
    if (layer.rule && layer.left_out.empty()) won[*layer.rule].push_back(static_cast<int>(i));
  }
  std::vector<std::string> kept;
  if (auto s = ApplyGroups(algorithm, rules, layers, plan.layers, won, kept); !s.ok()) return s;
  for (int i = 0; i < static_cast<int>(rules.size()); ++i) {
    if (rules[i].exclude || won[i].empty()) continue;
    if (auto status = CheckLayers(algorithm, rules[i], won[i], layers); !status.ok()) return status;
    const Traits& traits = rules[i].compressor->traits();
    plan.needs_epoch |= traits.needs_epoch;
    plan.needs_step |= traits.needs_step || !traits.observes.empty();
    auto planned =
        std::make_unique<PlannedRule>(i, *std::move(rules[i].options), rules[i].compressor);
    planned->joint = traits.joint || (traits.takes_groups &&
                                      std::any_of(won[i].begin(), won[i].end(), [&](int layer) {
                                        return layers[layer].group != nullptr;
                                      }));
    planned->takes_counts =
        traits.takes_counts && (!planned->joint || HaveOneDtype(won[i], layers));
    planned->layers = std::move(won[i]);
    if (auto status = CheckStatistics(*planned, layers); !status.ok()) return status;
    for (const int layer : planned->layers) plan.layers[layer].planned = planned.get();
    plan.rules.push_back(std::move(planned));
  }
  plan.warnings = Warnings(rules, patterns, layers);
  for (std::string& warning : kept) {
    if (plan.warnings.size() < kMaxWarnings) plan.warnings.push_back(std::move(warning));
  }
  return plan;
}

}  // namespace nni_compression::compression
