#include "server/shm/region_table.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <limits>
#include <string>

#include "tests/testing/sealed_file.h"

namespace nni_compression::server {
namespace {

using ::nni::compression::v1::SharedPlace;
using ::nni_compression::testing::Mapping;
using ::nni_compression::testing::SealedFile;
using ::testing::HasSubstr;

constexpr int64_t kFileSize = 8192;
constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

SharedPlace At(const std::string& region, uint64_t offset) {
  SharedPlace place;
  place.set_region(region);
  place.set_offset(offset);
  return place;
}

class RegionTableTest : public ::testing::Test {
 protected:
  std::string MessageOfAdding(const FileDescriptor& file, uint64_t size, bool writable = false) {
    return std::string(table_.Add("a", file.get(), size, writable).status().message());
  }

  RegionTable table_{1 << 20};
};

TEST_F(RegionTableTest, ATrainersBytesAreSeenWithoutACopy) {
  const FileDescriptor file = SealedFile(kFileSize);
  const Mapping trainer(file.get(), kFileSize);
  const auto id = table_.Add("a", file.get(), kFileSize, false);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(id->size(), 16u);
  const auto bytes = table_.Find("a", At(*id, 64), 128, false);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  trainer.data()[64] = 7;
  EXPECT_EQ(bytes->data()[0], 7);
  EXPECT_EQ(bytes->size(), 128);
}

TEST_F(RegionTableTest, AFileThatIsNotSealedIsRefusedAndWhatIsMissingIsNamed) {
  EXPECT_THAT(MessageOfAdding(SealedFile(kFileSize, 0), kFileSize),
              HasSubstr("shrinking and growing"));
  EXPECT_THAT(MessageOfAdding(SealedFile(kFileSize, F_SEAL_GROW), kFileSize),
              HasSubstr("F_SEAL_SHRINK"));
  EXPECT_THAT(MessageOfAdding(SealedFile(kFileSize, F_SEAL_SHRINK), kFileSize),
              HasSubstr("F_SEAL_GROW"));
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

TEST_F(RegionTableTest, WhatIsNoMemfdIsRefused) {
  const FileDescriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_THAT(MessageOfAdding(null, kFileSize), HasSubstr("memfd_create"));
  const std::string path = ::testing::TempDir() + "/plain-" + std::to_string(getpid());
  const FileDescriptor plain(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  unlink(path.c_str());
  ASSERT_EQ(ftruncate(plain.get(), kFileSize), 0);
  EXPECT_FALSE(MessageOfAdding(plain, kFileSize).empty());
  EXPECT_FALSE(MessageOfAdding(FileDescriptor(), kFileSize).empty());
}

TEST_F(RegionTableTest, ATruncatedFileIsRefused) {
  const FileDescriptor file = SealedFile(kFileSize);
  EXPECT_THAT(MessageOfAdding(file, 2 * kFileSize), HasSubstr("the size of the file, 8192,"));
  EXPECT_THAT(MessageOfAdding(file, kFileSize - 1), HasSubstr("the size of the file, 8192,"));
  EXPECT_FALSE(MessageOfAdding(file, 0).empty());
  EXPECT_FALSE(MessageOfAdding(file, kHuge).empty());
}

TEST_F(RegionTableTest, ASealedFileCannotBeTruncatedLater) {
  const FileDescriptor file = SealedFile(kFileSize);
  ASSERT_TRUE(table_.Add("a", file.get(), kFileSize, false).ok());
  EXPECT_NE(ftruncate(file.get(), 0), 0);
  EXPECT_NE(ftruncate(file.get(), 2 * kFileSize), 0);
}

TEST_F(RegionTableTest, AFileWithHolesIsRefused) {
  const FileDescriptor file(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(file.get(), kFileSize), 0);
  ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, testing::kBothSeals), 0);
  EXPECT_THAT(MessageOfAdding(file, kFileSize), HasSubstr("holes"));
}

TEST_F(RegionTableTest, AFileOfHugePagesIsRefused) {
  constexpr int64_t kHugePage = 2 << 20;
  RegionTable table(4 * kHugePage);
  const FileDescriptor file(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB));
  if (!file.valid() || ftruncate(file.get(), kHugePage) != 0) GTEST_SKIP() << "no huge pages here";
  ASSERT_EQ(fcntl(file.get(), F_ADD_SEALS, testing::kBothSeals), 0);
  EXPECT_THAT(std::string(table.Add("a", file.get(), kHugePage, false).status().message()),
              HasSubstr("MFD_HUGETLB"));
}

TEST_F(RegionTableTest, AFileThatMayNotBeWrittenToTakesNoResults) {
  EXPECT_FALSE(
      MessageOfAdding(SealedFile(kFileSize, testing::kBothSeals | F_SEAL_WRITE), kFileSize, true)
          .empty());
}

TEST_F(RegionTableTest, OffsetsAndLengthsThatWrapAreRefused) {
  const auto id = table_.Add("a", SealedFile(kFileSize).get(), kFileSize, false);
  ASSERT_TRUE(id.ok());
  const auto fails = [&](uint64_t offset, uint64_t length) {
    return table_.Find("a", At(*id, offset), length, false).status().code() ==
           absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(fails(0, kFileSize + 1));
  EXPECT_TRUE(fails(kFileSize, 1));
  EXPECT_TRUE(fails(kFileSize + 64, 0));
  EXPECT_TRUE(fails(64, kFileSize));
  EXPECT_TRUE(fails(kHuge - 63, 64));     // their sum is 0
  EXPECT_TRUE(fails(64, kHuge - 63));     // likewise
  EXPECT_TRUE(fails(kHuge - 63, kHuge));  // each is beyond the end
  EXPECT_TRUE(fails(0, kHuge));
  EXPECT_TRUE(fails(1, 1));  // not aligned
  EXPECT_FALSE(fails(kFileSize - 64, 64));
  EXPECT_FALSE(fails(kFileSize, 0));
}

TEST_F(RegionTableTest, AnotherTenantsRegionLooksLikeNone) {
  const auto id = table_.Add("a", SealedFile(kFileSize).get(), kFileSize, false);
  ASSERT_TRUE(id.ok());
  const absl::Status other = table_.Find("b", At(*id, 0), 1, false).status();
  const absl::Status none = table_.Find("b", At(std::string(16, 'x'), 0), 1, false).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(other, none);
}

TEST_F(RegionTableTest, OnlyAWritableRegionTakesResults) {
  const auto id = table_.Add("a", SealedFile(kFileSize).get(), kFileSize, false);
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(table_.Find("a", At(*id, 0), 1, true).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RegionTableTest, ARegionIsUnmappedWhenItsLastUserIsGone) {
  const auto id = table_.Add("a", SealedFile(kFileSize).get(), kFileSize, true);
  ASSERT_TRUE(id.ok());
  auto bytes = table_.Find("a", At(*id, 0), kFileSize, true);
  ASSERT_TRUE(bytes.ok());
  table_.Remove(*id);
  EXPECT_EQ(table_.Find("a", At(*id, 0), 1, false).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table_.mapped_bytes(), kFileSize);
  bytes->data()[kFileSize - 1] = 1;  // still there
  bytes = compression::Buffer();
  EXPECT_EQ(table_.mapped_bytes(), 0);
}

TEST_F(RegionTableTest, NoMoreIsMappedThanMayBe) {
  RegionTable table(2 * kFileSize);
  const FileDescriptor file = SealedFile(kFileSize);
  EXPECT_TRUE(table.Add("a", file.get(), kFileSize, false).ok());
  EXPECT_TRUE(table.Add("b", file.get(), kFileSize, false).ok());
  EXPECT_EQ(table.Add("c", file.get(), kFileSize, false).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace nni_compression::server
