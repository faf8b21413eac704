#include "client/cli/checkpoints/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace nni_compression::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  return file + header + std::string(data_bytes, 'd');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseHeader({reinterpret_cast<const uint8_t*>(file.data()), file.size()},
                     static_cast<int64_t>(file.size()));
}

void ExpectRefused(const std::string& file, const std::string& why) {
  const auto header = Parse(file);
  ASSERT_FALSE(header.ok()) << file;
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(why));
}

std::string Tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat(R"({"dtype":")", dtype, R"(","shape":)", shape, R"(,"data_offsets":)",
                      offsets, "}");
}

std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return absl::StrCat(R"({"a":)", Tensor(dtype, shape, offsets), "}");
}

TEST(SafetensorsTest, ReadsTensorsInTheOrderOfTheirData) {
  const std::string header = absl::StrCat(
      R"({"__metadata__":{"format":"pt"},"b":)", Tensor("F32", "[2,3]", "[8,32]"), R"(,"a":)",
      Tensor("I64", "[]", "[0,8]"), R"(,"e":)", Tensor("F16", "[0]", "[8,8]"), "}");
  const auto parsed = Parse(File(header, 32));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), 3u);
  EXPECT_EQ(parsed->tensors[0].name, "a");
  EXPECT_THAT(parsed->tensors[0].shape, ElementsAre());
  EXPECT_EQ(parsed->tensors[1].name, "e");
  EXPECT_EQ(parsed->tensors[2].name, "b");
  EXPECT_THAT(parsed->tensors[2].shape, ElementsAre(2, 3));
  EXPECT_EQ(parsed->metadata.at("format"), "pt");
  EXPECT_EQ(parsed->data_begin, static_cast<int64_t>(8 + header.size()));
}

TEST(SafetensorsTest, WritesAHeaderThatItReads) {
  SafetensorsHeader header;
  header.metadata = {{"format", "pt"}};
  header.tensors = {{"x\"\n", "F32", {3}, 0, 12}, {"y", "BOOL", {}, 12, 13}};
  const std::string bytes = SerializeHeader(header);
  EXPECT_EQ(bytes.size() % 8, 0u);
  const auto parsed = Parse(bytes + std::string(13, 'd'));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->metadata, header.metadata);
  ASSERT_EQ(parsed->tensors.size(), 2u);
  EXPECT_EQ(parsed->tensors[0].name, "x\"\n");
  EXPECT_EQ(parsed->tensors[1].end, 13);
}

TEST(SafetensorsTest, RefusesAFileThatIsTooShort) {
  ExpectRefused("", "0 bytes");
  ExpectRefused("1234567", "7 bytes");
  ExpectRefused(File("{}", 0).substr(0, 9), "truncated");
}

TEST(SafetensorsTest, RefusesAHeaderLengthOutsideItsRange) {
  ExpectRefused(std::string(8, '\0') + "{}", "length is 0");
  ExpectRefused(std::string(8, '\xff') + "{}", "length is 18446744073709551615");
  ExpectRefused(std::string("\x01\xe1\xf5\x05\0\0\0\0", 8) + "{}", "length is 100000001");
}

TEST(SafetensorsTest, RefusesAHeaderThatIsNoJsonObject) {
  ExpectRefused(File("PK\x03\x04", 0), "is this a safetensors file?");
  ExpectRefused(File("[]", 0), "does not begin with {");
  ExpectRefused(File("{\"a\":", 0), "parse error at line 1");
  ExpectRefused(File("{\"a\":{\"dtype\":{\"b\":{\"c\":{\"d\":{}}}}}}", 0), "nested deeper");
  ExpectRefused(File("{\"a\":4E444}", 0), "number overflow parsing '4E444'");
}

TEST(SafetensorsTest, RefusesANameThatIsThereTwice) {
  const std::string tensor = Tensor("U8", "[1]", "[0,1]");
  ExpectRefused(File(absl::StrCat(R"({"a":)", tensor, R"(,"a":)", tensor, "}"), 1),
                "duplicate name a");
  ExpectRefused(File(R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1),
                "duplicate name dtype");
}

TEST(SafetensorsTest, RefusesATruncatedFileAndTrailingBytes) {
  ExpectRefused(File(One("F32", "[4]", "[0,16]"), 15), "truncated");
  ExpectRefused(File(One("F32", "[4]", "[0,16]"), 17), "1 bytes after its tensors");
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  const auto two = [](const std::string& offsets) {
    return absl::StrCat(R"({"a":)", Tensor("U8", "[4]", "[0,4]"), R"(,"b":)",
                        Tensor("U8", "[4]", offsets), "}");
  };
  EXPECT_TRUE(Parse(File(two("[4,8]"), 8)).ok());
  ExpectRefused(File(two("[3,7]"), 8), "tensor b begins at 3, inside another one");
  ExpectRefused(File(two("[0,4]"), 4), "inside another one");
  ExpectRefused(File(two("[5,9]"), 9), "tensor b begins at 5, after a gap from 4");
  ExpectRefused(File(One("U8", "[4]", "[1,5]"), 5), "after a gap from 0");
}

TEST(SafetensorsTest, RefusesOffsetsThatDisagreeWithTheShape) {
  ExpectRefused(File(One("F32", "[4]", "[0,8]"), 8), "need 16 bytes");
  ExpectRefused(File(One("F32", "[4]", "[16,0]"), 16), "need 16 bytes");
  ExpectRefused(File(One("F32", "[4]", "[-1,15]"), 16), "data_offsets has -1");
  ExpectRefused(File(One("F32", "[4]", "[0.0,16]"), 16), "data_offsets has 0.0");
  ExpectRefused(File(One("F32", "[4]", "[0]"), 16), "list of two numbers");
  ExpectRefused(File(One("F32", "[4]", "[0,18446744073709551615]"), 16),
                "data_offsets has 18446744073709551615");
}

TEST(SafetensorsTest, RefusesBadShapesAndTypes) {
  ExpectRefused(File(One("F32", "[-4]", "[0,16]"), 16), "shape has -4");
  ExpectRefused(File(One("F32", "[1e1]", "[0,16]"), 16), "shape has 10.0");
  ExpectRefused(File(One("F32", "4", "[0,16]"), 16), "shape is missing or not a list");
  ExpectRefused(File(One("F32", "[4294967296,4294967296]", "[0,16]"), 16), "overflows");
  ExpectRefused(File(One("F31", "[4]", "[0,16]"), 16), "dtype F31 is not known");
  ExpectRefused(File(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1), "dtype is missing");
  ExpectRefused(File(R"({"a":7})", 0), "not an object");
  ExpectRefused(File(R"({"__metadata__":{"a":7}})", 0), "__metadata__.a is not a string");
}

TEST(SafetensorsTest, MapsAFile) {
  const std::string path = ::testing::TempDir() + "/maps_a_file.safetensors";
  std::string file = File(One("U8", "[3]", "[0,3]"), 0) + "xyz";
  std::ofstream(path, std::ios::binary) << file;
  const auto mapped = SafetensorsFile::Open(path);
  ASSERT_TRUE(mapped.ok()) << mapped.status();
  EXPECT_THAT(mapped->bytes(mapped->header().tensors[0]), ElementsAre('x', 'y', 'z'));

  std::ofstream(path, std::ios::binary) << file << "more";
  const auto longer = SafetensorsFile::Open(path);
  EXPECT_THAT(std::string(longer.status().message()), HasSubstr(path));
  EXPECT_EQ(SafetensorsFile::Open(path + ".absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(::testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsTest, RecognizesFilesOfTorch) {
  const std::string path = ::testing::TempDir() + "/model.pth";
  for (const std::string begin : {"PK\3\4", "\x80\2\x8a\n"}) {
    std::ofstream(path, std::ios::binary) << begin << std::string(100, '\0');
    const auto file = SafetensorsFile::Open(path);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("is a file of torch.save"));
  }
}

TEST(SafetensorsDeathTest, AFileThatIsShortenedWhileItIsReadEndsTheProgramWithAMessage) {
  const std::string path = ::testing::TempDir() + "/is_shortened.safetensors";
  std::ofstream(path, std::ios::binary)
      << File(One("U8", "[100000]", "[0,100000]"), 0) + std::string(100000, 'x');
  EXPECT_EXIT(
      {
        ExitOnTruncatedInput("the file was truncated", 7);
        const auto mapped = SafetensorsFile::Open(path);
        std::filesystem::resize_file(path, 100);
        std::exit(mapped->bytes(mapped->header().tensors[0]).back());
      },
      ::testing::ExitedWithCode(7), "the file was truncated");
}

TEST(SafetensorsTest, KnowsTheTypesOfTheService) {
  EXPECT_EQ(ToDataType("BF16"), DataType::kBFloat16);
  EXPECT_EQ(ToDataType("F8_E4M3"), std::nullopt);
  EXPECT_EQ(ToDataType("f32"), std::nullopt);
}

}  // namespace
}  // namespace nni_compression::cli
