// Zip archives that are streamed: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_ZIP_ARCHIVE_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_ZIP_ARCHIVE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compression/exporters/exporter.h"

namespace nni_compression::compression {

// An archive of uncompressed entries. Checksums are computed while the entries are produced, and
// written after each and in the directory at the end, so an archive of any size is streamed front
// to back; sizes and offsets of 4 GiB and more use zip64. Contents begin at multiples of 64 bytes,
// so that readers may map them into memory. Thread-compatible.
class ZipArchive {
 public:
  ZipArchive();
  ~ZipArchive();

  // `name` is at most 65535 bytes of UTF-8.
  void Add(const std::string& name, Segment content);

  // The segments of the whole file; nothing may be added after it.
  std::vector<Segment> Finish() &&;

 private:
  struct Entry;

  void Append(Segment segment);
  static std::string Directory(const std::vector<std::shared_ptr<const Entry>>& entries,
                               int64_t offset);

  std::vector<std::shared_ptr<const Entry>> entries_;
  std::vector<Segment> segments_;
  int64_t offset_ = 0;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_ZIP_ARCHIVE_H_
