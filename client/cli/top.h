// compressionctl top: the activity of sessions.
#ifndef NNI_COMPRESSION_CLIENT_CLI_TOP_H_
#define NNI_COMPRESSION_CLIENT_CLI_TOP_H_

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "nni_compression/client.h"

namespace nni_compression::cli {

// A session and its activity per second.
struct TopRow {
  v1::Session session;
  double received = 0;  // bytes
  double sent = 0;
  double compute = 0;  // thread seconds: 1 is one thread all the time
};

// The live sessions at one moment. Only Query calls the server; thread-compatible.
class Top {
 public:
  // With rates since `before`; for sessions that are not in it, and without it, since they were
  // bound. The busiest are first: those that compute most, then those that transfer most bytes.
  Top(std::vector<v1::Session> sessions, absl::Time time, const Top* before = nullptr);

  static absl::StatusOr<Top> Query(const Client& client,
                                   const std::map<std::string, std::string>& labels,
                                   const Top* before = nullptr);

  const std::vector<TopRow>& rows() const { return rows_; }

  // The totals, and a line for each of the first `max_rows` sessions.
  std::string ToText(const std::string& server, size_t max_rows) const;
  nlohmann::json ToJson(const std::string& server) const;

 private:
  TopRow Sum() const;

  absl::Time time_;
  std::vector<TopRow> rows_;
};

}  // namespace nni_compression::cli

#endif  // NNI_COMPRESSION_CLIENT_CLI_TOP_H_
