// The kernels on one thread, for each instruction set that this processor has, beside memcpy.
// Rates are of the weights' bytes.
#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "compression/kernels/filters.h"
#include "compression/kernels/isa.h"
#include "compression/kernels/loops.h"
#include "compression/kernels/n_m.h"
#include "compression/kernels/quantize.h"
#include "compression/kernels/range.h"
#include "compression/kernels/select.h"

namespace nni_compression::compression {
namespace {

constexpr int64_t kElements = 45'000'000;
constexpr int64_t kPrune = kElements / 5 * 4;

const std::vector<float>& Values() {
  static const std::vector<float>* const weight = [] {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    auto* values = new std::vector<float>(kElements);
    for (float& value : *values) value = normal(random);
    return values;
  }();
  return *weight;
}

std::vector<uint8_t>& Output() {
  static auto* const output = new std::vector<uint8_t>(kElements * sizeof(float));
  return *output;
}

void SetRate(benchmark::State& state) {
  state.SetBytesProcessed(state.iterations() * kElements * static_cast<int64_t>(sizeof(float)));
}

void Memcpy(benchmark::State& state) {
  for (auto _ : state) {
    std::memcpy(Output().data(), Values().data(), kElements * sizeof(float));
    benchmark::ClobberMemory();
  }
  SetRate(state);
}

SelectArguments Arguments() {
  SelectArguments arguments;
  arguments.weight = Values().data();
  arguments.elements = kElements;
  arguments.prune = kPrune;
  return arguments;
}

void Run(benchmark::State& state, const SelectArguments& arguments) {
  for (auto _ : state) {
    if (!SelectSmallest(arguments, Output().data())) state.SkipWithError("not finite");
    benchmark::ClobberMemory();
  }
  SetRate(state);
}

void Select(benchmark::State& state) { Run(state, Arguments()); }

void SelectFurther(benchmark::State& state) {
  SelectArguments arguments = Arguments();
  arguments.prune = kElements / 2;
  std::vector<uint8_t> previous(kElements / 8);
  SelectSmallest(arguments, previous.data());
  arguments.previously_pruned = arguments.prune;
  arguments.prune = kPrune;
  arguments.previous = previous.data();
  Run(state, arguments);
}

// The weights of ResNet-50's 54 layers, one after the other, each pruned further than it was.
void SelectLayers(benchmark::State& state) {
  std::vector<int64_t> layers = {64 * 3 * 7 * 7};
  int64_t inputs = 64;
  for (const auto& [width, blocks] :
       std::vector<std::pair<int64_t, int>>{{64, 3}, {128, 4}, {256, 6}, {512, 3}}) {
    for (int block = 0; block < blocks; ++block) {
      layers.insert(layers.end(), {width * inputs, width * width * 9, 4 * width * width});
      if (block == 0) layers.push_back(4 * width * inputs);
      inputs = 4 * width;
    }
  }
  layers.push_back(1000 * inputs);

  std::vector<SelectArguments> each;
  std::vector<std::vector<uint8_t>> masks;
  int64_t elements = 0;
  for (const int64_t size : layers) {
    SelectArguments arguments;
    arguments.weight = Values().data() + elements;
    arguments.elements = size;
    arguments.prune = size / 2;
    SelectSmallest(arguments, masks.emplace_back((size + 7) / 8).data());
    arguments.previously_pruned = arguments.prune;
    arguments.prune = size / 5 * 3;
    each.push_back(arguments);
    elements += size;
  }
  for (size_t i = 0; i < each.size(); ++i) each[i].previous = masks[i].data();
  for (auto _ : state) {
    for (const SelectArguments& arguments : each) {
      if (!SelectSmallest(arguments, Output().data())) state.SkipWithError("not finite");
    }
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * elements * static_cast<int64_t>(sizeof(float)));
}

void FindRange(benchmark::State& state) {
  const Channels channels = Channels::Of({kElements}, std::nullopt);
  for (auto _ : state) {
    benchmark::DoNotOptimize(FindRange(DataType::kFloat32, Values().data(), channels));
  }
  SetRate(state);
}

void Quantize(benchmark::State& state, Rounding rounding, QuantizeReply reply) {
  const Channels channels = Channels::Of({kElements}, std::nullopt);
  QuantizationParameters parameters;
  parameters.rounding = rounding;
  parameters.formula = rounding == Rounding::kDoReFa ? Formula::kDoReFa : Formula::kAffine;
  parameters.bits = 8;
  parameters.code_max = rounding == Rounding::kTruncate ? 127 : 255;
  parameters.code_min = rounding == Rounding::kTruncate ? -128 : 0;
  parameters.scale = {0.05f};
  parameters.zero_point = {rounding == Rounding::kHalfEven ? 128 : 0};
  for (auto _ : state) {
    QuantizeTo(DataType::kFloat32, Values().data(), channels, parameters, reply, 1.0f,
               Output().data());
    benchmark::ClobberMemory();
  }
  SetRate(state);
}

// Of each group of four input channels the two largest; rows of a Linear, or kernels of 3 x 3.
void TwoOfFour(benchmark::State& state, int64_t places) {
  const Channels channels = Channels::Of({kElements / (3000 * places), 3000, places}, 1);
  std::vector<uint8_t> flags(kElements);
  for (auto _ : state) {
    KeepNOfM(DataType::kFloat32, Values().data(), channels, 2, 4, nullptr, flags.data(),
             Output().data());
    benchmark::ClobberMemory();
  }
  SetRate(state);
}

// Filters of ResNet-50's largest layer; the rate is of its bytes.
void Distances(benchmark::State& state) {
  const Channels channels = Channels::Of({512, 512 * 9}, 0);
  for (auto _ : state) {
    benchmark::DoNotOptimize(FilterDistanceSums(DataType::kFloat32, Values().data(), channels));
  }
  state.SetBytesProcessed(state.iterations() * channels.elements() *
                          static_cast<int64_t>(sizeof(float)));
}

void Unpack(benchmark::State& state) {
  for (auto _ : state) {
    CurrentLoops().unpack(reinterpret_cast<const uint8_t*>(Values().data()), 0, kElements,
                          Output().data());
    benchmark::ClobberMemory();
  }
  SetRate(state);
}

template <class... Arguments>
void Register(Isa isa, const std::string& name, void (*run)(benchmark::State&, Arguments...),
              Arguments... arguments) {
  benchmark::RegisterBenchmark((name + "/" + IsaName(isa)).c_str(), [=](benchmark::State& state) {
    SetIsaForTesting(isa);
    run(state, arguments...);
  })->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace nni_compression::compression

int main(int argc, char** argv) {
  using namespace nni_compression::compression;  // NOLINT: a program's main function
  at::set_num_threads(1);
  Values();
  Output();
  benchmark::RegisterBenchmark("memcpy", Memcpy)->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("n_m_linear", TwoOfFour, 1)->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("n_m_convolution", TwoOfFour, 9)->Unit(benchmark::kMillisecond);
  for (const Isa isa : SupportedIsas()) {
    Register(isa, "select", Select);
    Register(isa, "select_further", SelectFurther);
    Register(isa, "select_layers", SelectLayers);
    Register(isa, "range", FindRange);
    Register(isa, "naive_codes", Quantize, Rounding::kTruncate, QuantizeReply::kCodes);
    Register(isa, "qat_codes", Quantize, Rounding::kHalfEven, QuantizeReply::kCodes);
    Register(isa, "qat_values", Quantize, Rounding::kHalfEven, QuantizeReply::kValues);
    Register(isa, "dorefa_codes", Quantize, Rounding::kDoReFa, QuantizeReply::kCodes);
    Register(isa, "unpack", Unpack);
    Register(isa, "filter_distances", Distances);
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
