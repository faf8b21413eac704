#include "client/cli/report.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "client/cli/format.h"

namespace nni_compression::cli {
namespace {

std::string Lease(const v1::Session& session) {
  if (!session.has_lease()) return "-";
  return FormatSeconds(absl::Seconds(session.lease().seconds()));
}

bool HasEnded(const v1::Session& session) { return session.state() != v1::SESSION_STATE_ACTIVE; }

// Of its end, for a session that has ended.
std::string LastCallTime(const v1::Session& session) {
  return absl::FormatTime(absl::FromUnixSeconds(session.last_call_time().seconds()));
}

std::string ResultsText(const v1::Session& session) {
  const std::map<std::string, double> sorted(session.results().begin(), session.results().end());
  return absl::StrJoin(sorted, ",", absl::PairFormatter("="));
}

// Since the session's last call, by this machine's clock.
std::string Idle(const v1::Session& session) {
  if (HasEnded(session)) return "-";
  const absl::Duration idle =
      absl::Now() - absl::FromUnixSeconds(session.last_call_time().seconds());
  return FormatSeconds(std::max(idle, absl::ZeroDuration()));
}

std::string Share(bool has, double share) { return has ? FormatShare(share) : "-"; }

// Nothing without statistics.
std::string StatisticsText(const v1::Session& session) {
  Table table({"LAYER", "STATISTIC", "SOURCES", "SEQUENCE", "SAMPLES", "MEMORY"});
  bool any = false;
  for (const v1::LayerReport& layer : session.layers()) {
    for (const v1::StatisticReport& statistic : layer.statistics()) {
      any = true;
      uint64_t samples = 0;
      uint64_t sequence = 0;
      for (const v1::StatisticReport::Source& source : statistic.sources()) {
        samples += source.count();
        sequence = std::max<uint64_t>(sequence, source.sequence());
      }
      table.Add({layer.name(), StatisticName(statistic.kind()),
                 absl::StrCat(statistic.sources_size()), absl::StrCat(sequence),
                 absl::StrCat(samples), FormatBytes(static_cast<int64_t>(statistic.bytes()))});
    }
  }
  return any ? absl::StrCat("\n", table.ToString()) : "";
}

std::string LayersText(const v1::Session& session) {
  Table table({"LAYER", "TYPE", "ELEMENTS", "RULE", "TARGET", "ACHIEVED", "BITS", "STATE"});
  for (const v1::LayerReport& layer : session.layers()) {
    table.Add({layer.name(), layer.op_type(), absl::StrCat(layer.elements()),
               layer.has_rule() ? absl::StrCat(layer.rule()) : "-",
               Share(layer.has_target_sparsity(), layer.target_sparsity()),
               Share(layer.has_achieved_sparsity(), layer.achieved_sparsity()),
               layer.has_bits() ? absl::StrCat(layer.bits()) : "-",
               !layer.compressed() ? "not compressed"
               : layer.stale()     ? "stale"
                                   : "up to date"});
  }
  return table.ToString();
}

}  // namespace

std::string StatisticName(v1::StatisticKind kind) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::StatisticKind_Name(kind), "STATISTIC_KIND_"));
}

std::string StateName(v1::SessionState state) {
  const std::string name = v1::SessionState_Name(state);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "SESSION_STATE_"));
}

std::string LabelsText(const v1::Session& session) {
  const std::map<std::string, std::string> sorted(session.labels().begin(), session.labels().end());
  return absl::StrJoin(sorted, ",", absl::PairFormatter("="));
}

std::string ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  return status.ok() ? json : "{}";
}

std::string AlgorithmsText(const v1::ListAlgorithmsResponse& response) {
  std::string text;
  for (const v1::Algorithm& algorithm : response.algorithms()) {
    const std::string kind = algorithm.kind() == v1::ALGORITHM_KIND_PRUNER ? "pruner" : "quantizer";
    absl::StrAppend(&text, Printable(algorithm.name()), "  (", kind, ")  ",
                    Printable(algorithm.summary()), "\n");
    if (!algorithm.source().empty()) {
      absl::StrAppend(&text, "  of ", Printable(algorithm.source()), "\n");
    }
    if (!algorithm.refusal().empty()) {
      absl::StrAppend(&text, "  refused: ", Printable(algorithm.refusal()), "\n");
    }
    Table table({"  OPTION", "TYPE", "DEFAULT", "RANGE", "MEANING"});
    for (const v1::AlgorithmOption& option : algorithm.options()) {
      std::string name = "  " + option.name();
      if (!option.aliases().empty()) {
        absl::StrAppend(&name, " (", absl::StrJoin(option.aliases(), ", "), ")");
      }
      table.Add({name, option.type(),
                 option.required() ? "required" : ToJson(option.default_value()), option.range(),
                 option.only_with().empty()
                     ? option.description()
                     : absl::StrCat(option.description(), " (", option.only_with(), ")")});
    }
    if (!algorithm.options().empty()) absl::StrAppend(&text, table.ToString());
    absl::StrAppend(&text, "  example: ", ToJson(algorithm.example()), "\n\n");
  }
  absl::StrAppend(&text, "server version ", Printable(response.server_version()), "\n");
  return text;
}

std::string SessionsText(const std::vector<v1::Session>& sessions) {
  std::vector<std::string> headings = {"SESSION", "STATE", "ALGORITHM", "FRAMEWORK",
                                       "EPOCH",   "STEP",  "LAYERS",    "SPARSITY",
                                       "MEMORY",  "IDLE",  "LEASE",     "LABELS"};
  // Only operators see the tenants.
  const bool tenants = !sessions.empty() && !sessions[0].tenant().empty();
  const bool ended = std::any_of(sessions.begin(), sessions.end(), HasEnded);
  const bool results = std::any_of(sessions.begin(), sessions.end(),
                                   [](const auto& session) { return !session.results().empty(); });
  if (ended) headings.push_back("ENDED");
  if (results) headings.push_back("RESULTS");
  if (tenants) headings.push_back("TENANT");
  Table table(headings);
  for (const v1::Session& session : sessions) {
    std::vector<std::string> cells = {
        session.id(),
        StateName(session.state()),
        session.algorithm(),
        session.framework(),
        absl::StrCat(session.epoch()),
        absl::StrCat(session.step()),
        absl::StrCat(session.compressed_layer_count(), "/", session.layer_count()),
        Share(session.has_achieved_sparsity(), session.achieved_sparsity()),
        FormatBytes(static_cast<int64_t>(session.state_bytes())),
        Idle(session),
        Lease(session),
        LabelsText(session)};
    if (ended) cells.push_back(HasEnded(session) ? LastCallTime(session) : "-");
    if (results) cells.push_back(ResultsText(session));
    if (tenants) cells.push_back(Printable(session.tenant()));
    table.Add(std::move(cells));
  }
  return table.ToString();
}

std::string SessionText(const v1::GetSessionResponse& response) {
  const v1::Session& session = response.session();
  const auto compute = absl::Seconds(session.compute_time().seconds()) +
                       absl::Nanoseconds(session.compute_time().nanos());
  const std::pair<const char*, std::string> rows[] = {
      {"session", session.id()},
      {"algorithm", session.algorithm()},
      {"framework", session.framework()},
      {"state", StateName(session.state())},
      {"labels", LabelsText(session)},
      {"created", absl::FormatTime(absl::FromUnixSeconds(session.create_time().seconds()))},
      {HasEnded(session) ? "ended" : "last call", LastCallTime(session)},
      {"lease left", Lease(session)},
      {"epoch", absl::StrCat(session.epoch())},
      {"step", absl::StrCat(session.step())},
      {"results", ResultsText(session)},
      {"sparsity", Share(session.has_achieved_sparsity(), session.achieved_sparsity())},
      {"memory", FormatBytes(static_cast<int64_t>(session.state_bytes()))},
      {"disk", FormatBytes(static_cast<int64_t>(session.disk_bytes()))},
      {"received", FormatBytes(static_cast<int64_t>(session.received_bytes()))},
      {"sent", FormatBytes(static_cast<int64_t>(session.sent_bytes()))},
      {"computed", FormatSeconds(compute)},
  };
  std::string text;
  for (const auto& [name, value] : rows) {
    absl::StrAppendFormat(&text, "%-12s %s\n", absl::StrCat(name, ":"), Printable(value));
  }
  for (const std::string& warning : response.plan().warnings()) {
    absl::StrAppend(&text, "warning: ", Printable(warning), "\n");
  }
  absl::StrAppend(&text, "\n", LayersText(session), StatisticsText(session));
  return text;
}

std::string ErrorText(const absl::Status& status) {
  return absl::StrCat("error: ", absl::StatusCodeToString(status.code()), ": ",
                      Printable(status.message()));
}

std::string ErrorJson(const absl::Status& status) {
  const nlohmann::json json = {{"error",
                                {{"code", absl::StatusCodeToString(status.code())},
                                 {"message", std::string(status.message())}}}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace nni_compression::cli
