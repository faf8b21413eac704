// Algorithms that are TorchScript modules: a pruner has the method
//
//   calc_mask(self, weight: Tensor, layer: Layer, options: Options, epoch: int, step: int) ->
//   Tensor
//
// which returns the elements to keep (true, or not 0), and a quantizer
//
//   quantize_weight(... the same ...) -> Tuple[Tensor, Tensor]
//
// which returns scale and zero point. A module that has on_gradient(self, gradient: Tensor, layer:
// Layer, options: Options, epoch: int, step: int) gets gradients. Layer and Options are NamedTuples
// of the script; further details are in the archive's file nni_compression.json. See
// docs/scripts.md.
//
// Every layer of a session has a module of its own, created for each call from the file and from
// the attributes and buffers that the last call left; they are the layer's `opaque` state, after
// the epoch and the step of the last answer.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "compression/extensions/loader.h"
#include "compression/extensions/script_types.h"
#include "compression/kernels/finite.h"
#include "compression/kernels/quantize.h"
#include "compression/kernels/range.h"
#include "compression/messages/exception_text.h"
#include "compression/messages/suggest.h"

namespace nni_compression::compression {
namespace {

using c10::IValue;
using nlohmann::json;
using torch::jit::Module;

constexpr char kDetails[] = "nni_compression.json";
constexpr char kCalcMask[] = "calc_mask";
constexpr char kQuantizeWeight[] = "quantize_weight";
constexpr char kOnGradient[] = "on_gradient";

// A loaded file. Immutable, shared by its compressors; modules are only copied from it.
struct Script {
  Module module;
  std::string method;  // calc_mask or quantize_weight
  bool gradients = false;
  c10::TypePtr layer_type;
  c10::TypePtr options_type;
  json details;
  std::string fresh_state;  // of a module that was not called yet
};

// What a call may change: attributes and buffers, also of submodules, but not parameters.
std::string SaveModule(const Module& module) {
  std::set<std::string> parameters;
  for (const auto& parameter : module.named_parameters()) parameters.insert(parameter.name);
  std::vector<IValue> state;  // name, value, name, value, ...
  for (const auto& attribute : module.named_attributes()) {
    if (attribute.value.isModule() || parameters.count(attribute.name) > 0) continue;
    state.emplace_back(attribute.name);
    state.push_back(attribute.value);
  }
  const std::vector<char> bytes =
      torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(state)));
  return std::string(bytes.begin(), bytes.end());
}

// "block.count" of the module.
void SetAttribute(Module module, const std::string& name, const IValue& value) {
  const size_t dot = name.find('.');
  if (dot == std::string::npos) return module.setattr(name, value);
  SetAttribute(module.attr(name.substr(0, dot)).toModule(), name.substr(dot + 1), value);
}

void LoadModule(const std::string& saved, const Module& module) {
  const IValue state = torch::jit::pickle_load(std::vector<char>(saved.begin(), saved.end()));
  const auto& elements = state.toTupleRef().elements();
  for (size_t i = 0; i + 1 < elements.size(); i += 2) {
    SetAttribute(module, elements[i].toStringRef(), elements[i + 1]);
  }
}

// The state of a layer: when it was answered, and the module's state unless that is the initial
// one.
struct Memory {
  Clock answered;
  std::string module;
};

constexpr size_t kClockBytes = sizeof(int64_t) * 2;

Memory ReadMemory(const std::string& opaque) {
  Memory memory;
  if (opaque.size() < kClockBytes) return memory;
  std::memcpy(&memory.answered.epoch, opaque.data(), sizeof(int64_t));
  std::memcpy(&memory.answered.step, opaque.data() + sizeof(int64_t), sizeof(int64_t));
  memory.module = opaque.substr(kClockBytes);
  return memory;
}

std::string WriteMemory(const Memory& memory) {
  std::string opaque(kClockBytes, '\0');
  std::memcpy(opaque.data(), &memory.answered.epoch, sizeof(int64_t));
  std::memcpy(opaque.data() + sizeof(int64_t), &memory.answered.step, sizeof(int64_t));
  return opaque + memory.module;
}

absl::Status ScriptError(absl::string_view method, const std::exception& e) {
  absl::Status error =
      absl::InternalError(absl::StrCat(method, " of the script failed: ", TextOf(e)));
  error.SetPayload(kTracebackPayload, absl::Cord(e.what()));
  return error;
}

// One rule: the script with its options.
class ScriptRule {
 public:
  ScriptRule(std::shared_ptr<const Script> script, Options options)
      : script_(std::move(script)), options_(std::move(options)) {}

  // Calls the method and stores the resulting state in `state`. The script gets a copy of the
  // tensor, since it may write to it and the tensor may be shared.
  absl::StatusOr<IValue> Call(const std::string& method, const Layer& layer,
                              const at::Tensor& tensor, Clock clock, LayerState& state) const {
    Memory memory = ReadMemory(state.opaque);
    const at::NoGradGuard no_grad;
    // Optimizing pays off only after many calls of one shape, and results differ between the first
    // and the third call.
    const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
    try {
      Module module = script_->module.deepcopy();
      if (!memory.module.empty()) LoadModule(memory.module, module);
      IValue result = module.get_method(method)(
          {tensor.clone(), ToTuple(script_->layer_type, layer),
           ToTuple(script_->options_type, options_), clock.epoch, clock.step});
      memory.module = SaveModule(module);
      if (memory.module == script_->fresh_state) memory.module.clear();
      if (method != kOnGradient) memory.answered = clock;
      state.opaque = WriteMemory(memory);
      return result;
    } catch (const std::bad_alloc&) {
      throw;
    } catch (const std::exception& e) {
      return ScriptError(method, e);
    }
  }

  absl::Status Observe(const Layer& layer, const Observation& observation, Clock clock,
                       LayerState& state) const {
    return Call(kOnGradient, layer, observation.gradient, clock, state).status();
  }

  // The traits that a script has of either kind.
  void SetTraits(Traits& traits) const {
    traits.remembers_more = true;
    if (script_->gradients) traits.observes = {Observation::Kind::kGradient};
  }

  const Script& script() const { return *script_; }
  const Options& options() const { return options_; }

 private:
  const std::shared_ptr<const Script> script_;
  const Options options_;
};

absl::Status WrongResult(absl::string_view method, absl::string_view is, absl::string_view must) {
  return absl::InternalError(
      absl::StrCat(method, " of the script returned ", is, "; it must return ", must));
}

std::string Describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor";
  return c10::str("a tensor of shape ", tensor.sizes(), " and dtype ", tensor.scalar_type());
}

class ScriptPruner : public Pruner {
 public:
  ScriptPruner(std::shared_ptr<const Script> script, const Options& options)
      : rule_(std::move(script), options) {
    const std::string renewed = rule_.script().details.value("renewed", "never");
    rule_.SetTraits(traits_);
    traits_.needs_epoch = renewed == "epoch";
    traits_.needs_step = renewed == "step";
    if (renewed != "never") traits_.refresh = Refresh::kWhenStale;
  }

  bool IsStale(const Layer&, const LayerState& state, Clock clock) const override {
    const Clock answered = ReadMemory(state.opaque).answered;
    if (traits_.needs_epoch) return clock.epoch > answered.epoch;
    return traits_.needs_step && clock.step > answered.step;
  }

  absl::Status Observe(const Layer& layer, const Observation& observation, Clock clock,
                       LayerState& state) const override {
    return rule_.Observe(layer, observation, clock, state);
  }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override {
    const int64_t n = layer.elements;
    if (!AllFinite(layer.dtype, weight.values.data_ptr(), n)) {
      return NonFiniteError(layer, weight.values.data_ptr());
    }
    const auto result = rule_.Call(kCalcMask, layer, weight.values, clock, state);
    if (!result.ok()) return result.status();
    const at::Tensor& mask = result->toTensor();
    if (!mask.defined() || mask.sizes() != weight.values.sizes()) {
      return WrongResult(kCalcMask, Describe(mask), "a mask of the weight's shape");
    }
    if (mask.ne(mask).any().item<bool>()) {
      return WrongResult(kCalcMask, "a mask with NaN", "one without NaN");
    }
    const at::Tensor kept = mask.ne(0).to(at::kCPU).contiguous();
    const bool* const keep = kept.data_ptr<bool>();
    Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, n));
    std::memset(bits.data(), 0, static_cast<size_t>(bits.size()));
    for (int64_t i = 0; i < n; ++i) {
      bits.data()[i >> 3] |= static_cast<uint8_t>(static_cast<int>(keep[i]) << (i & 7));
    }
    return Mask::FromBits(std::move(bits), n);
  }

 private:
  const ScriptRule rule_;
};

class ScriptQuantizer : public Quantizer {
 public:
  ScriptQuantizer(std::shared_ptr<const Script> script, const Options& options)
      : rule_(std::move(script), options), signed_(rule_.script().details.value("signed", false)) {
    rule_.SetTraits(traits_);
    traits_.bits =
        options.json().contains("quant_bits") ? static_cast<int>(options.Integer("quant_bits")) : 8;
    traits_.per_channel = rule_.script().details.value("per_channel", false);
  }

  absl::Status Observe(const Layer& layer, const Observation& observation, Clock clock,
                       LayerState& state) const override {
    return rule_.Observe(layer, observation, clock, state);
  }

  absl::StatusOr<QuantizedWeight> QuantizeWeight(const Layer& layer, const Weight& weight,
                                                 QuantizeReply reply, Clock clock,
                                                 LayerState& state) const override {
    const void* const data = weight.values.data_ptr();
    if (!AllFinite(layer.dtype, data, layer.elements)) return NonFiniteError(layer, data);
    const auto result = rule_.Call(kQuantizeWeight, layer, weight.values, clock, state);
    if (!result.ok()) return result.status();
    const auto& elements = result->toTupleRef().elements();
    QuantizedWeight quantized;
    quantized.parameters.emplace();
    QuantizationParameters& parameters = *quantized.parameters;
    parameters.bits = traits_.bits;
    parameters.code_min = signed_ ? -(1 << (parameters.bits - 1)) : 0;
    parameters.code_max = parameters.code_min + (1 << parameters.bits) - 1;
    parameters.channel_axis = channel_axis(layer);
    const int64_t count = channels(layer);
    for (const IValue& element : elements) {
      const at::Tensor& tensor = element.toTensor();
      if (!tensor.defined() || tensor.numel() != count) {
        return WrongResult(kQuantizeWeight, Describe(tensor),
                           absl::StrCat("scale and zero point of ", count, " elements each"));
      }
    }
    const at::Tensor scale = elements[0].toTensor().to(at::kFloat).contiguous();
    const at::Tensor zero = elements[1].toTensor().to(at::kInt).contiguous();
    parameters.scale.assign(scale.data_ptr<float>(), scale.data_ptr<float>() + count);
    parameters.zero_point.assign(zero.data_ptr<int32_t>(), zero.data_ptr<int32_t>() + count);
    for (const float one : parameters.scale) {
      if (std::isfinite(one) && one > 0) continue;
      return WrongResult(kQuantizeWeight, absl::StrCat("the scale ", one), "scales above 0");
    }
    if (reply == QuantizeReply::kParameters) return quantized;
    quantized.dtype = reply == QuantizeReply::kValues ? layer.dtype : CodeType(parameters);
    quantized.data = Buffer::Allocate(ByteLength(quantized.dtype, layer.elements));
    QuantizeTo(layer.dtype, data, Channels::Of(layer.shape, parameters.channel_axis), parameters,
               reply, 0, quantized.data.data());
    return quantized;
  }

 private:
  const ScriptRule rule_;
  const bool signed_;
};

// The method's first arguments must be (self, Tensor, Layer, Options, int, int).
absl::Status CheckMethod(const Script& script, const std::string& name, const c10::Type& returns) {
  const c10::FunctionSchema schema = script.module.get_method(name).function().getSchema();
  const auto& arguments = schema.arguments();
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(name, parts...));
  };
  const auto is = [](const c10::TypePtr& type, const c10::Type& expected) {
    return *type == expected;
  };
  if (arguments.size() != 6 || !is(arguments[1].type(), *c10::TensorType::get()) ||
      !is(arguments[4].type(), *c10::IntType::get()) ||
      !is(arguments[5].type(), *c10::IntType::get())) {
    return bad(" has the signature ", c10::str(schema),
               "; it must be (self, Tensor, Layer, Options, epoch: int, step: int)");
  }
  if (!is(arguments[2].type(), *script.layer_type) ||
      !is(arguments[3].type(), *script.options_type)) {
    return bad(" has other types for layer and options than ", script.method);
  }
  if (schema.returns().size() != 1 || !is(schema.returns()[0].type(), returns)) {
    return bad(" returns another type; it must return ", returns.annotation_str());
  }
  return absl::OkStatus();
}

absl::Status ReadSignature(Script* script) {
  const bool pruner = script->module.find_method(kCalcMask).has_value();
  if (pruner == script->module.find_method(kQuantizeWeight).has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("it must have one of the methods ", kCalcMask,
                                                   " and ", kQuantizeWeight,
                                                   ", compiled (with @torch.jit.export)"));
  }
  script->method = pruner ? kCalcMask : kQuantizeWeight;
  script->gradients = script->module.find_method(kOnGradient).has_value();
  const auto& arguments =
      script->module.get_method(script->method).function().getSchema().arguments();
  if (arguments.size() > 3) {
    script->layer_type = arguments[2].type();
    script->options_type = arguments[3].type();
  } else {
    script->layer_type = script->options_type = c10::NoneType::get();
  }
  const c10::TypePtr pair =
      c10::TupleType::create({c10::TensorType::get(), c10::TensorType::get()});
  const c10::TypePtr returns = pruner ? c10::TypePtr(c10::TensorType::get()) : pair;
  if (auto status = CheckMethod(*script, script->method, *returns); !status.ok()) return status;
  if (auto status = CheckLayerType(script->layer_type); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(script->method, ": layer ", status.message()));
  }
  if (!script->gradients) return absl::OkStatus();
  return CheckMethod(*script, kOnGradient, *c10::NoneType::get());
}

absl::Status CheckDetails(const json& details) {
  static const auto* const known = new std::vector<std::string>{
      "summary", "reference", "options", "example", "renewed", "signed", "per_channel"};
  if (!details.is_object()) return absl::InvalidArgumentError("it is not a JSON object");
  for (const auto& entry : details.items()) {
    if (std::find(known->begin(), known->end(), entry.key()) != known->end()) continue;
    return absl::InvalidArgumentError(absl::StrCat("it has the unknown key ", Quoted(entry.key()),
                                                   Suggestion(entry.key(), *known)));
  }
  const std::string renewed = details.value("renewed", "never");
  if (renewed == "never" || renewed == "epoch" || renewed == "step") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("renewed is ", Quoted(renewed), "; it must be one of never, epoch, step"));
}

absl::StatusOr<AlgorithmInfo> Describe(const std::string& file,
                                       const std::shared_ptr<Script>& script) {
  if (auto status = ReadSignature(script.get()); !status.ok()) return status;
  const json& details = script->details;
  if (auto status = CheckDetails(details); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(kDetails, ": ", status.message()));
  }
  auto options = ReadOptionTypes(script->options_type, details.value("options", json::object()));
  if (!options.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(script->method, ": options ", options.status().message()));
  }
  AlgorithmInfo info;
  info.name = std::filesystem::path(file).stem().string();
  info.kind = script->method == kCalcMask ? AlgorithmKind::kPruner : AlgorithmKind::kQuantizer;
  info.summary = details.value("summary", "");
  info.reference = details.value("reference", "");
  info.options = *std::move(options);
  for (OptionSpec& option : info.options) {
    if (option.name != "quant_bits") continue;
    option.minimum = std::max(option.minimum, 1.0);
    option.maximum = std::min(option.maximum, double{kMaxBits});
  }
  info.example = details.value("example", json::object());
  info.create = [script](const Options& given) -> absl::StatusOr<std::unique_ptr<Compressor>> {
    if (script->method == kCalcMask) return std::make_unique<ScriptPruner>(script, given);
    return std::make_unique<ScriptQuantizer>(script, given);
  };
  script->fresh_state = SaveModule(script->module);
  return info;
}

absl::StatusOr<AlgorithmInfo> LoadScript(const std::string& file) {
  const auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("script ", Quoted(file), ": ", what));
  };
  try {
    const auto script = std::make_shared<Script>();
    torch::jit::ExtraFilesMap extra;
    extra[kDetails];
    script->module = torch::jit::load(file, at::kCPU, extra);
    script->module.eval();
    script->details = extra[kDetails].empty() ? json::object() : json::parse(extra[kDetails]);
    auto info = Describe(file, script);
    return info.ok() ? info : bad(info.status().message());
  } catch (const c10::Error& e) {
    return bad(absl::StrCat("LibTorch cannot load it: ", e.what_without_backtrace()));
  } catch (const std::exception& e) {
    return bad(e.what());
  }
}

}  // namespace

absl::Status LoadScripts(const std::string& folder, Registry* registry) {
  const auto files = FilesWith(folder, ".pt");
  if (!files.ok()) return files.status();
  for (const std::string& file : *files) {
    auto info = LoadScript(file);
    if (!info.ok()) return info.status();
    if (auto status = AddFrom(file, *std::move(info), registry); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace nni_compression::compression
