#include "tests/testing/shm_socket_client.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace nni_compression::testing {

using nni::compression::v1::SideReply;
using nni::compression::v1::SideRequest;

ShmSocketClient::ShmSocketClient(const std::string& path)
    : socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  connected_ = connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

bool ShmSocketClient::Send(const std::string& packet, const std::vector<int>& files) {
  std::string bytes = packet;
  iovec data = {bytes.data(), bytes.size()};
  std::vector<char> control(CMSG_SPACE(files.size() * sizeof(int)));
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  if (!files.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(files.size() * sizeof(int));
    std::memcpy(CMSG_DATA(c), files.data(), files.size() * sizeof(int));
  }
  return sendmsg(socket_.get(), &message, MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size());
}

SideReply ShmSocketClient::Receive() {
  char packet[16 << 10];
  ssize_t size;
  do {
    size = recv(socket_.get(), packet, sizeof(packet), 0);
  } while (size < 0 && errno == EINTR);
  SideReply reply;
  if (size <= 0 || !reply.ParseFromArray(packet, static_cast<int>(size))) reply.set_code(-1);
  return reply;
}

SideReply ShmSocketClient::Hello(const std::string& tenant) {
  Send(HelloRequest(tenant).SerializeAsString());
  return Receive();
}

SideReply ShmSocketClient::AddRegion(int file, uint64_t byte_length, bool writable) {
  Send(AddRegionRequest(byte_length, writable).SerializeAsString(), {file});
  return Receive();
}

SideReply ShmSocketClient::DropRegion(const std::string& id) {
  SideRequest request;
  request.mutable_drop_region()->set_region(id);
  Send(request.SerializeAsString());
  return Receive();
}

std::string ShmSocketPath() {
  static std::atomic<int> next{0};
  return ::testing::TempDir() + "/nni-side-" + std::to_string(getpid()) + "-" +
         std::to_string(next++);
}

SideRequest HelloRequest(const std::string& tenant) {
  SideRequest request;
  request.mutable_hello()->set_version(1);
  if (!tenant.empty()) {
    SideRequest::Metadata* metadata = request.mutable_hello()->add_metadata();
    metadata->set_key("tenant");
    metadata->set_value(tenant);
  }
  return request;
}

SideRequest AddRegionRequest(uint64_t byte_length, bool writable) {
  SideRequest request;
  request.mutable_add_region()->set_byte_length(byte_length);
  request.mutable_add_region()->set_writable(writable);
  return request;
}

}  // namespace nni_compression::testing
