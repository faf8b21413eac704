#include "server/storage/row_checksums.h"

#include <zlib.h>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace nni_compression::server {
namespace {

// A CRC-32 of fields with their lengths, so that no byte can move from one to the next.
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

  // NULL is not the empty text.
  RowChecksum& Add(const std::optional<std::string>& bytes) {
    return bytes ? Add(absl::string_view(*bytes)) : Add(int64_t{-1});
  }

  int64_t value() const { return static_cast<int64_t>(crc_); }

 private:
  uLong crc_ = 0;
};

}  // namespace

int64_t ChecksumOf(const CatalogueRow& row) {
  return RowChecksum()
      .Add(absl::string_view(row.key.first))
      .Add(absl::string_view(row.key.second))
      .Add(static_cast<int64_t>(row.sequence))
      .Add(int64_t{row.ended})
      .Add(absl::ToInt64Nanoseconds(row.lease))
      .Add(absl::string_view(row.request_id))
      .Add(absl::string_view(row.fingerprint))
      .Add(absl::string_view(row.entry))
      .value();
}

int64_t ChecksumOf(int64_t session, int part, const std::optional<std::string>& bytes,
                   const std::optional<std::string>& digest) {
  return RowChecksum().Add(session).Add(int64_t{part}).Add(bytes).Add(digest).value();
}

}  // namespace nni_compression::server
