#include "compression/session/state.h"

#include <limits>
#include <random>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::HasSubstr;

Layer Counted(std::string name, int64_t elements) {
  Layer layer = MakeLayer(std::move(name), {elements});
  layer.elements = elements;
  return layer;
}

LayerState FullState() {
  LayerState state;
  state.answered = true;
  state.mask = MaskOf("0110101101");
  QuantizationParameters parameters;
  parameters.formula = Formula::kAffine;
  parameters.rounding = Rounding::kTruncate;
  parameters.bits = 5;
  parameters.code_min = -15;
  parameters.code_max = 15;
  parameters.scale = {0.1f, std::numeric_limits<float>::denorm_min(), 3e38f};
  parameters.zero_point = {0, -7, 99999};
  parameters.channel_axis = 2;
  state.parameters = parameters;
  state.memory = {{"scale", {1.5f, -0.0f, std::numeric_limits<float>::min()}}, {"empty", {}}};
  return state;
}

TEST(StateTest, ALayersRecordHoldsAllOfIt) {
  const Layer layer = Counted("conv1", 10);
  const LayerState state = FullState();
  const std::string record = EncodeLayer(layer, state);
  auto loaded = DecodeLayer(layer, record);
  ASSERT_THAT(loaded, IsOk());
  EXPECT_TRUE(loaded->answered);
  EXPECT_TRUE(*loaded->mask == *state.mask);
  EXPECT_TRUE(*loaded->parameters == *state.parameters);
  EXPECT_EQ(loaded->memory, state.memory);
  EXPECT_EQ(EncodeLayer(layer, *loaded), record);
}

TEST(StateTest, AFreshLayersRecordHoldsNothing) {
  const Layer layer = Counted("conv1", 10);
  auto loaded = DecodeLayer(layer, EncodeLayer(layer, LayerState()));
  ASSERT_THAT(loaded, IsOk());
  EXPECT_FALSE(loaded->answered);
  EXPECT_FALSE(loaded->mask);
  EXPECT_FALSE(loaded->parameters);
  EXPECT_TRUE(loaded->memory.empty());
}

TEST(StateTest, TheGlobalRecordHoldsAllOfIt) {
  auto loaded = DecodeGlobal(EncodeGlobal({"agp", 7, {3, 1234567890123}, 1234567890123}));
  ASSERT_THAT(loaded, IsOk());
  EXPECT_EQ(loaded->algorithm, "agp");
  EXPECT_EQ(loaded->layers, 7);
  EXPECT_EQ(loaded->clock.epoch, 3);
  EXPECT_EQ(loaded->clock.step, 1234567890123);
  EXPECT_EQ(loaded->last_step, 1234567890123);
}

TEST(StateTest, AnyDamagedByteIsDataLoss) {
  const Layer layer = Counted("conv1", 10);
  const std::string record = EncodeLayer(layer, FullState());
  for (size_t i = 0; i < record.size(); ++i) {
    std::string damaged = record;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_THAT(DecodeLayer(layer, damaged), Fails(absl::StatusCode::kDataLoss, testing::_)) << i;
  }
}

TEST(StateTest, ARecordCutOffAnywhereIsDataLoss) {
  const Layer layer = Counted("conv1", 10);
  const std::string record = EncodeLayer(layer, FullState());
  const std::string global = EncodeGlobal({"agp", 7, {3, 4}, 4});
  for (size_t i = 0; i < record.size(); ++i) {
    EXPECT_THAT(DecodeLayer(layer, record.substr(0, i)),
                Fails(absl::StatusCode::kDataLoss, testing::_));
  }
  for (size_t i = 0; i < global.size(); ++i) {
    EXPECT_THAT(DecodeGlobal(global.substr(0, i)), Fails(absl::StatusCode::kDataLoss, testing::_));
  }
}

TEST(StateTest, ARecordOfAnotherLayerIsDataLoss) {
  const std::string record = EncodeLayer(Counted("conv1", 10), FullState());
  EXPECT_THAT(DecodeLayer(Counted("conv2", 10), record),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("\"conv1\"")));
  EXPECT_THAT(DecodeLayer(Counted("conv1", 11), record),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("10 weights")));
  EXPECT_THAT(DecodeLayer(Counted("conv1", 10), EncodeGlobal({"agp", 1, {}, -1})),
              Fails(absl::StatusCode::kDataLoss, testing::_));
  EXPECT_THAT(DecodeGlobal(record), Fails(absl::StatusCode::kDataLoss, testing::_));
}

class SessionStateTest : public testing::Test {
 protected:
  static std::unique_ptr<Session> Bind(const std::string& algorithm, const json& rule,
                                       int64_t elements = 10) {
    return TryBind(MakeBinding(algorithm, json::array({rule}),
                               {MakeLayer("a", {elements}), MakeLayer("b", {elements})}))
        .value();
  }
  static std::vector<std::string> Layers(const Session& session) {
    return {session.SaveLayer(0), session.SaveLayer(1)};
  }
};

TEST_F(SessionStateTest, ADamagedRecordOfAnyLayerChangesNothing) {
  auto saved = Bind("level", {{"sparsity", 0.5}});
  ASSERT_THAT(saved->CalcMask(0, Random({10}, 1)), IsOk());
  ASSERT_THAT(saved->UpdateEpoch(9), IsOk());
  auto session = Bind("level", {{"sparsity", 0.5}});
  const std::string before = StateOf(*session);
  std::vector<std::string> layers = Layers(*saved);
  layers[1].back() = static_cast<char>(layers[1].back() ^ 1);
  EXPECT_THAT(session->Load(saved->SaveGlobal(), layers),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("\"b\"")));
  EXPECT_EQ(StateOf(*session), before);
  EXPECT_THAT(session->Load("nonsense", Layers(*saved)),
              Fails(absl::StatusCode::kDataLoss, testing::_));
  EXPECT_EQ(StateOf(*session), before);
  EXPECT_THAT(session->Load(saved->SaveGlobal(), Layers(*saved)), IsOk());
  EXPECT_EQ(StateOf(*session), StateOf(*saved));
}

TEST_F(SessionStateTest, ACallChangesNoMoreRecordsThanItHasTo) {
  auto session = Bind("level", {{"sparsity", 0.5}});
  EXPECT_TRUE(session->TakeChanges().empty());
  ASSERT_THAT(session->CalcMask(1, Random({10}, 1)), IsOk());
  Session::Changes changes = session->TakeChanges();
  EXPECT_THAT(changes.layers, testing::ElementsAre(1));
  EXPECT_FALSE(changes.global);
  ASSERT_THAT(session->CalcMask(1, Random({10}, 2)), IsOk());
  ASSERT_THAT(session->UpdateEpoch(0), IsOk());
  EXPECT_TRUE(session->TakeChanges().empty()) << "the answer is the one from before";
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_TRUE(session->TakeChanges().global);

  auto quantizer = Bind("naive", json::object());
  ASSERT_THAT(quantizer->QuantizeWeight(0, Random({10}, 1), QuantizeReply::kCodes), IsOk());
  EXPECT_THAT(quantizer->TakeChanges().layers, testing::ElementsAre(0));
  ASSERT_THAT(quantizer->QuantizeWeight(0, Random({10}, 1), QuantizeReply::kCodes), IsOk());
  EXPECT_TRUE(quantizer->TakeChanges().empty()) << "the same weight, the same scale";
  ASSERT_THAT(quantizer->Load(quantizer->SaveGlobal(), Layers(*quantizer)), IsOk());
  EXPECT_TRUE(quantizer->TakeChanges().empty());
}

TEST_F(SessionStateTest, RecordsOfAnotherBindingAreDataLoss) {
  auto level = Bind("level", {{"sparsity", 0.5}});
  ASSERT_THAT(level->CalcMask(0, Random({10}, 1)), IsOk());
  auto agp = Bind("agp", {{"final_sparsity", 0.5}, {"end_epoch", 5}});
  EXPECT_THAT(agp->Load(level->SaveGlobal(), Layers(*level)),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("level")));
  const std::vector<std::string> one = {level->SaveLayer(0)};
  EXPECT_THAT(level->Load(level->SaveGlobal(), one),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("1 records")));
  auto larger = Bind("level", {{"sparsity", 0.5}}, 11);
  EXPECT_THAT(larger->Load(level->SaveGlobal(), Layers(*level)),
              Fails(absl::StatusCode::kDataLoss, testing::_));
  auto excluded = Bind("level", {{"exclude", true}});
  EXPECT_THAT(excluded->Load(level->SaveGlobal(), Layers(*level)),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("another configuration")));
}

TEST_F(SessionStateTest, ParametersOfOtherBitsOrChannelsAreDataLoss) {
  auto eight = Bind("qat", {{"quant_bits", 8}});
  ASSERT_THAT(eight->QuantizeWeight(0, Random({10}, 1), QuantizeReply::kParameters), IsOk());
  auto four = Bind("qat", {{"quant_bits", 4}});
  EXPECT_THAT(four->Load(eight->SaveGlobal(), Layers(*eight)),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("another configuration")));
  auto channels = Bind("qat", {{"quant_scheme", "per_channel_affine"}});
  EXPECT_THAT(channels->Load(eight->SaveGlobal(), Layers(*eight)),
              Fails(absl::StatusCode::kDataLoss, HasSubstr("another configuration")));
  EXPECT_THAT(eight->Load(eight->SaveGlobal(), Layers(*eight)), IsOk());
}

TEST_F(SessionStateTest, RandomBytesAreDataLoss) {
  std::mt19937_64 engine(1);
  const Layer layer = Counted("a", 10);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(engine() % 100, '\0');
    for (char& byte : bytes) byte = static_cast<char>(engine());
    EXPECT_THAT(DecodeLayer(layer, bytes), Fails(absl::StatusCode::kDataLoss, testing::_));
    EXPECT_THAT(DecodeGlobal(bytes), Fails(absl::StatusCode::kDataLoss, testing::_));
  }
}

}  // namespace
}  // namespace nni_compression::compression
