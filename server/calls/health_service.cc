#include "server/calls/health_service.h"

#include <string>
#include <utility>

#include "server/base/errors.h"
#include "server/convert/grpc_status.h"

namespace nni_compression::server {

namespace health = ::grpc::health::v1;

using health::HealthCheckResponse;

namespace {

constexpr char kService[] = "nni.compression.v1.CompressionService";

bool IsKnown(const std::string& service) { return service.empty() || service == kService; }

}  // namespace

// One Watch call. Its methods are called with the service's mutex held, gRPC's reactions without.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* service, std::unique_ptr<CallContext> call, bool known)
      : service_(service), call_(std::move(call)), known_(known) {}

  // Starts the next write or finishes, if that is due and no write is running.
  void Advance(bool serving, bool ended) {
    if (finished_ || writing_) return;
    const Status status = !known_   ? HealthCheckResponse::SERVICE_UNKNOWN
                          : serving ? HealthCheckResponse::SERVING
                                    : HealthCheckResponse::NOT_SERVING;
    if (!cancelled_ && status != response_.status()) {
      response_.set_status(status);
      writing_ = true;
      StartWrite(&response_);
    } else if (cancelled_ || ended) {
      finished_ = true;
      Finish(call_->Finish(cancelled_ ? absl::CancelledError("cancelled")
                                      : absl::UnavailableError("the server is draining")));
    }
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&service_->mutex_);
    writing_ = false;
    if (!ok) cancelled_ = true;
    Advance(service_->serving_, service_->ended_);
  }

  void OnCancel() override {
    MutexLock lock(&service_->mutex_);
    cancelled_ = true;
    Advance(service_->serving_, service_->ended_);
  }

  void OnDone() override {
    {
      MutexLock lock(&service_->mutex_);
      service_->watchers_.erase(this);
    }
    delete this;
  }

 private:
  HealthService* const service_;
  const std::unique_ptr<CallContext> call_;
  const bool known_;
  HealthCheckResponse response_;  // the last one sent; UNKNOWN before
  bool writing_ = false;
  bool cancelled_ = false;
  bool finished_ = false;
};

void HealthService::StopServing() {
  MutexLock lock(&mutex_);
  serving_ = false;
  for (Watcher* watcher : watchers_) watcher->Advance(serving_, ended_);
}

void HealthService::EndWatches() {
  MutexLock lock(&mutex_);
  ended_ = true;
  for (Watcher* watcher : watchers_) watcher->Advance(serving_, ended_);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const health::HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const auto call = gate_->Admit(context, "grpc.health.v1.Health/Check", CallKind::kProbe);
  absl::Status status = call.status();
  if (status.ok() && !IsKnown(request->service())) {
    status = absl::NotFoundError("the server does not have this service");
  }
  {
    MutexLock lock(&mutex_);
    response->set_status(serving_ ? HealthCheckResponse::SERVING
                                  : HealthCheckResponse::NOT_SERVING);
  }
  reactor->Finish(call.ok() ? (*call)->Finish(status) : FinishWith(status, context));
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext* context, const health::HealthCheckRequest* request) {
  class Refused final : public grpc::ServerWriteReactor<HealthCheckResponse> {
   public:
    explicit Refused(const grpc::Status& status) { Finish(status); }
    void OnDone() override { delete this; }
  };
  auto call = gate_->Admit(context, "grpc.health.v1.Health/Watch", CallKind::kWatch);
  if (!call.ok()) return new Refused(FinishWith(call.status(), context));
  auto* watcher = new Watcher(this, *std::move(call), IsKnown(request->service()));
  MutexLock lock(&mutex_);
  watchers_.insert(watcher);
  watcher->Advance(serving_, ended_);
  return watcher;
}

}  // namespace nni_compression::server
