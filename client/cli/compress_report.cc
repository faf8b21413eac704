#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/compress.h"
#include "client/cli/format.h"

namespace nni_compression::cli {
namespace {

// Removed weights, and all weights, of the pruned layers.
struct Totals {
  double pruned = 0;
  double elements = 0;
};

Totals Sum(const CompressResult& result) {
  Totals totals;
  for (const LayerOutcome& layer : result.layers) {
    if (!layer.achieved_sparsity) continue;
    totals.pruned += *layer.achieved_sparsity * static_cast<double>(layer.elements);
    totals.elements += static_cast<double>(layer.elements);
  }
  return totals;
}

}  // namespace

nlohmann::json ToJson(const CompressResult& result) {
  nlohmann::json json = ToJson(result.exported);
  json["session_id"] = result.session_id;
  json["warnings"] = result.warnings;
  json["layers"] = nlohmann::json::array();
  json["coverage"] = ToJson(result.coverage);
  json["seconds"] = result.seconds;
  for (const LayerOutcome& layer : result.layers) {
    nlohmann::json entry = {
        {"name", layer.name}, {"shape", layer.shape}, {"elements", layer.elements}};
    if (!layer.status.ok()) {
      entry["error"] = {{"code", absl::StatusCodeToString(layer.status.code())},
                        {"message", std::string(layer.status.message())}};
    }
    if (layer.target_sparsity) entry["target_sparsity"] = *layer.target_sparsity;
    if (layer.achieved_sparsity) entry["achieved_sparsity"] = *layer.achieved_sparsity;
    if (layer.bits) entry["bits"] = *layer.bits;
    json["layers"].push_back(std::move(entry));
  }
  return json;
}

std::string ToText(const CompressResult& result) {
  std::string text;
  for (const std::string& warning : result.warnings) {
    absl::StrAppend(&text, "warning: ", Printable(warning), "\n");
  }
  const Totals totals = Sum(result);
  const bool pruned = totals.elements > 0;
  Table table(pruned ? std::vector<std::string>{"LAYER", "SHAPE", "TARGET", "ACHIEVED"}
                     : std::vector<std::string>{"LAYER", "SHAPE", "BITS"});
  for (const LayerOutcome& layer : result.layers) {
    if (!layer.status.ok()) continue;
    std::vector<std::string> row = {layer.name, FormatShape(layer.shape)};
    if (pruned) {
      row.push_back(FormatShare(*layer.target_sparsity));
      row.push_back(FormatShare(*layer.achieved_sparsity));
    } else {
      row.push_back(layer.bits ? absl::StrCat(*layer.bits) : "not quantized at this step");
    }
    table.Add(std::move(row));
  }
  absl::StrAppend(&text, table.ToString());
  if (pruned) {
    absl::StrAppend(&text, FormatShare(totals.pruned / totals.elements), " of ",
                    static_cast<int64_t>(totals.elements), " weights removed\n");
  }
  absl::StrAppend(&text, Printable(ToText(result.coverage)), "\n", FilesText(result.exported),
                  "sent ", FormatBytes(result.exported.sent_bytes), " in ",
                  FormatSeconds(absl::Seconds(result.seconds)), "\n");
  return text;
}

}  // namespace nni_compression::cli
