#include "server/server.h"

#include <ATen/Parallel.h>
#include <grpc/support/time.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "proto/wire/frames.h"
#include "server/base/log.h"
#include "server/calls/components.h"
#include "server/calls/health_service.h"
#include "server/calls/service.h"
#include "server/calls/session_rpcs.h"
#include "server/external/external_algorithm.h"
#include "server/limits/memory_costs.h"
#include "server/monitoring/metrics_listener.h"
#include "server/monitoring/server_metrics.h"
#include "server/net/listen_address.h"
#include "server/platform/host_resources.h"
#include "server/platform/shm_paths.h"

extern "C" void omp_set_num_threads(int threads);  // from OpenMP, which LibTorch uses

namespace nni_compression::server {
namespace {

// The default memory budget as a fraction of all memory; the rest is for the transport and for
// scratch memory.
constexpr double kDefaultBudgetShare = 0.6;

// A server without a configured cache should not use most of the memory for it.
constexpr int64_t kMaxDefaultCache = int64_t{2} << 30;

constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kMaxStreamsPerConnection = 1000;
constexpr size_t kLeastTransportBytes = 256 << 20;

// A peer that has failed is noticed after both.
constexpr int kKeepaliveMs = 20000;
constexpr int kKeepaliveTimeoutMs = 20000;
constexpr absl::Duration kFinalStatusGrace = absl::Seconds(2);

// For gRPC, where the largest number means never.
int Milliseconds(absl::Duration duration) {
  return static_cast<int>(
      std::min<int64_t>(absl::ToInt64Milliseconds(duration), std::numeric_limits<int>::max()));
}

// For gRPC; a timespan does not depend on the system clock.
gpr_timespec Timespan(absl::Duration duration) {
  const int64_t seconds = absl::IDivDuration(duration, absl::Seconds(1), &duration);
  return {seconds, static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)), GPR_TIMESPAN};
}

std::string Text(int64_t number) { return absl::StrCat(number); }
std::string Text(absl::Duration duration) { return absl::FormatDuration(duration); }

absl::Status CheckOptions(const ServerOptions& options) {
  const bool guarded = options.tls.enabled() && options.authenticator != nullptr;
  absl::Status listen = CheckListenAddress(
      options.listen, guarded || options.allow_insecure_listen, "listen",
      "set tls_certificate, and token_file or tls_client_ca, for encryption and authentication, "
      "listen on 127.0.0.1 behind a proxy that does both, or set --allow_insecure_listen");
  if (!listen.ok()) return listen;
  if (!options.metrics_listen.empty()) {
    absl::Status status = CheckListenAddress(
        options.metrics_listen, options.allow_insecure_listen, "metrics_listen",
        "metrics have neither encryption nor authentication, whatever listen has: listen on "
        "127.0.0.1, behind a proxy that does both or next to the collector, or set "
        "--allow_insecure_listen, with which listen keeps its TLS and tokens but is not refused "
        "without them");
    if (!status.ok()) return status;
    if (IsUnixAddress(options.metrics_listen)) {
      return absl::InvalidArgumentError(
          absl::StrCat("metrics_listen is '", options.metrics_listen, "'; it must be HOST:PORT"));
    }
  }
  const auto at_least = [](absl::string_view name, const auto& value, const auto& minimum) {
    if (value >= minimum) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is ", Text(value), "; it must be at least ", Text(minimum)));
  };
  const SessionStore::Options& sessions = options.sessions;
  for (const absl::Status& status :
       {at_least("memory_budget", options.memory_budget, int64_t{0}),
        at_least("compute_threads", options.compute_threads, 0),
        at_least("max_connections", options.max_connections, 1),
        at_least("max_calls", options.max_calls, 1),
        at_least("max_sessions", sessions.max_sessions, int64_t{1}),
        at_least("disk_budget", sessions.disk_budget.value_or(0), int64_t{0}),
        at_least("stall_timeout", options.stall_timeout, absl::Milliseconds(1)),
        at_least("min_upload_rate", options.min_upload_rate, int64_t{0}),
        at_least("handshake_timeout", options.handshake_timeout, absl::Milliseconds(1)),
        at_least("idle_timeout", options.idle_timeout, absl::Milliseconds(1)),
        at_least("max_connection_age", options.max_connection_age, absl::Milliseconds(1)),
        at_least("max_connection_grace", options.max_connection_grace, absl::Milliseconds(1)),
        at_least("algorithm_timeout", options.algorithm_timeout, absl::Milliseconds(1)),
        at_least("default_lease", sessions.default_lease, sessions.min_lease),
        at_least("max_lease", sessions.max_lease, sessions.default_lease),
        at_least("report_retention", sessions.report_retention, absl::ZeroDuration())}) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// Divides the cores among busy threads, each of which uses LibTorch's threads: a single call uses
// all cores. Set through OpenMP, since LibTorch's own set_num_threads also recreates another pool,
// whose threads then spin for a while.
std::function<void(int)> ShareCores(int cores) {
  return [cores](int busy) {
    thread_local int threads = 0;
    if (threads == 0) at::get_num_threads();  // initializes what is overwritten here
    const int share = std::max(1, cores / busy);
    if (share == threads) return;
    threads = share;
    omp_set_num_threads(share);
  };
}

int ComputeThreads(const ServerOptions& options) {
  return options.compute_threads > 0 ? options.compute_threads : CpuLimit();
}

int64_t Budget(const ServerOptions& options) {
  return options.memory_budget > 0 ? options.memory_budget
                                   : static_cast<int64_t>(MemoryLimit() * kDefaultBudgetShare);
}

// Limits the reports of ended sessions to a small part of the memory budget.
SessionStore::Options ReportsWithin(const ServerOptions& options) {
  SessionStore::Options sessions = options.sessions;
  sessions.all_report_bytes = sessions.all_report_bytes.value_or(Budget(options) / 8);
  return sessions;
}

// The reflection library adds itself to every server of a program that links it.
class NoReflection : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments* /*arguments*/) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    plugins->erase(std::remove_if(plugins->begin(), plugins->end(),
                                  [](const std::unique_ptr<grpc::ServerBuilderPlugin>& plugin) {
                                    return plugin->name() == "proto_server_reflection";
                                  }),
                   plugins->end());
  }
};

}  // namespace

absl::string_view ServerVersion() { return NNI_COMPRESSION_VERSION; }

// Members are destroyed in reverse order, each before what it uses.
class Server::Impl {
 public:
  explicit Impl(const ServerOptions& options)
      : storage_(options.storage),
        timers_(options.clock != nullptr ? options.clock : Clock::System()),
        authenticator_(options.authenticator != nullptr ? options.authenticator
                                                        : Authenticator::AllowAll()),
        metrics_(options.registry != nullptr ? *options.registry
                                             : compression::Registry::Builtin()),
        gate_(authenticator_, options.max_calls, &metrics_, timers_.clock()),
        regions_(options.shm_socket.max_bytes > 0 ? options.shm_socket.max_bytes
                                                  : static_cast<int64_t>(MemoryLimit())),
        sessions_(
            ReportsWithin(options), &timers_,
            [this](const std::shared_ptr<SessionRecord>& record) {
              RetireSession(components_, record);
            },
            [this](const SessionRecord& record) {
              if (durable_ != nullptr) durable_->Forget(record);
            }),
        executor_(std::make_unique<Executor>(ComputeThreads(options),
                                             ShareCores(ComputeThreads(options)))),
        external_(
            options.registry != nullptr ? *options.registry : compression::Registry::Builtin(),
            options.algorithm_timeout, &timers_, ShareCores(ComputeThreads(options))),
        health_(&gate_),
        service_(&components_) {
    const int64_t budget = Budget(options);
    components_.registry = &external_.registry();
    components_.external = &external_;
    components_.gate = &gate_;
    components_.metrics = &metrics_;
    components_.executor = executor_.get();
    components_.timers = &timers_;
    components_.budget = MemoryBudget::Create(
        budget, [this](std::function<void()> granted) { executor_->Schedule(std::move(granted)); });
    components_.sessions = &sessions_;
    weights_ = std::make_unique<WeightCache>(
        options.cache_budget.value_or(std::min(budget / 2, kMaxDefaultCache)), executor_.get(),
        components_.budget.get());
    components_.weights = weights_.get();
    components_.regions = &regions_;
    components_.stall_timeout = options.stall_timeout;
    components_.min_upload_rate = options.min_upload_rate;
    components_.version = std::string(ServerVersion());
    if (storage_ == nullptr) return;
    durable_ = std::make_unique<DurableSessions>(DurableSessions::Environment{
        storage_.get(), &sessions_,
        [this](absl::string_view algorithm) { return components_.executor_of(algorithm); },
        components_.budget.get(),
        [this](const std::string& tenant) { return gate_.Account(tenant); }, components_.registry});
    components_.durable = durable_.get();
  }

  // Logs the suppressed lines every minute from now on.
  void CountSuppressedLines() {
    timers_.RunAt(timers_.clock()->Now() + absl::Minutes(1), [this] {
      LogSuppressed();
      CountSuppressedLines();
    });
  }

  absl::Status Recover() { return durable_ == nullptr ? absl::OkStatus() : durable_->Recover(); }

  absl::Status Listen(const ServerOptions& options) {
    std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
    if (options.tls.configured()) {
      auto certificates = TlsCertificates::Open(options.tls);
      if (!certificates.ok()) return certificates.status();
      certificates_ = *std::move(certificates);
      certificates_->Watch();
      components_.certificates = certificates_.get();
      credentials = certificates_->Credentials();
    }
    auto listener = ConnectionListener::Listen(options.listen, MaxConnections(options),
                                               absl::Milliseconds(kKeepaliveTimeoutMs));
    if (!listener.ok()) return listener.status();
    listener_ = *std::move(listener);
    components_.connections = listener_.get();
    grpc::ServerBuilder builder;
    if (options.reflection) {
      grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    } else {
      builder.SetOption(std::make_unique<NoReflection>());
    }
    using Acceptor = grpc::experimental::ExternalConnectionAcceptor;
    const std::shared_ptr<Acceptor> acceptor = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials);
    builder.RegisterService(&service_);
    builder.RegisterService(&health_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(wire::kMaxMessageBytes));
    // gRPC would decompress a message before it checks its size, and weights hardly compress.
    for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
      builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
    }
    // Incomplete messages of all peers are limited here only.
    builder.SetResourceQuota(grpc::ResourceQuota("transport").Resize(TransportBytes()));
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreamsPerConnection);
    // From accepting the connection to HTTP/2's first SETTINGS, TLS included.
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                               Milliseconds(options.handshake_timeout));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(options.idle_timeout));
    // So that client certificates are verified again. Running calls may finish.
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                               Milliseconds(options.max_connection_age));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               Milliseconds(options.max_connection_grace));
    // Detects peers whose machine has failed. Pings without calls, too: gRPC 1.51 misses the reset
    // of a connection that arrives together with the last data, and keeps such a socket.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    grpc_ = builder.BuildAndStart();
    if (grpc_ == nullptr) return absl::InternalError("gRPC cannot start its server");
    listener_->Start([acceptor](int listener, int socket) {
      Acceptor::NewConnectionParameters connection;
      connection.listener_fd = listener;
      connection.fd = socket;
      acceptor->HandleNewConnection(&connection);
    });
    return absl::OkStatus();
  }

  // Idle connections use at most half of the transport's memory.
  int MaxConnections(const ServerOptions& options) const {
    const auto each =
        static_cast<size_t>(options.tls.enabled() ? kTlsConnectionBytes : kConnectionBytes);
    return static_cast<int>(
        std::min(static_cast<size_t>(options.max_connections), TransportBytes() / 2 / each));
  }

  // A part of the memory that the default budget leaves.
  size_t TransportBytes() const {
    return std::max(kLeastTransportBytes, static_cast<size_t>(components_.budget->limit() / 3));
  }

  absl::Status ListenForSharedMemory(const ServerOptions& options) {
    if (options.shm_socket.automatic) {
      OfferSharedMemory(options);
      return absl::OkStatus();
    }
    if (options.shm_socket.path.empty()) return absl::OkStatus();
    auto listener = SocketListener::Start(options.shm_socket, authenticator_, &regions_);
    if (!listener.ok()) return listener.status();
    shm_listener_ = *std::move(listener);
    return absl::OkStatus();
  }

  // The socket is a convenience, without which weights go over the network.
  void OfferSharedMemory(const ServerOptions& options) {
    absl::string_view listen = options.listen;
    std::vector<std::string> paths;
    const bool on_port = listener_->port() > 0;
    if (on_port) {
      paths = ShmPathsOfPort(listener_->port());
    } else if (absl::ConsumePrefix(&listen, "unix:")) {
      paths = {ShmPathOfSocket(listen)};
    }
    std::vector<std::string> failures;
    for (const std::string& path : paths) {
      absl::Status status = on_port ? MakePrivateFolderOf(path) : absl::OkStatus();
      if (status.ok()) {
        ShmSocketOptions shm = options.shm_socket;
        shm.path = path;
        auto listener = SocketListener::Start(shm, authenticator_, &regions_);
        if (listener.ok()) {
          shm_listener_ = *std::move(listener);
          return;
        }
        status = listener.status();
      }
      failures.emplace_back(status.message());
    }
    Log(LogLevel::kInfo, "no_shm_socket", {{"message", absl::StrJoin(failures, "; ")}});
  }

  absl::Status ListenForMetrics(const ServerOptions& options) {
    if (options.metrics_listen.empty()) return absl::OkStatus();
    auto listener = MetricsListener::Start(
        options.metrics_listen,
        [this] { return prometheus::TextSerializer().Serialize(CollectMetrics(components_)); },
        [this] { return gate_.open(); });
    if (!listener.ok()) return listener.status();
    metrics_port_ = (*listener)->port();
    metrics_listener_ = *std::move(listener);
    return absl::OkStatus();
  }

  ~Impl() { Drain(absl::ZeroDuration()); }

  void Drain(absl::Duration timeout) {
    MutexLock lock(&drain_mutex_);
    if (grpc_ != nullptr) {
      // Not the system clock, which may be set in the meantime.
      const absl::Time end = Clock::System()->Now() + timeout;
      Log(LogLevel::kInfo, "drain", {{"timeout", absl::FormatDuration(timeout)}});
      health_.StopServing();
      gate_.Close();
      const bool finished = gate_.WaitUntilEmpty(timeout);
      health_.EndWatches();
      external_.Stop();  // otherwise calls that wait for external code could not end
      // Running calls are cancelled after the grace, which lets final statuses reach their peers.
      const absl::Duration grace = finished ? kFinalStatusGrace : end - Clock::System()->Now();
      listener_->Stop();
      grpc_->Shutdown(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                   Timespan(std::max(grace, absl::ZeroDuration()))));
      grpc_ = nullptr;
      LogSuppressed();
      Log(LogLevel::kInfo, "stopped", {{"cancelled_calls", finished ? "no" : "yes"}});
    }
    metrics_listener_ = nullptr;  // it reads the components that stop now
    external_.Stop();
    timers_.Stop();  // first: its functions need the executors
    if (durable_ != nullptr) durable_->Stop();
    external_.Join();   // before the executor, which its work may use
    executor_->Stop();  // not destroyed: a running write may still be answered
  }

  int port() const { return listener_->port(); }
  int connections() const { return listener_->connections(); }
  int metrics_port() const { return metrics_port_; }
  const Components& components() const { return components_; }
  int shm_connections() const {
    return shm_listener_ == nullptr ? 0 : shm_listener_->connections();
  }

 private:
  const std::shared_ptr<Storage> storage_;
  TimerThread timers_;
  const std::shared_ptr<Authenticator> authenticator_;
  CallMetrics metrics_;
  Gate gate_;
  RegionTable regions_;
  Components components_;
  SessionStore sessions_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<WeightCache> weights_;
  ExternalAlgorithms external_;
  std::unique_ptr<DurableSessions> durable_;
  HealthService health_;
  Service service_;
  std::unique_ptr<TlsCertificates> certificates_;  // null: connections are not encrypted
  std::unique_ptr<ConnectionListener> listener_;
  Mutex drain_mutex_;
  std::unique_ptr<grpc::Server> grpc_;
  std::unique_ptr<SocketListener> shm_listener_;
  int metrics_port_ = 0;
  std::unique_ptr<MetricsListener> metrics_listener_;
};

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Server::~Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  auto impl = std::make_unique<Impl>(options);
  if (absl::Status status = impl->Recover(); !status.ok()) return status;
  if (absl::Status status = impl->Listen(options); !status.ok()) return status;
  if (absl::Status status = impl->ListenForSharedMemory(options); !status.ok()) return status;
  if (absl::Status status = impl->ListenForMetrics(options); !status.ok()) return status;
  impl->CountSuppressedLines();
  Log(LogLevel::kInfo, "listening",
      {{"address", options.listen},
       {"port", impl->port()},
       {"metrics_port", impl->metrics_port()},
       {"tls", options.tls.enabled() ? "yes" : "no"},
       {"requires_authentication", options.authenticator != nullptr ? "yes" : "no"},
       {"memory_budget", impl->components().budget->limit()},
       {"max_connections", impl->components().connections->max_connections()},
       {"compute_threads", impl->components().executor->threads()},
       {"version", ServerVersion()}});
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

int Server::port() const { return impl_->port(); }
int Server::metrics_port() const { return impl_->metrics_port(); }
void Server::Drain(absl::Duration timeout) { impl_->Drain(timeout); }
int64_t Server::memory_reserved() const { return impl_->components().budget->reserved(); }
int64_t Server::memory_waiting() const { return impl_->components().budget->waiting(); }
int64_t Server::live_sessions() const { return impl_->components().sessions->live(); }
int64_t Server::shared_bytes() const { return impl_->components().regions->mapped_bytes(); }
int Server::connections() const { return impl_->connections(); }
int Server::shm_connections() const { return impl_->shm_connections(); }

}  // namespace nni_compression::server
