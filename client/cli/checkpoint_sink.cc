#include "client/cli/checkpoint_sink.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

constexpr size_t kLengthBytes = 8;

}  // namespace

absl::Status CheckpointSink::Begin(const std::string& name, int64_t byte_length) {
  name_ = name;
  byte_length_ = byte_length;
  in_header_ = true;
  head_.clear();
  rest_.clear();
  return output_.Begin(name, byte_length);
}

absl::Status CheckpointSink::Write(absl::Span<const uint8_t> bytes) {
  if (!in_header_) return output_.Write(bytes);
  head_.insert(head_.end(), bytes.begin(), bytes.end());
  if (head_.size() < kLengthBytes) return absl::OkStatus();
  const auto data_begin = DataBegin(head_, byte_length_);
  if (!data_begin.ok()) return data_begin.status();
  if (static_cast<int64_t>(head_.size()) < *data_begin) return absl::OkStatus();
  in_header_ = false;
  absl::Status written = WriteHeader();
  if (!written.ok()) return written;
  return output_.Write(absl::MakeConstSpan(head_).subspan(*data_begin));
}

absl::Status CheckpointSink::WriteHeader() {
  auto header = ParseHeader(head_, byte_length_);
  if (!header.ok()) {
    return absl::InternalError(
        absl::StrCat("the server's file ", name_, ": ", header.status().message()));
  }
  std::set<std::string> exported;
  int64_t end = 0;
  for (const FileTensor& tensor : header->tensors) {
    exported.insert(tensor.name);
    end = std::max(end, tensor.end);
  }
  for (const FileTensor& tensor : input_.header().tensors) {
    if (exported.count(tensor.name) != 0) continue;
    rest_.push_back(&tensor);
    FileTensor appended = tensor;
    appended.begin = end;
    appended.end = end += tensor.end - tensor.begin;
    header->tensors.push_back(std::move(appended));
  }
  for (const auto& [key, value] : input_.header().metadata) header->metadata[key] = value;
  const std::string bytes = SerializeHeader(*header);
  return output_.Write({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
}

absl::Status CheckpointSink::End() {
  if (in_header_) {
    return absl::InternalError(absl::StrCat("the server's file ", name_, " has no header"));
  }
  for (const FileTensor* tensor : rest_) {
    absl::Status written = output_.Write(input_.bytes(*tensor));
    if (!written.ok()) return written;
  }
  return output_.End();
}

absl::Status CheckpointSink::Restart() { return output_.Restart(); }

}  // namespace nni_compression::cli
