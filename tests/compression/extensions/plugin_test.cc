#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "compression/exporters/exporter.h"
#include "compression/extensions/loader.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using testing::AllOf;
using testing::HasSubstr;
namespace fs = std::filesystem;

std::string PluginFolder(const std::string& name) { return absl::StrCat(TEST_PLUGINS, "/", name); }

// What loading the folder beside the built-in algorithms says.
absl::Status TryPlugins(const std::string& folder) {
  Registry registry = Registry::Builtin();
  return LoadPlugins(folder, &registry);
}

class PluginTest : public testing::Test {
 protected:
  PluginTest() {
    std::string pattern = testing::TempDir() + "/pluginsXXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~PluginTest() override { fs::remove_all(folder_); }

  std::string folder_;
};

TEST_F(PluginTest, AnAlgorithmOfAPluginIsListedWithItsOptionsAndItsFile) {
  Registry registry = Registry::Builtin();
  ASSERT_THAT(LoadPlugins(PluginFolder("good"), &registry), IsOk());
  const AlgorithmInfo& info = **registry.Find("threshold");
  EXPECT_EQ(info.source, "threshold.so");
  EXPECT_EQ(info.options.at(0).name, "threshold");
  EXPECT_EQ((**registry.Find("level")).source, "");
}

TEST_F(PluginTest, AThresholdKeepsWhatReachesIt) {
  auto session = BindOne("threshold", {{"threshold", 0.5}}, {5});
  auto answer = session->CalcMask(0, Values({0.5, -0.7, 0.49, 0, -0.1}));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(Bits(answer->mask), "11000");
}

TEST_F(PluginTest, RefusesAPluginOfAnotherBuildWithoutCallingIt) {
  EXPECT_THAT(TryPlugins(PluginFolder("wrong_stamp")),
              IsInvalid(AllOf(HasSubstr("misfit_wrong_stamp.so"), HasSubstr("of long ago"),
                              HasSubstr("this server is [NniCompression "), HasSubstr("LibTorch "),
                              HasSubstr("libstdc++ "))));
}

TEST_F(PluginTest, RefusesWhatIsNoPlugin) {
  EXPECT_THAT(TryPlugins(PluginFolder("missing_symbol")),
              IsInvalid(AllOf(HasSubstr("cannot be loaded"), HasSubstr("nobody_has_this"))));
  EXPECT_THAT(TryPlugins(PluginFolder("no_plugin")), IsInvalid(HasSubstr("is not a plugin")));
  EXPECT_THAT(TryPlugins(PluginFolder("throws")), IsInvalid(HasSubstr("failed: no licence")));
  EXPECT_THAT(TryPlugins(PluginFolder("no_example")),
              IsInvalid(AllOf(HasSubstr("misfit_no_example.so"), HasSubstr("example"))));
  std::ofstream(folder_ + "/text.so") << "not a library";
  EXPECT_THAT(TryPlugins(folder_),
              IsInvalid(AllOf(HasSubstr("text.so"), HasSubstr("cannot be loaded"))));
  EXPECT_THAT(TryPlugins(folder_ + "/none"),
              Fails(absl::StatusCode::kNotFound, HasSubstr("/none")));
}

TEST_F(PluginTest, RefusesATruncatedPlugin) {
  const std::string file = folder_ + "/threshold.so";
  const auto size = fs::file_size(PluginFolder("good") + "/threshold.so");
  // The end of a file may have nothing but symbols for debuggers.
  for (const auto part : {uintmax_t{10}, uintmax_t{100}, uintmax_t{4096}, size / 8}) {
    fs::copy(PluginFolder("good") + "/threshold.so", file, fs::copy_options::overwrite_existing);
    fs::resize_file(file, part);
    EXPECT_THAT(TryPlugins(folder_), IsInvalid(HasSubstr("threshold.so\" cannot be loaded")))
        << part;
  }
}

TEST_F(PluginTest, ANameBelongsToOneAlgorithm) {
  const auto taken = [](const std::string& by) {
    return Fails(absl::StatusCode::kAlreadyExists, HasSubstr(by));
  };
  EXPECT_THAT(TryPlugins(PluginFolder("built_in_name")),
              taken("\"level\" exists already, built in"));
  fs::copy(PluginFolder("good") + "/threshold.so", folder_ + "/a.so");
  fs::copy(PluginFolder("good") + "/threshold.so", folder_ + "/b.so");
  EXPECT_THAT(TryPlugins(folder_),
              taken("b.so: the algorithm \"threshold\" exists already, in a.so"));
}

TEST_F(PluginTest, IgnoresFilesOfOtherKinds) {
  std::ofstream(folder_ + "/README") << "plugins go here";
  EXPECT_THAT(TryPlugins(folder_), IsOk());
}

// Algorithms that misbehave, without the server's guard around them.
class MisbehavingPluginTest : public testing::Test {
 protected:
  MisbehavingPluginTest() {
    EXPECT_THAT(LoadPlugins(PluginFolder("misbehaving"), &registry_), IsOk());
  }

  absl::StatusOr<std::unique_ptr<Session>> TryBind(const std::string& algorithm) {
    return Session::Bind(registry_,
                         MakeBinding(algorithm, nlohmann::json::array({nlohmann::json::object()}),
                                     {MakeLayer("fc", {4, 3})}));
  }

  // How a call fails; the session must be as before.
  absl::Status Failure(const std::string& algorithm) {
    auto session = TryBind(algorithm);
    if (!session.ok()) return session.status();
    const std::string before = StateOf(**session);
    const bool pruner = (*session)->algorithm().kind == AlgorithmKind::kPruner;
    const at::Tensor weight = Random({4, 3}, 1);
    const absl::Status status =
        pruner ? (*session)->CalcMask(0, weight).status()
               : (*session)->QuantizeWeight(0, weight, QuantizeReply::kCodes).status();
    EXPECT_EQ(StateOf(**session), before);
    EXPECT_TRUE((*session)->IsStale(0));
    return status;
  }

  Registry registry_;
};

TEST_F(MisbehavingPluginTest, WhatIsThrownIsAStatus) {
  EXPECT_THAT(Failure("throws"), Fails(absl::StatusCode::kInternal, HasSubstr("I give up")));
  EXPECT_THAT(Failure("throws_a_number"), Fails(absl::StatusCode::kInternal, HasSubstr("unknown")));
}

TEST_F(MisbehavingPluginTest, NonsenseIsToldWithAlgorithmLayerAndWhatItShouldBe) {
  const auto nonsense = [](const std::string& algorithm, const std::string& what) {
    return Fails(
        absl::StatusCode::kInternal,
        AllOf(HasSubstr("the algorithm " + algorithm + " answered layer \"fc\""), HasSubstr(what)));
  };
  EXPECT_THAT(Failure("wrong_mask"),
              nonsense("wrong_mask", "a mask of 20 elements; it must have the weight's 12"));
  EXPECT_THAT(Failure("huge_state"), nonsense("huge_state", "67108864 bytes of state"));
  EXPECT_THAT(Failure("nan_scale"), nonsense("nan_scale", "scale[0] = nan; it must be finite"));
  EXPECT_THAT(Failure("many_scales"), nonsense("many_scales", "5 scales"));
  EXPECT_THAT(Failure("tiny_scale"), nonsense("tiny_scale", "its reciprocal"));
  EXPECT_THAT(Failure("long_data"), nonsense("long_data", "13 bytes of uint8; it must be 12"));
  EXPECT_THAT(Failure("short_data"), nonsense("short_data", "11 bytes of uint8; it must be 12"));
  EXPECT_THAT(Failure("wide_codes"), nonsense("wide_codes", "codes from 0 to 256 in 8 bits"));
  EXPECT_THAT(Failure("nan_data"), nonsense("nan_data", "the code 255; codes must be in [0, 100]"));
  EXPECT_THAT(Failure("wrong_axis"), nonsense("wrong_axis", "axis 7; it must be the rule's, -1"));
  EXPECT_THAT(
      TryBind("wrong_groups"),
      nonsense("wrong_groups", "groups of 3 along the channel axis -1; the axis must be 0"));
}

TEST_F(MisbehavingPluginTest, AQuantizerWithTraitsOfAPrunerIsRefused) {
  EXPECT_THAT(TryBind("joint_quantizer"), Fails(absl::StatusCode::kInternal,
                                                "the algorithm joint_quantizer is a quantizer and "
                                                "has traits of the other kind"));
}

// What becomes of a weight at an export, planned when the quantizer had answered well.
class MisbehavingExportTest : public MisbehavingPluginTest {
 protected:
  absl::Status Export(const std::string& algorithm, const std::string& format) {
    auto session = Session::Bind(
        registry_, MakeBinding(algorithm, nlohmann::json::array({nlohmann::json::object()}),
                               {MakeLayer("fc.weight", {4, 3})}));
    if (!session.ok()) return session.status();
    const at::Tensor good = Values(std::vector<double>(12, 0), DataType::kFloat32, {4, 3});
    auto answer = (*session)->QuantizeWeight(0, good, QuantizeReply::kCodes);
    if (!answer.ok()) return answer.status();
    auto plan = FindExporter(format).value()->Plan(
        **session, {{"fc.weight", DataType::kFloat32, {4, 3}, 48}}, nlohmann::json::object());
    if (!plan.ok()) return plan.status();
    Buffer weight = Buffer::Allocate(48);
    std::memcpy(weight.data(), BytesOf(Random({4, 3}, 1)).data(), 48);
    if (plan->observe) return plan->observe(0, weight);
    for (const ExportFile& file : plan->files) {
      for (const Segment& segment : file.segments()) {
        if (!segment.tensor) continue;
        absl::Status status = segment.Apply(weight);
        EXPECT_TRUE(!status.ok() || weight.size() == segment.byte_length);
        return status;
      }
    }
    return absl::NotFoundError("no tensor in the files");
  }
};

TEST_F(MisbehavingExportTest, NoExportTakesNonsenseForAnAnswer) {
  for (const std::string format : {"onnx", "compressed-tensors", "safetensors", "pth", "report"}) {
    for (const std::string algorithm : {"nan_scale", "many_scales", "tiny_scale", "long_data",
                                        "short_data", "wide_codes", "nan_data", "wrong_axis"}) {
      EXPECT_THAT(Export(algorithm, format),
                  Fails(absl::StatusCode::kInternal,
                        HasSubstr("the algorithm " + algorithm + " answered layer \"fc.weight\"")))
          << format;
    }
  }
}

TEST_F(MisbehavingExportTest, AFileOfCodesIsNotMadeOfAWeightWithAnotherFormula) {
  for (const std::string format : {"onnx", "compressed-tensors"}) {
    EXPECT_THAT(Export("other_formula", format),
                Fails(absl::StatusCode::kFailedPrecondition,
                      AllOf(HasSubstr("\"fc.weight\""), HasSubstr("8 bits by DoReFa's formula"))));
  }
  for (const std::string format : {"safetensors", "pth", "report"}) {
    EXPECT_THAT(Export("other_formula", format), IsOk());
  }
}

TEST_F(MisbehavingPluginTest, ATargetThatIsNoShareIsNotReported) {
  auto session = TryBind("boastful");
  ASSERT_THAT(session, IsOk());
  for (int64_t epoch : {0, 1, 2}) {
    ASSERT_THAT((*session)->UpdateEpoch(epoch), IsOk());
    const auto answer = (*session)->CalcMask(0, Random({4, 3}, 1));
    ASSERT_THAT(answer, IsOk());
    EXPECT_FALSE(answer->target_sparsity.has_value());
  }
}

TEST_F(MisbehavingPluginTest, ARuleNeedsACompressorOfTheAlgorithmsKind) {
  for (const char* name : {"wrong_kind", "nothing"}) {
    EXPECT_THAT(TryBind(name), Fails(absl::StatusCode::kInternal,
                                     HasSubstr("is a pruner and created none for this rule")));
  }
}

}  // namespace
}  // namespace nni_compression::compression
