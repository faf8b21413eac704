// Checksums of the catalogue's rows: SQLite itself does not notice a byte that has changed.
#ifndef NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_
#define NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_

#include <cstdint>
#include <optional>
#include <string>

#include "server/storage/storage.h"

namespace nni_compression::server {

// Of all that a row of `sessions` says, its own number excepted.
int64_t ChecksumOf(const CatalogueRow& row);

// Of a row of `records`: its key, and its bytes or the digest of its file.
int64_t ChecksumOf(int64_t session, int part, const std::optional<std::string>& bytes,
                   const std::optional<std::string>& digest);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_STORAGE_ROW_CHECKSUMS_H_
