#include "server/storage/row_checksums.h"

#include <zlib.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/disk/layout.h"

namespace nni_compression::server {
namespace {

// A CRC-32 of fields with their lengths, so that a byte cannot move to the next field undetected.
class RowChecksum {
 public:
  RowChecksum& Add(int64_t number) {
    unsigned char bytes[sizeof(number)];
    for (size_t i = 0; i < sizeof(bytes); ++i) {
      bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(number) >> (8 * i));
    }
    crc_ = crc32_z(crc_, bytes, sizeof(bytes));
    return *this;
  }

  RowChecksum& Add(absl::string_view bytes) {
    Add(static_cast<int64_t>(bytes.size()));
    crc_ = crc32_z(crc_, reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
    return *this;
  }

  // NULL differs from the empty string.
  RowChecksum& Add(const std::optional<std::string>& bytes) {
    return bytes ? Add(absl::string_view(*bytes)) : Add(int64_t{-1});
  }

  int64_t value() const { return static_cast<int64_t>(crc_); }

 private:
  uLong crc_ = 0;
};

}  // namespace

// CRCs are linear: equal changes in two rows would cancel out in a plain sum. This is the finalizer
// of SplitMix64 (Steele, Lea and Flood 2014).
void RecordSet::Change(int part, int64_t checksum, int sign) {
  uint64_t mixed = static_cast<uint64_t>(checksum) + 0x9e3779b97f4a7c15;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
  mixed ^= mixed >> 31;
  count += sign;
  parts += int64_t{sign} * part;
  checksums = static_cast<int64_t>(static_cast<uint64_t>(checksums) +
                                   static_cast<uint64_t>(int64_t{sign}) * mixed);
}

std::string DifferenceFrom(const RecordSet& expected, const RecordSet& found) {
  const int64_t missing = expected.count - found.count;
  if (missing == 1) {
    return absl::StrCat(layout::PartName(static_cast<int>(expected.parts - found.parts)),
                        " is missing");
  }
  if (missing > 1) {
    return absl::StrCat(missing, " of its ", expected.count, " records are missing");
  }
  if (missing < 0) return absl::StrCat(-missing, " unexpected records exist");
  if (found.parts != expected.parts) return "its records are not the expected ones";
  return "one of its records is not the last one written";
}

int64_t ChecksumOf(const CatalogueRow& row, const std::optional<RecordSet>& records) {
  RowChecksum checksum;
  checksum.Add(absl::string_view(row.key.first))
      .Add(absl::string_view(row.key.second))
      .Add(static_cast<int64_t>(row.sequence))
      .Add(int64_t{row.ended})
      .Add(absl::ToInt64Nanoseconds(row.lease))
      .Add(absl::string_view(row.request_id))
      .Add(absl::string_view(row.fingerprint))
      .Add(absl::string_view(row.entry));
  if (records) checksum.Add(records->count).Add(records->parts).Add(records->checksums);
  return checksum.value();
}

int64_t ChecksumOf(int64_t session, int part, const std::optional<std::string>& bytes,
                   const std::optional<std::string>& digest) {
  return RowChecksum().Add(session).Add(int64_t{part}).Add(bytes).Add(digest).value();
}

}  // namespace nni_compression::server
