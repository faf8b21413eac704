#include "compression/exporters/coded_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/kernels/apply_mask.h"
#include "compression/kernels/quantize.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

int64_t Words(int64_t codes, int64_t per_word) { return (codes + per_word - 1) / per_word; }

// Code i of a weight as an unsigned integer of `bits` bits.
uint32_t Unsigned(const Coded& coded, const uint8_t* codes, int64_t i) {
  const uint32_t half = uint32_t{1} << (coded.parameters.bits - 1);
  return coded.symmetric() ? static_cast<uint32_t>(static_cast<int8_t>(codes[i])) + half : codes[i];
}

// Packs rows of codes into rows of words.
void PackRows(const Coded& coded, const uint8_t* codes, uint32_t* words) {
  const int64_t per_word = coded.per_word(), columns = coded.columns();
  for (int64_t row = 0; row < coded.rows(); ++row) {
    for (int64_t begin = 0; begin < columns; begin += per_word) {
      uint32_t word = 0;
      for (int64_t c = begin; c < std::min(columns, begin + per_word); ++c) {
        word |= Unsigned(coded, codes, row * columns + c) << (coded.parameters.bits * (c - begin));
      }
      *words++ = word;
    }
  }
}

// Word i of the zero points of [rows, groups], packed down the columns, the first in the lowest
// bits.
uint32_t PackedZeroPoints(const Coded& coded, int64_t i) {
  const int64_t per_word = coded.per_word(), groups = coded.groups();
  const int64_t begin = i / groups * per_word, group = i % groups;
  uint32_t word = 0;
  for (int64_t row = begin; row < std::min(coded.rows(), begin + per_word); ++row) {
    word |= static_cast<uint32_t>(coded.parameters.zero_point[row * groups + group])
            << (coded.parameters.bits * (row - begin));
  }
  return word;
}

// Zero point i, with the same offset as the codes that were made signed.
int8_t SignedZeroPoint(const Coded& coded, int64_t i) {
  return static_cast<int8_t>(coded.parameters.zero_point[i] - (1 << (coded.parameters.bits - 1)));
}

// Files are planned from the parameters without their scales and zero points.
absl::Status CheckAsPlanned(const Coded& coded, const QuantizationParameters& found) {
  const QuantizationParameters& planned = coded.parameters;
  if (found.formula == planned.formula && found.bits == planned.bits &&
      CodeType(found) == CodeType(planned) && found.channel_axis == planned.channel_axis &&
      found.group_size == planned.group_size) {
    return absl::OkStatus();
  }
  const auto describe = [](const QuantizationParameters& p) {
    return absl::StrCat(p.bits, p.code_min < 0 ? " signed bits" : " bits",
                        p.formula == Formula::kAffine ? "" : " by DoReFa's formula");
  };
  return absl::FailedPreconditionError(
      absl::StrCat("the weight of layer ", Quoted(coded.layer().name), " is quantized to ",
                   describe(found), ", but the file was planned for its last answer, ",
                   describe(planned), "; quantize this weight in the session before the export"));
}

}  // namespace

Transform Codes(const std::shared_ptr<Coded>& coded) {
  return [coded](Buffer& bytes) {
    const Layer& layer = coded->layer();
    auto result = coded->snapshot.QuantizeWeight(bytes, QuantizeReply::kCodes);
    if (!result.ok()) return result.status();
    if (!result->parameters) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", Quoted(layer.name), " is not quantized at this step"));
    }
    if (auto status = CheckAsPlanned(*coded, *result->parameters); !status.ok()) return status;
    coded->parameters = *std::move(result->parameters);
    bytes = std::move(result->data);
    if (const auto& mask = coded->snapshot.mask()) {
      const Channels channels =
          Channels::Of(layer.shape, coded->parameters.channel_axis, coded->parameters.group_size);
      ApplyMask(mask->bits().data(), channels, coded->parameters, bytes.data());
    }
    return absl::OkStatus();
  };
}

Segment ScaleSegment(const std::shared_ptr<Coded>& coded) {
  Segment segment = NumbersSegment<float>(
      coded->snapshot.scales(), [coded](int64_t i) { return coded->parameters.scale[i]; });
  segment.memory = 2 * segment.byte_length;
  return segment;
}

void CodedModel::AddNumbers(std::string name, DataType dtype, std::vector<int64_t> shape,
                            Segment segment) {
  number_entries.push_back({std::move(name), dtype, std::move(shape), segment.byte_length});
  number_segments.push_back(std::move(segment));
}

void CodedModel::AddWeight(const std::shared_ptr<Coded>& coded, size_t t) {
  const int64_t words = coded->rows() * Words(coded->columns(), coded->per_word());
  Segment segment;
  segment.tensor = static_cast<int>(t);
  segment.byte_length = packed ? 4 * words : coded->layer().elements;
  segment.transform = [coded, quantize = Codes(coded), packed = packed,
                       size = segment.byte_length](Buffer& bytes) {
    if (absl::Status status = quantize(bytes); !status.ok()) return status;
    Buffer out = Buffer::Allocate(size);
    if (packed) {
      PackRows(*coded, bytes.data(), reinterpret_cast<uint32_t*>(out.data()));
    } else {
      const uint8_t moved = coded->symmetric() ? 0 : 0x80;
      for (int64_t i = 0; i < size; ++i) out.data()[i] = bytes.data()[i] ^ moved;
    }
    bytes = std::move(out);
    return absl::OkStatus();
  };
  if (packed) {
    entries.push_back({coded->Name("weight_packed"),
                       DataType::kInt32,
                       {coded->rows(), Words(coded->columns(), coded->per_word())},
                       segment.byte_length});
    AddNumbers(coded->Name("weight_shape"), DataType::kInt64, {2},
               NumbersSegment<int64_t>(2, [coded](int64_t i) { return coded->layer().shape[i]; }));
  } else {
    entries.push_back(
        {coded->tensor.name, DataType::kInt8, coded->layer().shape, segment.byte_length});
  }
  segments.push_back(std::move(segment));

  const auto shape = [&](int64_t rows) {
    return coded->per_channel() ? std::vector<int64_t>{rows, coded->groups()}
                                : std::vector<int64_t>{1};
  };
  AddNumbers(coded->Name("weight_scale"), DataType::kFloat32, shape(coded->rows()),
             ScaleSegment(coded));
  if (coded->symmetric()) return;
  if (packed && coded->per_channel()) {
    const int64_t rows = Words(coded->rows(), coded->per_word());
    AddNumbers(coded->Name("weight_zero_point"), DataType::kInt32, shape(rows),
               NumbersSegment<uint32_t>(rows * coded->groups(), [coded](int64_t i) {
                 return PackedZeroPoints(*coded, i);
               }));
  } else {
    AddNumbers(coded->Name("weight_zero_point"), DataType::kInt8, shape(coded->rows()),
               NumbersSegment<int8_t>(coded->snapshot.scales(),
                                      [coded](int64_t i) { return SignedZeroPoint(*coded, i); }));
  }
}

}  // namespace nni_compression::compression
