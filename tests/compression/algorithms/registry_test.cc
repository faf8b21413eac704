#include "compression/algorithms/registry.h"

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(RegistryTest, OffersTheAlgorithmsOfTheFolder) {
  std::vector<std::string> names;
  for (const AlgorithmInfo* info : Registry::Builtin().List()) names.push_back(info->name);
  EXPECT_THAT(names, testing::IsSupersetOf({"agp", "dorefa", "level", "naive", "qat"}));
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
}

TEST(RegistryTest, SuggestsTheAlgorithmThatWasMeant) {
  EXPECT_THAT(Registry::Builtin().Find("levels"),
              IsInvalid(AllOf(HasSubstr("algorithm is \"levels\"; it must be one of agp"),
                              HasSubstr("did you mean `level`?"))));
  EXPECT_THAT(Registry::Builtin().Find(""), IsInvalid(HasSubstr("algorithm is \"\"")));
}

TEST(RegistryTest, RefusesASecondAlgorithmOfOneName) {
  Registry registry;
  AlgorithmInfo info;
  info.name = "mine";
  EXPECT_THAT(registry.Add(info), IsOk());
  EXPECT_THAT(registry.Add(info), Fails(absl::StatusCode::kAlreadyExists, HasSubstr("\"mine\"")));
  EXPECT_EQ(registry.List().size(), 1u);
  EXPECT_EQ(registry.Find("mine").value()->name, "mine");
}

TEST(RegistryTest, EveryAlgorithmIsDescribed) {
  for (const AlgorithmInfo* info : Registry::Builtin().List()) {
    EXPECT_FALSE(info->summary.empty()) << info->name;
    EXPECT_TRUE(info->example.is_object()) << info->name;
    for (const OptionSpec& option : info->options) {
      EXPECT_FALSE(option.description.empty()) << info->name << "." << option.name;
      EXPECT_FALSE(OptionRange(option).empty()) << info->name << "." << option.name;
      EXPECT_FALSE(OptionTypeName(option.type).empty()) << info->name << "." << option.name;
    }
  }
}

}  // namespace
}  // namespace nni_compression::compression
