// Export, and the directory that files go to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "client/cli/checkpoints/safetensors.h"
#include "nni_compression/files.h"
#include "tests/client/client_test_base.h"

namespace nni_compression {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// A directory of the test's own, empty.
class TestDirectory {
 public:
  TestDirectory() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = ::testing::TempDir() + "/nni_" + info->test_suite_name() + "_" + info->name();
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
  }
  ~TestDirectory() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

 private:
  std::string path_;
};

std::string ReadFile(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

absl::Span<const uint8_t> AsBytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

class ExportTest : public ClientTestBase {
 protected:
  const std::unique_ptr<server::Server> server_ = StartServer();
  const Client client_ = Connect(AddressOf(*server_));
};

TEST_F(ExportTest, WritesACheckpointWithZerosInTheWeights) {
  const auto session = client_.BindModel(Request("level", kLevel, {"a", "b"}, 3, 500001));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto a = Weight(1500003, 1), b = Weight(1500003, 2);
  const std::vector<float> bias = {1, 2, 3};
  const std::vector<Tensor> weights = {MakeTensor<float>("a", {3, 500001}, a),
                                       MakeTensor<float>("b", {3, 500001}, b)};
  const auto masks = AllOrError(session->CalcMask(weights));
  ASSERT_TRUE(masks.ok()) << masks.status();
  std::vector<Tensor> tensors = weights;
  tensors.push_back(MakeTensor<float>("bias", {3}, bias));

  const TestDirectory directory;
  auto sink = DirectorySink::Create(directory.path() + "/new");
  ASSERT_TRUE(sink.ok()) << sink.status();
  absl::Status exported = session->Export("safetensors", tensors, *sink);
  ASSERT_TRUE(exported.ok()) << exported;
  EXPECT_FALSE(std::filesystem::exists(directory.path() + "/new/model.safetensors"));
  const auto paths = sink->Commit();
  ASSERT_TRUE(paths.ok()) << paths.status();
  EXPECT_THAT(*paths, UnorderedElementsAre(directory.path() + "/new/model.safetensors"));

  const auto file = cli::SafetensorsFile::Open(paths->front());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->header().tensors.size(), 3u);
  for (const auto& tensor : file->header().tensors) {
    const auto bytes = file->bytes(tensor);
    if (tensor.name == "bias") {
      EXPECT_EQ(std::memcmp(bytes.data(), bias.data(), bytes.size()), 0);
      continue;
    }
    const auto& weight = tensor.name == "a" ? a : b;
    const Mask& mask = (*masks)[tensor.name == "a" ? 0 : 1];
    std::vector<float> values(weight.size());
    ASSERT_EQ(bytes.size(), values.size() * sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    for (int64_t i = 0; i < mask.elements(); ++i) {
      ASSERT_EQ(values[i], mask.kept(i) ? weight[i] : 0.0f) << tensor.name << " at " << i;
    }
  }
}

TEST_F(ExportTest, WritesPackedAndPlainMasks) {
  const auto session = client_.BindModel(Request("level", kLevel, {"a"}, 5, 4));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(20, 1);
  const auto masks = session->CalcMask({MakeTensor<float>("a", {5, 4}, weight)});
  ASSERT_TRUE(masks[0].ok()) << masks[0].status();
  const TestDirectory directory;
  auto sink = DirectorySink::Create(directory.path());
  ASSERT_TRUE(sink.ok()) << sink.status();
  absl::Status exported = session->Export("masks", {}, *sink);
  ASSERT_TRUE(exported.ok()) << exported;
  ASSERT_TRUE(sink->Commit().ok());
  EXPECT_THAT(directory.files(),
              UnorderedElementsAre("masks.safetensors", "masks.packed.safetensors"));
  const auto plain = cli::SafetensorsFile::Open(directory.path() + "/masks.safetensors");
  ASSERT_TRUE(plain.ok()) << plain.status();
  const auto bytes = plain->bytes(plain->header().tensors[0]);
  ASSERT_EQ(bytes.size(), 20u);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(bytes[i], masks[0]->kept(i)) << i;
}

TEST_F(ExportTest, RefusesWhatCannotBeExportedAndLeavesNothingBehind) {
  const auto session = client_.BindModel(Request("level", kLevel, {"a"}, 5, 4));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(20, 1);
  const std::vector<Tensor> tensors = {MakeTensor<float>("a", {5, 4}, weight)};
  const TestDirectory directory;
  {
    auto sink = DirectorySink::Create(directory.path());
    ASSERT_TRUE(sink.ok()) << sink.status();
    EXPECT_EQ(session->Export("safetensors", tensors, *sink).code(),
              absl::StatusCode::kFailedPrecondition);
    const absl::Status unknown = session->Export("gguf", tensors, *sink);
    EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(unknown.message()), HasSubstr("gguf"));
    EXPECT_EQ(session->Export("masks", {}, *sink, "[1]").code(),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(session->Export("masks", {}, *sink, R"({"colour": 1})").code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(directory.files(), IsEmpty());
}

void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

// Writes one file of five bytes.
absl::Status Write(DirectorySink& sink, const std::string& name) {
  if (absl::Status begun = sink.Begin(name, 5); !begun.ok()) return begun;
  if (absl::Status written = sink.Write(AsBytes("files")); !written.ok()) return written;
  if (absl::Status ended = sink.End(); !ended.ok()) return ended;
  return sink.Commit().status();
}

TEST(DirectorySinkTest, ReplacesFilesUnlessTheyAreToBeKept) {
  const TestDirectory directory;
  const std::string path = directory.path() + "/model.pth";
  WriteFile(path, "old");
  auto keeping = DirectorySink::Create(directory.path(), ExistingFiles::kKeep);
  ASSERT_TRUE(keeping.ok()) << keeping.status();
  const absl::Status kept = Write(*keeping, "model.pth");
  EXPECT_EQ(kept.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(kept.message()), HasSubstr(path + " already exists"));
  EXPECT_EQ(ReadFile(path), "old");
  EXPECT_TRUE(Write(*keeping, "masks.pth").ok());
  auto replacing = DirectorySink::Create(directory.path());
  ASSERT_TRUE(replacing.ok()) << replacing.status();
  EXPECT_TRUE(Write(*replacing, "model.pth").ok());
  EXPECT_EQ(ReadFile(path), "files");
  EXPECT_THAT(directory.files(), UnorderedElementsAre("model.pth", "masks.pth"));
}

TEST(DirectorySinkTest, KeepsAFileThatAppearsWhileTheNewOneIsWritten) {
  const TestDirectory directory;
  auto sink = DirectorySink::Create(directory.path(), ExistingFiles::kKeep);
  ASSERT_TRUE(sink.ok()) << sink.status();
  ASSERT_TRUE(sink->Begin("model.pth", 0).ok());
  ASSERT_TRUE(sink->End().ok());
  WriteFile(directory.path() + "/model.pth", "of another process");
  EXPECT_EQ(sink->Commit().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReadFile(directory.path() + "/model.pth"), "of another process");
}

TEST(DirectorySinkTest, LeavesAModelsOwnConfigAlone) {
  const TestDirectory directory;
  const std::string path = directory.path() + "/config.json";
  for (const std::string own :
       {R"({"model_type": "bert"})", R"({"quantization_config": {"quant_method": "mine"}})",
        R"({"quantization_config": {"quant_method": "compressed-tensors"}, "model_type": "bert"})",
        R"({"quantization_config": 3})", "[", ""}) {
    WriteFile(path, own);
    auto sink = DirectorySink::Create(directory.path());
    ASSERT_TRUE(sink.ok()) << sink.status();
    EXPECT_EQ(Write(*sink, "config.json").code(), absl::StatusCode::kAlreadyExists) << own;
    EXPECT_EQ(ReadFile(path), own);
  }
  WriteFile(path, R"({"quantization_config": {"quant_method": "compressed-tensors"}})");
  auto sink = DirectorySink::Create(directory.path());
  ASSERT_TRUE(sink.ok()) << sink.status();
  EXPECT_TRUE(Write(*sink, "config.json").ok());
  EXPECT_EQ(ReadFile(path), "files");
}

// Fails at the n-th byte, as a full disk does.
class FullDisk : public FileSink {
 public:
  explicit FullDisk(int64_t room) : room_(room) {}
  absl::Status Begin(const std::string&, int64_t) override { return absl::OkStatus(); }
  absl::Status Write(absl::Span<const uint8_t> bytes) override {
    room_ -= static_cast<int64_t>(bytes.size());
    return room_ < 0 ? absl::DataLossError("disk full") : absl::OkStatus();
  }
  absl::Status End() override { return absl::OkStatus(); }
  absl::Status Restart() override { return absl::OkStatus(); }

 private:
  int64_t room_;
};

TEST_F(ExportTest, TheSinksErrorEndsTheExport) {
  const auto session = client_.BindModel(Request("level", kLevel, {"a"}, 4, 1 << 20));
  ASSERT_TRUE(session.ok()) << session.status();
  const auto weight = Weight(4 << 20, 1);
  const std::vector<Tensor> tensors = {MakeTensor<float>("a", {4, 1 << 20}, weight)};
  ASSERT_TRUE(session->CalcMask(tensors)[0].ok());
  FullDisk sink(5 << 20);
  const absl::Status status = session->Export("safetensors", tensors, sink);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "disk full");
}

TEST(DirectorySinkTest, ReplacesFilesInOnePieceAndKeepsOldOnesUntilThen) {
  const TestDirectory directory;
  std::ofstream(directory.path() + "/model") << "old";
  auto sink = DirectorySink::Create(directory.path());
  ASSERT_TRUE(sink.ok()) << sink.status();
  ASSERT_TRUE(sink->Begin("model", 3).ok());
  ASSERT_TRUE(sink->Write(AsBytes("new")).ok());
  ASSERT_TRUE(sink->End().ok());
  EXPECT_EQ(ReadFile(directory.path() + "/model"), "old");
  ASSERT_TRUE(sink->Commit().ok());
  EXPECT_EQ(ReadFile(directory.path() + "/model"), "new");
}

TEST(DirectorySinkTest, RemovesWhatWasNotCommitted) {
  const TestDirectory directory;
  {
    auto sink = DirectorySink::Create(directory.path());
    ASSERT_TRUE(sink.ok()) << sink.status();
    ASSERT_TRUE(sink->Begin("one", 1).ok());
    ASSERT_TRUE(sink->End().ok());
    ASSERT_TRUE(sink->Restart().ok());
    EXPECT_THAT(directory.files(), IsEmpty());
    ASSERT_TRUE(sink->Begin("two", 1).ok());
    ASSERT_TRUE(sink->Write(AsBytes("x")).ok());
  }
  EXPECT_THAT(directory.files(), IsEmpty());
}

TEST(DirectorySinkTest, NeverLeavesItsDirectory) {
  const TestDirectory directory;
  auto sink = DirectorySink::Create(directory.path() + "/inner");
  ASSERT_TRUE(sink.ok()) << sink.status();
  for (const std::string name : {"../escaped", "/tmp/escaped", "..", "a/b", ""}) {
    EXPECT_FALSE(sink->Begin(name, 1).ok()) << name;
  }
  EXPECT_THAT(directory.files(), UnorderedElementsAre("inner"));
}

TEST(DirectorySinkTest, SaysWhyItCannotBeMade) {
  const TestDirectory directory;
  std::ofstream(directory.path() + "/file") << "x";
  EXPECT_EQ(DirectorySink::Create(directory.path() + "/file").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(DirectorySink::Create(directory.path() + "/no/such").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace nni_compression
