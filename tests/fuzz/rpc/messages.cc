#include "tests/fuzz/rpc/messages.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nni_compression::fuzz {
namespace {

using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::Reflection;

constexpr int kMaxDepth = 6;

template <typename T>
T Integer(Random& random) {
  using Limits = std::numeric_limits<T>;
  static const std::vector<T> extremes = {
      0, 1, 2, Limits::max(), Limits::min(), static_cast<T>(-1), static_cast<T>(Limits::max() / 2)};
  switch (random.Below(4)) {
    case 0:
      return random.Pick(extremes);
    case 1:
      return static_cast<T>(T{1} << random.Below(Limits::digits));
    default:
      return static_cast<T>(random.Below(16));
  }
}

double Number(Random& random) {
  static const std::vector<double> extremes = {0,
                                               -0.0,
                                               1,
                                               -1,
                                               0.5,
                                               2,
                                               8,
                                               1e-320,
                                               1e308,
                                               -1e308,
                                               0x1p53,
                                               0x1p63,
                                               std::nan(""),
                                               std::numeric_limits<double>::infinity()};
  switch (random.Below(3)) {
    case 0:
      return random.Pick(extremes);
    case 1:
      return static_cast<double>(random.Below(20));
    default:
      return random.Unit();
  }
}

std::string Blob(Random& random) {
  static const std::vector<size_t> sizes = {0, 1, 8, 16, 32, 33, 64, 300};
  return random.Bytes(random.Pick(sizes));
}

int EnumNumber(const FieldDescriptor& field, Random& random) {
  const auto* type = field.enum_type();
  if (random.OneIn(16)) return Integer<int32_t>(random);
  return type->value(static_cast<int>(random.Below(static_cast<size_t>(type->value_count()))))
      ->number();
}

// Sets the field, or adds an element to it.
void Put(Message& message, const FieldDescriptor& field, const Vocabulary& words, Random& random,
         int depth) {
  const Reflection& reflection = *message.GetReflection();
  const bool add = field.is_repeated();
  switch (field.cpp_type()) {
#define NNI_COMPRESSION_PUT(type, Name, value)       \
  case FieldDescriptor::CPPTYPE_##type:              \
    if (add) {                                       \
      reflection.Add##Name(&message, &field, value); \
    } else {                                         \
      reflection.Set##Name(&message, &field, value); \
    }                                                \
    break;
    NNI_COMPRESSION_PUT(INT32, Int32, Integer<int32_t>(random))
    NNI_COMPRESSION_PUT(INT64, Int64, Integer<int64_t>(random))
    NNI_COMPRESSION_PUT(UINT32, UInt32, Integer<uint32_t>(random))
    NNI_COMPRESSION_PUT(UINT64, UInt64, Integer<uint64_t>(random))
    NNI_COMPRESSION_PUT(DOUBLE, Double, Number(random))
    NNI_COMPRESSION_PUT(FLOAT, Float, static_cast<float>(Number(random)))
    NNI_COMPRESSION_PUT(BOOL, Bool, random.OneIn(2))
    NNI_COMPRESSION_PUT(ENUM, EnumValue, EnumNumber(field, random))
    NNI_COMPRESSION_PUT(STRING, String,
                        field.type() == FieldDescriptor::TYPE_BYTES
                            ? Blob(random)
                            : words.Word(field.name(), random))
#undef NNI_COMPRESSION_PUT
    case FieldDescriptor::CPPTYPE_MESSAGE:
      if (depth >= kMaxDepth) break;
      Fill(add ? *reflection.AddMessage(&message, &field)
               : *reflection.MutableMessage(&message, &field),
           words, random, depth + 1);
      break;
  }
}

size_t ElementsOf(const Message& message, const FieldDescriptor& field) {
  return static_cast<size_t>(message.GetReflection()->FieldSize(message, &field));
}

// All messages in `message`, itself first.
void Collect(Message* message, std::vector<Message*>& found) {
  found.push_back(message);
  const Reflection& reflection = *message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      Collect(reflection.MutableMessage(message, field), found);
      continue;
    }
    for (size_t i = 0; i < ElementsOf(*message, *field); ++i) {
      Collect(reflection.MutableRepeatedMessage(message, field, static_cast<int>(i)), found);
    }
  }
}

}  // namespace

std::string Vocabulary::Word(const std::string& field, Random& random) const {
  static const std::vector<std::string> odd = {"",
                                               " ",
                                               "\n",
                                               std::string("a\0b", 3),
                                               "..",
                                               "../x",
                                               "/",
                                               "%s%n",
                                               "ünïcode",
                                               "\"}{[",
                                               std::string(300, 'x'),
                                               std::string(1100, 'y'),
                                               "null",
                                               "NaN",
                                               "-1"};
  const auto it = words_.find(field);
  if (it != words_.end() && !random.OneIn(8)) return random.Pick(it->second);
  if (words_.empty() || random.OneIn(2)) return random.Pick(odd);
  auto other = words_.begin();
  std::advance(other, static_cast<ptrdiff_t>(random.Below(words_.size())));
  return random.Pick(other->second);
}

void Fill(Message& message, const Vocabulary& words, Random& random, int depth) {
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor& field = *type->field(i);
    if (random.OneIn(2)) continue;
    size_t times = 1;
    if (field.is_repeated()) times = random.OneIn(20) ? 40 : random.Below(4);
    for (size_t n = 0; n < times; ++n) Put(message, field, words, random, depth);
  }
}

void Mutate(Message& message, const Vocabulary& words, Random& random) {
  std::vector<Message*> all;
  Collect(&message, all);
  Message& target = *random.Pick(all);
  const auto* type = target.GetDescriptor();
  if (type->field_count() == 0) return;
  const FieldDescriptor& field =
      *type->field(static_cast<int>(random.Below(static_cast<size_t>(type->field_count()))));
  const Reflection& reflection = *target.GetReflection();
  const size_t elements = field.is_repeated() ? ElementsOf(target, field) : 0;
  switch (random.Below(4)) {
    case 0:
      if (!field.is_repeated() || elements == 0) {
        reflection.ClearField(&target, &field);
      } else {
        reflection.SwapElements(&target, &field, static_cast<int>(random.Below(elements)),
                                static_cast<int>(elements - 1));
        reflection.RemoveLast(&target, &field);
      }
      break;
    case 1:
      if (elements > 1) {
        reflection.SwapElements(&target, &field, static_cast<int>(random.Below(elements)),
                                static_cast<int>(random.Below(elements)));
        break;
      }
      [[fallthrough]];
    case 2:
      if (elements > 0 && field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        // The same once more.
        const Message& copied =
            reflection.GetRepeatedMessage(target, &field, static_cast<int>(random.Below(elements)));
        Message* copy = copied.New();
        copy->CopyFrom(copied);
        reflection.AddAllocatedMessage(&target, &field, copy);
        break;
      }
      [[fallthrough]];
    default:
      Put(target, field, words, random, 0);
  }
}

bool IsFinite(const Message& message) {
  // A config_list comes back as it was sent.
  if (message.GetDescriptor()->full_name() == "google.protobuf.Struct") return true;
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool repeated = field->is_repeated();
    const int count = repeated ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      switch (field->cpp_type()) {
        case FieldDescriptor::CPPTYPE_FLOAT:
          if (!std::isfinite(repeated ? reflection.GetRepeatedFloat(message, field, i)
                                      : reflection.GetFloat(message, field))) {
            return false;
          }
          break;
        case FieldDescriptor::CPPTYPE_DOUBLE:
          if (!std::isfinite(repeated ? reflection.GetRepeatedDouble(message, field, i)
                                      : reflection.GetDouble(message, field))) {
            return false;
          }
          break;
        case FieldDescriptor::CPPTYPE_MESSAGE:
          if (!IsFinite(repeated ? reflection.GetRepeatedMessage(message, field, i)
                                 : reflection.GetMessage(message, field))) {
            return false;
          }
          break;
        default:
          break;
      }
    }
  }
  return true;
}

}  // namespace nni_compression::fuzz
