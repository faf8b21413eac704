#include "nni_compression/thresholds.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/replies.h"
#include "client/cpp/transfer.h"
#include "nni_compression/session.h"

namespace nni_compression {
namespace {

constexpr int kDigitBits = 16;

// Bits of a key; 0: not of a weight.
int KeyBits(DataType dtype) {
  switch (dtype) {
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 16;
    case DataType::kFloat32:
      return 32;
    case DataType::kFloat64:
      return 64;
    default:
      return 0;
  }
}

template <typename Bits, typename Visit>
void VisitKeptKeys(const Tensor& weight, const Mask* mask, Visit visit) {
  const auto elements = static_cast<int64_t>(weight.bytes.size() / sizeof(Bits));
  for (int64_t i = 0; i < elements; ++i) {
    if (mask != nullptr && !mask->kept(i)) continue;
    Bits bits;
    std::memcpy(&bits, weight.bytes.data() + static_cast<size_t>(i) * sizeof bits, sizeof bits);
    visit(i, uint64_t{static_cast<Bits>(bits << 1)});
  }
}

// Calls `visit(i, key)` for each weight that the mask keeps.
template <typename Visit>
void ForKeptKeys(const Tensor& weight, const Mask* mask, Visit visit) {
  switch (KeyBits(weight.dtype)) {
    case 16:
      return VisitKeptKeys<uint16_t>(weight, mask, visit);
    case 32:
      return VisitKeptKeys<uint32_t>(weight, mask, visit);
    default:
      return VisitKeptKeys<uint64_t>(weight, mask, visit);
  }
}

absl::Status CheckType(const std::string& layer, DataType dtype) {
  if (KeyBits(dtype) > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "weight of '", layer, "' has dtype ", DataTypeName(dtype), "; it must be a floating type"));
}

absl::Status CheckWeight(const Tensor& weight, const Mask* mask) {
  if (absl::Status status = internal::CheckTensor(weight); !status.ok()) return status;
  if (absl::Status status = CheckType(weight.name, weight.dtype); !status.ok()) return status;
  if (mask == nullptr || mask->shape() == weight.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("mask of '", weight.name, "' does not have its weight's shape"));
}

absl::StatusOr<std::vector<DigitCount>> CountDigits(const Tensor& weight, const Mask* mask,
                                                    uint64_t key, int known_bits) {
  if (absl::Status status = CheckWeight(weight, mask); !status.ok()) return status;
  std::vector<int64_t> counts(1 << kDigitBits);
  const int rest = KeyBits(weight.dtype) - known_bits;
  ForKeptKeys(weight, mask, [&](int64_t, uint64_t k) {
    if (rest < 64 && k >> rest != key) return;
    ++counts[(k >> (rest - kDigitBits)) & 0xffff];
  });
  std::vector<DigitCount> found;
  for (size_t digit = 0; digit < counts.size(); ++digit) {
    if (counts[digit] > 0) found.push_back({static_cast<uint16_t>(digit), counts[digit]});
  }
  return found;
}

// The conversation about one layer.
struct Dialogue {
  const CountedLayer* layer = nullptr;
  internal::v1::MagnitudeCounts rounds;  // so far
  std::string content;                   // that message, as sent
  std::optional<absl::StatusOr<ThresholdOrMask>> end;

  int known_bits() const { return rounds.rounds_size() * kDigitBits; }

  // Counts under the bits that are known.
  absl::Status Count(uint64_t key) {
    const auto counted = layer->count(key, known_bits());
    if (!counted.ok()) return counted.status();
    internal::v1::MagnitudeCounts::Round* round = rounds.add_rounds();
    round->set_prefix(key);
    uint32_t before = 0;
    for (const DigitCount& digit : *counted) {
      round->add_digits(digit.digit - before);
      round->add_counts(static_cast<uint64_t>(digit.count));
      before = digit.digit;
    }
    return absl::OkStatus();
  }

  // Takes the answer to the rounds so far, and counts the next one unless that is the end.
  absl::Status GoOn(const internal::v1::MaskResult& answer) {
    const internal::v1::Threshold& threshold = answer.threshold();
    const int bits = KeyBits(layer->dtype);
    const auto known = static_cast<int>(threshold.known_bits());
    if (known < kDigitBits || known > known_bits() || known % kDigitBits != 0) {
      return internal::BadReply(absl::StrCat("a threshold with ", known, " known bits to ",
                                             rounds.rounds_size(), " rounds"));
    }
    if (known == bits) {
      Threshold decided;
      decided.key = threshold.key();
      decided.ties = static_cast<int64_t>(threshold.ties());
      decided.pruned = static_cast<int64_t>(threshold.pruned());
      decided.target_sparsity = answer.target_sparsity();
      decided.epoch = answer.epoch();
      end = ThresholdOrMask(decided);
      return absl::OkStatus();
    }
    // Rounds behind it were for other bits: the session has changed in between.
    rounds.mutable_rounds()->DeleteSubrange(known / kDigitBits,
                                            rounds.rounds_size() - known / kDigitBits);
    return Count(threshold.key());
  }
};

}  // namespace

CountedLayer CountWeight(const Tensor& weight, const Mask* mask) {
  return {weight.name, weight.dtype, weight.shape, [weight, mask](uint64_t key, int known_bits) {
            return CountDigits(weight, mask, key, known_bits);
          }};
}

absl::StatusOr<Mask> MaskFromThreshold(const Tensor& weight, const Mask* mask,
                                       const Threshold& threshold) {
  if (absl::Status status = CheckWeight(weight, mask); !status.ok()) return status;
  const auto size = static_cast<size_t>(internal::Elements(weight) + 7) / 8;
  Bytes bits = Bytes::Uninitialized(static_cast<int64_t>(size));
  std::memset(bits.data(), 0, size);
  int64_t ties = 0;
  ForKeptKeys(weight, mask, [&](int64_t i, uint64_t key) {
    if (key < threshold.key || (key == threshold.key && ties++ < threshold.ties)) return;
    bits.data()[i >> 3] |= static_cast<uint8_t>(1 << (i & 7));
  });
  Mask made(weight.name, weight.shape, std::move(bits), threshold.target_sparsity, threshold.epoch);
  if (made.pruned() == threshold.pruned) return made;
  return absl::InternalError(absl::StrCat("the threshold of '", weight.name, "' removes ",
                                          made.pruned(), " weights of this one, not ",
                                          threshold.pruned));
}

std::vector<absl::StatusOr<ThresholdOrMask>> Session::CalcThresholds(
    absl::Span<const CountedLayer> layers, const CallOptions& options) const {
  std::vector<Dialogue> dialogues(layers.size());
  internal::Shapes shapes;
  int rounds = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    dialogues[i].layer = &layers[i];
    shapes[layers[i].name] = layers[i].shape;
    rounds = std::max(rounds, KeyBits(layers[i].dtype) / kDigitBits);
    absl::Status begun = CheckType(layers[i].name, layers[i].dtype);
    if (begun.ok()) begun = dialogues[i].Count(0);
    if (!begun.ok()) dialogues[i].end = begun;
  }
  v1::CalcMaskRequest open;
  open.mutable_open()->set_session_id(id_);
  if (options.epoch) open.mutable_open()->set_epoch(*options.epoch);
  // Twice as many as without a change in between.
  for (int call = 0; call < 2 * rounds; ++call) {
    std::vector<Dialogue*> open_ones;
    std::vector<Tensor> tensors;
    for (Dialogue& dialogue : dialogues) {
      if (dialogue.end) continue;
      dialogue.content = dialogue.rounds.SerializeAsString();
      const auto size = static_cast<int64_t>(dialogue.content.size());
      const auto* bytes = reinterpret_cast<const uint8_t*>(dialogue.content.data());
      tensors.push_back({dialogue.layer->name,
                         DataType::kUInt8,
                         {size},
                         absl::MakeConstSpan(bytes, dialogue.content.size()),
                         static_cast<TensorRole>(v1::TENSOR_ROLE_COUNTS)});
      open_ones.push_back(&dialogue);
    }
    if (tensors.empty()) break;
    auto answers = internal::Transfer<internal::ThresholdReader::Result>(
        *connection_, "CalcMask", *route_, open, tensors, options,
        [](const Tensor&) -> int64_t { return 0; }, {},
        [&shapes](auto sent, auto& results) {
          return internal::ThresholdReader(sent, shapes, results);
        });
    for (size_t i = 0; i < answers.size(); ++i) {
      Dialogue& dialogue = *open_ones[i];
      if (!answers[i].ok()) {
        dialogue.end = answers[i].status();
      } else if (auto* mask = std::get_if<Mask>(&*answers[i])) {
        dialogue.end = ThresholdOrMask(std::move(*mask));
      } else {
        absl::Status status = dialogue.GoOn(std::get<v1::MaskResult>(*answers[i]));
        if (!status.ok()) dialogue.end = status;
      }
    }
  }
  std::vector<absl::StatusOr<ThresholdOrMask>> ends;
  for (Dialogue& dialogue : dialogues) {
    if (dialogue.end) {
      ends.push_back(*std::move(dialogue.end));
    } else {
      ends.push_back(absl::AbortedError(absl::StrCat(
          "the session has changed during each call about '", dialogue.layer->name, "'")));
    }
  }
  return ends;
}

}  // namespace nni_compression
