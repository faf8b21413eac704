// External algorithms (plugins and scripts): trusted not to be malicious, not trusted to be
// correct.
#ifndef NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_ALGORITHM_H_
#define NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_ALGORITHM_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"
#include "server/base/executor.h"
#include "server/base/mutex.h"
#include "server/base/timer_thread.h"
#include "server/external/external_threads.h"

namespace nni_compression::server {

// Runs the code of one external algorithm, on threads of its own and for a bounded time; an
// algorithm that exceeds it is disabled until the server is restarted. Thread-safe; shared by the
// compressors of its sessions.
class ExternalHost {
 public:
  ExternalHost(std::string name, absl::Duration timeout, TimerThread* timers,
               std::function<void(int)> prepare);

  // Runs `function`, which owns all that it uses, and waits for it. `what` is for messages: "layer
  // \"fc\"". INTERNAL for an exception, DEADLINE_EXCEEDED when it does not return in time,
  // FAILED_PRECONDITION when the algorithm is disabled, UNAVAILABLE when the server stops. Never
  // called on a transport thread.
  absl::Status Run(const std::string& what, std::function<absl::Status()> function);

  // Why the algorithm is disabled; empty: it is not.
  std::string refusal() const;

  // Ends all waits.
  void Stop() { threads_.Stop(); }

  const std::string& name() const { return name_; }

 private:
  void Refuse(const std::string& what);

  const std::string name_;
  const absl::Duration timeout_;
  ExternalThreads threads_;
  mutable Mutex mutex_;
  std::string refusal_ ABSL_GUARDED_BY(mutex_);
};

// The algorithms of a server: the built-in ones as they are, each external one behind a host. The
// compute executor never waits for external code: calls of sessions of an external algorithm run on
// an executor of that algorithm. Thread-safe after construction.
class ExternalAlgorithms {
 public:
  ExternalAlgorithms(const compression::Registry& all, absl::Duration timeout, TimerThread* timers,
                     const std::function<void(int)>& prepare);
  ~ExternalAlgorithms();

  const compression::Registry& registry() const { return registry_; }

  // The executor of an algorithm's sessions; null for built-in algorithms.
  Executor* ExecutorOf(absl::string_view algorithm) const;

  // As ExternalHost's; empty for built-in ones.
  std::string Refusal(absl::string_view algorithm) const;

  // Ends all waits for external code. Sessions then return UNAVAILABLE.
  void Stop();

  // Runs what is queued on the executors and joins their threads. After Stop.
  void Join();

 private:
  struct Entry {
    std::shared_ptr<ExternalHost> host;
    std::unique_ptr<Executor> executor;
  };

  compression::Registry registry_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_EXTERNAL_EXTERNAL_ALGORITHM_H_
