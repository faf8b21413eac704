// The library knows nothing of the wire, of logs, or of what is built on it.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <string>

namespace nni_compression::compression {
namespace {

TEST(IncludesTest, TheLibraryIncludesNeitherGrpcNorProtobufNorLogsNorServerNorClient) {
  const std::regex forbidden(
      R"(^\s*#\s*include\s*[<"](grpc|google/protobuf|spdlog|server/|client/|proto/|nni/).*)");
  int files = 0;
  const std::filesystem::path root =
      std::filesystem::path(NNI_COMPRESSION_SOURCE_DIR) / "compression";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (entry.path().extension() != ".h" && entry.path().extension() != ".cc") continue;
    ++files;
    std::ifstream source(entry.path());
    for (std::string line; std::getline(source, line);) {
      EXPECT_FALSE(std::regex_match(line, forbidden)) << entry.path() << ": " << line;
    }
  }
  EXPECT_GT(files, 20);
}

TEST(IncludesTest, TheLibraryIncludesNoneOfLibTorchsLargeHeaders) {
  const std::regex forbidden(R"(^\s*#\s*include\s*[<"](torch/|ATen/ATen\.h).*)");
  // A few definitions of numbers.
  const std::string version = "#include <torch/csrc/api/include/torch/version.h>";
  // The one file that needs LibTorch's interpreter.
  const std::regex interpreter(R"(#include <torch/csrc/jit/.*)");
  const std::filesystem::path root =
      std::filesystem::path(NNI_COMPRESSION_SOURCE_DIR) / "compression";
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream source(entry.path());
    for (std::string line; std::getline(source, line);) {
      if (line == version) continue;
      if (entry.path().filename() == "script.cc" && std::regex_match(line, interpreter)) continue;
      EXPECT_FALSE(std::regex_match(line, forbidden)) << entry.path() << ": " << line;
    }
  }
}

}  // namespace
}  // namespace nni_compression::compression
