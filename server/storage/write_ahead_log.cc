#include "server/storage/write_ahead_log.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <vector>

namespace nni_compression::server {
namespace {

// https://sqlite.org/fileformat2.html, "The WAL File Format". The numbers of the headers are
// big-endian.
constexpr size_t kHeaderBytes = 32;
constexpr size_t kFrameHeaderBytes = 24;
constexpr size_t kSummedHeaderBytes = 24;  // of the file header, covered by its checksum
constexpr size_t kSummedFrameBytes = 8;    // likewise of a frame
constexpr uint32_t kMagic = 0x377f0682;    // plus 1 for checksums of big-endian words
constexpr uint32_t kLeastPage = 512, kLargestPage = 65536;

uint32_t BigEndian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

uint32_t LittleEndian(const uint8_t* bytes) {
  return uint32_t{bytes[3]} << 24 | uint32_t{bytes[2]} << 16 | uint32_t{bytes[1]} << 8 | bytes[0];
}

// Reads the whole file, frame by frame.
struct LogChecksum {
  bool big_endian = false;
  uint32_t first = 0;
  uint32_t second = 0;

  void Add(const uint8_t* bytes, size_t size) {
    for (size_t i = 0; i + 8 <= size; i += 8) {
      first += Word(bytes + i) + second;
      second += Word(bytes + i + 4) + first;
    }
  }
  uint32_t Word(const uint8_t* bytes) const {
    return big_endian ? BigEndian(bytes) : LittleEndian(bytes);
  }
  bool Is(const uint8_t* stored) const {
    return first == BigEndian(stored) && second == BigEndian(stored + 4);
  }
};

}  // namespace

int LostTransactions(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::vector<uint8_t> header(kHeaderBytes);
  const auto read = [&](std::vector<uint8_t>* bytes) {
    file.read(reinterpret_cast<char*>(bytes->data()), static_cast<std::streamsize>(bytes->size()));
    return file.gcount() == static_cast<std::streamsize>(bytes->size());
  };
  if (!read(&header)) return 0;
  const uint32_t magic = BigEndian(&header[0]);
  LogChecksum sum{(magic & 1) != 0};
  sum.Add(header.data(), kSummedHeaderBytes);
  bool valid = (magic & ~1u) == kMagic && sum.Is(&header[24]);
  const uint32_t page = BigEndian(&header[8]);
  if (page < kLeastPage || page > kLargestPage || (page & (page - 1)) != 0) return 1;

  int lost = 0;
  int frames = 0;
  const bool readable = valid;  // without a valid header, no frame is
  std::vector<uint8_t> frame(kFrameHeaderBytes + page);
  for (; read(&frame); ++frames) {
    // Frames with another salt are left over: SQLite restarts the file from its beginning.
    const bool ours = BigEndian(&frame[8]) == BigEndian(&header[16]) &&
                      BigEndian(&frame[12]) == BigEndian(&header[20]);
    if (valid) {
      sum.Add(frame.data(), kSummedFrameBytes);
      sum.Add(&frame[kFrameHeaderBytes], page);
      valid = ours && sum.Is(&frame[16]);
    }
    const bool commits = BigEndian(&frame[4]) != 0;
    if (!valid && ours && commits) ++lost;
  }
  return readable || frames == 0 ? lost : std::max(lost, 1);
}

}  // namespace nni_compression::server
