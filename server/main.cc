// compression_server: reads flags, serves until SIGTERM or SIGINT, drains.
#include <grpc/grpc.h>
#include <malloc.h>
#include <semaphore.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "compression/algorithms/registry.h"
#include "compression/extensions/loader.h"
#include "server/access/bytes.h"
#include "server/auth/credentials.h"
#include "server/auth/tenant_file.h"
#include "server/base/library_log.h"
#include "server/base/log.h"
#include "server/monitoring/health_check.h"
#include "server/platform/host_resources.h"
#include "server/server.h"
#include "server/storage/disk_storage.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:50051",
          "Address to listen on, HOST:PORT, where port 0 picks a free one, or unix:PATH.");
ABSL_FLAG(
    bool, allow_insecure_listen, false,
    "Listen beyond loopback without TLS or without authentication. Anyone who reaches the port "
    "can then eavesdrop, or use and exhaust the server.");
ABSL_FLAG(
    std::string, tls_certificate, "",
    "PEM file with the server's certificate and its chain; enables TLS. Changes of this file, "
    "tls_key and tls_client_ca take effect within a second, for new connections.");
ABSL_FLAG(std::string, tls_key, "", "PEM file with the private key of tls_certificate.");
ABSL_FLAG(
    std::string, tls_client_ca, "",
    "PEM file with the authorities of client certificates; enables mutual TLS (mTLS). "
    "Connections then need a certificate, and its name (URI, else DNS name, else common name) "
    "is the tenant of calls without a token.");
ABSL_FLAG(
    std::string, token_file, "",
    "File of tenants, their tokens and quotas, written by `compressionctl tenant`; enables "
    "authentication. Calls then need a token, unless a certificate or a trusted proxy names their "
    "tenant, and access that tenant's sessions only. Changes take effect within a second.");
ABSL_FLAG(
    std::vector<std::string>, trusted_proxy, {},
    "Addresses and networks, separated by commas, of proxies that terminate mTLS and send the "
    "name in the client certificate as `nni-client-name`; 'unix' for proxies on a Unix socket.");
ABSL_FLAG(std::string, port_file, "",
          "File to write the port to, atomically, once calls are accepted.");
ABSL_FLAG(
    std::string, metrics_listen, "",
    "Address, HOST:PORT, for HTTP: /metrics for Prometheus and the probes /livez and /readyz. "
    "Without authentication, so beyond loopback it needs allow_insecure_listen. Empty: none.");
ABSL_FLAG(std::string, metrics_port_file, "",
          "File to write the port of metrics_listen to, as port_file.");
ABSL_FLAG(
    std::string, healthcheck, "",
    "Check the health of the server at HOST:PORT instead of serving: exit with 0 if it serves, "
    "with 1 if not. http://HOST:PORT/readyz uses the probe at its metrics_listen, which needs "
    "no TLS. A bare --healthcheck checks the server with this metrics_listen, or else this "
    "listen.");
ABSL_FLAG(std::string, data_dir, "",
          "Directory for durable sessions, on a local disk. Empty: sessions live in memory only.");
ABSL_FLAG(
    std::string, durability, "process",
    "What answered calls survive in data_dir: 'process', a crash of the server; 'power', also a "
    "power failure, since everything is synced to disk before the answer.");
ABSL_FLAG(absl::Duration, data_dir_lock_wait, absl::ZeroDuration(),
          "How long to wait at startup for another server to release data_dir.");
ABSL_FLAG(
    std::string, memory_budget, "0",
    "Bytes of memory for the tensors of all calls and the state of sessions, with an optional "
    "suffix K, M or G; 0: 60 % of the container's or machine's memory.");
ABSL_FLAG(
    std::string, cache_budget, "",
    "Bytes of memory_budget for caching received weights, so that they need not be sent again; "
    "evicted when the memory is needed. Empty: half, at most 2G. 0: no cache.");
ABSL_FLAG(int, compute_threads, 0,
          "Compute threads; 0: one per core, or as many as the cgroup's quota allows.");
ABSL_FLAG(int, max_connections, 4096,
          "Maximum number of open connections; further ones are closed at once. Reduced if the "
          "descriptor limit leaves less than 512, or half of it, for everything else.");
ABSL_FLAG(int, max_calls, 4096, "Maximum number of running calls.");
ABSL_FLAG(int64_t, max_sessions, 10000, "Maximum number of live sessions.");
ABSL_FLAG(std::string, disk_budget, "",
          "Bytes that all live sessions may need in data_dir, with an optional suffix K, M or G. "
          "Empty: no limit.");
ABSL_FLAG(absl::Duration, default_lease, absl::Minutes(30),
          "How long a session lives without a call, if BindModel does not set a lease.");
ABSL_FLAG(absl::Duration, max_lease, absl::Hours(24),
          "The longest lease that BindModel may set; the shortest is 1s.");
ABSL_FLAG(absl::Duration, report_retention, absl::Hours(1),
          "How long the report of a session is kept after its end.");
ABSL_FLAG(absl::Duration, stall_timeout, absl::Seconds(60),
          "A streaming call is ended when its peer neither sends nor reads for this long.");
ABSL_FLAG(
    std::string, min_upload_rate, "16K",
    "Minimum throughput of a peer that is sending a tensor, in bytes per second with an optional "
    "suffix K, M or G; a call that is slower over stall_timeout is ended. 0: none.");
ABSL_FLAG(absl::Duration, handshake_timeout, absl::Seconds(10),
          "How long a new connection may take for the handshakes of TLS and HTTP/2.");
ABSL_FLAG(absl::Duration, idle_timeout, absl::Minutes(10),
          "A connection is closed after this long without a call; clients reconnect by themselves. "
          "inf: never.");
ABSL_FLAG(
    absl::Duration, max_connection_age, absl::Hours(1),
    "After this long a connection accepts no new calls; clients reconnect by themselves, with "
    "their current certificates. inf: never.");
ABSL_FLAG(
    absl::Duration, max_connection_grace, absl::Hours(24),
    "How long calls that are running at max_connection_age may take to finish. inf: no limit.");
ABSL_FLAG(std::string, plugin_dir, "",
          "Folder of plugins, *.so, whose algorithms are served, too; they are trusted code. "
          "Empty: none.");
ABSL_FLAG(std::string, script_dir, "",
          "Folder of TorchScript modules, *.pt, each served as the algorithm of the file's name. "
          "Empty: none.");
ABSL_FLAG(absl::Duration, algorithm_timeout, absl::Seconds(60),
          "How long a plugin or script may take for one layer; an algorithm that takes longer is "
          "disabled until the server is restarted.");
ABSL_FLAG(
    double, drain_seconds, 30,
    "How long running calls may take to finish after SIGTERM or SIGINT; then they are cancelled, "
    "except that a layer that is being computed is finished first.");
ABSL_FLAG(bool, reflection, false,
          "Serve gRPC server reflection. It has no authentication, so it cannot be combined with "
          "token_file, tls_client_ca or trusted_proxy.");
ABSL_FLAG(
    std::string, shm_socket, "auto",
    "Path of the shared-memory socket, a Unix socket over which trainers on this host share "
    "memory with the server. Clients get the same path in $NNI_COMPRESSION_SHM_SOCKET. auto: "
    "where clients of the server's own user find it by the port (PORT.shm in a folder "
    "nni-compression of $XDG_RUNTIME_DIR, or in /tmp/nni-compression-UID), or PATH.shm for "
    "--listen=unix:PATH; none if tenants are named by certificates or a proxy only. Empty: none.");
ABSL_FLAG(
    std::vector<std::string>, shm_uids, {},
    "Numeric ids of the users that may use shm_socket, which then has to be a path, separated "
    "by commas. Empty: only the server's own user.");
ABSL_FLAG(std::string, log_level, "info",
          "Minimum level to log: debug (every call), info, warning or error.");
ABSL_FLAG(std::string, log_format, "text", "Format of the log's lines: text or json.");

namespace nni_compression::server {
namespace {

using access::ParseBytes;

// Null without data_dir.
absl::StatusOr<std::shared_ptr<Storage>> StorageFromFlags() {
  DiskStorageOptions options;
  options.directory = absl::GetFlag(FLAGS_data_dir);
  options.lock_wait = absl::GetFlag(FLAGS_data_dir_lock_wait);
  const std::string durability = absl::GetFlag(FLAGS_durability);
  if (durability != "process" && durability != "power") {
    return absl::InvalidArgumentError(absl::StrCat("durability is '", Printable(durability, 64),
                                                   "'; it must be process or power"));
  }
  if (options.lock_wait < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("data_dir_lock_wait is ",
                                                   absl::FormatDuration(options.lock_wait),
                                                   "; it must be at least 0"));
  }
  if (options.directory.empty()) return nullptr;
  if (durability == "power") options.durability = DurabilityLevel::kPower;
  absl::StatusOr<std::unique_ptr<DiskStorage>> storage = DiskStorage::Open(options);
  if (!storage.ok()) return storage.status();
  return std::shared_ptr<Storage>(*std::move(storage));
}

// Null without authentication.
absl::StatusOr<std::shared_ptr<Authenticator>> AuthenticatorFromFlags() {
  AccessOptions options;
  if (const std::string path = absl::GetFlag(FLAGS_token_file); !path.empty()) {
    absl::StatusOr<std::shared_ptr<TenantFile>> tenants = TenantFile::Open(path);
    if (!tenants.ok()) return tenants.status();
    options.tenants = *std::move(tenants);
    options.tenants->Watch();
  }
  options.certificates = !absl::GetFlag(FLAGS_tls_client_ca).empty();
  for (const std::string& text : absl::GetFlag(FLAGS_trusted_proxy)) {
    const absl::StatusOr<Network> network = Network::Parse(text);
    if (!network.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("trusted_proxy: ", network.status().message()));
    }
    // Every user of this host could claim any name.
    if (text == "unix" && absl::StartsWith(absl::GetFlag(FLAGS_listen), "unix-abstract:")) {
      return absl::InvalidArgumentError(absl::StrCat(
          "trusted_proxy is 'unix' and listen is '", absl::GetFlag(FLAGS_listen),
          "', to which every user of this host may connect; listen must be unix:PATH, with a mode "
          "and folder that admit the proxy only"));
    }
    options.trusted_proxies.push_back(*network);
  }
  if (options.tenants == nullptr && !options.certificates && options.trusted_proxies.empty()) {
    return nullptr;
  }
  return std::make_shared<Access>(std::move(options));
}

// `Number` may be an optional, which an empty text leaves unchanged.
template <typename Number>
absl::Status ReadBytes(absl::string_view flag, const std::string& text, Number* bytes) {
  if (text.empty() && !std::is_same_v<Number, int64_t>) return absl::OkStatus();
  const absl::StatusOr<int64_t> read = ParseBytes(text);
  if (!read.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", read.status().message()));
  }
  *bytes = *read;
  return absl::OkStatus();
}

absl::StatusOr<ServerOptions> OptionsFromFlags() {
  if (!(absl::GetFlag(FLAGS_drain_seconds) >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "drain_seconds is ", absl::GetFlag(FLAGS_drain_seconds), "; it must be at least 0"));
  }
  ServerOptions options;
  for (const absl::Status& status :
       {ReadBytes("memory_budget", absl::GetFlag(FLAGS_memory_budget), &options.memory_budget),
        ReadBytes("cache_budget", absl::GetFlag(FLAGS_cache_budget), &options.cache_budget),
        ReadBytes("disk_budget", absl::GetFlag(FLAGS_disk_budget), &options.sessions.disk_budget),
        ReadBytes("min_upload_rate", absl::GetFlag(FLAGS_min_upload_rate),
                  &options.min_upload_rate)}) {
    if (!status.ok()) return status;
  }
  options.listen = absl::GetFlag(FLAGS_listen);
  options.allow_insecure_listen = absl::GetFlag(FLAGS_allow_insecure_listen);
  options.compute_threads = absl::GetFlag(FLAGS_compute_threads);
  options.max_connections = absl::GetFlag(FLAGS_max_connections);
  options.max_calls = absl::GetFlag(FLAGS_max_calls);
  options.stall_timeout = absl::GetFlag(FLAGS_stall_timeout);
  options.handshake_timeout = absl::GetFlag(FLAGS_handshake_timeout);
  options.idle_timeout = absl::GetFlag(FLAGS_idle_timeout);
  options.max_connection_age = absl::GetFlag(FLAGS_max_connection_age);
  options.max_connection_grace = absl::GetFlag(FLAGS_max_connection_grace);
  options.algorithm_timeout = absl::GetFlag(FLAGS_algorithm_timeout);
  options.reflection = absl::GetFlag(FLAGS_reflection);
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.tls = {absl::GetFlag(FLAGS_tls_certificate), absl::GetFlag(FLAGS_tls_key),
                 absl::GetFlag(FLAGS_tls_client_ca)};
  absl::StatusOr<std::shared_ptr<Authenticator>> authenticator = AuthenticatorFromFlags();
  if (!authenticator.ok()) return authenticator.status();
  options.authenticator = *std::move(authenticator);
  if (options.reflection && options.authenticator != nullptr) {
    return absl::InvalidArgumentError(
        "reflection cannot be combined with token_file, tls_client_ca or trusted_proxy: it has no "
        "authentication");
  }
  options.shm_socket.path = absl::GetFlag(FLAGS_shm_socket);
  for (const std::string& text : absl::GetFlag(FLAGS_shm_uids)) {
    uint32_t uid;
    if (!absl::SimpleAtoi(text, &uid)) {
      return absl::InvalidArgumentError(
          absl::StrCat("shm_uids has '", Printable(text, 64),
                       "'; it must be numeric user ids, such as 1000,1001"));
    }
    options.shm_socket.uids.push_back(uid);
  }
  if (options.shm_socket.path == "auto") {
    options.shm_socket.path.clear();
    // Over the socket, a tenant can be named by a token only.
    options.shm_socket.automatic =
        options.authenticator == nullptr || !absl::GetFlag(FLAGS_token_file).empty();
    if (!options.shm_socket.uids.empty()) {
      return absl::InvalidArgumentError(
          "shm_uids needs shm_socket=PATH, in a folder that those users can reach; shm_socket is "
          "auto, in a folder of the server's own user");
    }
  }
  options.sessions.max_sessions = absl::GetFlag(FLAGS_max_sessions);
  options.sessions.default_lease = absl::GetFlag(FLAGS_default_lease);
  options.sessions.max_lease = absl::GetFlag(FLAGS_max_lease);
  options.sessions.report_retention = absl::GetFlag(FLAGS_report_retention);
  return options;
}

// The built-in algorithms and those of the folders. Never destroyed, like the plugins.
absl::StatusOr<const compression::Registry*> LoadAlgorithms() {
  auto* const registry = new compression::Registry(compression::Registry::Builtin());
  if (const std::string folder = absl::GetFlag(FLAGS_plugin_dir); !folder.empty()) {
    absl::Status status = compression::LoadPlugins(folder, registry);
    if (!status.ok()) return status;
  }
  if (const std::string folder = absl::GetFlag(FLAGS_script_dir); !folder.empty()) {
    absl::Status status = compression::LoadScripts(folder, registry);
    if (!status.ok()) return status;
  }
  for (const compression::AlgorithmInfo* info : registry->List()) {
    if (info->source.empty()) continue;
    Log(LogLevel::kInfo, "algorithm_loaded", {{"algorithm", info->name}, {"source", info->source}});
  }
  return registry;
}

// Writes a temporary file and renames it, so that a reader never sees half of it.
absl::Status WritePortFile(absl::string_view flag, const std::string& path, int port) {
  if (path.empty()) return absl::OkStatus();
  const std::string temporary = absl::StrCat(path, ".", getpid());
  std::ofstream file(temporary);
  file << port << "\n";
  file.close();
  if (!file || std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", flag, " '", path, "'"));
  }
  return absl::OkStatus();
}

// Posted by SIGTERM and SIGINT. A handler rather than sigwait with blocked signals: libraries start
// threads while they are loaded, before main could block signals, and a signal delivered to one of
// those would end the process.
sem_t stop_requested;

void RequestStop(int) { sem_post(&stop_requested); }

void StopOnSignals() {
  sem_init(&stop_requested, 0, 0);
  struct sigaction action = {};
  action.sa_handler = RequestStop;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
}

void WaitForStopRequest() {
  while (sem_wait(&stop_requested) != 0) {
  }
}

// The value of a bare --healthcheck.
constexpr char kOwnAddress[] = "own";
constexpr absl::Duration kHealthTimeout = absl::Seconds(3);

// The address for the health check of a server with these flags.
std::string OwnHealth() {
  const std::string metrics = absl::GetFlag(FLAGS_metrics_listen);
  if (!metrics.empty()) return absl::StrCat("http://", LocalAddress(metrics), "/readyz");
  return LocalAddress(absl::GetFlag(FLAGS_listen));
}

absl::Status Run() {
  if (const std::string address = absl::GetFlag(FLAGS_healthcheck); !address.empty()) {
    return CheckHealth(address == kOwnAddress ? OwnHealth() : address, kHealthTimeout);
  }
  absl::Status log = SetUpLog(absl::GetFlag(FLAGS_log_level), absl::GetFlag(FLAGS_log_format));
  if (!log.ok()) return log;
  CaptureLibraryLogs();
  RaiseDescriptorLimit();
  absl::StatusOr<ServerOptions> options = OptionsFromFlags();
  if (!options.ok()) return options.status();
  absl::StatusOr<std::shared_ptr<Storage>> storage = StorageFromFlags();
  if (!storage.ok()) return storage.status();
  options->storage = *std::move(storage);
  const auto registry = LoadAlgorithms();
  if (!registry.ok()) return registry.status();
  options->registry = *registry;
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Start(*options);
  if (!server.ok()) return server.status();
  if (options->storage == nullptr) Log(LogLevel::kInfo, "sessions_in_memory_only");
  for (const absl::Status& status :
       {WritePortFile("metrics_port_file", absl::GetFlag(FLAGS_metrics_port_file),
                      (*server)->metrics_port()),
        WritePortFile("port_file", absl::GetFlag(FLAGS_port_file), (*server)->port())}) {
    if (!status.ok()) return status;
  }
  WaitForStopRequest();
  (*server)->Drain(absl::Seconds(absl::GetFlag(FLAGS_drain_seconds)));
  return absl::OkStatus();
}

// Every call allocates and frees weights and messages of the same sizes. By default glibc returns
// their pages to the kernel each time and faults them in again. Settings of an operator take
// precedence.
void KeepPagesOfTheHeap() {
  for (const char* name : {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}) {
    if (std::getenv(name) != nullptr) return;
  }
  const char* tunables = std::getenv("GLIBC_TUNABLES");
  if (tunables != nullptr && absl::StrContains(tunables, "glibc.malloc.")) return;
  mallopt(M_MMAP_THRESHOLD, 8 << 20);  // larger blocks are mapped: see compression/buffer.cc
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

}  // namespace
}  // namespace nni_compression::server

int main(int argc, char** argv) {
  nni_compression::server::KeepPagesOfTheHeap();
  nni_compression::server::StopOnSignals();
  signal(SIGXFSZ, SIG_IGN);  // exceeding the file size limit is an ordinary error
  absl::SetProgramUsageMessage(
      "Serves model compression over gRPC.\n\n  compression_server --listen=127.0.0.1:50051\n\n"
      "Flags can also be read from --flagfile=FILE, one per line.");
  absl::FlagsUsageConfig usage;
  usage.contains_help_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "server/main.cc");
  };
  usage.contains_helpshort_flags = usage.contains_help_flags;
  usage.version_string = [] {
    return absl::StrCat("compression_server ", nni_compression::server::ServerVersion(), "\n");
  };
  absl::SetFlagsUsageConfig(usage);
  std::string bare = "--healthcheck=own";
  for (int i = 1; i < argc; ++i) {
    if (absl::string_view(argv[i]) == "--healthcheck") argv[i] = bare.data();
  }
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (rest.size() > 1) {
    std::cerr << "compression_server: unexpected argument '" << rest[1] << "'; see --help\n";
    return 2;
  }
  // Never released: shutting down gRPC waits for its pollers, for up to 10 s.
  grpc_init();
  const absl::Status status = nni_compression::server::Run();
  if (!status.ok()) std::cerr << "compression_server: " << status.message() << std::endl;
  // Nothing is left to be cleaned up, and those pollers, and plugins
  // that hang, must not see statics being destroyed.
  std::_Exit(status.ok() ? 0 : 1);
}
