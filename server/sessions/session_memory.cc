#include "server/sessions/session_memory.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "compression/session/name_patterns.h"
#include "server/limits/memory_costs.h"

namespace nni_compression::server {

namespace v1 = ::nni::compression::v1;

namespace {

// Overhead of a heap block.
constexpr int64_t kNameBlock = 16;

// A name is stored in the binding, in the record, in the indices of both, and in the last report.
constexpr int64_t kNameCopies = 5;
constexpr int64_t kAliasBytes = 400;  // of all copies, without the characters

constexpr int64_t kMemberBytes = 128;  // of a dependency group

// An option is stored in the binding and, parsed, in the plan.
constexpr int64_t kRuleCopies = 2;
constexpr int64_t kRuleBytes = 2 << 10;  // defaults, compressor, path
constexpr int64_t kJsonValue = 2 * 16;   // an element of an array, which grows by doubling
constexpr int64_t kJsonMember = 96;      // a node of an object
constexpr int64_t kJsonBlock = 48;       // a string, an array or an object by itself

// A result is stored in the record and in the last report.
constexpr int64_t kResultCopies = 2;

// The granularity in which a session's reservation grows.
constexpr int64_t kGrowth = 4 << 10;

// A session's catalogue entry with as many results as it may have; a layer's record without its
// mask and parameters.
constexpr int64_t kDiskBytesPerSession = 6 << 10;
constexpr int64_t kDiskBytesPerLayer = 256;

// A scale and a zero point.
constexpr int64_t kParameterBytes = sizeof(float) + sizeof(int32_t);

// Overhead of a mask, and of a layer's parameters: aligned blocks and reference counts.
constexpr int64_t kMaskBytes = 192;
constexpr int64_t kParametersBytes = 96;

int64_t TextBytes(const std::string& text) {
  return static_cast<int64_t>(text.size()) + kNameBlock;
}

int64_t JsonBytes(const google::protobuf::Struct& object);

int64_t JsonBytes(const google::protobuf::Value& value) {
  int64_t bytes = kJsonValue;
  switch (value.kind_case()) {
    case google::protobuf::Value::kStringValue:
      bytes += kJsonBlock + TextBytes(value.string_value());
      break;
    case google::protobuf::Value::kStructValue:
      bytes += JsonBytes(value.struct_value());
      break;
    case google::protobuf::Value::kListValue:
      bytes += kJsonBlock;
      for (const google::protobuf::Value& element : value.list_value().values()) {
        bytes += JsonBytes(element);
      }
      break;
    default:
      break;
  }
  return bytes;
}

int64_t JsonBytes(const google::protobuf::Struct& object) {
  int64_t bytes = kJsonBlock;
  for (const auto& [key, value] : object.fields()) {
    bytes += kJsonMember + TextBytes(key) + JsonBytes(value);
  }
  return bytes;
}

// Scales and zero points of a layer of `session`: as sent and stored, and with their overhead in
// memory.
int64_t AnswerBytes(const compression::Session& session, int64_t mask, int64_t numbers) {
  int64_t bytes = 0;
  for (size_t i = 0; i < session.plan().layers.size(); ++i) {
    const compression::PlannedRule* planned = session.plan().layers[i].planned;
    if (planned == nullptr) continue;
    const compression::Layer& layer = session.layer(static_cast<int>(i));
    bytes += mask + compression::ByteLength(compression::DataType::kBit, layer.elements);
    const auto* quantizer = dynamic_cast<const compression::Quantizer*>(planned->compressor.get());
    if (quantizer != nullptr) bytes += numbers + kParameterBytes * quantizer->channels(layer);
  }
  return bytes;
}

// Of units, which a member has for each filter of its layer, given or not.
int64_t GroupBytes(const v1::BindModelRequest& request) {
  int64_t bytes = 0;
  for (const v1::FilterGroup& group : request.filter_groups()) {
    for (const v1::FilterGroup::Member& member : group.members()) {
      bytes += kMemberBytes + TextBytes(member.layer()) +
               static_cast<int64_t>(sizeof(uint32_t)) * member.units_size();
    }
  }
  if (bytes == 0) return 0;
  for (const v1::Layer& layer : request.layers()) {
    const auto axis = static_cast<int>(std::min<uint32_t>(layer.channel_axis(), 64));
    if (axis >= layer.shape_size()) continue;  // an error later
    bytes += static_cast<int64_t>(sizeof(uint32_t)) *
             std::clamp<int64_t>(layer.shape(axis), 0, compression::kMaxFilters);
  }
  return bytes;
}

// The statistics that the plan wants, of one source.
int64_t StatisticsBytes(const compression::Session& session) {
  // As most trainers make them; the plan leaves it to them.
  constexpr int64_t kBins = 4096;
  int64_t bytes = 0;
  for (const auto& rule : session.plan().rules) {
    for (const int i : rule->layers) {
      for (const compression::StatisticInfo* info : rule->StatisticsOf(session.layer(i))) {
        int64_t numbers = info->shape == compression::StatisticInfo::Shape::kBins ? kBins : 1;
        const auto shape = compression::PlannedShape(*info, session.layer(i));  // it has one
        for (const int64_t size : *shape) numbers *= size;
        bytes += compression::ByteLength(compression::DataType::kFloat64, numbers);
      }
    }
  }
  return bytes;
}

}  // namespace

absl::Status SessionMemory::Reserve(int64_t bytes, absl::string_view what) {
  absl::StatusOr<Reservation> memory = budget_->ReserveNow(bytes, quota_, MemoryUse::kKept, what);
  if (!memory.ok()) return memory.status();
  reservations_.push_back(*std::move(memory));
  return absl::OkStatus();
}

absl::Status SessionMemory::Grow(int64_t bytes, absl::string_view what) {
  if (bytes > unused_) {
    const int64_t step = std::max(bytes - unused_, kGrowth);
    if (absl::Status status = Reserve(step, what); !status.ok()) return status;
    unused_ += step;
  }
  unused_ -= bytes;
  return absl::OkStatus();
}

void SessionMemory::Retire(int64_t bytes) {
  for (Reservation& memory : reservations_) {
    memory.Uncharge();
    memory.ShrinkTo(bytes);
    bytes -= memory.bytes();
  }
  unused_ = 0;
}

int64_t BindingBytes(const v1::BindModelRequest& request) {
  int64_t bytes = kSessionBytes;
  for (const auto& [key, value] : request.labels())
    bytes += kJsonMember + TextBytes(key) + TextBytes(value);
  for (const v1::Layer& layer : request.layers()) {
    bytes += kLayerBytes + kNameCopies * static_cast<int64_t>(layer.name().size()) +
             2 * TextBytes(layer.op_type()) +
             2 * static_cast<int64_t>(sizeof(int64_t)) * layer.shape_size();
    for (const std::string& base : layer.op_type_bases()) bytes += 3 * TextBytes(base);
    for (const std::string& alias : layer.aliases()) {
      bytes += kAliasBytes + kNameCopies * static_cast<int64_t>(alias.size());
    }
  }
  bytes += GroupBytes(request);
  for (const google::protobuf::Struct& rule : request.config_list()) {
    bytes += kRuleBytes + kRuleCopies * JsonBytes(rule);
  }
  return bytes;
}

int64_t ResultsBytes(const Results& results) {
  int64_t bytes = 0;
  for (const auto& [name, value] : results)
    bytes += kResultCopies * (kJsonMember + TextBytes(name));
  return bytes;
}

int64_t PatternBytes(const v1::BindModelRequest& request) {
  const auto is_pattern = [](const google::protobuf::Value& value) {
    return absl::StartsWith(value.string_value(), compression::kPatternPrefix);
  };
  for (const google::protobuf::Struct& rule : request.config_list()) {
    if (rule.fields().contains("op_names_re")) return compression::NamePatterns::kBytes;
    const auto names = rule.fields().find("op_names");
    if (names == rule.fields().end()) continue;
    const auto& list = names->second.list_value().values();
    if (is_pattern(names->second) || std::any_of(list.begin(), list.end(), is_pattern)) {
      return compression::NamePatterns::kBytes;
    }
  }
  return 0;
}

int64_t EntryBytes(const v1::Session& entry) {
  return kSessionBytes + 2 * static_cast<int64_t>(entry.ByteSizeLong());
}

int64_t AnswerBytes(const compression::Session& session) {
  return AnswerBytes(session, kMaskBytes, kParametersBytes);
}

int64_t DiskBytes(const compression::Session& session, const v1::BindModelRequest& request) {
  int64_t binding = static_cast<int64_t>(request.ByteSizeLong());
  for (const v1::LayerMask& mask : request.masks()) {  // counted with the layers
    binding -= static_cast<int64_t>(mask.ByteSizeLong());
  }
  return kDiskBytesPerSession + kDiskBytesPerLayer * request.layers_size() +
         2 * binding +  // the records repeat the layers' names
         AnswerBytes(session, 0, 0) + StatisticsBytes(session);
}

}  // namespace nni_compression::server
