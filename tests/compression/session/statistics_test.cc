// Statistics in the state of a session.
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr StatisticKind kWanted = StatisticKind::kWeightGradient;
const json kRule = {
    {"final_sparsity", 0.5}, {"schedule_unit", "step"}, {"end_step", 4}, {"frequency", 4}};

std::unique_ptr<Session> BindMovement(int64_t n = 20) { return BindOne("movement", kRule, {n}); }

TEST(SessionStatisticsTest, ThePlanSaysWhatIsWanted) {
  auto session = BindMovement();
  const auto wanted = [](const Session& session) {
    return session.plan().rules[0]->StatisticsOf(session.layer(0));
  };
  ASSERT_EQ(wanted(*session).size(), 1u);
  EXPECT_EQ(wanted(*session)[0]->kind, kWanted);
  EXPECT_TRUE(wanted(*BindOne("level", {{"sparsity", 0.5}}, {20})).empty());
}

TEST(SessionStatisticsTest, OtherStatisticsAreRefusedAndNothingChanges) {
  auto session = BindMovement();
  auto level = BindOne("level", {{"sparsity", 0.5}}, {20});
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->AddStatistic(0, PartOf(StatisticKind::kOutputSum, Random({20}, 1))),
              IsInvalid(AllOf(HasSubstr("layer \"layer\" is sent the statistic output_sum; "),
                              HasSubstr("config_list[0] uses weight_gradient"))));
  EXPECT_THAT(level->AddStatistic(0, PartOf(kWanted, Random({20}, 1))),
              IsInvalid(HasSubstr("uses none")));
  EXPECT_THAT(session->AddStatistic(0, PartOf(kWanted, Random({19}, 1))),
              IsInvalid(HasSubstr("19")));
  EXPECT_EQ(StateOf(*session), before);
  EXPECT_TRUE(session->TakeChanges().empty());
}

TEST(SessionStatisticsTest, AreSavedAndLoadedAndChangeOneRecordOnlyWhenTheyAreNew) {
  auto session = BindMovement();
  for (const int64_t source : {7, 2}) {
    const StatisticPart part = PartOf(kWanted, Random({20}, source), 3, source);
    ASSERT_THAT(session->AddStatistic(0, part), IsOk());
    EXPECT_EQ(session->TakeChanges().layers, std::set<int>{0});
    EXPECT_TRUE(session->AddStatistic(0, part)->known);
    EXPECT_TRUE(session->TakeChanges().empty()) << "a retry writes nothing";
  }
  ASSERT_THAT(session->SetMask(0, MaskOf("01111111110111111111")), IsOk());
  auto fresh = BindMovement();
  ASSERT_THAT(fresh->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  EXPECT_EQ(StateOf(*fresh), StateOf(*session));
  EXPECT_EQ(fresh->StateBytes(), session->StateBytes());
  // It goes on from there: what was counted is known, and both answer alike.
  EXPECT_TRUE(fresh->AddStatistic(0, PartOf(kWanted, Random({20}, 2), 3, 2))->known);
  EXPECT_THAT(fresh->AddStatistic(0, PartOf(kWanted, Random({20}, 2), 2, 2)),
              IsInvalid(HasSubstr("has sequence 2 after 3 of source 2")));
  for (Session* one : {session.get(), fresh.get()}) ASSERT_THAT(one->Step(4), IsOk());
  EXPECT_EQ(Bits(fresh->CalcMask(0, Random({20}, 5))->mask),
            Bits(session->CalcMask(0, Random({20}, 5))->mask));
}

TEST(SessionStatisticsTest, DamagedRecordsAreDataLoss) {
  auto session = BindMovement(3);
  ASSERT_THAT(session->AddStatistic(0, PartOf(kWanted, Random({3}, 1))), IsOk());
  const std::string record = session->SaveLayer(0);
  for (size_t i = 0; i < record.size(); ++i) {
    std::string damaged = record;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_THAT(BindMovement(3)->Load(session->SaveGlobal(), {damaged}),
                Fails(absl::StatusCode::kDataLoss, testing::_));
    EXPECT_THAT(BindMovement(3)->Load(session->SaveGlobal(), {record.substr(0, i)}),
                Fails(absl::StatusCode::kDataLoss, testing::_));
  }
}

TEST(SessionStatisticsTest, MemoryIsReservedBeforeTheyGrow) {
  auto session = BindMovement(1000);
  int64_t reserved = 0;
  int64_t limit = 9000;
  ASSERT_THAT(session->CountMemory([&](int64_t bytes) {
    if (reserved + bytes > limit) return absl::ResourceExhaustedError("no memory");
    reserved += bytes;
    return absl::OkStatus();
  }),
              IsOk());
  ASSERT_THAT(session->AddStatistic(0, PartOf(kWanted, Random({1000}, 1), 1)), IsOk());
  EXPECT_GE(reserved, 8000);
  ASSERT_THAT(session->AddStatistic(0, PartOf(kWanted, Random({1000}, 2), 2)), IsOk());
  const std::string before = StateOf(*session);
  EXPECT_THAT(session->AddStatistic(0, PartOf(kWanted, Random({1000}, 3), 1, 1)),
              Fails(absl::StatusCode::kResourceExhausted, HasSubstr("no memory")));
  EXPECT_EQ(StateOf(*session), before);
}

}  // namespace
}  // namespace nni_compression::compression
