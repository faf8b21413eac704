#include "client/cli/checkpoints/checkpoint_sink.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

constexpr char kOwnMetadata[] = "nni_compression.";
constexpr size_t kLocalBytes = size_t{8} << 20;  // of a tensor of the input, in memory at a time

}  // namespace

CheckpointOrder::CheckpointOrder(const SafetensorsHeader& input) {
  for (const FileTensor& tensor : input.tensors) positions_.emplace(tensor.name, positions_.size());
}

bool CheckpointOrder::Before(const FileTensor& a, const FileTensor& b) const {
  const auto key = [this](const FileTensor& tensor) {
    const auto found = positions_.find(tensor.name);
    return std::pair(-ElementBits(tensor.dtype),
                     found == positions_.end() ? positions_.size() : found->second);
  };
  return key(a) < key(b);
}

absl::Status CheckpointSink::Begin(const std::string& name, int64_t byte_length) {
  name_ = name;
  byte_length_ = byte_length;
  plain_ = !absl::EndsWith(name, ".safetensors");
  in_header_ = !plain_;
  head_.clear();
  // Else once the length of the completed file is known.
  return plain_ ? output_.Begin(name, byte_length) : absl::OkStatus();
}

absl::Status CheckpointSink::Write(absl::Span<const uint8_t> bytes) {
  if (plain_) return output_.Write(bytes);
  if (!in_header_) return WriteData(bytes);
  head_.insert(head_.end(), bytes.begin(), bytes.end());
  if (head_.size() < kLengthBytes) return absl::OkStatus();
  const auto data_begin = DataBegin(head_, byte_length_);
  if (!data_begin.ok()) return data_begin.status();
  if (static_cast<int64_t>(head_.size()) < *data_begin) return absl::OkStatus();
  in_header_ = false;
  absl::Status written = WriteHeader();
  if (!written.ok()) return written;
  return WriteData(absl::MakeConstSpan(head_).subspan(*data_begin));
}

absl::Status CheckpointSink::WriteHeader() {
  const auto header = Merge();
  if (!header.ok()) {
    return absl::Status(header.status().code(),
                        absl::StrCat("file ", name_, ": ", header.status().message()));
  }
  const std::string bytes = SerializeHeader(*header);
  const int64_t data_bytes = header->tensors.empty() ? 0 : header->tensors.back().end;
  absl::Status begun = output_.Begin(name_, static_cast<int64_t>(bytes.size()) + data_bytes);
  if (!begun.ok()) return begun;
  return output_.Write({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

absl::StatusOr<SafetensorsHeader> CheckpointSink::Merge() {
  auto server = ParseHeader(head_, byte_length_);
  if (!server.ok()) return server.status();
  std::set<std::string> taken;
  for (const FileTensor& tensor : server->tensors) taken.insert(tensor.name);
  std::vector<const FileTensor*> local;
  for (const FileTensor& tensor : input_.header().tensors) {
    if (sent_.count(tensor.name) != 0) continue;
    if (taken.count(tensor.name) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the input has a tensor ", tensor.name,
                       ", which is also the name of one that the export adds"));
    }
    local.push_back(&tensor);
  }
  std::stable_sort(local.begin(), local.end(), [this](const FileTensor* a, const FileTensor* b) {
    return order_.Before(*a, *b);
  });

  SafetensorsHeader merged;
  merged.metadata = server->metadata;
  // Metadata of an earlier export does not describe this one.
  for (const auto& [key, value] : input_.header().metadata) {
    if (!absl::StartsWith(key, kOwnMetadata)) merged.metadata[key] = value;
  }
  pieces_.clear();
  next_ = 0;
  int64_t end = 0;
  const auto add = [&](const FileTensor& tensor, bool is_local) {
    const int64_t size = tensor.end - tensor.begin;
    pieces_.push_back(is_local ? Piece{&tensor, 0} : Piece{nullptr, size});
    merged.tensors.push_back(tensor);
    merged.tensors.back().begin = end;
    merged.tensors.back().end = end += size;
  };
  auto next_local = local.begin();
  for (const FileTensor& tensor : server->tensors) {
    while (next_local != local.end() && order_.Before(**next_local, tensor)) {
      add(**next_local++, /*is_local=*/true);
    }
    add(tensor, /*is_local=*/false);
  }
  while (next_local != local.end()) add(**next_local++, /*is_local=*/true);
  return merged;
}

absl::Status CheckpointSink::WriteLocal() {
  while (next_ < pieces_.size() && pieces_[next_].local != nullptr) {
    for (auto bytes = input_.bytes(*pieces_[next_++].local); !bytes.empty();) {
      const auto part = bytes.first(std::min(bytes.size(), kLocalBytes));
      if (absl::Status written = output_.Write(part); !written.ok()) return written;
      input_.AfterReading(static_cast<int64_t>(part.size()));
      bytes.remove_prefix(part.size());
    }
  }
  return absl::OkStatus();
}

absl::Status CheckpointSink::WriteData(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    if (absl::Status written = WriteLocal(); !written.ok()) return written;
    Piece& piece = pieces_[next_];
    const auto part = bytes.first(std::min<size_t>(bytes.size(), piece.server_bytes));
    if (absl::Status written = output_.Write(part); !written.ok()) return written;
    bytes.remove_prefix(part.size());
    piece.server_bytes -= static_cast<int64_t>(part.size());
    if (piece.server_bytes == 0) ++next_;
  }
  return absl::OkStatus();
}

absl::Status CheckpointSink::End() {
  if (plain_) return output_.End();
  if (in_header_) {
    return absl::InternalError(absl::StrCat("the server's file ", name_, " has no header"));
  }
  // Empty tensors from the server have pieces without bytes.
  while (next_ < pieces_.size()) {
    if (pieces_[next_].server_bytes > 0)
      return absl::InternalError("the server's file is truncated");
    if (pieces_[next_].local == nullptr) ++next_;
    if (absl::Status written = WriteLocal(); !written.ok()) return written;
  }
  return output_.End();
}

absl::Status CheckpointSink::Restart() { return output_.Restart(); }

}  // namespace nni_compression::cli
