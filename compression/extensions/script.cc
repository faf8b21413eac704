// Algorithms that are TorchScript modules: a pruner has the method
//
//   calc_mask(self, weight: Tensor, layer: Layer, options: Options, epoch: int, step: int) ->
//   Tensor
//
// which returns the elements to keep (true, or not 0), or, to decide about all layers of a rule
// together,
//
//   calc_masks(self, weights: List[Tensor], layers: List[Layer], options: Options, epoch: int,
//   step: int) -> List[Tensor]
//
// and a quantizer
//
//   quantize_weight(... as calc_mask ...) -> Tuple[Tensor, Tensor]
//
// which returns scale and zero point. A module that has on_gradient(self, gradient: Tensor, layer:
// Layer, options: Options, epoch: int, step: int) gets gradients. Layer and Options are NamedTuples
// of the script, and the statistics that Layer has fields of are those that the script needs;
// further details are in the archive's file nni_compression.json. See docs/scripts.md.
//
// Every layer of a session, or with calc_masks every rule, has a module of its own, created for
// each call from the file and from the attributes and buffers that the last call left; they are the
// layer's `opaque` state, after the epoch and the step of the last answer. Each layer of a rule has
// a part of them.
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
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
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
constexpr char kCalcMasks[] = "calc_masks";
constexpr char kQuantizeWeight[] = "quantize_weight";
constexpr char kOnGradient[] = "on_gradient";

// A loaded file. Immutable, shared by its compressors; modules are only copied from it.
struct Script {
  Module module;
  std::string method;  // calc_mask, calc_masks or quantize_weight
  bool gradients = false;
  c10::TypePtr layer_type;
  std::vector<const StatisticInfo*> statistics;  // that layer_type has fields of
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

// Begins a layer's part of the state of its rule's module.
constexpr absl::string_view kPart = "part:";

// A server may find a session that another version of the script has left.
absl::Status CheckPart(const Layer& layer, const LayerState& state, bool joint) {
  const std::string module = ReadMemory(state.opaque).module;
  if (module.empty() || absl::StartsWith(module, kPart) == joint) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the state of layer ", Quoted(layer.name), " was left by a script that had ",
                   joint ? kCalcMask : kCalcMasks, ", and this one has ",
                   joint ? kCalcMasks : kCalcMask, ": bind the model again"));
}

// The state of a rule from the parts that its layers have.
std::string Join(const std::vector<JointLayer>& layers) {
  Memory memory{ReadMemory(layers.front().state.opaque).answered, ""};
  for (const JointLayer& one : layers) {
    const Memory part = ReadMemory(one.state.opaque);
    absl::StrAppend(&memory.module, absl::StripPrefix(part.module, kPart));
  }
  return WriteMemory(memory);
}

// The reverse. The parts are in proportion to the weights, as are the bounds of layers' states.
void Split(const std::string& opaque, std::vector<JointLayer>& layers) {
  const auto bytes = [](const JointLayer& one) {
    return static_cast<double>(ByteLength(one.layer.dtype, one.layer.elements));
  };
  double total = 0;
  for (const JointLayer& one : layers) total += bytes(one);
  const Memory memory = ReadMemory(opaque);
  double passed = 0;
  size_t begin = 0;
  for (JointLayer& one : layers) {
    passed += bytes(one);
    const auto end =
        static_cast<size_t>(static_cast<double>(memory.module.size()) * (passed / total));
    const std::string part = memory.module.substr(begin, end - begin);
    one.state.opaque =
        WriteMemory({memory.answered, part.empty() ? "" : absl::StrCat(kPart, part)});
    begin = end;
  }
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

  // Calls the method that answers about a layer.
  absl::StatusOr<IValue> Answer(const Layer& layer, const Weight& weight, Clock clock,
                                LayerState& state) const {
    if (auto status = Check(layer, weight, state); !status.ok()) return status;
    return Call(script_->method, weight.values.clone(),
                ToTuple(script_->layer_type, layer, state.statistics), clock, state);
  }

  // The same, about all layers of the rule.
  absl::StatusOr<IValue> Answer(std::vector<JointLayer>& joint, Clock clock) const {
    c10::List<at::Tensor> weights;
    c10::impl::GenericList layers(script_->layer_type);
    for (const JointLayer& one : joint) {
      auto status = Check(one.layer, one.weight, one.state);
      if (!status.ok()) return status;
    }
    for (const JointLayer& one : joint) {
      weights.push_back(one.weight.values.clone());
      layers.push_back(ToTuple(script_->layer_type, one.layer, one.state.statistics));
    }
    LayerState together;
    together.opaque = Join(joint);
    auto result = Call(script_->method, weights, layers, clock, together);
    if (result.ok()) Split(together.opaque, joint);
    return result;
  }

  absl::Status Observe(const Layer& layer, const Observation& observation, Clock clock,
                       LayerState& state) const {
    return Call(kOnGradient, observation.gradient.clone(),
                ToTuple(script_->layer_type, layer, state.statistics), clock, state)
        .status();
  }

  // Of the copies that a call makes. What a plan does not say of statistics, the number of bins and
  // of groups, is left out.
  int64_t work_bytes(const Layer& layer) const {
    int64_t bytes = ByteLength(layer.dtype, layer.elements);
    for (const StatisticInfo* info : script_->statistics) {
      const auto shape = PlannedShape(*info, layer);
      if (shape.ok()) bytes += ByteLength(DataType::kFloat64, CountElements(*shape).value_or(0));
    }
    return bytes;
  }

  // The traits that a script has of either kind.
  void SetTraits(Traits& traits) const {
    traits.remembers_more = true;
    if (script_->gradients) traits.observes = {Observation::Kind::kGradient};
    for (const StatisticInfo* info : script_->statistics) traits.statistics.push_back(info->kind);
  }

  const Script& script() const { return *script_; }

 private:
  absl::Status Check(const Layer& layer, const Weight& weight, const LayerState& state) const {
    const bool joint = script_->method == kCalcMasks;
    if (auto status = CheckPart(layer, state, joint); !status.ok()) return status;
    if (!AllFinite(layer.dtype, weight.values.data_ptr(), layer.elements)) {
      return NonFiniteError(layer, weight.values.data_ptr());
    }
    for (const StatisticInfo* info : script_->statistics) {
      if (state.statistics.count(info->kind) > 0) continue;
      return MissingStatistic(*info, layer, "the script");
    }
    return absl::OkStatus();
  }

  // Calls the method and stores the resulting state in `state`. `tensors` are copies, since the
  // script may write to them.
  absl::StatusOr<IValue> Call(const std::string& method, IValue tensors, IValue layers, Clock clock,
                              LayerState& state) const {
    Memory memory = ReadMemory(state.opaque);
    const at::NoGradGuard no_grad;
    // Optimizing pays off only after many calls of one shape, and results differ between the first
    // and the third call.
    const torch::jit::GraphOptimizerEnabledGuard no_optimizer(false);
    try {
      Module module = script_->module.deepcopy();
      if (!memory.module.empty()) LoadModule(memory.module, module);
      IValue result = module.get_method(method)({std::move(tensors), std::move(layers),
                                                 ToTuple(script_->options_type, options_),
                                                 clock.epoch, clock.step});
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

  const std::shared_ptr<const Script> script_;
  const Options options_;
};

absl::Status WrongResult(absl::string_view method, absl::string_view is, absl::string_view must) {
  return absl::InternalError(
      absl::StrCat(method, " of the script returned ", is, "; it must return ", must));
}

std::string Describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "an undefined tensor";
  return c10::str("a tensor of shape ", tensor.sizes(), ", dtype ", tensor.scalar_type(),
                  ", layout ", tensor.layout(), " and device ", tensor.device());
}

// The mask that a script returned for the layer.
absl::StatusOr<Mask> ToMask(absl::string_view method, const Layer& layer, const at::Tensor& mask) {
  if (!mask.defined() || mask.layout() != at::kStrided || mask.is_meta() ||
      mask.sizes() != at::IntArrayRef(layer.shape)) {
    return WrongResult(method, Describe(mask), "a dense mask of the weight's shape");
  }
  if (mask.ne(mask).any().item<bool>()) {
    return WrongResult(method, "a mask with NaN", "one without NaN");
  }
  const at::Tensor kept = mask.ne(0).to(at::kCPU).contiguous();
  const bool* const keep = kept.data_ptr<bool>();
  Buffer bits = Buffer::Allocate(ByteLength(DataType::kBit, layer.elements));
  std::memset(bits.data(), 0, static_cast<size_t>(bits.size()));
  for (int64_t i = 0; i < layer.elements; ++i) {
    bits.data()[i >> 3] |= static_cast<uint8_t>(static_cast<int>(keep[i]) << (i & 7));
  }
  return Mask::FromBits(std::move(bits), layer.elements);
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
    traits_.joint = rule_.script().method == kCalcMasks;
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

  absl::Status Adopt(const Layer&, LayerState& state, Clock clock) const override {
    Memory memory = ReadMemory(state.opaque);
    memory.answered = clock;
    state.opaque = WriteMemory(memory);
    return absl::OkStatus();
  }

  absl::StatusOr<Mask> CalcMask(const Layer& layer, const Weight& weight, LayerState& state,
                                Clock clock) const override {
    const auto result = rule_.Answer(layer, weight, clock, state);
    if (!result.ok()) return result.status();
    return ToMask(kCalcMask, layer, result->toTensor());
  }

  absl::StatusOr<std::vector<Mask>> CalcMasks(std::vector<JointLayer>& layers,
                                              Clock clock) const override {
    const auto result = rule_.Answer(layers, clock);
    if (!result.ok()) return result.status();
    const std::vector<at::Tensor> tensors = result->toTensorVector();
    if (tensors.size() != layers.size()) {
      return WrongResult(kCalcMasks, absl::StrCat(tensors.size(), " masks"),
                         absl::StrCat("one for each of the ", layers.size(), " layers"));
    }
    std::vector<Mask> masks;
    for (size_t i = 0; i < layers.size(); ++i) {
      auto mask = ToMask(kCalcMasks, layers[i].layer, tensors[i]);
      if (!mask.ok()) {
        return absl::InternalError(
            absl::StrCat("layer ", Quoted(layers[i].layer.name), ": ", mask.status().message()));
      }
      masks.push_back(*std::move(mask));
    }
    return masks;
  }

  int64_t work_bytes(const Layer& layer) const override { return rule_.work_bytes(layer); }

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
    const auto result = rule_.Answer(layer, weight, clock, state);
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
    QuantizeTo(layer.dtype, weight.values.data_ptr(),
               Channels::Of(layer.shape, parameters.channel_axis), parameters, reply, 0,
               quantized.data.data());
    return quantized;
  }

  int64_t work_bytes(const Layer& layer) const override { return rule_.work_bytes(layer); }

 private:
  const ScriptRule rule_;
  const bool signed_;
};

// The method's arguments must be (self, Tensor, Layer, Options, int, int), those of calc_masks
// lists of tensors and layers.
absl::Status CheckMethod(const Script& script, const std::string& name, const c10::Type& returns) {
  const c10::FunctionSchema schema = script.module.get_method(name).function().getSchema();
  const auto& arguments = schema.arguments();
  const auto bad = [&](const auto&... parts) {
    return absl::InvalidArgumentError(absl::StrCat(name, parts...));
  };
  const auto is = [](const c10::TypePtr& type, const c10::Type& expected) {
    return *type == expected;
  };
  const bool joint = name == kCalcMasks;
  const auto one_or_all = [&](const c10::TypePtr& type) {
    return joint ? c10::TypePtr(c10::ListType::create(type)) : type;
  };
  if (arguments.size() != 6 || !is(arguments[1].type(), *one_or_all(c10::TensorType::get())) ||
      joint != (arguments[2].type()->kind() == c10::TypeKind::ListType) ||
      !is(arguments[4].type(), *c10::IntType::get()) ||
      !is(arguments[5].type(), *c10::IntType::get())) {
    return bad(" has the signature ", c10::str(schema), "; it must be (self, ",
               joint ? "List[Tensor], List[Layer]" : "Tensor, Layer",
               ", Options, epoch: int, step: int)");
  }
  if (!is(arguments[2].type(), *one_or_all(script.layer_type)) ||
      !is(arguments[3].type(), *script.options_type)) {
    return bad(" has other types for layer and options than ", script.method);
  }
  if (schema.returns().size() != 1 || !is(schema.returns()[0].type(), returns)) {
    return bad(" returns another type; it must return ", returns.annotation_str());
  }
  return absl::OkStatus();
}

absl::Status ReadSignature(Script* script) {
  const std::vector<std::pair<std::string, c10::TypePtr>> answers = {
      {kCalcMasks, c10::ListType::ofTensors()},
      {kCalcMask, c10::TensorType::get()},
      {kQuantizeWeight, c10::TupleType::create({c10::TensorType::get(), c10::TensorType::get()})}};
  c10::TypePtr returns;
  for (const auto& [name, type] : answers) {
    if (!script->module.find_method(name)) continue;
    script->method = returns == nullptr ? name : "";
    returns = type;
  }
  if (script->method.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("it must have one of the methods ", kCalcMasks,
                                                   ", ", kCalcMask, " and ", kQuantizeWeight,
                                                   ", compiled (with @torch.jit.export)"));
  }
  script->gradients = script->module.find_method(kOnGradient).has_value();
  if (script->gradients && script->method == kCalcMasks) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", kOnGradient, ", which is for single layers, and ", kCalcMasks,
                     ": what it needs to know about gradients must be a statistic of its Layer"));
  }
  const auto& arguments =
      script->module.get_method(script->method).function().getSchema().arguments();
  if (arguments.size() > 3) {
    const auto list = arguments[2].type()->cast<c10::ListType>();
    script->layer_type = list == nullptr ? arguments[2].type() : list->getElementType();
    script->options_type = arguments[3].type();
  } else {
    script->layer_type = script->options_type = c10::NoneType::get();
  }
  if (auto status = CheckMethod(*script, script->method, *returns); !status.ok()) return status;
  auto statistics = ReadLayerType(script->layer_type);
  if (!statistics.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(script->method, ": layer ", statistics.status().message()));
  }
  script->statistics = *std::move(statistics);
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
  info.kind =
      script->method == kQuantizeWeight ? AlgorithmKind::kQuantizer : AlgorithmKind::kPruner;
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
    if (script->method == kQuantizeWeight) return std::make_unique<ScriptQuantizer>(script, given);
    return std::make_unique<ScriptPruner>(script, given);
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
