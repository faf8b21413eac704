#include "compression/options/options.h"

#include <cmath>

#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

const std::vector<std::string> kCommon = {"op_types", "op_names", "op_names_re", "exclude"};

OptionSpec Spec(std::string name, OptionType type, json default_value = nullptr) {
  OptionSpec spec;
  spec.name = std::move(name);
  spec.type = type;
  spec.default_value = std::move(default_value);
  return spec;
}

std::vector<OptionSpec> Table() {
  OptionSpec share = Spec("share", OptionType::kNumber);
  share.maximum = 1;
  OptionSpec bits = Spec("bits", OptionType::kIntegerPerType, 8);
  bits.minimum = 2;
  bits.maximum = 16;
  bits.aliases = {"old_bits"};
  OptionSpec epoch = Spec("epoch", OptionType::kInteger, 0);
  OptionSpec fast = Spec("fast", OptionType::kBoolean, false);
  OptionSpec mode = Spec("mode", OptionType::kString, "one");
  mode.choices = {"one", "two"};
  OptionSpec types = Spec("types", OptionType::kStringList, {"one"});
  types.choices = {"one", "two"};
  OptionSpec grid = Spec("grid", OptionType::kStringPerType, "fine");
  grid.choices = {"fine", "coarse"};
  OptionSpec preset = Spec("preset", OptionType::kString, "none");
  preset.choices = {"none", "small"};
  preset.presets["small"] = {{"epoch", 3}, {"grid", {{"weight", "coarse"}, {"input", "fine"}}}};
  return {share, bits, epoch, fast, mode, types, grid, preset};
}

absl::StatusOr<Options> Parse(json rule) {
  return Options::Parse(Table(), kCommon, rule, "config_list[1]");
}

absl::StatusOr<Options> ParseWith(const std::string& key, json value) {
  json rule = {{"share", 0.5}};
  rule[key] = std::move(value);
  return Parse(rule);
}

TEST(OptionsTest, FillsInDefaults) {
  const Options options = Parse({{"share", 0.5}, {"op_names", {"a"}}}).value();
  EXPECT_EQ(options.Number("share"), 0.5);
  EXPECT_EQ(options.IntegerFor("bits", "weight"), 8);
  EXPECT_EQ(options.Integer("epoch"), 0);
  EXPECT_FALSE(options.Boolean("fast"));
  EXPECT_EQ(options.String("mode"), "one");
  EXPECT_THAT(options.StringList("types"), ElementsAre("one"));
  EXPECT_EQ(options.path(), "config_list[1]");
  EXPECT_FALSE(options.json().contains("op_names"));
}

TEST(OptionsTest, ReadsWhatTheRuleSays) {
  const Options options = Parse({{"share", 1},
                                 {"old_bits", {{"weight", 4.0}, {"output", 8}}},
                                 {"epoch", 7.0},
                                 {"fast", true},
                                 {"mode", "two"},
                                 {"types", {"two", "one"}}})
                              .value();
  EXPECT_EQ(options.Number("share"), 1.0);
  EXPECT_EQ(options.IntegerFor("bits", "weight"), 4);
  EXPECT_EQ(options.IntegerFor("bits", "output"), 8);
  EXPECT_EQ(options.Integer("epoch"), 7);
  EXPECT_TRUE(options.json()["epoch"].is_number_integer());
  EXPECT_TRUE(options.Boolean("fast"));
  EXPECT_EQ(options.String("mode"), "two");
  EXPECT_THAT(options.StringList("types"), ElementsAre("two", "one"));
}

TEST(OptionsTest, ReadsAStringOrOnePerType) {
  EXPECT_EQ(ParseWith("grid", "coarse")->StringFor("grid", "input"), "coarse");
  const Options options = ParseWith("grid", {{"weight", "coarse"}, {"output", "fine"}}).value();
  EXPECT_EQ(options.StringFor("grid", "weight"), "coarse");
  EXPECT_EQ(options.StringFor("grid", "output"), "fine");
  EXPECT_THAT(
      ParseWith("grid", {{"output", "fin"}}),
      IsInvalid("config_list[1].grid.output is \"fin\"; it must be one of fine, coarse; did "
                "you mean `fine`?"));
  EXPECT_THAT(ParseWith("grid", {{"outputs", "fine"}}),
              IsInvalid(HasSubstr("config_list[1].grid has the unknown key \"outputs\"")));
  EXPECT_THAT(ParseWith("grid", 1), IsInvalid(HasSubstr("config_list[1].grid is 1; it must be")));
}

TEST(OptionsTest, AChoiceGivesOtherOptionsTheirDefaults) {
  const json small = ParseWith("preset", "small")->json();
  EXPECT_EQ(small.at("epoch"), 3);
  EXPECT_EQ(small.at("grid"), json({{"weight", "coarse"}, {"input", "fine"}}));
  EXPECT_EQ(small.at("mode"), "one");
  const json rule = {{"share", 0.5}, {"preset", "small"}, {"epoch", 7}};
  EXPECT_EQ(Parse(rule)->Integer("epoch"), 7) << "what a rule says is kept";
}

TEST(OptionsTest, APresetCompletesWhatIsGivenForSomeTypes) {
  json rule = {{"share", 0.5}, {"preset", "small"}, {"grid", {{"weight", "fine"}}}};
  EXPECT_EQ(Parse(rule)->json().at("grid"), json({{"weight", "fine"}, {"input", "fine"}}));
  rule["grid"] = "coarse";
  EXPECT_EQ(Parse(rule)->json().at("grid"), "coarse");
}

TEST(OptionsTest, TakesAStringForAListOfOne) {
  EXPECT_THAT(ParseWith("types", "two")->StringList("types"), ElementsAre("two"));
}

TEST(OptionsTest, KeepsEveryBitOfANumber) {
  const double odd = std::nextafter(0.8, 1.0);
  EXPECT_EQ(ParseWith("share", odd)->Number("share"), odd);
}

TEST(OptionsTest, NamesTheValueAndTheRangeOfWhatIsOutOfIt) {
  EXPECT_THAT(ParseWith("share", 1.3),
              IsInvalid("config_list[1].share is 1.3; it must be in [0, 1]"));
  EXPECT_THAT(ParseWith("share", std::nan("")),
              IsInvalid("config_list[1].share is nan; it must be in [0, 1]"));
  EXPECT_THAT(ParseWith("bits", 33), IsInvalid("config_list[1].bits is 33; it must be in [2, 16]"));
  EXPECT_THAT(ParseWith("old_bits", {{"weight", 1}}),
              IsInvalid("config_list[1].old_bits.weight is 1; it must be in [2, 16]"));
  EXPECT_THAT(ParseWith("epoch", -1), IsInvalid(HasSubstr("must be in [0, inf)")));
  EXPECT_THAT(ParseWith("epoch", 1e300), IsInvalid(HasSubstr("must be in [0, inf)")));
  EXPECT_THAT(ParseWith("mode", "ones"),
              IsInvalid("config_list[1].mode is \"ones\"; it must be one of one, two; did you mean "
                        "`one`?"));
  EXPECT_THAT(ParseWith("types", {"two", "six"}),
              IsInvalid(HasSubstr("config_list[1].types[1] is \"six\"; it must be one of")));
}

TEST(OptionsTest, RefusesValuesOfAnotherType) {
  EXPECT_THAT(ParseWith("share", "0.5"), IsInvalid(HasSubstr("a number in [0, 1]")));
  EXPECT_THAT(ParseWith("share", true), IsInvalid(HasSubstr("share is true")));
  EXPECT_THAT(ParseWith("share", nullptr), IsInvalid(HasSubstr("share is null")));
  EXPECT_THAT(ParseWith("epoch", 1.5), IsInvalid(HasSubstr("an integer in [0, inf)")));
  EXPECT_THAT(ParseWith("epoch", std::nan("")), IsInvalid(HasSubstr("epoch is nan")));
  EXPECT_THAT(ParseWith("fast", 1), IsInvalid(HasSubstr("true or false")));
  EXPECT_THAT(ParseWith("mode", 1), IsInvalid(HasSubstr("a string")));
  EXPECT_THAT(ParseWith("types", json::array()), IsInvalid(HasSubstr("types is empty")));
  EXPECT_THAT(ParseWith("types", {1}), IsInvalid(HasSubstr("types[0] is 1")));
  EXPECT_THAT(ParseWith("bits", "8"), IsInvalid(HasSubstr("bits is \"8\"")));
  EXPECT_THAT(Parse(json::array({1})), IsInvalid(HasSubstr("config_list[1] is [1]; it must be an "
                                                           "object")));
}

TEST(OptionsTest, SuggestsTheKeyThatWasMeant) {
  EXPECT_THAT(ParseWith("op_name", "a"), IsInvalid(AllOf(HasSubstr("unknown key \"op_name\""),
                                                         HasSubstr("did you mean `op_names`?"))));
  EXPECT_THAT(ParseWith("shar", 1), IsInvalid(HasSubstr("did you mean `share`?")));
  EXPECT_THAT(ParseWith("bits", {{"weights", 8}}), IsInvalid(HasSubstr("did you mean `weight`?")));
}

TEST(OptionsTest, SaysWhatAKeyOfNniIsCalled) {
  EXPECT_THAT(ParseWith("op_partial_names", {"a"}),
              IsInvalid(HasSubstr("; NNI's op_partial_names is op_names_re here")));
  // The table has no sparsity.
  EXPECT_THAT(ParseWith("sparse_ratio", 0.5),
              IsInvalid(AllOf(HasSubstr("unknown key \"sparse_ratio\""), Not(HasSubstr("NNI")))));
}

TEST(OptionsTest, SaysWhatAMissingOptionMustBeAndThatRulesStandAlone) {
  EXPECT_THAT(Parse(json::object()),
              IsInvalid(AllOf(HasSubstr("config_list[1].share is missing"), HasSubstr("[0, 1]"),
                              HasSubstr("does not inherit"))));
}

TEST(OptionsTest, RefusesAnOptionUnderTwoNames) {
  EXPECT_THAT(Parse({{"share", 1}, {"bits", 8}, {"old_bits", 4}}),
              IsInvalid(HasSubstr("bits is set twice")));
}

TEST(OptionsTest, CheckLetsRequiredOptionsBeMissingAndNothingElse) {
  EXPECT_THAT(Options::Check(Table(), kCommon, json::object(), "rule"), IsOk());
  EXPECT_THAT(Options::Check(Table(), kCommon, {{"share", 2}}, "rule"),
              IsInvalid(HasSubstr("share is 2")));
  EXPECT_THAT(Options::Check(Table(), kCommon, {{"speed", 2}}, "rule"),
              IsInvalid(HasSubstr("unknown key")));
}

// A table with an option that exists with some choices of others only.
std::vector<OptionSpec> Conditional() {
  OptionSpec mode = Spec("mode", OptionType::kString, "one");
  mode.choices = {"one", "two"};
  OptionSpec unit = Spec("unit", OptionType::kString, "day");
  unit.choices = {"day", "year"};
  unit.only_with["mode"] = {"two"};
  OptionSpec days = Spec("days", OptionType::kInteger);
  days.only_with = {{"mode", {"two"}}, {"unit", {"day"}}};
  return {mode, unit, days};
}

TEST(OptionsTest, AnOptionMayExistWithSomeChoicesOnly) {
  const auto parse = [](const json& rule) {
    return Options::Parse(Conditional(), kCommon, rule, "config_list[1]");
  };
  const Options one = parse(json::object()).value();
  EXPECT_FALSE(one.Has("unit"));
  EXPECT_FALSE(one.Has("days"));
  EXPECT_EQ(one.json(), json({{"mode", "one"}}));
  EXPECT_EQ(parse({{"mode", "two"}, {"days", 3}})->Integer("days"), 3);
  EXPECT_FALSE(parse({{"mode", "two"}, {"unit", "year"}})->Has("days"));
  EXPECT_THAT(parse({{"mode", "two"}}), IsInvalid(HasSubstr("config_list[1].days is missing")));
  EXPECT_THAT(parse({{"unit", "day"}}),
              IsInvalid("config_list[1].unit is \"day\"; it may be given only with mode two"));
  EXPECT_THAT(
      parse({{"mode", "two"}, {"unit", "year"}, {"days", 3}}),
      IsInvalid("config_list[1].days is 3; it may be given only with mode two and unit day"));
  EXPECT_EQ(OnlyWith(Conditional()[0]), "");
}

}  // namespace
}  // namespace nni_compression::compression
