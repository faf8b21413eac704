#include "compression/suggest.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace nni_compression::compression {
namespace {

const std::vector<std::string> kKeys = {"op_types", "op_names", "exclude", "sparsity"};

TEST(SuggestionTest, FindsTheWordThatWasMeant) {
  EXPECT_EQ(Suggestion("op_name", kKeys), "; did you mean `op_names`?");
  EXPECT_EQ(Suggestion("op_type", kKeys), "; did you mean `op_types`?");
  EXPECT_EQ(Suggestion("sparstiy", kKeys), "; did you mean `sparsity`?");
  EXPECT_EQ(Suggestion("Sparsity", kKeys), "; did you mean `sparsity`?");
  EXPECT_EQ(Suggestion("levle", {"agp", "level"}), "; did you mean `level`?");
}

TEST(SuggestionTest, SaysNothingAboutWordsThatAreFarFromAll) {
  EXPECT_EQ(Suggestion("learning_rate", kKeys), "");
  EXPECT_EQ(Suggestion("x", {"a", "b"}), "");
  EXPECT_EQ(Suggestion("", kKeys), "");
  EXPECT_EQ(Suggestion("op_names", {}), "");
}

TEST(SuggestionTest, SpendsNoTimeOnLongWords) {
  EXPECT_EQ(Suggestion(std::string(100000, 'a'), {std::string(100000, 'a') + "b"}), "");
}

TEST(ShownTest, PrintsNumbersAsPeopleWriteThem) {
  EXPECT_EQ(Shown(1.3), "1.3");
  EXPECT_EQ(Shown(2.0), "2");
  EXPECT_EQ(Shown(-3), "-3");
  EXPECT_EQ(Shown(std::nan("")), "nan");
  EXPECT_EQ(Shown(-std::numeric_limits<double>::infinity()), "-inf");
  EXPECT_EQ(Shown(nlohmann::json()), "null");
}

TEST(QuotedTest, EscapesWhatDoesNotBelongIntoALine) {
  EXPECT_EQ(Quoted("conv1"), "\"conv1\"");
  EXPECT_EQ(Quoted("a\nb"), "\"a\\nb\"");
  EXPECT_EQ(Quoted(std::string("a\0b", 3)), "\"a\\u0000b\"");
  EXPECT_EQ(Quoted("\xff"), "\"\\ufffd\"");
}

TEST(QuotedTest, CutsLongText) { EXPECT_LT(Quoted(std::string(100000, 'a')).size(), 200u); }

}  // namespace
}  // namespace nni_compression::compression
