#include "tests/compression/testing.h"

#include <ATen/ops/from_blob.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

#include "compression/extensions/loader.h"

namespace nni_compression::compression {

std::string NameOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "portable";
  }
}

Layer MakeLayer(std::string name, std::vector<int64_t> shape, DataType dtype, std::string op_type) {
  Layer layer;
  layer.name = std::move(name);
  layer.op_type = std::move(op_type);
  layer.dtype = dtype;
  layer.shape = std::move(shape);
  return layer;
}

Binding MakeBinding(std::string algorithm, nlohmann::json config_list, std::vector<Layer> layers) {
  Binding binding;
  binding.algorithm = std::move(algorithm);
  for (auto& rule : config_list) binding.config_list.push_back(rule);
  binding.layers = std::move(layers);
  binding.framework = "pytorch";
  return binding;
}

const Registry& AllAlgorithms() {
  static const Registry* const all = [] {
    auto* registry = new Registry(Registry::Builtin());
    absl::Status status = LoadPlugins(TEST_PLUGINS "/good", registry);
    if (status.ok()) status = LoadScripts(TEST_SCRIPTS "/good", registry);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.ToString().c_str());
      std::abort();
    }
    return registry;
  }();
  return *all;
}

absl::StatusOr<std::unique_ptr<Session>> TryBind(Binding binding) {
  return Session::Bind(AllAlgorithms(), std::move(binding));
}

std::unique_ptr<Session> BindOne(std::string algorithm, nlohmann::json rule,
                                 std::vector<int64_t> shape, DataType dtype, int channel_axis) {
  Layer layer = MakeLayer("layer", std::move(shape), dtype);
  layer.channel_axis = channel_axis;
  auto session =
      TryBind(MakeBinding(std::move(algorithm), nlohmann::json::array({std::move(rule)}), {layer}));
  if (!session.ok()) {
    std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
    std::abort();
  }
  return *std::move(session);
}

at::Tensor Values(std::vector<double> values, DataType dtype, std::vector<int64_t> shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  return at::from_blob(values.data(), shape, at::TensorOptions().dtype(at::kDouble))
      .to(ToScalarType(dtype).value(), /*non_blocking=*/false, /*copy=*/true);
}

at::Tensor Random(std::vector<int64_t> shape, uint64_t seed, DataType dtype, double deviation) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<double> normal(0, deviation);
  std::vector<double> values(CountElements(shape).value());
  for (double& value : values) value = normal(engine);
  return Values(std::move(values), dtype, std::move(shape));
}

std::string Bits(const Mask& mask) {
  std::string bits;
  for (int64_t i = 0; i < mask.elements(); ++i) bits.push_back(mask.kept(i) ? '1' : '0');
  return bits;
}

Mask MaskOf(const std::string& bits) {
  const auto elements = static_cast<int64_t>(bits.size());
  Buffer buffer = Buffer::Allocate(ByteLength(DataType::kBit, elements));
  std::memset(buffer.data(), 0, buffer.size());
  for (int64_t i = 0; i < elements; ++i) {
    if (bits[i] == '1') buffer.data()[i / 8] |= static_cast<uint8_t>(1 << (i % 8));
  }
  return Mask::FromBits(std::move(buffer), elements).value();
}

namespace {

// The key's bits, shifted left by one, and their number.
std::pair<uint64_t, int> KeyOf(const at::Tensor& weight, int64_t i) {
  const auto size = static_cast<size_t>(weight.element_size());
  uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const char*>(weight.data_ptr()) + i * weight.element_size(), size);
  const int width = static_cast<int>(size) * 8;
  const uint64_t all = width == 64 ? ~uint64_t{0} : (uint64_t{1} << width) - 1;
  return {(bits << 1) & all, width};
}

bool Keeps(const std::string& mask, int64_t i) { return mask.empty() || mask[i] == '1'; }

}  // namespace

CountsRound CountRound(const at::Tensor& weight, const std::string& before,
                       const Threshold& threshold) {
  std::map<uint16_t, int64_t> counts;
  for (int64_t i = 0; i < weight.numel(); ++i) {
    const auto [key, width] = KeyOf(weight, i);
    const int rest = width - threshold.known_bits;
    if (!Keeps(before, i) || (rest < 64 && key >> rest != threshold.key)) continue;
    ++counts[static_cast<uint16_t>(key >> (rest - 16))];
  }
  CountsRound round;
  round.prefix = threshold.key;
  for (const auto& [digit, count] : counts) round.digits.push_back({digit, count});
  return round;
}

std::string MaskFrom(const at::Tensor& weight, const std::string& before,
                     const Threshold& threshold) {
  std::string mask;
  int64_t ties = 0;
  for (int64_t i = 0; i < weight.numel(); ++i) {
    const uint64_t key = KeyOf(weight, i).first;
    const bool pruned = !Keeps(before, i) || key < threshold.key ||
                        (key == threshold.key && ties++ < threshold.ties);
    mask.push_back(pruned ? '0' : '1');
  }
  return mask;
}

std::string BytesOf(const at::Tensor& tensor) {
  return std::string(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
}

std::string BytesOf(const Buffer& buffer) {
  return std::string(reinterpret_cast<const char*>(buffer.data()), buffer.size());
}

StatisticPart PartOf(StatisticKind kind, const at::Tensor& values, uint64_t sequence,
                     int64_t source) {
  StatisticPart part;
  part.kind = kind;
  part.source = source;
  part.sequence = sequence;
  part.count = 1;
  part.dtype = values.scalar_type() == at::kDouble ? DataType::kFloat64 : DataType::kFloat32;
  part.shape = values.sizes().vec();
  const std::string bytes = BytesOf(values);
  part.digest = bytes;  // as good as a digest of it
  part.bytes = Buffer::Allocate(static_cast<int64_t>(bytes.size()));
  std::memcpy(part.bytes.data(), bytes.data(), bytes.size());
  return part;
}

void GiveStatistics(Session& session, int i) {
  const Layer& layer = session.layer(i);
  for (const StatisticInfo* info : session.plan().layers[i].planned->StatisticsOf(layer)) {
    if (session.state(i).statistics.count(info->kind) > 0) continue;
    at::Tensor values = Random(PlannedShape(*info, layer).value(), 9);
    if (!info->has_negative) values = values.abs();
    EXPECT_THAT(session.AddStatistic(i, PartOf(info->kind, values)), IsOk());
  }
}

std::string StateOf(const Session& session) {
  std::string bytes = session.SaveGlobal();
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    bytes += session.SaveLayer(static_cast<int>(i));
  }
  return bytes;
}

}  // namespace nni_compression::compression
