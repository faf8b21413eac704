// What bad input to BindModel gets: an error that names the field, the value and the allowed range.
// Algorithms' own options are in their tests and in the contract suite, weights in the latter.
#include <cmath>
#include <limits>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

absl::Status BindLayers(std::vector<Layer> layers) {
  return TryBind(MakeBinding("level", {{{"sparsity", 0.5}}}, std::move(layers))).status();
}

absl::Status BindRule(const std::string& algorithm, json rule) {
  return TryBind(MakeBinding(algorithm, json::array({std::move(rule)}), {MakeLayer("a", {4})}))
      .status();
}

TEST(BadInputTest, AnUnknownAlgorithmGetsASuggestion) {
  EXPECT_THAT(
      BindRule("lvel", {{"sparsity", 0.5}}),
      IsInvalid(AllOf(HasSubstr("algorithm is \"lvel\""), HasSubstr("did you mean `level`?"))));
}

TEST(BadInputTest, AnUnknownOptionGetsASuggestion) {
  EXPECT_THAT(BindRule("level", {{"sparcity", 0.5}}),
              IsInvalid(AllOf(HasSubstr("config_list[0] has the unknown key \"sparcity\""),
                              HasSubstr("did you mean `sparsity`?"))));
}

TEST(BadInputTest, AMisspeltConfigKeyGetsASuggestion) {
  EXPECT_THAT(BindRule("level", {{"sparsity", 0.5}, {"op_name", {"a"}}}),
              IsInvalid(HasSubstr("did you mean `op_names`?")));
}

TEST(BadInputTest, SparsityOutsideZeroToOneOrNan) {
  for (double sparsity :
       {-0.1, 1.0000001, 80.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(BindRule("level", {{"sparsity", sparsity}}),
                IsInvalid(AllOf(HasSubstr("config_list[0].sparsity is "),
                                HasSubstr("it must be in [0, 1]"))));
  }
}

TEST(BadInputTest, BitsZeroOrThirtyThree) {
  for (const char* algorithm : {"qat", "dorefa", "naive"}) {
    for (int bits : {0, 33}) {
      EXPECT_THAT(BindRule(algorithm, {{"quant_bits", bits}}),
                  IsInvalid(AllOf(HasSubstr("config_list[0].quant_bits is " + std::to_string(bits)),
                                  HasSubstr("it must be in ["))));
    }
  }
}

TEST(BadInputTest, AnEndEpochThatIsNotAfterTheStartEpoch) {
  EXPECT_THAT(BindRule("agp", {{"final_sparsity", 0.8}, {"start_epoch", 5}, {"end_epoch", 5}}),
              IsInvalid(HasSubstr("config_list[0].end_epoch is 5; it must be above start_epoch")));
}

TEST(BadInputTest, AnEmptyConfigList) {
  EXPECT_THAT(TryBind(MakeBinding("level", json::array(), {MakeLayer("a", {4})})),
              IsInvalid(HasSubstr("config_list has 0 rules")));
}

TEST(BadInputTest, AnUnknownFramework) {
  Binding binding = MakeBinding("level", {{{"sparsity", 0.5}}}, {MakeLayer("a", {4})});
  binding.framework = "";
  EXPECT_THAT(TryBind(binding),
              IsInvalid(HasSubstr("framework is \"\"; it must be one of pytorch, tensorflow")));
}

TEST(BadInputTest, TwoLayersWithOneName) {
  EXPECT_THAT(
      BindLayers({MakeLayer("a", {4}), MakeLayer("b", {4}), MakeLayer("a", {4})}),
      IsInvalid("layers[2].name is \"a\", as is a name of layers[0]; names and aliases must "
                "be unique"));
}

TEST(BadInputTest, AnAliasThatIsAlreadyAName) {
  Layer tied = MakeLayer("b", {4});
  tied.aliases = {"c", "a"};
  EXPECT_THAT(BindLayers({MakeLayer("a", {4}), tied}),
              IsInvalid(HasSubstr("layers[1].aliases[1] is \"a\"")));
  tied.aliases = {"b"};
  EXPECT_THAT(BindLayers({tied}), IsInvalid(HasSubstr("layers[0].aliases[0] is \"b\"")));
}

TEST(BadInputTest, ShapesWithANegativeOrZeroDimension) {
  EXPECT_THAT(BindLayers({MakeLayer("a", {4}), MakeLayer("b", {4, -2})}),
              IsInvalid("layers[1].shape[1] is -2; it must be at least 1"));
  EXPECT_THAT(BindLayers({MakeLayer("a", {0})}), IsInvalid(HasSubstr("layers[0].shape[0] is 0")));
}

TEST(BadInputTest, ShapesOfNoneOrSixtyFiveDimensions) {
  EXPECT_THAT(BindLayers({MakeLayer("a", std::vector<int64_t>(65, 1))}),
              IsInvalid("layers[0].shape has 65 dimensions; it must have 1 to 64"));
  EXPECT_THAT(BindLayers({MakeLayer("a", {})}), IsInvalid(HasSubstr("has 0 dimensions")));
}

TEST(BadInputTest, ShapesWhoseProductOverflows) {
  EXPECT_THAT(BindLayers({MakeLayer("a", {int64_t{1} << 40, int64_t{1} << 40})}),
              IsInvalid(AllOf(HasSubstr("layers[0].shape is [1099511627776, 1099511627776]"),
                              HasSubstr("fewer than 2^48 elements"))));
}

TEST(BadInputTest, NamesWithNulNewlineOrAHundredKibibytes) {
  EXPECT_THAT(BindLayers({MakeLayer(std::string("a\0b", 3), {4})}),
              IsInvalid(AllOf(HasSubstr("layers[0].name is \"a\\u0000b\", whose byte 1"),
                              HasSubstr("control character"))));
  EXPECT_THAT(BindLayers({MakeLayer("a\nb", {4})}), IsInvalid(HasSubstr("control character")));
  const absl::Status status = BindLayers({MakeLayer(std::string(100 << 10, 'a'), {4})});
  EXPECT_THAT(status, IsInvalid("layers[0].name has 102400 bytes; it must have 1 to 1024"));
  Layer tied = MakeLayer("a", {4});
  tied.aliases = {"ok", "a\tb"};
  EXPECT_THAT(BindLayers({tied}), IsInvalid(HasSubstr("layers[0].aliases[1]")));
}

TEST(BadInputTest, NamesThatAreNoUtf8) {
  for (const char* name :
       {"\xff", "a\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe0\x80\x80", "\x80"}) {
    EXPECT_THAT(BindLayers({MakeLayer(name, {4})}), IsInvalid(HasSubstr("is not valid UTF-8")));
  }
  EXPECT_THAT(BindLayers({MakeLayer("\xc2\x85", {4})}), IsInvalid(HasSubstr("control character")));
  for (const char* name : {"schicht-\xc3\xa4", "\xe5\xb1\x82", "\xf0\x9f\xa7\xa0", "a b/c.d:0"}) {
    EXPECT_THAT(BindLayers({MakeLayer(name, {4})}), IsOk());
  }
}

TEST(BadInputTest, EmptyNamesAndTypes) {
  EXPECT_THAT(BindLayers({MakeLayer("", {4})}),
              IsInvalid("layers[0].name has 0 bytes; it must have 1 to 1024"));
  EXPECT_THAT(BindLayers({MakeLayer("a", {4}, DataType::kFloat32, "")}),
              IsInvalid("layers[0].op_type has 0 bytes; it must have 1 to 256"));
  EXPECT_THAT(BindLayers({MakeLayer("a", {4}, DataType::kFloat32, std::string(257, 'x'))}),
              IsInvalid(HasSubstr("op_type has 257 bytes")));
}

TEST(BadInputTest, WeightsOfATypeThatIsNoWeights) {
  EXPECT_THAT(BindLayers({MakeLayer("a", {4}, DataType::kInt8)}),
              IsInvalid("layers[0].dtype is int8; it must be one of float32, float16, bfloat16, "
                        "float64"));
}

TEST(BadInputTest, AChannelAxisThatTheShapeLacks) {
  for (int axis : {-1, 2, 100}) {
    Layer layer = MakeLayer("a", {4, 4});
    layer.channel_axis = axis;
    EXPECT_THAT(BindLayers({layer}),
                IsInvalid(HasSubstr("layers[0].channel_axis is " + std::to_string(axis) +
                                    "; it must be in [0, 1]")));
  }
}

TEST(BadInputTest, NoLayersOrTooMany) {
  EXPECT_THAT(BindLayers({}), IsInvalid("layers has 0 entries; it must have 1 to 32768"));
  std::vector<Layer> layers;
  for (int i = 0; i < 32769; ++i) layers.push_back(MakeLayer(std::to_string(i), {1}));
  EXPECT_THAT(BindLayers(layers), IsInvalid(HasSubstr("layers has 32769 entries")));
  layers.pop_back();
  EXPECT_THAT(BindLayers(layers), IsOk());
}

TEST(BadInputTest, NothingIsAllocatedForADeclaredSize) {
  auto session =
      TryBind(MakeBinding("level", {{{"sparsity", 0.5}}}, {MakeLayer("a", {int64_t{1} << 40})}));
  ASSERT_THAT(session, IsOk());
  EXPECT_LT((*session)->StateBytes(), 10000);
}

}  // namespace
}  // namespace nni_compression::compression
