// What every call has, and the gate that it comes in by.
#ifndef NNI_COMPRESSION_SERVER_CALLS_CALL_CONTEXT_H_
#define NNI_COMPRESSION_SERVER_CALLS_CALL_CONTEXT_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"
#include "server/calls/call_metrics.h"
#include "server/limits/memory_account.h"
#include "server/limits/upload_meter.h"

namespace nni_compression::server {

class Gate;

// The metadata key by which a caller says what revision of its session it was told of, and the
// trailer that tells it.
inline constexpr char kRevisionKey[] = "nni-session-revision";

// What becomes of a call after Gate::Close, and whether it counts.
enum class CallKind {
  kCall,   // counted; UNAVAILABLE after Close, which waits for it
  kWatch,  // counted; let in even then, as it says that the gate is closed, and not waited for
  kProbe,  // not counted, as it is over at once; let in even then
};

// A call that was let in. The gate counts it until it is destroyed. Thread-safe: a call may be
// cancelled, and finish, on one thread while another finds out which session it is about.
class CallContext {
 public:
  ~CallContext();

  const Caller& caller() const { return caller_; }
  const std::string& tenant() const { return caller_.tenant; }
  const std::string& method() const { return method_; }
  grpc::ServerContextBase* grpc() const { return context_; }

  // What the call's memory is put on.
  MemoryShare memory_share() const { return {account_, caller_.quota.memory}; }

  // What its tensors are counted by.
  UploadShare upload_share() const { return {uploads_, caller_.quota.uploads}; }

  // For the log.
  void set_session(absl::string_view id) {
    MutexLock lock(&mutex_);
    session_.assign(id.data(), id.size());
  }

  // NOT_FOUND when the caller was told of a later revision of its session than the stored one: what
  // it knows of it is not there any more. INVALID_ARGUMENT for metadata that is no number.
  absl::Status CheckRevision(absl::string_view session, uint64_t stored) const;
  // For the trailer: the session is stored at this revision. Any thread.
  void ReachedRevision(uint64_t revision);

  // For the metrics: bytes of tensors. Any thread.
  void CountReceived(int64_t bytes) { metrics_->Received(bytes); }
  void CountSent(int64_t bytes) { metrics_->Sent(bytes); }

  // The status to finish the call with, its trailers being set. Counts the call, and logs it:
  // a failure always, a success at the level debug.
  grpc::Status Finish(const absl::Status& status);

 private:
  friend class Gate;
  CallContext(Gate* gate, CallKind kind, grpc::ServerContextBase* context, absl::string_view method,
              MethodMetrics* metrics)
      : gate_(gate), kind_(kind), context_(context), method_(method), metrics_(metrics) {}

  absl::Duration Count(absl::StatusCode code);  // how long it took
  std::string session() const {
    MutexLock lock(&mutex_);
    return session_;
  }

  Gate* const gate_;
  const CallKind kind_;
  grpc::ServerContextBase* const context_;
  const std::string method_;
  Caller caller_;
  std::shared_ptr<MemoryAccount> account_;
  std::shared_ptr<UploadMeter> uploads_;
  MethodMetrics* const metrics_;
  // Not the clock of leases, which may be set.
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  mutable Mutex mutex_;
  std::string session_ ABSL_GUARDED_BY(mutex_);
  uint64_t revision_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: nothing to tell
};

// Lets calls in. Thread-safe; outlives its calls.
class Gate {
 public:
  // `metrics` and `clock` outlive the gate.
  Gate(std::shared_ptr<Authenticator> authenticator, int max_calls, CallMetrics* metrics,
       const Clock* clock)
      : authenticator_(std::move(authenticator)),
        max_calls_(max_calls),
        metrics_(metrics),
        clock_(clock) {}

  // Asks the authenticator. RESOURCE_EXHAUSTED above max_calls and above the tenant's quota; a
  // refusal is counted. `method` is one of the server's.
  absl::StatusOr<std::unique_ptr<CallContext>> Admit(grpc::ServerContextBase* context,
                                                     absl::string_view method,
                                                     CallKind kind = CallKind::kCall);

  // What a tenant's memory is put on.
  std::shared_ptr<MemoryAccount> Account(const std::string& tenant);

  struct Use {
    int64_t calls = 0;
    int64_t memory = 0;   // bytes
    int64_t uploads = 0;  // in the last second
  };
  // Of every tenant that has called, or has an account.
  std::map<std::string, Use> Uses() const;

  // Lets no more calls in.
  void Close();

  bool open() const;
  int calls() const;  // that run, watches among them

  // Waits until no call is left that needs an open gate, or for `timeout`; says whether none is.
  bool WaitUntilEmpty(absl::Duration timeout);

 private:
  friend class CallContext;
  struct Tenant {
    explicit Tenant(const Clock* clock) : uploads(std::make_shared<UploadMeter>(clock)) {}

    int64_t calls = 0;
    std::shared_ptr<MemoryAccount> account = std::make_shared<MemoryAccount>();
    std::shared_ptr<UploadMeter> uploads;
  };

  Tenant& TenantOf(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return tenants_.try_emplace(name, clock_).first->second;
  }

  absl::Status Enter(const Caller& caller, CallKind kind);
  void Leave(const std::string& tenant, CallKind kind);

  const std::shared_ptr<Authenticator> authenticator_;
  const int max_calls_;
  CallMetrics* const metrics_;
  const Clock* const clock_;
  mutable Mutex mutex_;
  CondVar changed_;
  // They stay: there are no more than credentials.
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int watches_ ABSL_GUARDED_BY(mutex_) = 0;  // of these
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_CALL_CONTEXT_H_
