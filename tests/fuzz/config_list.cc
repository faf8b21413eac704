// A config_list as JSON: planned for some layers by every algorithm.
#include "compression/algorithms/registry.h"
#include "compression/session/plan.h"
#include "tests/fuzz/targets.h"

namespace nni_compression::fuzz {

using compression::Layer;
using nlohmann::json;

bool ConfigList(absl::Span<const uint8_t> input) {
  // The wire's parser refuses what is nested deeper.
  const auto shallow = [](int depth, json::parse_event_t, json&) { return depth <= 32; };
  const json rules = json::parse(input.begin(), input.end(), shallow, /*allow_exceptions=*/false);
  if (!rules.is_array()) return false;

  std::vector<Layer> layers(3);
  layers[0].name = "conv1";
  layers[0].op_type = "Conv2d";
  layers[0].shape = {4, 3, 2, 2};
  layers[0].elements = 48;
  layers[1].name = "fc";
  layers[1].op_type = "Linear";
  layers[1].shape = {5, 8};
  layers[1].elements = 40;
  layers[2].name = "norm";
  layers[2].op_type = "LayerNorm";
  layers[2].shape = {8};
  layers[2].elements = 8;

  const auto& list = rules.get_ref<const json::array_t&>();
  bool taken = false;
  for (const auto* algorithm : compression::Registry::Builtin().List()) {
    const auto plan = compression::MakePlan(*algorithm, list, "pytorch", layers);
    if (!plan.ok()) {
      FUZZ_CHECK(plan.status().code() == absl::StatusCode::kInvalidArgument);
      continue;
    }
    taken = true;
    FUZZ_CHECK(plan->layers.size() == layers.size());
    FUZZ_CHECK(plan->warnings.size() <= 100);
    for (const auto& layer : plan->layers) {
      FUZZ_CHECK(!layer.rule || (*layer.rule >= 0 && *layer.rule < int(list.size())));
      FUZZ_CHECK(!layer.planned || layer.planned->rule == layer.rule);
    }
  }
  return taken;
}

}  // namespace nni_compression::fuzz
