#include "server/net/listening_sockets.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace nni_compression::server {
namespace {

bool SetOption(int socket, int level, int name, int value) {
  return setsockopt(socket, level, name, &value, sizeof(value)) == 0;
}

int PortOf(const sockaddr_storage& address) {
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// Connections inherit the options of the listening socket. Invalid, with errno set, when it cannot
// listen on that address.
FileDescriptor ListenOn(const addrinfo& info, int port, absl::Duration user_timeout) {
  sockaddr_storage address = {};
  std::memcpy(&address, info.ai_addr, info.ai_addrlen);
  auto& port_field = info.ai_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                                : reinterpret_cast<sockaddr_in&>(address).sin_port;
  port_field = htons(static_cast<uint16_t>(port));
  FileDescriptor socket(
      ::socket(info.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP));
  const int milliseconds = static_cast<int>(absl::ToInt64Milliseconds(user_timeout));
  const bool listens =
      socket.valid() && SetOption(socket.get(), SOL_SOCKET, SO_REUSEADDR, 1) &&
      // [::] stands for every address of the machine.
      (info.ai_family != AF_INET6 || SetOption(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0)) &&
      SetOption(socket.get(), IPPROTO_TCP, TCP_NODELAY, 1) &&
      SetOption(socket.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, milliseconds) &&
      bind(socket.get(), reinterpret_cast<sockaddr*>(&address), info.ai_addrlen) == 0 &&
      listen(socket.get(), SOMAXCONN) == 0;
  if (!listens) socket = FileDescriptor();
  return socket;
}

}  // namespace

absl::StatusOr<ListeningSockets> ListenOnHost(const std::string& address,
                                              absl::Duration user_timeout) {
  const auto cannot = [&](const char* why) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", why));
  };
  const size_t colon = address.rfind(':');
  absl::string_view host = absl::string_view(address).substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(std::string(host).c_str(), address.substr(colon + 1).c_str(), &hints, &found);
  if (error != 0) return cannot(gai_strerror(error));
  const auto freer = absl::MakeCleanup([found] { freeaddrinfo(found); });
  ListeningSockets listening;
  int missing = EADDRNOTAVAIL;
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    sockaddr_storage wanted = {};
    std::memcpy(&wanted, info->ai_addr, info->ai_addrlen);
    // The same port on all of them.
    FileDescriptor socket =
        ListenOn(*info, listening.port != 0 ? listening.port : PortOf(wanted), user_timeout);
    if (!socket.valid()) {
      missing = errno;
      // A name may resolve to an address family that this machine does not support.
      if (missing == EADDRNOTAVAIL || missing == EAFNOSUPPORT) continue;
      return cannot(std::strerror(missing));
    }
    sockaddr_storage bound = {};
    socklen_t size = sizeof(bound);
    getsockname(socket.get(), reinterpret_cast<sockaddr*>(&bound), &size);
    listening.port = PortOf(bound);
    listening.sockets.push_back(std::move(socket));
  }
  if (listening.sockets.empty()) return cannot(std::strerror(missing));
  return listening;
}

bool IsOutOfDescriptors(int error) {
  return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

}  // namespace nni_compression::server
