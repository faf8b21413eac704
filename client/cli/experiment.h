// The trials of an experiment, compared by two of their numbers.
#ifndef NNI_COMPRESSION_CLIENT_CLI_EXPERIMENT_H_
#define NNI_COMPRESSION_CLIENT_CLI_EXPERIMENT_H_

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::cli {

namespace v1 = ::nni::compression::v1;

// A result by which trials are compared. "sparsity", where it is not reported, is the one achieved.
struct Objective {
  std::string name;
  bool minimize = false;
};

// A session. Those that have both numbers are compared: one is on the Pareto front if no other one
// is at least as good in both and better in one.
struct Trial {
  v1::Session session;
  std::optional<double> x;
  std::optional<double> y;
  bool on_front = false;
};

// Thread-compatible.
class Experiment {
 public:
  // NOT_FOUND without sessions; INVALID_ARGUMENT, with the names that there are, when no session
  // has an objective's number.
  static absl::StatusOr<Experiment> Of(const std::vector<v1::Session>& sessions, Objective x,
                                       Objective y);

  // In the sessions' order. What is known of one later, such as its config_list, may be added.
  std::vector<Trial>& trials() { return trials_; }

  // The one on the front that is best in the sum of both numbers, each scaled to what lies between
  // the worst and the best of all trials; nullopt when no trial has both.
  std::optional<size_t> chosen() const { return chosen_; }

  // The front, the best y first.
  std::string ToText() const;
  nlohmann::json ToJson() const;

  // A page without external resources, with a plot, all trials, and the config_list of those on the
  // front. `labels` are those that all sessions have.
  std::string ToHtml(const std::map<std::string, std::string>& labels) const;

 private:
  Experiment(Objective x, Objective y) : x_(std::move(x)), y_(std::move(y)) {}
  void FindFront();
  std::vector<const Trial*> Front() const;

  Objective x_, y_;
  std::vector<Trial> trials_;
  std::optional<size_t> chosen_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_EXPERIMENT_H_
