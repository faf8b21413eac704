#include "client/cli/experiment.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/time/time.h"
#include "client/cli/format.h"
#include "client/cli/report.h"

namespace nni_compression::cli {

extern const std::string_view kExperimentHtml;  // experiment.html, embedded by the build

namespace {

constexpr std::string_view kExperimentPlace = "@EXPERIMENT@";
constexpr char kSparsity[] = "sparsity";

std::optional<double> NumberOf(const v1::Session& session, const std::string& name) {
  const auto it = session.results().find(name);
  if (it != session.results().end()) return it->second;
  if (name == kSparsity && session.has_achieved_sparsity()) return session.achieved_sparsity();
  return std::nullopt;
}

absl::Status CheckKnown(const std::vector<v1::Session>& sessions, const Objective& objective) {
  std::set<std::string> names;
  for (const v1::Session& session : sessions) {
    if (NumberOf(session, objective.name)) return absl::OkStatus();
    if (session.has_achieved_sparsity()) names.insert(kSparsity);
    for (const auto& [name, value] : session.results()) names.insert(name);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no session has the number '", objective.name, "'; ",
      names.empty()
          ? "they have none: trials report theirs with session.report(accuracy=...)"
          : absl::StrCat("they have ", absl::StrJoin(names, ", "), "; --x and --y choose two")));
}

double Value(const std::optional<double>& number, const Objective& objective) {
  return objective.minimize ? -*number : *number;
}

std::string TimeText(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(time.seconds()),
                          absl::UTCTimeZone());
}

nlohmann::json ConfigListOf(const v1::Session& session) {
  nlohmann::json rules = nlohmann::json::array();
  for (const google::protobuf::Struct& rule : session.config_list()) {
    rules.push_back(nlohmann::json::parse(ToJson(rule)));
  }
  return rules;
}

nlohmann::json JsonOf(const Objective& objective) {
  return {{"name", objective.name}, {"minimize", objective.minimize}};
}

}  // namespace

absl::StatusOr<Experiment> Experiment::Of(const std::vector<v1::Session>& sessions, Objective x,
                                          Objective y) {
  if (sessions.empty()) {
    return absl::NotFoundError(
        "no session has these labels; the server forgets ended sessions after its "
        "--report_retention");
  }
  for (const Objective& objective : {x, y}) {
    if (absl::Status known = CheckKnown(sessions, objective); !known.ok()) return known;
  }
  Experiment experiment(std::move(x), std::move(y));
  for (const v1::Session& session : sessions) {
    experiment.trials_.push_back(
        {session, NumberOf(session, experiment.x_.name), NumberOf(session, experiment.y_.name)});
  }
  experiment.FindFront();
  return experiment;
}

void Experiment::FindFront() {
  struct Point {
    double x, y;
    size_t trial;
  };
  std::vector<Point> points;
  for (size_t i = 0; i < trials_.size(); ++i) {
    const Trial& trial = trials_[i];
    if (trial.x && trial.y) points.push_back({Value(trial.x, x_), Value(trial.y, y_), i});
  }
  if (points.empty()) return;
  // The best x first, of equal ones the best y: those before a point are at least as good in x.
  std::sort(points.begin(), points.end(),
            [](const Point& a, const Point& b) { return a.x != b.x ? a.x > b.x : a.y > b.y; });
  const auto [worst, best] = std::minmax_element(
      points.begin(), points.end(), [](const Point& a, const Point& b) { return a.y < b.y; });
  const auto scaled = [](double value, double low, double high) {
    return high > low ? (value - low) / (high - low) : 0;
  };
  double most = -1;
  const Point* last = nullptr;  // on the front
  for (const Point& point : points) {
    const bool equal = last != nullptr && point.x == last->x && point.y == last->y;
    if (last != nullptr && point.y <= last->y && !equal) continue;
    trials_[point.trial].on_front = true;
    last = &point;
    const double sum =
        scaled(point.x, points.back().x, points.front().x) + scaled(point.y, worst->y, best->y);
    if (sum > most) {
      most = sum;
      chosen_ = point.trial;
    }
  }
}

std::vector<const Trial*> Experiment::Front() const {
  std::vector<const Trial*> front;
  for (const Trial& trial : trials_) {
    if (trial.on_front) front.push_back(&trial);
  }
  std::stable_sort(front.begin(), front.end(), [this](const Trial* a, const Trial* b) {
    return Value(a->y, y_) > Value(b->y, y_);
  });
  return front;
}

std::string Experiment::ToText() const {
  const std::vector<const Trial*> front = Front();
  Table table({"SESSION", x_.name, y_.name, "CHOSEN", "LABELS"});
  for (const Trial* trial : front) {
    const bool chosen = chosen_ && trial == &trials_[*chosen_];
    table.Add({trial->session.id(), absl::StrCat(*trial->x), absl::StrCat(*trial->y),
               chosen ? "*" : "", LabelsText(trial->session)});
  }
  return absl::StrCat(trials_.size(), " trials, ", front.size(), " on the Pareto front\n",
                      table.ToString());
}

nlohmann::json Experiment::ToJson() const {
  nlohmann::json json = {{"x", JsonOf(x_)}, {"y", JsonOf(y_)}};
  json["chosen"] = nullptr;
  if (chosen_) json["chosen"] = trials_[*chosen_].session.id();
  nlohmann::json& trials = json["trials"] = nlohmann::json::array();
  for (const Trial& trial : trials_) {
    const v1::Session& session = trial.session;
    nlohmann::json one = {{"session", session.id()},
                          {"algorithm", session.algorithm()},
                          {"state", StateName(session.state())},
                          {"created", TimeText(session.create_time())},
                          {"on_front", trial.on_front}};
    one["x"] = nullptr;
    one["y"] = nullptr;
    if (trial.x) one["x"] = *trial.x;
    if (trial.y) one["y"] = *trial.y;
    one["labels"] =
        std::map<std::string, std::string>(session.labels().begin(), session.labels().end());
    one["results"] =
        std::map<std::string, double>(session.results().begin(), session.results().end());
    one["config_list"] = nullptr;
    if (session.config_list_size() > 0) one["config_list"] = ConfigListOf(session);
    trials.push_back(std::move(one));
  }
  return json;
}

std::string Experiment::ToHtml(const std::map<std::string, std::string>& labels) const {
  nlohmann::json json = ToJson();
  json["labels"] = labels;
  std::string data = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  absl::StrReplaceAll({{"<", "\\u003c"}}, &data);  // nothing in it ends the element
  const size_t place = kExperimentHtml.find(kExperimentPlace);
  const std::string_view before = kExperimentHtml.substr(0, place);
  const std::string_view after = kExperimentHtml.substr(place + kExperimentPlace.size());
  return absl::StrCat(absl::string_view(before.data(), before.size()), data,
                      absl::string_view(after.data(), after.size()));
}

}  // namespace nni_compression::cli
