#include "compression/exporters/zip_archive.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "compression/exporters/segments.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kContentAlignment = 64;
constexpr int64_t kLocalHeaderBytes = 30;
constexpr uint32_t kMax32 = std::numeric_limits<uint32_t>::max();
constexpr uint16_t kMax16 = std::numeric_limits<uint16_t>::max();
constexpr uint16_t kZipVersion = 45;           // the version that supports zip64
constexpr uint16_t kFlags = 1 << 3 | 1 << 11;  // checksum after the content; UTF-8 name
constexpr uint16_t kDate = 1 << 5 | 1;         // 1 January 1980: archives depend on contents only
constexpr uint16_t kZip64 = 0x0001;
constexpr uint16_t kPadding = 0x4246;  // the field id of PyTorch's writer

// Little-endian numbers in a row.
class Fields {
 public:
  Fields& U16(uint64_t value) { return Put(value, 2); }
  Fields& U32(uint64_t value) { return Put(value, 4); }
  Fields& U64(uint64_t value) { return Put(value, 8); }
  Fields& Text(const std::string& text) {
    bytes_ += text;
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  Fields& Put(uint64_t value, int count) {
    for (int i = 0; i < count; ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
    return *this;
  }

  std::string bytes_;
};

uint64_t Or32(int64_t value) { return std::min<uint64_t>(static_cast<uint64_t>(value), kMax32); }

uint32_t Crc(uint32_t crc, const uint8_t* data, int64_t size) {
  return static_cast<uint32_t>(crc32_z(crc, data, static_cast<size_t>(size)));
}

}  // namespace

struct ZipArchive::Entry {
  std::string name;
  int64_t offset = 0;  // of the local header
  int64_t size = 0;
  uint32_t crc = 0;  // of what was produced so far

  bool large() const { return size >= kMax32; }
};

ZipArchive::ZipArchive() = default;
ZipArchive::~ZipArchive() = default;

void ZipArchive::Append(Segment segment) {
  offset_ += segment.byte_length;
  segments_.push_back(std::move(segment));
}

void ZipArchive::Add(const std::string& name, Segment content) {
  const auto entry = std::make_shared<Entry>();
  entry->name = name;
  entry->offset = offset_;
  entry->size = content.byte_length;
  entries_.push_back(entry);

  Fields extra;
  if (entry->large()) extra.U16(kZip64).U16(16).U64(0).U64(0);
  const int64_t before = offset_ + kLocalHeaderBytes + static_cast<int64_t>(name.size()) +
                         static_cast<int64_t>(extra.bytes().size()) + 4;
  const int64_t padding = (kContentAlignment - before % kContentAlignment) % kContentAlignment;
  extra.U16(kPadding).U16(padding).Text(std::string(padding, '\0'));
  const uint32_t unknown = entry->large() ? kMax32 : 0;
  Fields header;
  header.U32(0x04034b50).U16(kZipVersion).U16(kFlags).U16(0).U16(0).U16(kDate);
  header.U32(0).U32(unknown).U32(unknown).U16(name.size()).U16(extra.bytes().size());
  header.Text(name).Text(extra.bytes());
  Append(BytesSegment(header.bytes()));

  if (content.tensor) {
    content.transform = [entry, inner = std::move(content.transform)](Buffer& bytes) {
      if (inner) {
        if (absl::Status status = inner(bytes); !status.ok()) return status;
      }
      entry->crc = Crc(0, bytes.data(), bytes.size());
      return absl::OkStatus();
    };
  } else {
    content.fill = [entry, inner = std::move(content.fill)](int64_t offset,
                                                            absl::Span<uint8_t> out) {
      inner(offset, out);
      entry->crc = Crc(offset == 0 ? 0 : entry->crc, out.data(), static_cast<int64_t>(out.size()));
    };
  }
  Append(std::move(content));

  Segment descriptor;
  descriptor.byte_length = entry->large() ? 24 : 16;
  descriptor.fill = [entry](int64_t offset, absl::Span<uint8_t> out) {
    Fields fields;
    fields.U32(0x08074b50).U32(entry->crc);
    for (int i = 0; i < 2; ++i) entry->large() ? fields.U64(entry->size) : fields.U32(entry->size);
    std::copy_n(fields.bytes().begin() + offset, out.size(), out.begin());
  };
  Append(std::move(descriptor));
}

std::string ZipArchive::Directory(const std::vector<std::shared_ptr<const Entry>>& entries,
                                  int64_t offset) {
  Fields fields;
  for (const auto& entry : entries) {
    Fields large;
    if (entry->large()) large.U64(entry->size).U64(entry->size);
    if (entry->offset >= kMax32) large.U64(entry->offset);
    Fields extra;
    if (!large.bytes().empty()) extra.U16(kZip64).U16(large.bytes().size()).Text(large.bytes());
    fields.U32(0x02014b50).U16(kZipVersion).U16(kZipVersion).U16(kFlags).U16(0).U16(0).U16(kDate);
    fields.U32(entry->crc).U32(Or32(entry->size)).U32(Or32(entry->size));
    fields.U16(entry->name.size()).U16(extra.bytes().size()).U16(0).U16(0).U16(0).U32(0);
    fields.U32(Or32(entry->offset)).Text(entry->name).Text(extra.bytes());
  }
  const size_t size = fields.bytes().size();
  const int64_t end = offset + static_cast<int64_t>(size);
  // Always present; readers that do not need it skip it.
  fields.U32(0x06064b50).U64(44).U16(kZipVersion).U16(kZipVersion).U32(0).U32(0);
  fields.U64(entries.size()).U64(entries.size()).U64(size).U64(offset);
  fields.U32(0x07064b50).U32(0).U64(end).U32(1);
  const size_t count = std::min<size_t>(entries.size(), kMax16);
  fields.U32(0x06054b50).U16(0).U16(0).U16(count).U16(count);
  fields.U32(Or32(static_cast<int64_t>(size))).U32(Or32(offset)).U16(0);
  return fields.bytes();
}

std::vector<Segment> ZipArchive::Finish() && {
  Segment directory;
  directory.byte_length = static_cast<int64_t>(Directory(entries_, offset_).size());
  directory.memory = directory.byte_length;
  // Created when its first byte is requested: by then all checksums are known.
  directory.fill = [entries = std::move(entries_), offset = offset_,
                    bytes = std::make_shared<std::string>()](int64_t from,
                                                             absl::Span<uint8_t> out) {
    if (from == 0) *bytes = Directory(entries, offset);
    std::copy_n(bytes->begin() + from, out.size(), out.begin());
  };
  segments_.push_back(std::move(directory));
  return std::move(segments_);
}

}  // namespace nni_compression::compression
