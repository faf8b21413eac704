#include "server/shm/socket_connection.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

constexpr uint32_t kVersion = 1;

}  // namespace

SocketConnection::~SocketConnection() {
  for (const auto& [id, size] : regions_) table_->Remove(id);
}

SocketConnection::Answer SocketConnection::Handle(absl::string_view packet,
                                                  const std::vector<FileDescriptor>& files) {
  Answer answer;
  v1::SideRequest request;
  absl::Status status;
  if (packet.size() > kMaxPacketBytes ||
      !request.ParseFromArray(packet.data(), static_cast<int>(packet.size())) ||
      request.request_case() == v1::SideRequest::REQUEST_NOT_SET) {
    status = absl::InvalidArgumentError(
        absl::StrCat("a packet must be a SideRequest of up to ", kMaxPacketBytes, " bytes"));
    answer.close = true;
  } else if (request.has_hello()) {
    status = Hello(request.hello(), &answer.reply);
    answer.close = !status.ok();
  } else if (!admitted_) {
    status = absl::UnauthenticatedError("the first request must be hello");
    answer.close = true;
  } else if (request.has_add_region()) {
    status = AddRegion(request.add_region(), files, &answer.reply);
  } else {
    status = DropRegion(request.drop_region().region());
  }
  answer.reply.set_code(static_cast<int>(status.code()));
  answer.reply.set_message(std::string(status.message()));
  return answer;
}

absl::Status SocketConnection::Hello(const v1::SideRequest::Hello& hello, v1::SideReply* reply) {
  if (admitted_) return absl::InvalidArgumentError("duplicate hello");
  if (hello.version() != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("hello.version is ", hello.version(), "; it must be ", kVersion));
  }
  Authenticator::Metadata metadata;
  for (const v1::SideRequest::Metadata& entry : hello.metadata()) {
    metadata.emplace(entry.key(), entry.value());
  }
  absl::StatusOr<Caller> caller = authenticator_->AuthenticateLocal(metadata);
  if (!caller.ok()) return caller.status();
  tenant_ = std::move(caller->tenant);
  admitted_ = true;
  reply->set_max_regions(static_cast<uint32_t>(limits_.regions));
  reply->set_max_bytes(static_cast<uint64_t>(limits_.bytes));
  return absl::OkStatus();
}

absl::Status SocketConnection::AddRegion(const v1::SideRequest::AddRegion& request,
                                         const std::vector<FileDescriptor>& files,
                                         v1::SideReply* reply) {
  if (files.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("add_region has ", files.size(), " file descriptors; it must have 1"));
  }
  if (static_cast<int>(regions_.size()) >= limits_.regions) {
    return absl::ResourceExhaustedError(absl::StrCat("the connection has ", regions_.size(),
                                                     " regions, the limit; drop one first"));
  }
  if (request.byte_length() > static_cast<uint64_t>(limits_.bytes - bytes_)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "add_region.byte_length is ", request.byte_length(), "; the connection has regions of ",
        bytes_, " bytes already, of at most ", limits_.bytes));
  }
  absl::StatusOr<std::string> id =
      table_->Add(tenant_, files[0].get(), request.byte_length(), request.writable());
  if (!id.ok()) return id.status();
  const auto size = static_cast<int64_t>(request.byte_length());
  regions_.emplace(*id, size);
  bytes_ += size;
  reply->set_region(*std::move(id));
  return absl::OkStatus();
}

absl::Status SocketConnection::DropRegion(const std::string& id) {
  const auto it = regions_.find(id);
  if (it == regions_.end()) return absl::NotFoundError("no such region of this connection");
  table_->Remove(id);
  bytes_ -= it->second;
  regions_.erase(it);
  return absl::OkStatus();
}

}  // namespace nni_compression::server
