// The context of a call, and the gate that admits calls.
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

// The trailer with the revision of the call's session, and the metadata key by which a caller
// repeats the latest one that it has seen.
inline constexpr char kRevisionKey[] = "nni-session-revision";

// Whether a call counts against the limits, and whether it is admitted after Gate::Close.
enum class CallKind {
  kCall,   // counted; UNAVAILABLE after Close, which waits for it
  kWatch,  // counted; admitted after Close, to report NOT_SERVING; Close does not wait for it
  kProbe,  // not counted, since it ends at once; admitted after Close
};

// An admitted call. The gate counts it until it is destroyed. Thread-safe: a call may be cancelled
// and finish on one thread while another one finds its session.
class CallContext {
 public:
  ~CallContext();

  const Caller& caller() const { return caller_; }
  const std::string& tenant() const { return caller_.tenant; }
  const std::string& method() const { return method_; }
  grpc::ServerContextBase* grpc() const { return context_; }

  // The quota that the call's memory is charged to.
  MemoryQuota memory_quota() const { return {account_, caller_.quota.memory}; }

  // The quota that its uploaded tensors are counted against.
  UploadQuota upload_quota() const { return {uploads_, caller_.quota.uploads}; }

  // For the log.
  void set_session(absl::string_view id) {
    MutexLock lock(&mutex_);
    session_.assign(id.data(), id.size());
  }

  // NOT_FOUND when the caller has seen a later revision of its session than the stored one: the
  // state that it knows is lost. INVALID_ARGUMENT for metadata that is not a number.
  absl::Status CheckRevision(absl::string_view session, uint64_t stored) const;
  // The session is stored at this revision; sets the trailer. Any thread.
  void ReachedRevision(uint64_t revision);

  // For the metrics: bytes of tensors. Any thread.
  void CountReceived(int64_t bytes) { metrics_->Received(bytes); }
  void CountSent(int64_t bytes) { metrics_->Sent(bytes); }

  // The status to finish the call with. Sets its trailers, counts the call and logs it: a failure
  // always, a success at the level debug.
  grpc::Status Finish(const absl::Status& status);

 private:
  friend class Gate;
  CallContext(Gate* gate, CallKind kind, grpc::ServerContextBase* context, absl::string_view method,
              MethodMetrics* metrics)
      : gate_(gate), kind_(kind), context_(context), method_(method), metrics_(metrics) {}

  absl::Duration Count(absl::StatusCode code);  // returns its duration
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
  // Not the clock of leases, which tests move.
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  mutable Mutex mutex_;
  std::string session_ ABSL_GUARDED_BY(mutex_);
  uint64_t revision_ ABSL_GUARDED_BY(mutex_) = 0;  // 0: none to send
};

// Admits calls. Thread-safe; outlives its calls.
class Gate {
 public:
  // `metrics` and `clock` outlive the gate.
  Gate(std::shared_ptr<Authenticator> authenticator, int max_calls, CallMetrics* metrics,
       const Clock* clock)
      : authenticator_(std::move(authenticator)),
        max_calls_(max_calls),
        metrics_(metrics),
        clock_(clock) {}

  // Authenticates the caller. RESOURCE_EXHAUSTED above max_calls and above the tenant's quota;
  // refused calls are counted. `method` is one of the server's.
  absl::StatusOr<std::unique_ptr<CallContext>> Admit(grpc::ServerContextBase* context,
                                                     absl::string_view method,
                                                     CallKind kind = CallKind::kCall);

  // The account that a tenant's memory is charged to.
  std::shared_ptr<MemoryAccount> Account(const std::string& tenant);

  struct Use {
    int64_t calls = 0;
    int64_t memory = 0;   // bytes
    int64_t uploads = 0;  // in the last second
  };
  // The usage of every tenant that has called or has an account.
  std::map<std::string, Use> Uses() const;

  // Admits no more calls.
  void Close();

  bool open() const;
  int calls() const;  // running ones, including watches

  // Waits up to `timeout` until only watches are left; returns whether that is so.
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
  // Never removed: there are no more of them than credentials.
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mutex_);
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int watches_ ABSL_GUARDED_BY(mutex_) = 0;  // of these
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_CALL_CONTEXT_H_
