#include "tests/fuzz/rpc/conversation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "tests/fuzz/rpc/tensors.h"

namespace nni_compression::fuzz {
namespace {

namespace v1 = ::nni::compression::v1;

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;
using ::google::protobuf::MessageFactory;
using ::google::protobuf::MethodDescriptor;

// Longer than any call takes, shorter than what ends the test.
constexpr auto kNoDeadline = std::chrono::seconds(50);

const std::vector<std::string> kTenants = {"a", "b"};
const std::vector<std::string> kFormats = {"safetensors", "pth",   "sparse", "compressed-tensors",
                                           "onnx",        "masks", "report"};

MessagePtr NewMessage(const Descriptor& type) {
  return MessagePtr(MessageFactory::generated_factory()->GetPrototype(&type)->New());
}

template <typename T>
MessagePtr Copy(const T& message) {
  return std::make_unique<T>(message);
}

std::string PathOf(const MethodDescriptor& method) {
  return absl::StrCat("/", method.service()->full_name(), "/", method.name());
}

// Whether the messages carry tensors: open, headers, chunks, commits.
bool CarriesTensors(const Descriptor& type) { return type.FindFieldByName("headers") != nullptr; }

// The mask says of itself what it is.
void CheckMasks(const std::vector<MessagePtr>& replies,
                const std::map<uint32_t, std::string>& payloads) {
  std::map<uint32_t, const v1::MaskResult*> results;
  for (const MessagePtr& reply : replies) {
    for (const auto& result : static_cast<const v1::CalcMaskResponse&>(*reply).results()) {
      EXPECT_TRUE(results.emplace(result.answers(), &result).second) << "answered twice";
    }
  }
  for (const MessagePtr& reply : replies) {
    for (const auto& header : static_cast<const v1::CalcMaskResponse&>(*reply).headers()) {
      ASSERT_EQ(results.count(header.answers()), 1u);
      const auto payload = payloads.find(header.index());
      if (payload == payloads.end()) continue;
      int64_t elements = 1, kept = 0;
      for (const int64_t dimension : header.shape()) elements *= dimension;
      for (const char byte : payload->second)
        kept += __builtin_popcount(static_cast<uint8_t>(byte));
      EXPECT_EQ(results[header.answers()]->achieved_sparsity(),
                static_cast<double>(elements - kept) / static_cast<double>(elements));
    }
  }
}

// What is promised of a stream's replies: chunks run from 0 without gap or overlap, a commit
// repeats the length, and a call that succeeds leaves nothing open.
std::map<uint32_t, std::string> CheckFraming(const std::vector<MessagePtr>& replies,
                                             bool complete) {
  std::map<uint32_t, std::string> payloads;
  std::set<uint32_t> committed;
  for (const MessagePtr& reply : replies) {
    const auto& reflection = *reply->GetReflection();
    const auto* chunks = reply->GetDescriptor()->FindFieldByName("chunks");
    const auto* commits = reply->GetDescriptor()->FindFieldByName("commits");
    for (int i = 0; i < reflection.FieldSize(*reply, chunks); ++i) {
      const auto& chunk =
          static_cast<const v1::Chunk&>(reflection.GetRepeatedMessage(*reply, chunks, i));
      std::string& payload = payloads[chunk.index()];
      EXPECT_EQ(chunk.offset(), payload.size());
      EXPECT_FALSE(chunk.payload().empty());
      EXPECT_EQ(committed.count(chunk.index()), 0u);
      payload += chunk.payload();
    }
    for (int i = 0; i < reflection.FieldSize(*reply, commits); ++i) {
      const auto& commit =
          static_cast<const v1::Commit&>(reflection.GetRepeatedMessage(*reply, commits, i));
      EXPECT_TRUE(committed.insert(commit.index()).second);
      EXPECT_EQ(commit.byte_length(), payloads[commit.index()].size());
    }
  }
  if (complete) {
    EXPECT_EQ(committed.size(), payloads.size());
  }
  return payloads;
}

Exchange Conclude(RawCall& call, const MethodDescriptor& method) {
  Exchange exchange;
  exchange.status = call.Finish();
  for (grpc::ByteBuffer bytes : call.replies()) {
    grpc::Slice slice;
    EXPECT_TRUE(bytes.DumpToSingleSlice(&slice).ok());
    MessagePtr reply = NewMessage(*method.output_type());
    EXPECT_TRUE(reply->ParseFromArray(slice.begin(), static_cast<int>(slice.size())));
    EXPECT_TRUE(IsFinite(*reply)) << reply->ShortDebugString();
    exchange.replies.push_back(std::move(reply));
  }
  if (method.output_type()->FindFieldByName("chunks") != nullptr) {
    const auto payloads = CheckFraming(exchange.replies, exchange.status.ok());
    if (method.output_type() == v1::CalcMaskResponse::descriptor()) {
      CheckMasks(exchange.replies, payloads);
    }
  }
  return exchange;
}

}  // namespace

const MethodDescriptor& MethodOf(const std::string& name) {
  return *v1::BindModelRequest::descriptor()
              ->file()
              ->FindServiceByName("CompressionService")
              ->FindMethodByName(name);
}

Exchange Call(grpc::GenericStub& stub, const MethodDescriptor& method, const std::string& tenant,
              const std::vector<const Message*>& messages) {
  RawCall call(stub, PathOf(method), tenant, kNoDeadline);
  for (const Message* message : messages) call.Write(message->SerializeAsString());
  call.HalfClose();
  return Conclude(call, method);
}

struct Conversation::Pending {
  const MethodDescriptor* method;
  std::string tenant;
  std::vector<std::string> messages;
  std::unique_ptr<RawCall> call;
  size_t sent = 0;
  bool cancelled = false;
  bool hurried = false;  // it has a short deadline
  bool damaged = false;  // some bytes were changed
};

Conversation::Conversation(grpc::GenericStub& stub, uint64_t seed,
                           std::map<std::string, int>* succeeded)
    : stub_(stub), succeeded_(*succeeded), random_(seed) {
  const auto* service = MethodOf("BindModel").service();
  for (int i = 0; i < service->method_count(); ++i) {
    const MethodDescriptor* method = service->method(i);
    // Streams have most of the code.
    methods_.insert(methods_.end(), CarriesTensors(*method->input_type()) ? 4 : 1, method);
  }
}

void Conversation::Run() {
  Learn();
  for (size_t n = 1 + random_.Below(2); n > 0; --n) Bind();
  for (size_t n = 1 + random_.Below(6); n > 0; --n) CallSome();
}

// Algorithms and their options are those that the server lists.
void Conversation::Learn() {
  const Exchange exchange = Call(stub_, MethodOf("ListAlgorithms"), "a",
                                 {&v1::ListAlgorithmsRequest::default_instance()});
  ASSERT_TRUE(exchange.status.ok()) << exchange.status.error_message();
  for (const auto& algorithm :
       static_cast<const v1::ListAlgorithmsResponse&>(*exchange.replies.at(0)).algorithms()) {
    if (algorithm.name() == "slow") continue;  // waits for its test
    algorithms_.push_back(algorithm);
    words_.Add("algorithm", algorithm.name());
    for (const auto& option : algorithm.options()) words_.Add("key", option.name());
  }
  for (const std::string& format : kFormats) words_.Add("format", format);
  for (const char* framework : {"pytorch", "tensorflow", "keras", "generic"}) {
    words_.Add("framework", framework);
  }
  for (const char* key :
       {"op_types", "op_names", "exclude", "names", "layout", "bins", "max_shard_bytes"}) {
    words_.Add("key", key);
  }
  for (const char* text : {"default", "Linear", "Conv2d", "weight", "output", "input",
                           "int-quantized", "pack-quantized"}) {
    words_.Add("string_value", text);
  }
  for (const char* name : {"w0", "w1", "w2", "w3"}) {
    for (const char* field : {"layer", "name", "aliases", "string_value"}) words_.Add(field, name);
  }
  words_.Add("session_id", std::string(32, '0'));
}

// A value for each required option, and for some of the others.
void Conversation::ComposeRule(const v1::Algorithm& algorithm, google::protobuf::Struct& rule) {
  rule = algorithm.example();
  if (!random_.OneIn(4)) {
    auto& types = *(*rule.mutable_fields())["op_types"].mutable_list_value();
    types.add_values()->set_string_value(random_.OneIn(4) ? "Linear" : "default");
  }
  if (random_.OneIn(5)) {
    auto& names = *(*rule.mutable_fields())["op_names"].mutable_list_value();
    names.add_values()->set_string_value(words_.Word("layer", random_));
  }
  for (const auto& option : algorithm.options()) {
    if (!random_.OneIn(3)) continue;
    auto& value = (*rule.mutable_fields())[option.name()];
    absl::string_view choices = option.range();
    if (absl::ConsumePrefix(&choices, "one of ")) {
      const std::vector<std::string> names = absl::StrSplit(choices, ", ");
      value.set_string_value(random_.Pick(names));
    } else if (absl::StartsWith(option.type(), "integer")) {
      value.set_number_value(static_cast<double>(random_.Below(random_.OneIn(2) ? 4 : 20)));
    } else if (option.type() == "number") {
      value.set_number_value(random_.OneIn(4) ? static_cast<double>(random_.Below(2))
                                              : random_.Unit());
    } else if (option.type() == "list of strings") {
      auto& list = *value.mutable_list_value();
      for (const char* text : {"weight", "output", "input"}) {
        if (random_.OneIn(2)) list.add_values()->set_string_value(text);
      }
    } else {
      Fill(value, words_, random_);
    }
  }
}

v1::BindModelRequest Conversation::ComposeBind() {
  static const std::vector<int64_t> kDimensions = {1, 2, 3, 4, 7, 8, 16, 33};
  static const std::vector<v1::DataType> kTypes = {v1::DATA_TYPE_FLOAT32, v1::DATA_TYPE_FLOAT16,
                                                   v1::DATA_TYPE_BFLOAT16, v1::DATA_TYPE_FLOAT64};
  v1::BindModelRequest request;
  const v1::Algorithm& algorithm = random_.Pick(algorithms_);
  request.set_algorithm(algorithm.name());
  request.set_framework("pytorch");
  for (size_t n = 1 + random_.Below(3); n > 0; --n) {
    ComposeRule(algorithm, *request.add_config_list());
  }
  for (size_t i = 0, n = 1 + random_.Below(4); i < n; ++i) {
    v1::Layer& layer = *request.add_layers();
    layer.set_name(absl::StrCat("w", i));
    layer.set_op_type(random_.OneIn(4) ? "Conv2d" : "Linear");
    layer.set_dtype(random_.OneIn(2) ? v1::DATA_TYPE_FLOAT32 : random_.Pick(kTypes));
    for (size_t d = 1 + random_.Below(3); d > 0; --d) layer.add_shape(random_.Pick(kDimensions));
    if (random_.OneIn(3)) {
      layer.set_channel_axis(
          static_cast<uint32_t>(random_.Below(static_cast<size_t>(layer.shape_size()))));
    }
  }
  if (random_.OneIn(4)) request.set_epoch(static_cast<int64_t>(random_.Below(12)));
  if (random_.OneIn(4)) request.set_request_id(absl::StrCat("r", random_.Below(3)));
  return request;
}

void Conversation::Bind() {
  v1::BindModelRequest request = ComposeBind();
  while (random_.OneIn(4)) Mutate(request, words_, random_);
  const std::string tenant = random_.Pick(kTenants);
  const Exchange exchange = Call(stub_, MethodOf("BindModel"), tenant, {&request});
  if (!exchange.status.ok()) {
    EXPECT_NE(exchange.status.error_code(), grpc::StatusCode::UNKNOWN);
    EXPECT_NE(exchange.status.error_code(), grpc::StatusCode::INTERNAL)
        << exchange.status.error_message();
    return;
  }
  const auto& response = static_cast<const v1::BindModelResponse&>(*exchange.replies.at(0));
  sessions_.push_back({response.session_id(),
                       tenant,
                       {request.layers().begin(), request.layers().end()},
                       response.plan()});
  words_.Add("session_id", response.session_id());
}

v1::TensorHeader Conversation::ComposeHeader(const MethodDescriptor& method, const v1::Layer& layer,
                                             const Bound& session) {
  v1::TensorHeader header;
  header.set_layer(layer.name());
  header.set_role(v1::TENSOR_ROLE_WEIGHT);
  header.set_dtype(layer.dtype());
  *header.mutable_shape() = layer.shape();
  std::vector<v1::TensorRole> roles;
  for (const auto& rule : session.plan.rules()) {
    for (const int role : rule.step_inputs()) roles.push_back(static_cast<v1::TensorRole>(role));
  }
  if (method.name() == "Step" && !roles.empty()) header.set_role(random_.Pick(roles));
  if (method.name() == "CalcMask" && random_.OneIn(5)) {
    header.set_role(v1::TENSOR_ROLE_MASK);
    header.set_dtype(v1::DATA_TYPE_BIT);
  }
  if (method.name() == "QuantizeWeight" && random_.OneIn(4)) {
    header.set_role(v1::TENSOR_ROLE_RANGE);
  }
  if (random_.OneIn(12)) header.set_role(static_cast<v1::TensorRole>(random_.Below(12)));
  if (header.role() == v1::TENSOR_ROLE_RANGE || header.role() == v1::TENSOR_ROLE_OUTPUT_RANGE ||
      header.role() == v1::TENSOR_ROLE_INPUT_RANGE) {
    header.set_dtype(v1::DATA_TYPE_FLOAT32);
    header.clear_shape();
    header.add_shape(2);
    for (const auto& rule : session.plan.rules()) {
      if (rule.range_per_channel() &&
          layer.channel_axis() < static_cast<uint32_t>(layer.shape_size()) &&
          header.role() == v1::TENSOR_ROLE_RANGE) {
        header.add_shape(layer.shape(static_cast<int>(layer.channel_axis())));
        break;
      }
    }
  }
  if (random_.OneIn(6)) header.set_fingerprint(random_.OneIn(2) ? "fingerprint" : random_.Bytes(8));
  return header;
}

// A stream's messages, all in order: open, headers with their chunks and commits, cut into messages
// anywhere.
std::vector<MessagePtr> Conversation::ComposeTensors(const MethodDescriptor& method,
                                                     const Bound& session) {
  const Descriptor& type = *method.input_type();
  std::vector<MessagePtr> messages;
  const auto next = [&]() -> Message& {
    if (messages.empty() || random_.OneIn(3)) messages.push_back(NewMessage(type));
    return *messages.back();
  };
  const auto add = [&](const char* field) -> Message& {
    Message& message = next();
    return *message.GetReflection()->AddMessage(&message, type.FindFieldByName(field));
  };

  Message& first = next();
  Message& open = *first.GetReflection()->MutableMessage(&first, type.FindFieldByName("open"));
  if (random_.OneIn(6)) Fill(open, words_, random_);
  if (const auto* format = open.GetDescriptor()->FindFieldByName("format")) {
    open.GetReflection()->SetString(&open, format, random_.Pick(kFormats));
    if (random_.OneIn(4)) Mutate(open, words_, random_);
  }
  if (const auto* step = open.GetDescriptor()->FindFieldByName("step")) {
    if (method.name() == "Step") {
      open.GetReflection()->SetInt64(&open, step, static_cast<int64_t>(random_.Below(20)));
    }
  }
  open.GetReflection()->SetString(&open, open.GetDescriptor()->FindFieldByName("session_id"),
                                  session.id);

  // Export takes all headers before the first payload.
  std::vector<std::pair<v1::TensorHeader, std::string>> tensors;
  for (const auto& layer : session.layers) {
    if (method.name() != "Export" && random_.OneIn(3)) continue;
    v1::TensorHeader header = ComposeHeader(method, layer, session);
    header.set_index(static_cast<uint32_t>(tensors.size()));
    int64_t elements = 1;
    for (const int64_t dimension : header.shape())
      elements *= std::clamp<int64_t>(dimension, 0, 64);
    elements = std::min<int64_t>(elements, 1 << 16);
    std::string payload = Payload(header.dtype(), elements, random_);
    header.set_byte_length(payload.size());
    tensors.emplace_back(std::move(header), std::move(payload));
  }
  const bool ahead = method.name() == "Export" || random_.OneIn(3);
  if (ahead) {
    for (const auto& [header, payload] : tensors) {
      static_cast<v1::TensorHeader&>(add("headers")) = header;
    }
  }
  for (const auto& [header, payload] : tensors) {
    if (!ahead) static_cast<v1::TensorHeader&>(add("headers")) = header;
    for (size_t at = 0; at < payload.size();) {
      const size_t size =
          random_.OneIn(3) ? 1 + random_.Below(payload.size() - at) : payload.size() - at;
      auto& chunk = static_cast<v1::Chunk&>(add("chunks"));
      chunk.set_index(header.index());
      chunk.set_offset(at);
      chunk.set_payload(payload.substr(at, size));
      at += size;
    }
    auto& commit = static_cast<v1::Commit&>(add("commits"));
    commit.set_index(header.index());
    commit.set_byte_length(payload.size());
  }
  if (random_.OneIn(10)) messages.insert(messages.begin(), NewMessage(type));
  return messages;
}

std::vector<MessagePtr> Conversation::Compose(const MethodDescriptor& method,
                                              const Bound* session) {
  const Descriptor& type = *method.input_type();
  std::vector<MessagePtr> messages;
  if (CarriesTensors(type) && session != nullptr && !random_.OneIn(12)) {
    messages = ComposeTensors(method, *session);
  } else if (&type == v1::BindModelRequest::descriptor() && !random_.OneIn(4)) {
    messages.push_back(Copy(ComposeBind()));
  } else {
    for (size_t n = method.client_streaming() ? random_.Below(4) : 1; n > 0; --n) {
      messages.push_back(NewMessage(type));
      Fill(*messages.back(), words_, random_);
      const auto* id = type.FindFieldByName("session_id");
      if (id != nullptr && session != nullptr && !random_.OneIn(4)) {
        messages.back()->GetReflection()->SetString(messages.back().get(), id, session->id);
      }
    }
  }
  if (!messages.empty() && random_.OneIn(2)) {
    for (size_t n = 1 + random_.Below(3); n > 0; --n) {
      Mutate(*messages[random_.Below(messages.size())], words_, random_);
    }
  }
  return messages;
}

std::unique_ptr<Conversation::Pending> Conversation::Start() {
  auto pending = std::make_unique<Pending>();
  pending->method = random_.Pick(methods_);
  const Bound* session = sessions_.empty() ? nullptr : &random_.Pick(sessions_);
  pending->tenant =
      session == nullptr || random_.OneIn(10) ? random_.Pick(kTenants) : session->tenant;
  for (const MessagePtr& message : Compose(*pending->method, session)) {
    pending->messages.push_back(message->SerializeAsString());
    std::string& bytes = pending->messages.back();
    if (!bytes.empty() && random_.OneIn(30)) {
      pending->damaged = true;
      char& byte = bytes[random_.Below(bytes.size())];
      byte = static_cast<char>(byte ^ (1 << random_.Below(8)));
    }
  }
  pending->hurried = random_.OneIn(30);
  pending->call = std::make_unique<RawCall>(
      stub_, PathOf(*pending->method), pending->tenant,
      pending->hurried ? std::chrono::microseconds(1 << random_.Below(14)) : kNoDeadline);
  return pending;
}

// One to three calls, whose messages take turns.
void Conversation::CallSome() {
  std::vector<std::unique_ptr<Pending>> calls;
  for (size_t n = random_.OneIn(3) ? 2 + random_.Below(2) : 1; n > 0; --n) {
    calls.push_back(Start());
  }
  while (!calls.empty()) {
    const size_t i = random_.Below(calls.size());
    Pending& pending = *calls[i];
    const bool more = pending.sent < pending.messages.size() &&
                      pending.call->Write(pending.messages[pending.sent]);
    ++pending.sent;
    if (random_.OneIn(40)) {
      pending.cancelled = true;
      pending.call->Cancel();
    }
    if (more) continue;
    pending.call->HalfClose();
    Settle(pending);
    calls.erase(calls.begin() + static_cast<ptrdiff_t>(i));
  }
}

void Conversation::Settle(Pending& pending) {
  using grpc::StatusCode;
  const Exchange exchange = Conclude(*pending.call, *pending.method);
  const StatusCode code = exchange.status.error_code();
  const std::string what =
      absl::StrCat(pending.method->name(), ": ", code, " ", exchange.status.error_message());
  if (code == StatusCode::OK) ++succeeded_[pending.method->name()];
  // gRPC answers messages that cannot be parsed with INTERNAL, and none at all with UNIMPLEMENTED.
  if (!pending.damaged) {
    EXPECT_NE(code, StatusCode::INTERNAL) << what;
  }
  EXPECT_NE(code, StatusCode::UNKNOWN) << what;
  EXPECT_NE(code, StatusCode::UNAVAILABLE) << what;
  if (!pending.hurried) {
    EXPECT_NE(code, StatusCode::DEADLINE_EXCEEDED) << what;
  }
  if (!pending.cancelled && !pending.hurried) {
    EXPECT_NE(code, StatusCode::CANCELLED) << what;
  }
}

void Conversation::CloseAll() {
  for (const std::string& tenant : kTenants) {
    v1::ListSessionsRequest list;
    list.set_page_size(1000);
    const Exchange listed = Call(stub_, MethodOf("ListSessions"), tenant, {&list});
    ASSERT_TRUE(listed.status.ok()) << listed.status.error_message();
    for (const auto& session :
         static_cast<const v1::ListSessionsResponse&>(*listed.replies.at(0)).sessions()) {
      v1::CloseSessionRequest close;
      close.set_session_id(session.id());
      const Exchange closed = Call(stub_, MethodOf("CloseSession"), tenant, {&close});
      // One that was broken off may have closed it.
      if (closed.status.error_code() == grpc::StatusCode::NOT_FOUND) continue;
      EXPECT_TRUE(closed.status.ok()) << closed.status.error_message();
    }
  }
}

}  // namespace nni_compression::fuzz
