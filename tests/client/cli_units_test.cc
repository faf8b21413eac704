#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "client/cli/checkpoints/checkpoint_sink.h"
#include "client/cli/compress.h"
#include "client/cli/config.h"
#include "client/cli/format.h"
#include "client/cli/progress.h"
#include "client/cli/report.h"
#include "client/cli/top.h"

namespace nni_compression::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ConfigTest, TakesAListOfRules) {
  EXPECT_EQ(*CheckConfigList(" [ {\"sparsity\": 0.8} ] "), R"([{"sparsity":0.8}])");
  EXPECT_EQ(*CheckConfigList("[]"), "[]");
}

TEST(ConfigTest, RefusesWhatIsNoListOfRules) {
  const auto why = [](absl::string_view text) {
    return std::string(CheckConfigList(text).status().message());
  };
  EXPECT_THAT(why("{\"sparsity\": 0.8}"), HasSubstr("not a list of rules"));
  EXPECT_THAT(why("[1]"), HasSubstr("config_list[0] is number"));
  EXPECT_THAT(why("[{\"sparsity\": }]"), HasSubstr("line 1, column 15"));
  EXPECT_THAT(why("[{\"sparsity\": 0.5, \"sparsity\": 0.8}]"),
              HasSubstr("duplicate name sparsity"));
  EXPECT_THAT(why(""), HasSubstr("parse error"));
}

TEST(ConfigTest, NamesTheFile) {
  const std::string path = ::testing::TempDir() + "/names_the_file.json";
  EXPECT_EQ(ReadConfigList(path + ".absent").status().code(), absl::StatusCode::kNotFound);
  std::ofstream(path) << "nonsense";
  EXPECT_THAT(std::string(ReadConfigList(path).status().message()),
              HasSubstr(path + ": parse error"));
  std::ofstream(path) << std::string(5 << 20, ' ');
  EXPECT_THAT(std::string(ReadConfigList(path).status().message()), HasSubstr("is larger than"));
}

TEST(TopTest, RatesAreSinceTheLookBeforeAndTheBusiestComeFirst) {
  const auto session = [](const char* id, uint64_t received, int64_t compute_seconds) {
    v1::Session session;
    session.set_id(id);
    session.mutable_create_time()->set_seconds(1000);
    session.set_received_bytes(received);
    session.mutable_compute_time()->set_seconds(compute_seconds);
    session.set_state_bytes(10);
    return session;
  };
  const Top first({session("a", 100, 0), session("b", 50, 5)}, absl::FromUnixSeconds(1010));
  ASSERT_EQ(first.rows().size(), 2u);
  EXPECT_EQ(first.rows()[0].session.id(), "b");
  EXPECT_EQ(first.rows()[0].compute, 0.5);
  EXPECT_EQ(first.rows()[1].received, 10);
  // "b" went back to what was stored, "c" is new.
  const Top second({session("a", 300, 0), session("b", 20, 5), session("c", 30, 0)},
                   absl::FromUnixSeconds(1030), &first);
  ASSERT_EQ(second.rows().size(), 3u);
  EXPECT_EQ(second.rows()[0].session.id(), "a");
  EXPECT_EQ(second.rows()[0].received, 10);
  EXPECT_EQ(second.rows()[1].session.id(), "c");
  EXPECT_EQ(second.rows()[1].received, 1);
  EXPECT_EQ(second.rows()[2].received, 0);
  EXPECT_EQ(second.ToJson("here")["total"]["state_bytes"], 30);
  EXPECT_THAT(second.ToText("here", 1),
              AllOf(HasSubstr("3 sessions"), HasSubstr("\na "), ::testing::Not(HasSubstr("\nc "))));
}

TEST(FormatTest, AlignsColumns) {
  Table table({"A", "LONG"});
  table.Add({"value", "x"});
  EXPECT_EQ(table.ToString(), "A      LONG\nvalue  x\n");
}

TEST(FormatTest, EscapesWhatCouldSteerATerminal) {
  EXPECT_EQ(Printable("a\033[2Jb\n"), "a\\x1b[2Jb\\x0a");
}

TEST(FormatTest, ShowsBytesSharesAndTimes) {
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(int64_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(FormatShare(0.8), "80.00 %");
  EXPECT_EQ(FormatSeconds(absl::Milliseconds(440)), "0.4 s");
  EXPECT_EQ(FormatSeconds(absl::Milliseconds(9960)), "10 s");
  EXPECT_EQ(FormatSeconds(absl::Seconds(200)), "3 min 20 s");
  EXPECT_EQ(FormatSeconds(absl::Minutes(125)), "2 h 5 min");
  EXPECT_EQ(FormatShape({20, 1, 5}), "20x1x5");
}

TEST(FormatTest, DrawsProgress) {
  EXPECT_EQ(ProgressLine("masks", 0, 2048),
            "masks  [                              ]   0 %  0 B of 2.0 KiB");
  EXPECT_EQ(ProgressLine("masks", 4096, 2048),
            "masks  [##############################] 100 %  4.0 KiB of 2.0 KiB");
  EXPECT_THAT(ProgressLine("masks", 0, 0), HasSubstr("100 %"));
}

TEST(ReportTest, ErrorsAreTextOrJson) {
  const absl::Status status = absl::NotFoundError("no session \"x\"\n");
  EXPECT_EQ(ErrorText(status), "error: NOT_FOUND: no session \"x\"\\x0a");
  EXPECT_EQ(ErrorJson(status), R"({"error":{"code":"NOT_FOUND","message":"no session \"x\"\n"}})");
}

TEST(ReportTest, ListsOptionsOfAlgorithms) {
  v1::ListAlgorithmsResponse response;
  v1::Algorithm* level = response.add_algorithms();
  level->set_name("level");
  level->set_kind(v1::ALGORITHM_KIND_PRUNER);
  v1::AlgorithmOption* sparsity = level->add_options();
  sparsity->set_name("sparsity");
  sparsity->set_required(true);
  v1::AlgorithmOption* bits = level->add_options();
  bits->set_name("quant_bits");
  bits->add_aliases("q_bits");
  bits->mutable_default_value()->set_number_value(8);
  const std::string text = AlgorithmsText(response);
  EXPECT_THAT(text, HasSubstr("level  (pruner)"));
  EXPECT_THAT(text, HasSubstr("sparsity             "));
  EXPECT_THAT(text, HasSubstr("required"));
  EXPECT_THAT(text, HasSubstr("quant_bits (q_bits)        8"));
}

TEST(LayersOfTest, WeightsAreTheMatricesNamedSo) {
  SafetensorsHeader header;
  header.tensors = {{"conv.weight", "F32", {2, 1, 3, 3}, 0, 0},
                    {"norm.weight", "F16", {2}, 0, 0},
                    {"conv.bias", "BF16", {2}, 0, 0},
                    {"steps.weight", "I64", {2, 2}, 0, 0},
                    {"scalar.weight", "F32", {}, 0, 0},
                    {"empty.weight", "F32", {0, 2}, 0, 0},
                    {"table", "F64", {4, 4}, 0, 0}};
  std::vector<std::string> seen;
  for (const Layer& layer : LayersOf(header)) seen.push_back(layer.name + " " + layer.op_type);
  EXPECT_THAT(seen, ElementsAre("conv.weight weight", "norm.weight other", "conv.bias other",
                                "table other"));
}

TEST(LargestOptionTest, LooksAtAllRules) {
  v1::Plan plan;
  EXPECT_EQ(LargestOption(plan, "end_epoch"), std::nullopt);
  for (const int end : {10, 30, 20}) {
    auto* fields = plan.add_rules()->mutable_options()->mutable_fields();
    (*fields)["end_epoch"].set_number_value(end);
  }
  EXPECT_EQ(LargestOption(plan, "end_epoch"), 30);
  EXPECT_EQ(LargestOption(plan, "quant_start_step"), std::nullopt);
}

// Keeps files in memory.
class MemorySink : public FileSink {
 public:
  absl::Status Begin(const std::string& name, int64_t) override {
    names.push_back(name);
    return absl::OkStatus();
  }
  absl::Status Write(absl::Span<const uint8_t> bytes) override {
    content.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return absl::OkStatus();
  }
  absl::Status End() override { return absl::OkStatus(); }
  absl::Status Restart() override {
    names.clear();
    content.clear();
    return absl::OkStatus();
  }

  std::vector<std::string> names;
  std::string content;
};

class CheckpointSinkTest : public ::testing::Test {
 protected:
  static absl::Span<const uint8_t> AsBytes(const std::string& text) {
    return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
  }

  // An input with a weight, a scalar of a type that the service has not, and an empty tensor.
  Checkpoint Input() {
    SafetensorsHeader header;
    header.metadata = {{"format", "pt"}};
    header.tensors = {
        {"steps", "U64", {}, 0, 8}, {"w", "F32", {2}, 8, 16}, {"none", "F16", {0}, 16, 16}};
    const std::string path = ::testing::TempDir() + "/checkpoint_sink.safetensors";
    std::ofstream(path, std::ios::binary) << SerializeHeader(header) << "stepstepOLDWEIGH";
    auto file = SafetensorsFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    return Checkpoint(*std::move(file));
  }

  static std::string Exported() {
    SafetensorsHeader header;
    header.metadata = {{"algorithm", "level"}};
    header.tensors = {{"w", "F32", {2}, 0, 8}};
    return SerializeHeader(header) + "NEWWEIGH";
  }
};

TEST_F(CheckpointSinkTest, AddsWhatTheServerDidNotSendHoweverTheFileIsCut) {
  const Checkpoint input = Input();
  const std::string exported = Exported();
  for (const size_t piece : {1, 7, 8, 9, 1000}) {
    MemorySink memory;
    CheckpointSink sink(input, {"w"}, memory);
    ASSERT_TRUE(sink.Begin("model.safetensors", exported.size()).ok());
    for (size_t i = 0; i < exported.size(); i += piece) {
      ASSERT_TRUE(sink.Write(AsBytes(exported).subspan(i, piece)).ok());
    }
    ASSERT_TRUE(sink.End().ok());
    const auto header = ParseHeader(AsBytes(memory.content), memory.content.size());
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->metadata.at("format"), "pt");
    EXPECT_EQ(header->metadata.at("algorithm"), "level");
    ASSERT_EQ(header->tensors.size(), 3u);
    EXPECT_EQ(header->tensors[0].name, "steps");
    EXPECT_EQ(header->tensors[1].name, "w");
    EXPECT_EQ(memory.content.substr(header->data_begin), "stepstepNEWWEIGH");
  }
}

TEST_F(CheckpointSinkTest, RefusesATensorOfTheInputThatIsCalledAsOneOfTheExports) {
  const Checkpoint input = Input();
  MemorySink memory;
  CheckpointSink sink(input, {}, memory);
  const std::string exported = Exported();
  ASSERT_TRUE(sink.Begin("model.safetensors", exported.size()).ok());
  const absl::Status written = sink.Write(AsBytes(exported));
  EXPECT_EQ(written.code(), absl::StatusCode::kInvalidArgument) << written;
}

TEST_F(CheckpointSinkTest, KeepsEveryTensorAlignedToItsElements) {
  SafetensorsHeader input_header;
  input_header.tensors = {{"h", "F16", {3}, 0, 6},
                          {"b", "F32", {1}, 6, 10},
                          {"w", "F32", {1}, 10, 14},
                          {"u", "U8", {1}, 14, 15},
                          {"i", "I64", {1}, 15, 23}};
  const std::string path = ::testing::TempDir() + "/aligned.safetensors";
  std::ofstream(path, std::ios::binary)
      << SerializeHeader(input_header) << "hhhhhhbbbbwwwwuiiiiiiii";
  auto opened = SafetensorsFile::Open(path);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint input(*std::move(opened));
  SafetensorsHeader exported;
  exported.tensors = {
      {"w", "F32", {1}, 0, 4}, {"h", "F16", {3}, 4, 10}, {"extra", "U8", {2}, 10, 12}};
  const std::string file = SerializeHeader(exported) + "WWWWHHHHHHxx";
  MemorySink memory;
  CheckpointSink sink(input, {"w", "h"}, memory);
  ASSERT_TRUE(sink.Begin("model.safetensors", file.size()).ok());
  ASSERT_TRUE(sink.Write(AsBytes(file)).ok());
  ASSERT_TRUE(sink.End().ok());
  const auto header = ParseHeader(AsBytes(memory.content), memory.content.size());
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(memory.content.substr(header->data_begin), "iiiiiiiibbbbWWWWHHHHHHuxx");
  for (const FileTensor& tensor : header->tensors) {
    EXPECT_EQ((header->data_begin + tensor.begin) * 8 % ElementBits(tensor.dtype), 0)
        << tensor.name;
  }
}

TEST_F(CheckpointSinkTest, RefusesAFileThatIsNoCheckpoint) {
  const Checkpoint input = Input();
  MemorySink memory;
  CheckpointSink sink(input, {"w"}, memory);
  const std::string nonsense = std::string(7, '\0');
  ASSERT_TRUE(sink.Begin("model.safetensors", nonsense.size()).ok());
  ASSERT_TRUE(sink.Write(AsBytes(nonsense)).ok());
  EXPECT_FALSE(sink.End().ok());
  EXPECT_EQ(memory.content, "");
}

}  // namespace
}  // namespace nni_compression::cli
