// NNI's config_list: which rule compresses which layer.
#ifndef NNI_COMPRESSION_COMPRESSION_SESSION_PLAN_H_
#define NNI_COMPRESSION_COMPRESSION_SESSION_PLAN_H_

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "compression/algorithms/algorithm.h"

namespace nni_compression::compression {

// The op types that "default" stands for. `framework`: "pytorch", "tensorflow" (graph), "keras" or
// "generic"; INVALID_ARGUMENT for another.
absl::StatusOr<std::vector<std::string>> DefaultOpTypes(absl::string_view framework);

// A rule that won for at least one layer.
struct PlannedRule {
  PlannedRule(int index, Options given, std::shared_ptr<const Compressor> created)
      : rule(index), options(std::move(given)), compressor(std::move(created)) {}

  int rule;  // index in the config_list
  Options options;
  std::shared_ptr<const Compressor> compressor;
  bool joint = false;         // Traits::joint, or takes_groups and a layer is in a group
  bool takes_counts = false;  // Traits::takes_counts, and joint layers have one dtype
  std::vector<int> layers;    // that it won, in the order of the model

  // The statistics that it wants of one of its layers.
  std::vector<const StatisticInfo*> StatisticsOf(const Layer& layer) const;

  const Traits& traits() const { return compressor->traits(); }
};

// The plan for one layer.
struct LayerPlan {
  std::string left_out;                  // why the rule does not compress it; empty otherwise
  std::optional<int> rule;               // index in the config_list of the rule that won
  const PlannedRule* planned = nullptr;  // null: not compressed (no rule, `exclude`, or the group)
};

struct Plan {
  std::vector<std::unique_ptr<const PlannedRule>> rules;  // by index
  std::vector<LayerPlan> layers;                          // as the layers given
  std::vector<std::string> warnings;                      // at most 100
  bool needs_epoch = false;
  bool needs_step = false;
};

// What a rule matches that filters neither by type nor by name and is not an `exclude`.
enum class Unfiltered {
  kEveryLayer,
  kMatrices,  // layers of two or more dimensions: the scales of norms have one
};

// Applies the rules to the layers. A rule is an object with the optional keys `op_types` (a list,
// or one string; "default" anywhere in it means DefaultOpTypes; a layer is also of the types in
// op_type_bases), `op_names` (likewise, without default; "re:..." is a pattern), `op_names_re`
// (patterns, see NamePatterns; a name in either list counts) and `exclude`, and the algorithm's
// options. A rule matches a layer when it does by type and by name, as far as it filters by them
// (any alias counts). The last rule that matches wins and stands alone: earlier ones add nothing to
// it.
//
// A dependency group (Layer::group) with a layer that no rule compresses is not compressed at all.
//
// Warnings: such a group, a rule that matches nothing, a rule that never wins, an op_name, op_type
// or pattern that no layer has, layers that a rule without filters leaves out. INVALID_ARGUMENT
// names the field, the value and the allowed range; an unknown key gets a suggestion. Every rule is
// validated, the losing ones too. Takes linear time, and returns CANCELLED soon after `cancelled`
// returns true.
absl::StatusOr<Plan> MakePlan(const AlgorithmInfo& algorithm,
                              absl::Span<const nlohmann::json> config_list,
                              absl::string_view framework, absl::Span<const Layer> layers,
                              Unfiltered unfiltered = Unfiltered::kEveryLayer,
                              const std::function<bool()>& cancelled = nullptr);

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_SESSION_PLAN_H_
