// Models on disk: indexes, shards, configurations, and the folders that they are in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cli/checkpoints/checkpoint.h"
#include "client/cli/checkpoints/index.h"
#include "client/cli/checkpoints/model_config.h"
#include "client/cli/checkpoints/model_files.h"
#include "client/cli/checkpoints/model_sink.h"
#include "client/cli/checkpoints/output_folder.h"
#include "client/cli/coverage.h"

namespace nni_compression::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

namespace fs = std::filesystem;

std::string Why(const absl::Status& status) { return std::string(status.message()); }

TEST(IndexTest, ReadsWhatItWrites) {
  const auto index = ParseIndex(R"({"metadata": {"total_size": 8, "x": "y"},
      "weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors", "c": "m-2.safetensors"}})");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_THAT(index->Files(), ElementsAre("m-1.safetensors", "m-2.safetensors"));
  const auto again = ParseIndex(SerializeIndex(*index));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->weight_map, index->weight_map);
  EXPECT_EQ(again->metadata, index->metadata);
}

TEST(IndexTest, RefusesFilesThatAreNotInItsFolder) {
  for (const char* file :
       {R"("../a.safetensors")", R"("/a.safetensors")", R"("b/a.safetensors")", R"("..")", R"("")",
        R"("a.bin")", "1", "null", R"("a\u0000.safetensors")", R"("a\n.safetensors")",
        R"("b\\a.safetensors")"}) {
    const auto index = ParseIndex(absl::StrCat(R"({"weight_map": {"t": )", file, "}}"));
    EXPECT_THAT(Why(index.status()), HasSubstr(R"(weight_map["t"] is )")) << file;
  }
}

TEST(IndexTest, RefusesWhatIsNoIndex) {
  EXPECT_THAT(Why(ParseIndex("{}").status()), HasSubstr("not the index"));
  EXPECT_THAT(Why(ParseIndex("[]").status()), HasSubstr("a list"));
  EXPECT_THAT(Why(ParseIndex("7").status()), HasSubstr("not the index"));
  EXPECT_THAT(Why(ParseIndex(R"({"weight_map": {}})").status()), HasSubstr("not the index"));
  EXPECT_THAT(
      Why(ParseIndex(R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})").status()),
      HasSubstr("duplicate name a"));
}

TEST(ModelConfigTest, AddsAKeyAndKeepsTheRestToTheByte) {
  const std::string quantization = R"({"quantization_config": {"quant_method": "q", "n": [1]}})";
  const std::string value =
      "\n  \"quantization_config\": {\n    \"quant_method\": \"q\",\n    \"n\": [\n      1\n    "
      "]\n  }\n}\n";
  for (const std::string text : {"{\"a\": NaN, \"b\": [-Infinity, 1e-05]",
                                 "{\"a\": \"NaN \\\" Infinity\"", "{\n  \"z\": 1.0,\n  \"a\": 2"}) {
    const auto config = ModelConfig::Parse(text + "\n}\n \n");
    ASSERT_TRUE(config.ok()) << config.status();
    const auto merged = config->WithQuantization(quantization);
    ASSERT_TRUE(merged.ok()) << merged.status();
    EXPECT_EQ(*merged, absl::StrCat(text, ",", value));
  }
  EXPECT_EQ(*ModelConfig::Parse("{}")->WithQuantization(quantization), "{" + value);
}

TEST(ModelConfigTest, AQuantizationThatIsNullIsReplacedInPlace) {
  const std::string before =
      R"({"a": "quantization_config", "b": [{"quantization_config": null}, "\\"], "c": NaN, )"
      "\n  \"quantization\\u005fconfig\" :\t";
  const std::string after = " ,\"d\": null\n}\n \n";
  const auto config = ModelConfig::Parse(absl::StrCat(before, "null", after));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->quant_method(), "");
  const auto merged = config->WithQuantization(R"({"quantization_config": {"n": 1}})");
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_EQ(*merged, absl::StrCat(before, "{\n    \"n\": 1\n  }", after));
}

TEST(ModelConfigTest, LayersAreFoundInAModelWithAndWithoutItsHead) {
  const auto targets = [](const std::string& layers) {
    const auto merged = ModelConfig::Parse("{}")->WithQuantization(absl::StrCat(
        R"({"quantization_config": {"config_groups": {"g": {"targets": [)", layers, "]}}}}"));
    const auto json = nlohmann::json::parse(*merged);
    return json["quantization_config"]["config_groups"]["g"]["targets"].dump();
  };
  EXPECT_EQ(targets(R"("model.a.b", "model.c", "lm_head")"),
            R"(["re:^(model\\.)?a\\.b$","re:^(model\\.)?c$","re:^([^.]+\\.)?lm_head$"])");
  EXPECT_EQ(targets(R"("encoder.a", "pooler.b")"),
            R"(["re:^([^.]+\\.)?encoder\\.a$","re:^([^.]+\\.)?pooler\\.b$"])");
}

TEST(ModelConfigTest, KnowsTheModelAndWhetherItIsQuantized) {
  const auto config =
      ModelConfig::Parse(R"({"model_type": "m", "quantization_config": {"quant_method": "q"}})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model_type(), "m");
  EXPECT_EQ(config->quant_method(), "q");
  const auto merged = config->WithQuantization(R"({"quantization_config": {}})");
  EXPECT_EQ(merged.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(ModelConfig::Parse("[]").ok());
  EXPECT_FALSE(ModelConfig::Parse("{\"a\": }").ok());
}

TEST(PlanShardsTest, CutsInOrderAndAlignsTensors) {
  SafetensorsHeader file;
  file.metadata = {{"format", "pt"}};
  file.tensors = {{"a", "BF16", {3}, 0, 6},     {"b", "F32", {1}, 6, 10},
                  {"big", "BF16", {9}, 10, 28}, {"none", "F32", {0}, 28, 28},
                  {"c", "U8", {1}, 28, 29},     {"d", "I64", {1}, 29, 37}};
  const auto shards = PlanShards(file, "model", 10);
  ASSERT_EQ(shards.size(), 3u);
  std::vector<std::string> seen;
  for (const Shard& shard : shards) {
    seen.push_back(shard.name);
    EXPECT_EQ(shard.header.metadata, file.metadata);
    for (const FileTensor& tensor : shard.header.tensors) {
      seen.push_back(absl::StrCat(tensor.name, " ", tensor.begin, " ", tensor.end));
    }
  }
  EXPECT_THAT(seen, ElementsAre("model-00001-of-00003.safetensors", "b 0 4", "a 4 10",
                                "model-00002-of-00003.safetensors", "none 0 0", "big 0 18",
                                "model-00003-of-00003.safetensors", "d 0 8", "c 8 9"));
  EXPECT_THAT(PlanShards(file, "x", 0)[0].name, "x.safetensors");
  EXPECT_EQ(PlanShards(file, "x", 1000).size(), 1u);
}

class FolderTest : public ::testing::Test {
 protected:
  FolderTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    root_ = fs::path(::testing::TempDir()) / absl::StrCat("nni_folders_", info->name());
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~FolderTest() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) const {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name, std::ios::binary) << text;
  }
  std::string Read(const std::string& name) const {
    std::ifstream file(root_ / name, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::vector<std::string> Names(const std::string& folder) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(root_ / folder)) {
      if (!entry.is_directory()) names.push_back(fs::relative(entry.path(), root_ / folder));
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  fs::path root_;
};

TEST_F(FolderTest, WeightsAreToldFromOtherFiles) {
  for (const char* name :
       {"m/model.safetensors", "m/config.json", "m/pytorch_model.bin", "m/training_args.bin",
        "m/sub/x.json", "m/sub/x.pt", "m/2_Dense/model.safetensors", "m/onnx/x.json", "m/.git/x"}) {
    Write(name, "");
  }
  Write("m/modules.json", R"([{"path": "2_Dense"}, {"path": 1}, 2])");
  const auto model = FindModel(root_ / "m");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(model->weights, ElementsAre(root_ / "m/model.safetensors"));
  EXPECT_THAT(model->others, ElementsAre("2_Dense/model.safetensors", "config.json", "modules.json",
                                         "sub/x.json", "training_args.bin"));
  EXPECT_THAT(model->left_out, ElementsAre(".git/", "onnx/", "pytorch_model.bin", "sub/x.pt"));
  const auto file = FindModel(root_ / "m/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->folder, "");
  EXPECT_THAT(file->others, IsEmpty());
}

TEST_F(FolderTest, AnOutputFolderAppearsWhenItIsComplete) {
  const std::string out = root_ / "out";
  {
    auto folder = OutputFolder::Create(out, ExistingFiles::kKeep);
    ASSERT_TRUE(folder.ok()) << folder.status();
    ASSERT_TRUE(folder->AddText("config.json", "{}").ok());
    ASSERT_TRUE(folder->AddText("1/config.json", "{}").ok());
    EXPECT_FALSE(fs::exists(out + "/config.json"));
    // Until here an error leaves nothing.
  }
  EXPECT_FALSE(fs::exists(out));
  fs::create_directories(out + "/.0123.partial");  // of an interrupted run
  auto folder = OutputFolder::Create(out, ExistingFiles::kKeep);
  ASSERT_TRUE(folder.ok()) << folder.status();
  ASSERT_TRUE(folder->AddText("void", "").ok());
  ASSERT_TRUE(folder->Clear().ok());
  ASSERT_TRUE(folder->AddText("config.json", "{}").ok());
  ASSERT_TRUE(folder->AddText("1/config.json", "{}").ok());
  absl::Status committed = folder->Commit();
  ASSERT_TRUE(committed.ok()) << committed;
  EXPECT_THAT(Names("out"), ElementsAre("1/config.json", "config.json"));
  const auto second = OutputFolder::Create(out, ExistingFiles::kKeep);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Names("out"), ElementsAre("1/config.json", "config.json"));
}

TEST_F(FolderTest, WhatAnInterruptedCommitHasLeftIsNamed) {
  Write("out/tokenizer.json", "{}");
  Write("out/.0123.partial/model.safetensors", "new");
  Write("out/.0123.partial.partial/model.safetensors", "old");
  const absl::Status status = OutputFolder::Check(root_ / "out", ExistingFiles::kReplace);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(Why(status), HasSubstr(absl::StrCat("may have left one in ", root_.string(),
                                                  "/out/.0123.partial.partial; ")));
}

TEST_F(FolderTest, WhatAppearsInTheFolderMeanwhileStays) {
  auto folder = OutputFolder::Create(root_ / "out", ExistingFiles::kReplace);
  ASSERT_TRUE(folder.ok()) << folder.status();
  ASSERT_TRUE(folder->AddText("config.json", "new").ok());
  Write("out/config.json", "mine");
  EXPECT_EQ(folder->Commit().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Read("out/config.json"), "mine");
}

// A file of weights as every result has them.
std::string WeightsOfAResult() {
  SafetensorsHeader header;
  header.metadata = {{kResultMetadata, "safetensors"}};
  return SerializeHeader(header);
}

TEST_F(FolderTest, OnlyWhatTheNewResultHasIsReplaced) {
  const auto replace = [&] {
    auto folder = OutputFolder::Create(root_ / "out", ExistingFiles::kReplace);
    if (!folder.ok()) return folder.status();
    for (const char* name : {"model.safetensors", "config.json", "1/config.json", "1/2/x"}) {
      EXPECT_TRUE(folder->AddText(name, WeightsOfAResult()).ok());
    }
    return folder->Commit();
  };
  const std::vector<std::string> result = {"1/2/x", "1/config.json", "config.json",
                                           "model.safetensors"};
  ASSERT_TRUE(replace().ok());
  Write("out/model-00001-of-00002.safetensors", WeightsOfAResult());  // of an earlier result
  Write("out/1/config.json", "edited");
  absl::Status replaced = replace();
  ASSERT_TRUE(replaced.ok()) << replaced;
  EXPECT_EQ(Names("out"), result);
  EXPECT_EQ(Read("out/1/config.json"), WeightsOfAResult());

  const auto refused = [&](const std::string& name) {
    const absl::Status status = replace();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << name;
    EXPECT_THAT(Why(status), HasSubstr(absl::StrCat("out/", name, " exists"))) << name;
  };
  for (const char* name : {"mine.txt", "1/mine.txt", "1/2/mine.txt", "1/.mine.partial"}) {
    Write(absl::StrCat("out/", name), "mine");
    Write("out/config.json", "before");
    refused(name);
    EXPECT_EQ(Read(absl::StrCat("out/", name)), "mine");
    EXPECT_EQ(Read("out/config.json"), "before");
    fs::remove(root_ / "out" / name);
  }
  fs::create_directories(root_ / "out/1/empty");
  refused("1/empty/");
  fs::remove(root_ / "out/1/empty");
  fs::create_symlink("..", root_ / "out/1/link");
  refused("1/link");
  fs::remove(root_ / "out/1/link");
  fs::rename(root_ / "out/1", root_ / "elsewhere");
  fs::create_symlink("../elsewhere", root_ / "out/1");
  refused("1");
  EXPECT_THAT(Names("elsewhere"), ElementsAre("2/x", "config.json"));
  fs::remove(root_ / "out/1");
  fs::create_directories(root_ / "out/1/config.json");
  refused("1/config.json/");
  fs::remove(root_ / "out/1/config.json");
  EXPECT_TRUE(replace().ok());
  EXPECT_EQ(Names("out"), result);
}

TEST(CoverageTest, CountsWhatCouldBeAWeight) {
  SafetensorsHeader header;
  header.tensors = {{"a.weight", "F32", {2, 2}, 0, 16},
                    {"b.weight", "BF16", {4, 4}, 16, 48},
                    {"c.weight", "F8_E4M3", {2, 3}, 48, 54},
                    {"d.bias", "F32", {2}, 54, 62},
                    {"ids", "I64", {1, 2}, 62, 78}};
  v1::Plan plan;
  for (const char* name : {"a.weight", "b.weight", "d.bias"}) plan.add_layers()->set_name(name);
  plan.mutable_layers(0)->set_compressed(true);
  plan.mutable_layers(1)->set_rule(1);
  const Coverage coverage = CoverageOf(header, plan);
  EXPECT_EQ(ToText(coverage),
            "1 of 3 weights, 14.2 % of the parameters, are compressed; not covered: c.weight; "
            "excluded: 1");
}

}  // namespace
}  // namespace nni_compression::cli
