#include "server/convert/json.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nni_compression::server {
namespace {

using ::google::protobuf::Struct;
using ::google::protobuf::Value;

TEST(JsonTest, NumbersKeepWhatTheSenderWrote) {
  Struct object;
  (*object.mutable_fields())["i"].set_number_value(8);
  (*object.mutable_fields())["d"].set_number_value(0.8);
  (*object.mutable_fields())["nan"].set_number_value(std::nan(""));
  (*object.mutable_fields())["big"].set_number_value(1e300);
  const auto json = ToJson(object, "rule");
  ASSERT_TRUE(json.ok());
  EXPECT_TRUE((*json)["i"].is_number_integer());
  EXPECT_EQ((*json)["d"].get<double>(), 0.8);
  EXPECT_TRUE(std::isnan((*json)["nan"].get<double>()));
  EXPECT_EQ((*json)["big"].get<double>(), 1e300);
}

TEST(JsonTest, StructuresComeBackAsTheyWere) {
  const nlohmann::json original = {{"list", {1, "two", nullptr, true}},
                                   {"object", {{"x", 0.5}}},
                                   {"empty", nlohmann::json::array()}};
  Struct object;
  ToProto(original, &object);
  EXPECT_EQ(*ToJson(object, "rule"), original);
}

TEST(JsonTest, DeepNestingAndValuesWithoutAKindAreRefused) {
  Struct deep;
  Value* value = &(*deep.mutable_fields())["x"];
  for (int i = 0; i < 20; ++i) value = value->mutable_list_value()->add_values();
  value->set_number_value(1);
  EXPECT_EQ(ToJson(deep, "config_list[3]").status().message(),
            "config_list[3] is nested too deeply; at most 16 levels are allowed");
  Struct unset;
  (*unset.mutable_fields())["x"];
  EXPECT_EQ(ToJson(unset, "r").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace nni_compression::server
