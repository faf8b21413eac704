// How compressionctl reads its command line.
#include "client/cli/command_line/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "client/cli/command_line/help.h"
#include "client/cli/command_line/spelling.h"
#include "client/cli/commands/commands.h"

namespace nni_compression::cli {
namespace {

using ::testing::ElementsAre;

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() : line_("1.2.3") {
    AddServerCommands(line_);
    AddSessionCommands(line_);
    AddCheckpointCommands(line_);
    AddDataDirectoryCommands(line_);
    AddTenantCommands(line_);
    AddShellCommands(line_);
  }

  std::vector<std::string> InOrder(const std::vector<std::string>& words) const {
    return ReadWords(line_.app(), words).InOrder();
  }

  CommandLine line_;
};

// Whether a flag stands before its command is told without the command.
TEST_F(CommandLineTest, AFlagTakesAValueInEveryCommandOrInNone) {
  std::map<std::string, bool> takes_value;
  std::vector<const CLI::App*> commands = CommandsOf(line_.app());
  for (size_t i = 0; i < commands.size(); ++i) {
    for (const CLI::App* command : CommandsOf(*commands[i])) commands.push_back(command);
    for (const CLI::Option* option : commands[i]->get_options()) {
      if (!option->nonpositional()) continue;
      const bool takes = option->get_items_expected_max() > 0;
      EXPECT_EQ(takes_value.emplace(option->get_name(), takes).first->second, takes)
          << PathOf(*commands[i]) << " " << option->get_name();
      EXPECT_NE(option->get_description(), "") << option->get_name();
    }
  }
  EXPECT_TRUE(takes_value.at("--server"));
  EXPECT_FALSE(takes_value.at("--json"));
}

TEST_F(CommandLineTest, CommandsComeFirstAndArgumentsLast) {
  EXPECT_THAT(InOrder({"--server=x", "--json", "session", "id"}),
              ElementsAre("session", "--server", "x", "--json", "id"));
  EXPECT_THAT(InOrder({"--tokens", "add", "tenant", "--admin", "add", "list"}),
              ElementsAre("tenant", "add", "--tokens", "add", "--admin", "list"));
  EXPECT_THAT(InOrder({"prune", "m", "-o", "d", "--tls=true", "--shm_socket="}),
              ElementsAre("prune", "-o", "d", "--tls=true", "--shm_socket", "", "m"));
  EXPECT_THAT(InOrder({"session", "--json", "--", "--tls"}),
              ElementsAre("session", "--json", "--", "--tls"));
}

TEST_F(CommandLineTest, WhatNoCommandKnowsIsKept) {
  const Words words = ReadWords(line_.app(), {"--bogus=1", "prun", "prune"});
  EXPECT_EQ(words.command, &line_.app());
  EXPECT_THAT(words.arguments, ElementsAre("prun", "prune"));
  ASSERT_EQ(words.flags.size(), 1u);
  EXPECT_EQ(words.flags[0].name, "--bogus");
  EXPECT_EQ(words.flags[0].value, "1");
}

TEST_F(CommandLineTest, AFlagWithoutItsValueIsIncomplete) {
  const Words words = ReadWords(line_.app(), {"export", "--format"});
  ASSERT_NE(words.incomplete, nullptr);
  EXPECT_EQ(words.incomplete->get_name(), "--format");
  EXPECT_EQ(ReadWords(line_.app(), {"export", "--overwrite"}).incomplete, nullptr);
}

TEST(SpellingTest, TheClosestWordIsSuggested) {
  EXPECT_EQ(DidYouMean("--formt", {"--json", "--format"}), "; did you mean --format?");
  EXPECT_EQ(DidYouMean("ad", {"list", "add"}), "; did you mean add?");
  EXPECT_EQ(DidYouMean("teh", {"the"}), "");
  EXPECT_EQ(DidYouMean("bogus", {"prune", "quantize"}), "");
  EXPECT_EQ(DidYouMean("", {"a"}), "; did you mean a?");
  EXPECT_EQ(DidYouMean(std::string(1 << 20, 'x'), {"x"}), "");
}

TEST(WrapTest, BreaksBetweenWordsAndKeepsLines) {
  EXPECT_THAT(Wrap("one two three", 7), ElementsAre("one two", "three"));
  EXPECT_THAT(Wrap("one\ntwo", 20), ElementsAre("one", "two"));
  EXPECT_THAT(Wrap("incomprehensible is long", 5), ElementsAre("incomprehensible", "is", "long"));
}

}  // namespace
}  // namespace nni_compression::cli
