// Checksums of the catalogue's rows, since SQLite does not detect changed bytes.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_
#define NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "server/storage/storage.h"

namespace nni_compression::server {

// A digest of a session's set of rows in `records`, to detect missing ones. Rows are added and
// removed one by one, in any order, without reading the others.
struct RecordSet {
  int64_t count = 0;
  int64_t parts = 0;      // their sum
  int64_t checksums = 0;  // their sum, each mixed, modulo 2^64

  // `sign` is 1 to add a row, -1 to remove one.
  void Change(int part, int64_t checksum, int sign);

  friend bool operator==(const RecordSet& a, const RecordSet& b) {
    return a.count == b.count && a.parts == b.parts && a.checksums == b.checksums;
  }
};

// Describes how the rows found differ from `expected`, for errors.
std::string DifferenceFrom(const RecordSet& expected, const RecordSet& found);

// Of a row of `sessions`, except for its number. `records` is nullopt if the row does not list
// them.
int64_t ChecksumOf(const CatalogueRow& row, const std::optional<RecordSet>& records);

// Of a row of `records`: its key, and its bytes or the digest of its file.
int64_t ChecksumOf(int64_t session, int part, const std::optional<std::string>& bytes,
                   const std::optional<std::string>& digest);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_
