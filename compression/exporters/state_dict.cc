#include "compression/exporters/state_dict.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/exporters/segments.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

// Instructions of pickle's protocol 2.
constexpr char kProtocol[] = "\x80\x02";
constexpr char kGlobal[] = "c";
constexpr char kEmptyTuple[] = ")";
constexpr char kReduce[] = "R";
constexpr char kMark[] = "(";
constexpr char kTuple[] = "t";
constexpr char kEmptyDict[] = "}";
constexpr char kSetItems[] = "u";
constexpr char kPersistentId[] = "Q";
constexpr char kUnicode[] = "X";
constexpr char kFalse[] = "\x89";
constexpr char kNone[] = "N";
constexpr char kInt32[] = "J";
constexpr char kLong[] = "\x8a";
constexpr char kStop[] = ".";

void AppendLittleEndian(uint64_t value, int count, std::string& out) {
  for (int i = 0; i < count; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

}  // namespace

void StateDict::Put(const char* text) { pickle_ += text; }

void StateDict::PutText(const std::string& text) {
  Put(kUnicode);
  AppendLittleEndian(text.size(), 4, pickle_);
  pickle_ += text;
}

void StateDict::PutGlobal(const char* module, absl::string_view name) {
  absl::StrAppend(&pickle_, kGlobal, module, "\n", name, "\n");
}

void StateDict::PutInteger(int64_t value) {
  if (value <= std::numeric_limits<int32_t>::max()) {
    Put(kInt32);
    AppendLittleEndian(static_cast<uint64_t>(value), 4, pickle_);
  } else {
    Put(kLong);
    pickle_.push_back(8);
    AppendLittleEndian(static_cast<uint64_t>(value), 8, pickle_);
  }
}

void StateDict::PutIntegers(const std::vector<int64_t>& values) {
  Put(kMark);
  for (const int64_t value : values) PutInteger(value);
  Put(kTuple);
}

absl::Status StateDict::PutTensor(const ExportTensor& tensor, Segment bytes) {
  const absl::StatusOr<c10::ScalarType> type = ToScalarType(tensor.dtype);
  if (!type.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(tensor.name), " is ",
                                                   DataTypeName(tensor.dtype),
                                                   ", which PyTorch has no type for"));
  }
  std::vector<int64_t> strides(tensor.shape.size());
  int64_t elements = 1;
  for (size_t d = tensor.shape.size(); d-- > 0;) {
    strides[d] = elements;
    elements *= tensor.shape[d];
  }
  PutGlobal("torch._utils", "_rebuild_tensor_v2");
  Put(kMark);
  Put(kMark);  // the storage
  PutText("storage");
  PutGlobal("torch", absl::StrCat(c10::toString(*type), "Storage"));
  PutText(absl::StrCat(contents_.size()));
  PutText("cpu");
  PutInteger(elements);
  Put(kTuple);
  Put(kPersistentId);
  PutInteger(0);  // offset in the storage
  PutIntegers(tensor.shape);
  PutIntegers(strides);
  Put(kFalse);  // requires_grad
  PutGlobal("collections", "OrderedDict");
  Put(kEmptyTuple);
  Put(kReduce);  // backward hooks: none
  Put(kTuple);
  Put(kReduce);
  contents_.push_back(std::move(bytes));
  return absl::OkStatus();
}

absl::Status StateDict::Add(const ExportTensor& tensor, Segment bytes) {
  PutText(tensor.name);
  return PutTensor(tensor, std::move(bytes));
}

absl::Status StateDict::AddMask(const ExportTensor& tensor, Segment bytes) {
  PutText(tensor.name);
  Put(kEmptyDict);
  Put(kMark);
  PutText("weight");
  if (auto status = PutTensor(tensor, std::move(bytes)); !status.ok()) return status;
  PutText("bias");
  Put(kNone);
  Put(kSetItems);
  return absl::OkStatus();
}

ExportFile StateDict::Finish() && {
  const std::string entries = std::exchange(pickle_, kProtocol);
  PutGlobal("collections", "OrderedDict");
  Put(kEmptyTuple);
  Put(kReduce);
  Put(kMark);
  pickle_ += entries;
  Put(kSetItems);
  Put(kStop);

  // PyTorch takes the folder from the archive's first entry.
  ZipArchive archive;
  archive.Add("archive/data.pkl", BytesSegment(pickle_));
  archive.Add("archive/byteorder", BytesSegment("little"));
  for (size_t i = 0; i < contents_.size(); ++i) {
    archive.Add(absl::StrCat("archive/data/", i), std::move(contents_[i]));
  }
  archive.Add("archive/version", BytesSegment("3\n"));
  ExportFile file(file_name_, "application/octet-stream");
  for (Segment& segment : std::move(archive).Finish()) file.Add(std::move(segment));
  return file;
}

}  // namespace nni_compression::compression
