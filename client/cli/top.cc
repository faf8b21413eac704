#include "client/cli/top.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/format.h"
#include "client/cli/report.h"

namespace nni_compression::cli {
namespace {

// Rates over a shorter time would be noise.
constexpr double kMinSeconds = 1e-3;

double ComputeSeconds(const v1::Session& session) {
  return static_cast<double>(session.compute_time().seconds()) +
         session.compute_time().nanos() * 1e-9;
}

std::string Rate(double bytes) { return FormatBytes(static_cast<int64_t>(bytes)) + "/s"; }

}  // namespace

Top::Top(std::vector<v1::Session> sessions, absl::Time time, const Top* before) : time_(time) {
  std::unordered_map<std::string, const v1::Session*> earlier;
  if (before != nullptr) {
    for (const TopRow& row : before->rows_) earlier[row.session.id()] = &row.session;
  }
  const v1::Session none;
  for (v1::Session& session : sessions) {
    const auto found = earlier.find(session.id());
    const v1::Session& from = found == earlier.end() ? none : *found->second;
    const absl::Time since = found == earlier.end()
                                 ? absl::FromUnixSeconds(session.create_time().seconds()) +
                                       absl::Nanoseconds(session.create_time().nanos())
                                 : before->time_;
    const double seconds = std::max(absl::ToDoubleSeconds(time - since), kMinSeconds);
    TopRow row;
    // A restarted server may have lost the latest counts.
    const auto rate = [&](double now, double then) { return std::max(now - then, 0.0) / seconds; };
    row.received = rate(static_cast<double>(session.received_bytes()),
                        static_cast<double>(from.received_bytes()));
    row.sent =
        rate(static_cast<double>(session.sent_bytes()), static_cast<double>(from.sent_bytes()));
    row.compute = rate(ComputeSeconds(session), ComputeSeconds(from));
    row.session = std::move(session);
    rows_.push_back(std::move(row));
  }
  std::stable_sort(rows_.begin(), rows_.end(), [](const TopRow& a, const TopRow& b) {
    return std::tuple(a.compute, a.received + a.sent) > std::tuple(b.compute, b.received + b.sent);
  });
}

absl::StatusOr<Top> Top::Query(const Client& client,
                               const std::map<std::string, std::string>& labels,
                               const Top* before) {
  auto sessions = client.ListSessions(labels);
  if (!sessions.ok()) return sessions.status();
  return Top(*std::move(sessions), absl::Now(), before);
}

TopRow Top::Sum() const {
  TopRow sum;
  for (const TopRow& row : rows_) {
    sum.session.set_state_bytes(sum.session.state_bytes() + row.session.state_bytes());
    sum.received += row.received;
    sum.sent += row.sent;
    sum.compute += row.compute;
  }
  return sum;
}

std::string Top::ToText(const std::string& server, size_t max_rows) const {
  const TopRow sum = Sum();
  std::string text =
      absl::StrFormat("%s  %s  %d sessions  memory %s  in %s  out %s  compute %.2f threads\n\n",
                      Printable(server), absl::FormatTime("%H:%M:%S", time_, absl::LocalTimeZone()),
                      rows_.size(), FormatBytes(static_cast<int64_t>(sum.session.state_bytes())),
                      Rate(sum.received), Rate(sum.sent), sum.compute);
  Table table(
      {"SESSION", "ALGORITHM", "EPOCH", "STEP", "MEMORY", "IN", "OUT", "COMPUTE", "LABELS"});
  for (size_t i = 0; i < std::min(rows_.size(), max_rows); ++i) {
    const TopRow& row = rows_[i];
    const v1::Session& session = row.session;
    table.Add({session.id(), session.algorithm(), absl::StrCat(session.epoch()),
               absl::StrCat(session.step()),
               FormatBytes(static_cast<int64_t>(session.state_bytes())), Rate(row.received),
               Rate(row.sent), absl::StrFormat("%.2f", row.compute), LabelsText(session)});
  }
  return text + table.ToString();
}

nlohmann::json Top::ToJson(const std::string& server) const {
  const auto figures = [](const TopRow& row) {
    return nlohmann::json{{"state_bytes", row.session.state_bytes()},
                          {"received_bytes_per_second", row.received},
                          {"sent_bytes_per_second", row.sent},
                          {"compute_threads", row.compute}};
  };
  nlohmann::json sessions = nlohmann::json::array();
  for (const TopRow& row : rows_) {
    nlohmann::json entry = figures(row);
    entry["id"] = row.session.id();
    entry["algorithm"] = row.session.algorithm();
    entry["epoch"] = row.session.epoch();
    entry["step"] = row.session.step();
    entry["labels"] = std::map<std::string, std::string>(row.session.labels().begin(),
                                                         row.session.labels().end());
    sessions.push_back(std::move(entry));
  }
  return {{"server", server}, {"total", figures(Sum())}, {"sessions", sessions}};
}

}  // namespace nni_compression::cli
