#include "compression/messages/suggest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

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

// The usual table, letter by letter.
size_t DistanceByTable(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] =
          std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    }
  }
  return d[a.size()][b.size()];
}

TEST(SuggestionTest, AWordIsNearWhereOneLetterInThreeHasToChange) {
  std::mt19937 random(1);
  int near = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string word(1 + random() % 64, 'a');
    for (char& letter : word) letter = static_cast<char>('a' + random() % 3);
    std::string other = word;
    for (size_t changes = random() % (word.size() / 2 + 2); changes > 0; --changes) {
      const size_t at = random() % (other.size() + 1);
      const auto letter = static_cast<char>('a' + random() % 3);
      switch (random() % 4) {
        case 0:
          other.insert(at, 1, letter);
          break;
        case 1:
          if (at < other.size()) other.erase(at, 1);
          break;
        case 2:
          if (at < other.size()) other[at] = letter;
          break;
        default:
          if (at + 1 < other.size()) std::swap(other[at], other[at + 1]);
      }
    }
    const size_t distance = DistanceByTable(word, other);
    const bool expected = distance < (word.size() + 2) / 3 + 1 && distance < other.size();
    near += expected;
    ASSERT_EQ(!Suggestion(word, {other}).empty(), expected)
        << word << " and " << other << ": " << distance;
  }
  EXPECT_GT(near, 5000);
  EXPECT_LT(near, 19900);
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
