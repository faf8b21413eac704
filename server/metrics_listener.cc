#include "server/metrics_listener.h"

#include <httplib.h>
#include <sys/socket.h>

#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {
namespace {

constexpr int kThreads = 2;
constexpr time_t kPatienceSeconds = 5;  // a peer that sends or reads nothing holds a thread so long
constexpr char kText[] = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace

class MetricsListener::Impl {
 public:
  Impl(std::function<std::string()> metrics, std::function<bool()> ready) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
    server_.set_keep_alive_max_count(1);
    server_.set_read_timeout(kPatienceSeconds);
    server_.set_write_timeout(kPatienceSeconds);
    server_.set_payload_max_length(0);
    // Not the library's SO_REUSEPORT: two servers on one port would each get some of the requests.
    server_.set_socket_options([](socket_t socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    server_.Get("/metrics", [metrics = std::move(metrics)](const auto&, httplib::Response& reply) {
      reply.set_content(metrics(), kText);
    });
    server_.Get("/livez",
                [](const auto&, httplib::Response& reply) { reply.set_content("ok\n", kText); });
    server_.Get("/readyz", [ready = std::move(ready)](const auto&, httplib::Response& reply) {
      const bool is_ready = ready();
      reply.status = is_ready ? 200 : 503;
      reply.set_content(is_ready ? "ok\n" : "draining\n", kText);
    });
  }

  ~Impl() {
    if (!thread_.joinable()) return;
    server_.stop();
    thread_.join();
  }

  bool Listen(absl::string_view address) {
    const size_t colon = address.rfind(':');
    if (!absl::SimpleAtoi(address.substr(colon + 1), &port_)) return false;
    absl::string_view host = address.substr(0, colon);
    if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
    if (port_ == 0) {
      port_ = server_.bind_to_any_port(std::string(host));
    } else if (!server_.bind_to_port(std::string(host), port_)) {
      port_ = -1;
    }
    if (port_ <= 0) return false;
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();  // before that, stop() does nothing
    return true;
  }

  int port() const { return port_; }

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(
    const std::string& address, std::function<std::string()> metrics, std::function<bool()> ready) {
  auto impl = std::make_unique<Impl>(std::move(metrics), std::move(ready));
  if (!impl->Listen(address)) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, " for metrics"));
  }
  return std::unique_ptr<MetricsListener>(new MetricsListener(std::move(impl)));
}

MetricsListener::MetricsListener(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MetricsListener::~MetricsListener() = default;
int MetricsListener::port() const { return impl_->port(); }

}  // namespace nni_compression::server
