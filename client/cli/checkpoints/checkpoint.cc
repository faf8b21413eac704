#include "client/cli/checkpoints/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

constexpr int64_t kReleasedBytes = int64_t{16} << 20;

std::string NameOf(const std::string& path) { return std::filesystem::path(path).filename(); }

}  // namespace

Checkpoint::Checkpoint(SafetensorsFile file) { Add(std::move(file)); }

absl::StatusOr<Checkpoint> Checkpoint::Open(const ModelFiles& model) {
  Checkpoint checkpoint;
  for (const std::string& path : model.weights) {
    auto file = SafetensorsFile::Open(path);
    if (!file.ok()) return file.status();
    checkpoint.Add(*std::move(file));
  }
  absl::Status checked = checkpoint.CheckIndex(model);
  if (!checked.ok()) return checked;
  return checkpoint;
}

void Checkpoint::Add(SafetensorsFile file) {
  begins_.push_back(end_);
  int64_t size = 0;
  for (FileTensor tensor : file.header().tensors) {
    size = tensor.end;
    tensor.begin += end_;
    tensor.end += end_;
    header_.tensors.push_back(std::move(tensor));
  }
  header_.metadata.insert(file.header().metadata.begin(), file.header().metadata.end());
  end_ += size;
  largest_file_ = std::max(largest_file_, size);
  files_.push_back(std::move(file));
}

absl::Status Checkpoint::CheckIndex(const ModelFiles& model) {
  if (!model.index) return absl::OkStatus();
  const auto& weight_map = model.index->weight_map;
  std::map<std::string, std::string> found;  // tensor -> file
  for (size_t f = 0; f < files_.size(); ++f) {
    const std::string& path = model.weights[f];
    for (const FileTensor& tensor : files_[f].header().tensors) {
      const auto [first, fresh] = found.emplace(tensor.name, NameOf(path));
      if (!fresh) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", tensor.name, " is in ", first->second, ", too"));
      }
      const auto mapped = weight_map.find(tensor.name);
      if (mapped == weight_map.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", tensor.name, " is not in the index's weight_map"));
      }
      if (mapped->second != NameOf(path)) {
        return absl::InvalidArgumentError(absl::StrCat(path, ": tensor ", tensor.name, " is in ",
                                                       mapped->second,
                                                       " according to the index's weight_map"));
      }
    }
  }
  // Where tied tensors were saved once, metadata has the name that is stored.
  const auto stored = [&](const std::string& name) -> std::string {
    const auto in_file = header_.metadata.find(name);
    if (in_file != header_.metadata.end()) return in_file->second;
    const auto in_index = model.index->metadata.find(name);
    if (in_index == model.index->metadata.end() || !in_index->is_string()) return "";
    return in_index->get<std::string>();
  };
  for (const auto& [name, file] : weight_map) {
    if (found.count(name) != 0) continue;
    const std::string other = stored(name);
    if (found.count(other) == 0) {
      return absl::InvalidArgumentError(absl::StrCat(model.folder, "/", file, ": tensor ", name,
                                                     " is missing; the index's weight_map has it"));
    }
    tied_.emplace(name, other);
  }
  return absl::OkStatus();
}

void Checkpoint::AfterReading(int64_t bytes) const {
  read_ += bytes;
  if (read_ < kReleasedBytes) return;
  read_ = 0;
  for (const SafetensorsFile& file : files_) file.Release();
}

absl::Span<const uint8_t> Checkpoint::bytes(const FileTensor& tensor) const {
  const auto next = std::upper_bound(begins_.begin(), begins_.end(), tensor.begin);
  const size_t f = next - begins_.begin() - 1;
  FileTensor in_file = tensor;
  in_file.begin -= begins_[f];
  in_file.end -= begins_[f];
  return files_[f].bytes(in_file);
}

}  // namespace nni_compression::cli
