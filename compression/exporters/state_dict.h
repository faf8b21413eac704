// What torch.load reads: a zip archive of a pickle and the tensors' bytes.
#ifndef NNI_COMPRESSION_COMPRESSION_EXPORTERS_STATE_DICT_H_
#define NNI_COMPRESSION_COMPRESSION_EXPORTERS_STATE_DICT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/zip_archive.h"

namespace nni_compression::compression {

// A dictionary from names to tensors, or to small dictionaries of a mask (see AddMask), written
// with protocol 2 and only with what torch.load(weights_only=True) admits. Thread-compatible.
class StateDict {
 public:
  explicit StateDict(std::string file_name) : file_name_(std::move(file_name)) {}

  // name: tensor. INVALID_ARGUMENT for a type that PyTorch lacks (uint16).
  absl::Status Add(const ExportTensor& tensor, Segment bytes);
  // name: {"weight": tensor, "bias": None}, as NNI writes masks.
  absl::Status AddMask(const ExportTensor& tensor, Segment bytes);

  ExportFile Finish() &&;

 private:
  absl::Status PutTensor(const ExportTensor& tensor, Segment bytes);
  void Put(const char* text);
  void PutText(const std::string& text);
  void PutGlobal(const char* module, absl::string_view name);
  void PutInteger(int64_t value);
  void PutIntegers(const std::vector<int64_t>& values);

  const std::string file_name_;
  std::string pickle_;  // of the entries
  std::vector<Segment> contents_;
};

}  // namespace nni_compression::compression

#endif  // NNI_COMPRESSION_COMPRESSION_EXPORTERS_STATE_DICT_H_
