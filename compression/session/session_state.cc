// The part of Session that saves and loads.
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/messages/suggest.h"
#include "compression/session/session.h"
#include "compression/session/state.h"

namespace nni_compression::compression {

std::string Session::SaveGlobal() const {
  return EncodeGlobal({algorithm_->name, static_cast<int64_t>(states_.size()), clock_, last_step_});
}

std::string Session::SaveLayer(int i) const { return EncodeLayer(layer(i), state(i)); }

absl::Status Session::Load(absl::string_view global, std::vector<std::string> layers) {
  auto loaded = DecodeGlobal(global);
  if (!loaded.ok()) return loaded.status();
  if (loaded->algorithm != algorithm_->name || layers.size() != states_.size() ||
      loaded->layers != static_cast<int64_t>(states_.size())) {
    return absl::DataLossError(absl::StrCat("state is of ", loaded->layers, " layers under ",
                                            Quoted(loaded->algorithm), " and comes with ",
                                            layers.size(), " records; the session has ",
                                            states_.size(), " under ", algorithm_->name));
  }
  std::vector<std::shared_ptr<const LayerState>> states;
  for (size_t i = 0; i < layers.size(); ++i) {
    auto state = DecodeLayer(layer(i), layers[i]);
    if (!state.ok()) return state.status();
    std::string().swap(layers[i]);  // the state takes its place
    if (auto status = CheckFits(i, *state); !status.ok()) return status;
    states.push_back(std::make_shared<const LayerState>(*std::move(state)));
  }
  clock_ = loaded->clock;
  last_step_ = loaded->last_step;
  states_ = std::move(states);
  checksums_.assign(states_.size(), std::nullopt);
  changes_ = {};
  stale_together_.clear();
  return absl::OkStatus();
}

// Whether a record of the right layer also fits this algorithm and rule.
absl::Status Session::CheckFits(int i, const LayerState& state) const {
  const Compressor* compressor = CompressorOf(i);
  bool fits =
      compressor != nullptr || !(state.answered || state.mask || state.counted || state.parameters);
  if (compressor != nullptr && algorithm_->kind == AlgorithmKind::kPruner) {
    fits = state.answered == (state.mask || state.counted) && !state.parameters;
  } else if (compressor != nullptr) {
    if (state.parameters) {
      const auto& quantizer = static_cast<const Quantizer&>(*compressor);
      const auto scales = static_cast<int64_t>(state.parameters->scale.size());
      fits &= state.parameters->bits == quantizer.traits().bits &&
              state.parameters->group_size == quantizer.traits().group_size &&
              (scales == 0 || scales == quantizer.channels(layer(i))) &&
              state.parameters->scale.size() == state.parameters->zero_point.size();
    }
  }
  if (fits) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("state of layer ", Quoted(layer(i).name), " is that of another configuration"));
}

int64_t Session::StateBytes() const {
  int64_t bytes = static_cast<int64_t>(states_.size() * (sizeof(LayerState) + sizeof(Layer)));
  for (const auto& shared : states_) {
    const LayerState& state = *shared;
    if (state.mask) bytes += state.mask->bits().size();
    if (state.parameters) {
      bytes += static_cast<int64_t>(state.parameters->scale.size() * (sizeof(float) + 4));
    }
    for (const auto& [name, values] : state.memory) {
      bytes += static_cast<int64_t>(name.size() + values.size() * sizeof(float));
    }
    bytes += static_cast<int64_t>(state.opaque.size());
    for (const auto& [kind, statistic] : state.statistics) bytes += statistic->bytes();
  }
  return bytes;
}

}  // namespace nni_compression::compression
