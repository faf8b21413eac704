// The schema is public: what the golden descriptor has must stay as it is; more may come.
//
// To accept additions:
//   protoc -I proto --descriptor_set_out=tests/proto/golden/compression.descriptor
//     nni/compression/v1/compression.proto  (on the same line)
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "nni/compression/v1/compression.pb.h"

namespace nni_compression::testing {
namespace {

using ::google::protobuf::DescriptorProto;
using ::google::protobuf::EnumDescriptorProto;
using ::google::protobuf::FieldDescriptorProto;
using ::google::protobuf::FileDescriptorProto;
using ::google::protobuf::FileDescriptorSet;
using ::testing::Contains;
using ::testing::IsEmpty;

// Everything that the wire or generated code depends on, as "what" -> "how it is".
using Facts = std::map<std::string, std::string>;

void AddEnum(const std::string& scope, const EnumDescriptorProto& type, Facts* facts) {
  for (const auto& value : type.value()) {
    (*facts)["enum " + scope + type.name() + "." + value.name()] = std::to_string(value.number());
  }
}

void AddMessage(const std::string& scope, const DescriptorProto& type, Facts* facts) {
  const std::string name = scope + type.name();
  (*facts)["message " + name] = "";
  for (const FieldDescriptorProto& field : type.field()) {
    // With its name, since JSON and code use it; by number, so that a number keeps its meaning.
    (*facts)["field " + name + " " + std::to_string(field.number())] =
        field.name() + " " + FieldDescriptorProto::Type_Name(field.type()) + " " +
        FieldDescriptorProto::Label_Name(field.label()) + " " + field.type_name() +
        (field.proto3_optional() ? " optional" : "");
  }
  for (const DescriptorProto& nested : type.nested_type()) AddMessage(name + ".", nested, facts);
  for (const EnumDescriptorProto& nested : type.enum_type()) AddEnum(name + ".", nested, facts);
}

Facts FactsOf(const FileDescriptorProto& file) {
  Facts facts;
  facts["package"] = file.package();
  for (const DescriptorProto& type : file.message_type()) AddMessage("", type, &facts);
  for (const EnumDescriptorProto& type : file.enum_type()) AddEnum("", type, &facts);
  for (const auto& service : file.service()) {
    for (const auto& method : service.method()) {
      facts["method " + service.name() + "." + method.name()] =
          (method.client_streaming() ? "stream " : "") + method.input_type() + " -> " +
          (method.server_streaming() ? "stream " : "") + method.output_type();
    }
  }
  return facts;
}

std::vector<std::string> Broken(const Facts& golden, const Facts& now) {
  std::vector<std::string> broken;
  for (const auto& [what, how] : golden) {
    const auto it = now.find(what);
    if (it == now.end()) {
      broken.push_back(what + " is gone; it was " + how);
    } else if (it->second != how) {
      broken.push_back(what + " was " + how + ", now " + it->second);
    }
  }
  return broken;
}

FileDescriptorProto Golden() {
  std::ifstream file(GOLDEN_DESCRIPTOR, std::ios::binary);
  FileDescriptorSet set;
  EXPECT_TRUE(set.ParseFromIstream(&file));
  EXPECT_EQ(set.file_size(), 1);
  return set.file(0);
}

FileDescriptorProto CompiledIn() {
  FileDescriptorProto file;
  nni::compression::v1::BindModelRequest::descriptor()->file()->CopyTo(&file);
  return file;
}

TEST(DescriptorTest, TheSchemaBreaksNoClientOfTheGoldenOne) {
  EXPECT_THAT(Broken(FactsOf(Golden()), FactsOf(CompiledIn())), IsEmpty());
}

DescriptorProto* Message(FileDescriptorProto& file, const std::string& name) {
  for (DescriptorProto& type : *file.mutable_message_type()) {
    if (type.name() == name) return &type;
  }
  return nullptr;
}

// What is broken when the golden schema is changed in this way.
std::vector<std::string> After(const std::function<void(FileDescriptorProto&)>& change) {
  FileDescriptorProto changed = Golden();
  change(changed);
  return Broken(FactsOf(Golden()), FactsOf(changed));
}

TEST(DescriptorTest, IncompatibleChangesAreFound) {
  EXPECT_THAT(After([](auto& file) { Message(file, "Layer")->mutable_field()->RemoveLast(); }),
              Contains("field Layer 6 is gone; it was aliases TYPE_STRING LABEL_REPEATED "));
  EXPECT_EQ(
      After([](auto& file) { Message(file, "Chunk")->mutable_field(0)->set_number(9); }).size(),
      1u);
  EXPECT_EQ(After([](auto& file) {
              Message(file, "Chunk")->mutable_field(1)->set_type(FieldDescriptorProto::TYPE_INT64);
            }).size(),
            1u);
  EXPECT_EQ(
      After([](auto& file) {
        Message(file, "Chunk")->mutable_field(1)->set_label(FieldDescriptorProto::LABEL_REPEATED);
      }).size(),
      1u);
  EXPECT_EQ(
      After([](auto& file) { file.mutable_enum_type(0)->mutable_value(1)->set_number(99); }).size(),
      1u);
  EXPECT_EQ(
      After([](auto& file) { file.mutable_service(0)->mutable_method()->RemoveLast(); }).size(),
      1u);
  EXPECT_EQ(After([](auto& file) {
              file.mutable_service(0)->mutable_method(1)->set_server_streaming(false);
            }).size(),
            1u);
  EXPECT_EQ(After([](auto& file) { file.set_package("nni.compression.v2"); }).size(), 1u);
}

TEST(DescriptorTest, AdditionsAreFine) {
  EXPECT_THAT(After([](auto& file) {
                FieldDescriptorProto* field = Message(file, "Chunk")->add_field();
                field->set_name("more");
                field->set_number(4);
                field->set_type(FieldDescriptorProto::TYPE_BOOL);
                file.add_message_type()->set_name("New");
                file.mutable_service(0)->add_method()->set_name("NewCall");
              }),
              IsEmpty());
}

}  // namespace
}  // namespace nni_compression::testing
