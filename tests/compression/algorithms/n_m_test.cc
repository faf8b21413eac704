#include <cmath>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(NMPrunerTest, IsOnceAndAlongTheInputChannels) {
  auto session = BindOne("n_m", nlohmann::json::object(), {2, 4, 1, 2});
  const at::Tensor weight =
      Values({1, 8, 2, 7, 3, 6, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0}, DataType::kFloat32, {2, 4, 1, 2});
  auto answer = session->CalcMask(0, weight);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(Bits(answer->mask), "0101101000001111");
  EXPECT_EQ(answer->target_sparsity, 0.5);
  EXPECT_FALSE(session->IsStale(0));
  EXPECT_EQ(Bits(session->CalcMask(0, Random({2, 4, 1, 2}, 1))->mask), "0101101000001111");
}

TEST(NMPrunerTest, LayersOfKerasHaveTheirInputChannelsBeforeTheLast) {
  auto session = BindOne("n_m", nlohmann::json::object(), {4, 2}, DataType::kFloat32, 1);
  const at::Tensor weight = Values({1, 8, 2, 7, 3, 6, 4, 5}, DataType::kFloat32, {4, 2});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "01011010");
}

TEST(NMPrunerTest, AMaskOfTheTrainerThatKeepsTooManyIsPrunedFurther) {
  auto session = BindOne("n_m", nlohmann::json::object(), {1, 8});
  const at::Tensor weight = Values({1, 2, 3, 4, 5, 6, 7, 8}, DataType::kFloat32, {1, 8});
  ASSERT_THAT(session->SetMask(0, MaskOf("00001111")), IsOk());
  EXPECT_TRUE(session->IsStale(0)) << "half of the weights, but four of the last four";
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "00000011");
  EXPECT_FALSE(session->IsStale(0));
  ASSERT_THAT(session->SetMask(0, MaskOf("01011010")), IsOk());
  EXPECT_FALSE(session->IsStale(0));
}

TEST(NMPrunerTest, LayersWithTooFewInputChannelsAreLeftOutOrRefused) {
  const std::vector<Layer> layers = {MakeLayer("a", {8, 3}), MakeLayer("b", {8, 4}),
                                     MakeLayer("c", {8, 1, 3})};
  auto session =
      TryBind(MakeBinding("n_m", nlohmann::json::array({nlohmann::json::object()}), layers))
          .value();
  EXPECT_THAT(session->StaleLayers(), ElementsAre(1));
  EXPECT_THAT(session->plan().warnings,
              ElementsAre(AllOf(HasSubstr("config_list[0] leaves 2 layers out"),
                                HasSubstr("\"a\": its weight has 3 input channels"))));
  EXPECT_THAT(session->CalcMask(0, Random({8, 3}, 1)),
              IsInvalid(HasSubstr("\"a\" is not compressed: its weight has 3 input channels")));
  EXPECT_THAT(
      TryBind(MakeBinding("n_m", nlohmann::json::array({{{"op_names", {"a", "b"}}}}), layers)),
      IsInvalid(AllOf(HasSubstr("config_list[0] names layer \"a\""), HasSubstr("at least m, 4"))));
}

TEST(NMPrunerTest, OptionsThatContradictEachOtherAreRefused) {
  const auto refused = [](nlohmann::json rule, const char* message) {
    EXPECT_THAT(TryBind(MakeBinding("n_m", nlohmann::json::array({std::move(rule)}),
                                    {MakeLayer("a", {8, 8})})),
                IsInvalid(HasSubstr(message)));
  };
  refused({{"n", 5}}, "config_list[0].n is 5; it must be in [1, 4]");
  refused({{"n", 0}}, "config_list[0].n is 0; it must be in [1, 32]");
  refused({{"m", 33}}, "config_list[0].m is 33; it must be in [2, 32]");
}

TEST(NMPrunerTest, AWeightThatIsNotFiniteIsRefused) {
  auto session = BindOne("n_m", nlohmann::json::object(), {1, 4});
  EXPECT_THAT(session->CalcMask(0, Values({1, NAN, 2, 3}, DataType::kFloat32, {1, 4})),
              IsInvalid(HasSubstr("layer")));
}

}  // namespace
}  // namespace nni_compression::compression
