#include "client/cli/checkpoints/model_sink.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "client/cli/checkpoints/index.h"
#include "client/cli/checkpoints/model_files.h"

namespace nni_compression::cli {
namespace {

constexpr char kServerStem[] = "model";
constexpr char kTotalSize[] = "total_size";

int64_t SizeOf(const FileTensor& tensor) { return tensor.end - tensor.begin; }

}  // namespace

std::vector<Shard> PlanShards(const SafetensorsHeader& file, const std::string& base,
                              int64_t max_bytes) {
  std::vector<Shard> shards(1);
  int64_t bytes = 0;
  for (const FileTensor& tensor : file.tensors) {
    const bool fits = max_bytes == 0 || SizeOf(tensor) <= max_bytes - bytes;
    if (!fits && bytes > 0 && SizeOf(tensor) > 0) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += SizeOf(tensor);
    shards.back().header.tensors.push_back(tensor);
  }
  for (size_t s = 0; s < shards.size(); ++s) {
    Shard& shard = shards[s];
    shard.name = shards.size() == 1 ? absl::StrCat(base, kSafetensorsSuffix)
                                    : absl::StrFormat("%s-%05d-of-%05d%s", base, s + 1,
                                                      shards.size(), kSafetensorsSuffix);
    shard.header.metadata = file.metadata;
    std::stable_sort(shard.header.tensors.begin(), shard.header.tensors.end(),
                     [](const FileTensor& a, const FileTensor& b) {
                       return ElementBits(a.dtype) > ElementBits(b.dtype);
                     });
    int64_t end = 0;
    for (FileTensor& tensor : shard.header.tensors) {
      const int64_t size = SizeOf(tensor);
      tensor.begin = end;
      tensor.end = end += size;
    }
  }
  return shards;
}

absl::Status ModelSink::Begin(const std::string& name, int64_t byte_length) {
  name_ = name;
  byte_length_ = byte_length;
  head_.clear();
  shards_.clear();
  offset_ = 0;
  kind_ = Kind::kPlain;
  if (name == kConfigFile && options_.config) kind_ = Kind::kConfig;
  if (absl::EndsWith(name, kSafetensorsSuffix)) kind_ = Kind::kTensors;
  if (kind_ != Kind::kPlain) return absl::OkStatus();
  auto file = folder_.Add(name);
  if (!file.ok()) return file.status();
  output_ = *std::move(file);
  files_.push_back(name);
  return absl::OkStatus();
}

absl::Status ModelSink::Write(absl::Span<const uint8_t> bytes) {
  if (kind_ == Kind::kPlain) {
    absl::Status written = output_.WriteAt(offset_, bytes);
    offset_ += static_cast<int64_t>(bytes.size());
    return written;
  }
  if (!shards_.empty()) return WriteData(bytes);
  head_.insert(head_.end(), bytes.begin(), bytes.end());
  if (kind_ == Kind::kConfig || head_.size() < kLengthBytes) return absl::OkStatus();
  const auto data_begin = DataBegin(head_, byte_length_);
  if (!data_begin.ok()) return data_begin.status();
  if (static_cast<int64_t>(head_.size()) < *data_begin) return absl::OkStatus();
  if (absl::Status planned = Plan(*data_begin); !planned.ok()) return planned;
  return WriteData(absl::MakeConstSpan(head_).subspan(*data_begin));
}

std::string ModelSink::Base() const {
  return absl::StrCat(options_.stem,
                      absl::StripPrefix(absl::StripSuffix(name_, kSafetensorsSuffix), kServerStem));
}

absl::Status ModelSink::Plan(int64_t data_begin) {
  auto file = ParseHeader(head_, byte_length_);
  if (!file.ok()) return file.status();
  file->metadata[kResultMetadata] = options_.format;
  shards_ = PlanShards(*file, Base(), options_.max_shard_bytes);

  std::map<std::string, Piece> places;  // by tensor
  for (size_t s = 0; s < shards_.size(); ++s) {
    const auto begin = static_cast<int64_t>(SerializeHeader(shards_[s].header).size());
    for (const FileTensor& tensor : shards_[s].header.tensors) {
      places.emplace(tensor.name, Piece{s, begin + tensor.begin, SizeOf(tensor)});
    }
  }
  pieces_.clear();
  for (const FileTensor& tensor : file->tensors) {
    if (SizeOf(tensor) > 0) pieces_.push_back(places.at(tensor.name));
  }
  next_ = 0;
  opened_ = 0;
  return OpenShard(0);
}

absl::Status ModelSink::OpenShard(size_t shard) {
  if (opened_ > 0) {
    if (absl::Status finished = output_.Finish(); !finished.ok()) return finished;
  }
  auto file = folder_.Add(shards_[shard].name);
  if (!file.ok()) return file.status();
  output_ = *std::move(file);
  files_.push_back(shards_[shard].name);
  opened_ = shard + 1;
  const std::string header = SerializeHeader(shards_[shard].header);
  return output_.WriteAt(0, {reinterpret_cast<const uint8_t*>(header.data()), header.size()});
}

absl::Status ModelSink::WriteData(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    Piece& piece = pieces_[next_];
    if (piece.shard == opened_) {
      if (absl::Status opened = OpenShard(piece.shard); !opened.ok()) return opened;
    }
    const auto part = bytes.first(std::min<size_t>(bytes.size(), piece.bytes));
    if (absl::Status written = output_.WriteAt(piece.offset, part); !written.ok()) return written;
    bytes.remove_prefix(part.size());
    piece.offset += static_cast<int64_t>(part.size());
    piece.bytes -= static_cast<int64_t>(part.size());
    if (piece.bytes == 0) ++next_;
  }
  return absl::OkStatus();
}

absl::Status ModelSink::End() {
  if (kind_ == Kind::kPlain) return output_.Finish();
  if (kind_ == Kind::kConfig) {
    const auto merged = options_.config->WithQuantization(
        {reinterpret_cast<const char*>(head_.data()), head_.size()});
    if (!merged.ok()) {
      return absl::Status(merged.status().code(), absl::StrCat("the model's ", kConfigFile, ": ",
                                                               merged.status().message()));
    }
    files_.push_back(name_);
    return folder_.AddText(name_, *merged);
  }
  if (shards_.empty() || next_ != pieces_.size()) {
    return absl::InternalError(absl::StrCat("the file ", name_, " is truncated"));
  }
  if (absl::Status finished = output_.Finish(); !finished.ok()) return finished;
  return shards_.size() == 1 ? absl::OkStatus() : WriteIndex();
}

absl::Status ModelSink::WriteIndex() {
  CheckpointIndex index;
  index.metadata = options_.index_metadata;
  int64_t total = 0;
  for (const Shard& shard : shards_) {
    for (const FileTensor& tensor : shard.header.tensors) {
      index.weight_map.emplace(tensor.name, shard.name);
      total += SizeOf(tensor);
    }
  }
  index.metadata[kTotalSize] = total;
  for (const auto& [name, stored] : options_.tied) {
    const auto file = index.weight_map.find(stored);
    if (file != index.weight_map.end()) index.weight_map.emplace(name, file->second);
  }
  const std::string name = absl::StrCat(Base(), kSafetensorsSuffix, kIndexSuffix);
  files_.push_back(name);
  return folder_.AddText(name, SerializeIndex(index));
}

absl::Status ModelSink::Restart() {
  warnings_.clear();
  files_.clear();
  output_ = OutputFile();
  return folder_.Clear();
}

}  // namespace nni_compression::cli
