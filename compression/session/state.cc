#include "compression/session/state.h"

#include <zlib.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;

constexpr int kRecordVersion = 1;
// Of a layer whose mask is with the trainer: older servers would take it for one without a mask.
constexpr int kCountedVersion = 2;
// Of a layer with statistics, which older servers would forget.
constexpr int kStatisticsVersion = 3;
constexpr size_t kLengthBytes = 8;
constexpr size_t kCrcBytes = 4;

template <class T>
json ToBytes(const std::vector<T>& values) {
  json::binary_t bytes;
  bytes.resize(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return json(std::move(bytes));
}

// Throws json::exception when `value` is not a byte string, std::length_error when it is not a
// whole number of elements.
template <class T>
std::vector<T> FromBytes(const json& value) {
  const json::binary_t& bytes = value.get_binary();
  if (bytes.size() % sizeof(T) != 0) throw std::length_error("odd length");
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

uint32_t Crc(absl::string_view bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string Seal(const json& fields, absl::Span<const absl::Span<const uint8_t>> tail = {}) {
  std::string packed;
  json::to_msgpack(fields, packed);
  const uint64_t length = packed.size();
  size_t bytes = kLengthBytes + packed.size() + kCrcBytes;
  for (const absl::Span<const uint8_t> piece : tail) bytes += piece.size();
  std::string record;
  record.reserve(bytes);
  record.append(reinterpret_cast<const char*>(&length), kLengthBytes);
  record.append(packed);
  for (const absl::Span<const uint8_t> piece : tail) {
    record.append(reinterpret_cast<const char*>(piece.data()), piece.size());
  }
  const uint32_t crc = Crc(record);
  record.append(reinterpret_cast<const char*>(&crc), kCrcBytes);
  return record;
}

struct Unsealed {
  json fields;
  absl::string_view tail;
};

absl::StatusOr<Unsealed> Unseal(absl::string_view record) {
  if (record.size() < kLengthBytes + kCrcBytes) {
    return absl::DataLossError(absl::StrCat("state record has only ", record.size(), " bytes"));
  }
  uint32_t crc;
  std::memcpy(&crc, record.data() + record.size() - kCrcBytes, kCrcBytes);
  record.remove_suffix(kCrcBytes);
  if (crc != Crc(record)) return absl::DataLossError("state record has a wrong checksum");
  uint64_t length;
  std::memcpy(&length, record.data(), kLengthBytes);
  record.remove_prefix(kLengthBytes);
  if (length > record.size()) return absl::DataLossError("state record is truncated");
  Unsealed unsealed;
  unsealed.fields = json::from_msgpack(record.begin(), record.begin() + length, /*strict=*/true,
                                       /*allow_exceptions=*/false);
  unsealed.tail = record.substr(length);
  if (!unsealed.fields.is_object()) return absl::DataLossError("state record has no fields");
  const json version = unsealed.fields.value("version", json());
  if (version != kRecordVersion && version != kCountedVersion && version != kStatisticsVersion) {
    return absl::DataLossError(absl::StrCat("state record has version ", Shown(version),
                                            "; this server reads ", kRecordVersion, " to ",
                                            kStatisticsVersion));
  }
  return unsealed;
}

json EncodeParameters(const QuantizationParameters& parameters) {
  json fields = {{"formula", static_cast<int>(parameters.formula)},
                 {"rounding", static_cast<int>(parameters.rounding)},
                 {"bits", parameters.bits},
                 {"code_min", parameters.code_min},
                 {"code_max", parameters.code_max},
                 {"scale", ToBytes(parameters.scale)},
                 {"zero_point", ToBytes(parameters.zero_point)}};
  if (parameters.channel_axis) fields["channel_axis"] = *parameters.channel_axis;
  if (parameters.group_size > 0) fields["group_size"] = parameters.group_size;
  return fields;
}

QuantizationParameters DecodeParameters(const json& fields) {
  QuantizationParameters parameters;
  parameters.formula = static_cast<Formula>(fields.at("formula").get<int>());
  parameters.rounding = static_cast<Rounding>(fields.at("rounding").get<int>());
  parameters.bits = fields.at("bits").get<int>();
  parameters.code_min = fields.at("code_min").get<int32_t>();
  parameters.code_max = fields.at("code_max").get<int32_t>();
  parameters.scale = FromBytes<float>(fields.at("scale"));
  parameters.zero_point = FromBytes<int32_t>(fields.at("zero_point"));
  if (fields.contains("channel_axis")) parameters.channel_axis = fields["channel_axis"].get<int>();
  parameters.group_size = fields.value("group_size", int64_t{0});
  return parameters;
}

json EncodeStatistic(StatisticKind kind, const Statistic& statistic) {
  json sources = json::array();
  for (const auto& [source, total] : statistic.sources) {
    sources.push_back({{"source", source},
                       {"sequence", total->sequence},
                       {"digest", json::binary({total->digest.begin(), total->digest.end()})},
                       {"last_count", total->last_count},
                       {"last_exponent", total->last_exponent},
                       {"count", total->count},
                       {"exponent", total->exponent}});
  }
  return {{"kind", static_cast<int>(kind)}, {"shape", statistic.shape}, {"sources", sources}};
}

// Takes the numbers from the front of `tail`.
absl::Status DecodeStatistic(const Layer& layer, const json& fields, absl::string_view& tail,
                             Statistics& statistics) {
  const StatisticInfo* const info = FindStatistic(fields.at("kind").get<int>());
  if (info == nullptr) return absl::DataLossError("state record has an unknown statistic");
  Statistic statistic;
  statistic.shape = fields.at("shape").get<std::vector<int64_t>>();
  if (auto s = CheckStatisticShape(*info, layer, statistic.shape); !s.ok()) return s;
  const auto bytes = static_cast<size_t>(statistic.elements()) * sizeof(double);
  for (const json& from : fields.at("sources")) {
    auto total = std::make_shared<SourceTotal>();
    total->sequence = from.at("sequence").get<uint64_t>();
    const json::binary_t& digest = from.at("digest").get_binary();
    total->digest.assign(digest.begin(), digest.end());
    total->last_count = from.at("last_count").get<int64_t>();
    total->last_exponent = from.at("last_exponent").get<int>();
    total->count = from.at("count").get<int64_t>();
    total->exponent = from.at("exponent").get<int>();
    if (tail.size() < bytes) return absl::DataLossError("state record lacks numbers");
    total->values.resize(bytes / sizeof(double));
    std::memcpy(total->values.data(), tail.data(), bytes);
    tail.remove_prefix(bytes);
    const int source = from.at("source").get<int>();
    if (source < 0 || source >= kMaxSources) {
      return absl::DataLossError(absl::StrCat("state record has the source ", source));
    }
    statistic.sources[source] = std::move(total);
  }
  if (statistic.sources.empty()) return absl::DataLossError("state record has an empty statistic");
  statistics[info->kind] = std::make_shared<const Statistic>(std::move(statistic));
  return absl::OkStatus();
}

absl::StatusOr<LayerState> ReadLayer(const Layer& layer, const Unsealed& record) {
  const json& fields = record.fields;
  absl::string_view tail = record.tail;
  if (fields.at("name") != layer.name || fields.at("elements") != layer.elements) {
    return absl::DataLossError(absl::StrCat("state record is that of layer ",
                                            Shown(fields.at("name")), " with ",
                                            Shown(fields.at("elements")), " weights"));
  }
  LayerState state;
  state.answered = fields.at("answered").get<bool>();
  if (fields.at("mask").get<bool>()) {
    const int64_t bytes = ByteLength(DataType::kBit, layer.elements);
    if (static_cast<int64_t>(tail.size()) < bytes) {
      return absl::DataLossError("state record lacks bits of the mask");
    }
    Buffer bits = Buffer::Allocate(bytes);
    std::memcpy(bits.data(), tail.data(), static_cast<size_t>(bytes));
    tail.remove_prefix(static_cast<size_t>(bytes));
    auto mask = Mask::FromBits(std::move(bits), layer.elements);
    if (!mask.ok()) return mask.status();
    state.mask = *std::move(mask);
  }
  if (fields.contains("statistics")) {
    for (const json& statistic : fields["statistics"]) {
      if (auto s = DecodeStatistic(layer, statistic, tail, state.statistics); !s.ok()) return s;
    }
  }
  if (!tail.empty()) return absl::DataLossError("state record has trailing bytes");
  if (fields.contains("counted")) {
    const json& counted = fields["counted"];
    state.counted = {
        {static_cast<int>(ByteLength(layer.dtype, 1)) * 8, counted.at("key").get<uint64_t>(),
         counted.at("ties").get<int64_t>(), counted.at("pruned").get<int64_t>()},
        counted.at("counted").get<uint32_t>()};
    const int64_t pruned = state.counted->threshold.pruned;
    if (state.mask || pruned < 0 || pruned > layer.elements) {
      return absl::DataLossError(absl::StrCat("state record has a threshold that prunes ", pruned,
                                              " of ", layer.elements, " weights"));
    }
  }
  if (fields.contains("parameters")) state.parameters = DecodeParameters(fields["parameters"]);
  for (const auto& [name, values] : fields.at("memory").items()) {
    state.memory[name] = FromBytes<float>(values);
  }
  if (fields.contains("opaque")) {
    const json::binary_t& opaque = fields["opaque"].get_binary();
    state.opaque.assign(opaque.begin(), opaque.end());
  }
  return state;
}

}  // namespace

std::string EncodeGlobal(const GlobalState& state) {
  return Seal({{"version", kRecordVersion},
               {"algorithm", state.algorithm},
               {"layers", state.layers},
               {"epoch", state.clock.epoch},
               {"step", state.clock.step},
               {"last_step", state.last_step}});
}

std::string EncodeLayer(const Layer& layer, const LayerState& state) {
  json fields = {{"version", kRecordVersion},      {"name", layer.name},
                 {"elements", layer.elements},     {"answered", state.answered},
                 {"mask", state.mask.has_value()}, {"memory", json::object()}};
  if (state.counted) {
    fields["version"] = kCountedVersion;
    fields["counted"] = {{"key", state.counted->threshold.key},
                         {"ties", state.counted->threshold.ties},
                         {"pruned", state.counted->threshold.pruned},
                         {"counted", state.counted->counted}};
  }
  if (state.parameters) fields["parameters"] = EncodeParameters(*state.parameters);
  for (const auto& [name, values] : state.memory) fields["memory"][name] = ToBytes(values);
  if (!state.opaque.empty()) {
    fields["opaque"] = json::binary({state.opaque.begin(), state.opaque.end()});
  }
  std::vector<absl::Span<const uint8_t>> tail;
  if (state.mask) tail.push_back(state.mask->bits().span());
  for (const auto& [kind, statistic] : state.statistics) {
    fields["version"] = kStatisticsVersion;
    fields["statistics"].push_back(EncodeStatistic(kind, *statistic));
    for (const auto& [source, total] : statistic->sources) {
      tail.emplace_back(reinterpret_cast<const uint8_t*>(total->values.data()),
                        total->values.size() * sizeof(double));
    }
  }
  return Seal(fields, tail);
}

absl::StatusOr<GlobalState> DecodeGlobal(absl::string_view record) {
  auto unsealed = Unseal(record);
  if (!unsealed.ok()) return unsealed.status();
  try {
    GlobalState state;
    state.algorithm = unsealed->fields.at("algorithm").get<std::string>();
    state.layers = unsealed->fields.at("layers").get<int64_t>();
    state.clock.epoch = unsealed->fields.at("epoch").get<int64_t>();
    state.clock.step = unsealed->fields.at("step").get<int64_t>();
    state.last_step = unsealed->fields.at("last_step").get<int64_t>();
    return state;
  } catch (const std::exception& e) {
    return absl::DataLossError(absl::StrCat("state record: ", e.what()));
  }
}

absl::StatusOr<LayerState> DecodeLayer(const Layer& layer, absl::string_view record) {
  try {
    auto unsealed = Unseal(record);
    auto state = unsealed.ok() ? ReadLayer(layer, *unsealed) : unsealed.status();
    if (!state.ok()) {
      return absl::DataLossError(
          absl::StrCat("layer ", Quoted(layer.name), ": ", state.status().message()));
    }
    return state;
  } catch (const std::exception& e) {
    return absl::DataLossError(absl::StrCat("layer ", Quoted(layer.name), ": ", e.what()));
  }
}

}  // namespace nni_compression::compression
