// grpc.health.v1, behind the same authenticator as all other services.
#ifndef NNI_COMPRESSION_SERVER_CALLS_HEALTH_SERVICE_H_
#define NNI_COMPRESSION_SERVER_CALLS_HEALTH_SERVICE_H_

#include <set>

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/base/mutex.h"
#include "server/calls/call_context.h"

namespace nni_compression::server {

// Answers for the server as a whole ("") and for the compression service. Thread-safe.
class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  // `gate` outlives the service.
  explicit HealthService(Gate* gate) : gate_(gate) {}

  // Reports NOT_SERVING from now on, to running watches as well.
  void StopServing();

  // Ends the watches, which would never end by themselves, and admits no new ones.
  void EndWatches();

 private:
  class Watcher;
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

  Gate* const gate_;
  Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = true;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<Watcher*> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_HEALTH_SERVICE_H_
