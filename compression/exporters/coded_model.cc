#include "compression/exporters/coded_model.h"

#include <algorithm>
#include <utility>

#include "compression/kernels/apply_mask.h"
#include "compression/suggest.h"

namespace nni_compression::compression {
namespace {

int64_t Words(int64_t codes, int64_t per_word) { return (codes + per_word - 1) / per_word; }

// Code i of a weight as an unsigned number of `bits`.
uint32_t Unsigned(const Coded& coded, const uint8_t* codes, int64_t i) {
  const uint32_t half = uint32_t{1} << (coded.parameters.bits - 1);
  return coded.symmetric() ? static_cast<uint32_t>(static_cast<int8_t>(codes[i])) + half : codes[i];
}

// Rows of words for rows of codes.
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

// Zero points of [rows, groups] packed down the columns, the first in the lowest bits of a word.
std::vector<uint32_t> PackZeroPoints(const Coded& coded) {
  const int64_t per_word = coded.per_word(), groups = coded.groups();
  std::vector<uint32_t> words(Words(coded.rows(), per_word) * groups);
  for (int64_t row = 0; row < coded.rows(); ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      words[row / per_word * groups + g] |=
          static_cast<uint32_t>(coded.parameters.zero_point[row * groups + g])
          << (coded.parameters.bits * (row % per_word));
    }
  }
  return words;
}

// As much as the affine codes were moved to become signed.
std::vector<int8_t> SignedZeroPoints(const Coded& coded) {
  std::vector<int8_t> signed_points;
  signed_points.reserve(coded.parameters.zero_point.size());
  for (const int32_t point : coded.parameters.zero_point) {
    signed_points.push_back(static_cast<int8_t>(point - (1 << (coded.parameters.bits - 1))));
  }
  return signed_points;
}

}  // namespace

Transform Codes(const Session& session, int i, const std::shared_ptr<Coded>& coded) {
  auto quantizer = std::static_pointer_cast<const Quantizer>(
      std::shared_ptr<const Compressor>(session.plan().layers[i].planned->compressor));
  return [quantizer, coded, state = session.state(i), clock = session.clock()](Buffer& bytes) {
    const Layer& layer = coded->layer;
    LayerState scratch = state;
    auto result = quantizer->QuantizeWeight(layer, bytes.AsTensor(layer.dtype, layer.shape),
                                            QuantizeReply::kCodes, clock, scratch);
    if (!result.ok()) return result.status();
    if (!result->parameters) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", Quoted(layer.name), " is not quantized at this step"));
    }
    coded->parameters = *std::move(result->parameters);
    bytes = std::move(result->data);
    if (state.mask) {
      const Channels channels =
          Channels::Of(layer.shape, coded->parameters.channel_axis, coded->parameters.group_size);
      ApplyMask(*state.mask, channels, coded->parameters, bytes.data());
    }
    return absl::OkStatus();
  };
}

void CodedModel::AddNumbers(std::string name, DataType dtype, std::vector<int64_t> shape,
                            Segment segment) {
  number_entries.push_back({std::move(name), dtype, std::move(shape), segment.byte_length});
  number_segments.push_back(std::move(segment));
}

void CodedModel::AddWeight(const std::shared_ptr<Coded>& coded, Transform quantize, size_t t) {
  const int64_t words = coded->rows() * Words(coded->columns(), coded->per_word());
  Segment segment;
  segment.tensor = static_cast<int>(t);
  segment.byte_length = packed ? 4 * words : coded->layer.elements;
  segment.transform = [coded, quantize = std::move(quantize), packed = packed,
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
               Later(16, [coded] { return coded->layer.shape; }));
  } else {
    entries.push_back(
        {coded->tensor.name, DataType::kInt8, coded->layer.shape, segment.byte_length});
  }
  segments.push_back(std::move(segment));

  const int64_t count = coded->numbers();
  const auto shape = [&](int64_t rows) {
    return coded->per_channel() ? std::vector<int64_t>{rows, coded->groups()}
                                : std::vector<int64_t>{1};
  };
  AddNumbers(coded->Name("weight_scale"), DataType::kFloat32, shape(coded->rows()),
             Later(4 * count, [coded] { return coded->parameters.scale; }));
  if (coded->symmetric()) return;
  if (packed && coded->per_channel()) {
    const int64_t rows = Words(coded->rows(), coded->per_word());
    AddNumbers(coded->Name("weight_zero_point"), DataType::kInt32, shape(rows),
               Later(4 * rows * coded->groups(), [coded] { return PackZeroPoints(*coded); }));
  } else {
    AddNumbers(coded->Name("weight_zero_point"), DataType::kInt8, shape(coded->rows()),
               Later(count, [coded] { return SignedZeroPoints(*coded); }));
  }
}

}  // namespace nni_compression::compression
