#include "server/convert/convert.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace nni_compression::server {
namespace {

namespace v1 = ::nni::compression::v1;

TEST(ConvertDataTypeTest, EveryTypeOfTheWireHasItsNumberInTheLibrary) {
  for (int number = v1::DATA_TYPE_FLOAT32; number <= v1::DATA_TYPE_BIT; ++number) {
    const auto on_wire = static_cast<v1::DataType>(number);
    const auto dtype = ToDataType(on_wire, "dtype");
    ASSERT_TRUE(dtype.ok()) << dtype.status();
    EXPECT_EQ(static_cast<int>(*dtype), number);
    EXPECT_EQ(ToProto(*dtype), on_wire);
  }
}

TEST(ConvertDataTypeTest, NamesTheRangeForAnotherNumber) {
  EXPECT_EQ(ToDataType(v1::DATA_TYPE_UNSPECIFIED, "dtype").status().message(),
            "dtype is 0; it must be in [1, 12]");
  EXPECT_FALSE(ToDataType(static_cast<v1::DataType>(13), "dtype").ok());
}

class ConvertCountsTest : public ::testing::Test {
 protected:
  // The error of a message, behind the name of the layer; empty: none.
  std::string ErrorOf(const std::string& content) const {
    compression::Buffer bytes = compression::Buffer::Allocate(static_cast<int64_t>(content.size()));
    std::memcpy(bytes.data(), content.data(), content.size());
    v1::TensorHeader header;
    header.set_layer("conv");
    const auto rounds = ToCounts(header, bytes);
    if (rounds.ok()) return "";
    EXPECT_EQ(rounds.status().code(), absl::StatusCode::kInvalidArgument);
    const std::string message(rounds.status().message());
    EXPECT_EQ(message.substr(0, 18), "counts of 'conv': ");
    return message.substr(18);
  }
  std::string ErrorOf(const v1::MagnitudeCounts& counts) const {
    return ErrorOf(counts.SerializeAsString());
  }

  ConvertCountsTest() {
    round_->set_prefix(7);
    for (const uint32_t digit : {3, 65532}) round_->add_digits(digit);
    for (const uint64_t count : {1, 5}) round_->add_counts(count);
  }

  v1::MagnitudeCounts counts_;
  v1::MagnitudeCounts::Round* const round_ = counts_.add_rounds();
};

TEST_F(ConvertCountsTest, DigitsAreDifferences) {
  const std::string content = counts_.SerializeAsString();
  compression::Buffer bytes = compression::Buffer::Allocate(static_cast<int64_t>(content.size()));
  std::memcpy(bytes.data(), content.data(), content.size());
  const auto rounds = ToCounts({}, bytes);
  ASSERT_TRUE(rounds.ok()) << rounds.status();
  ASSERT_EQ(rounds->size(), 1u);
  EXPECT_EQ((*rounds)[0].prefix, 7u);
  ASSERT_EQ((*rounds)[0].digits.size(), 2u);
  EXPECT_EQ((*rounds)[0].digits[1].digit, 65535);
  EXPECT_EQ((*rounds)[0].digits[1].count, 5);
}

TEST_F(ConvertCountsTest, NamesWhatIsWrong) {
  EXPECT_EQ(ErrorOf(counts_), "");
  EXPECT_EQ(ErrorOf("\xff\xff"), "they are not a MagnitudeCounts");
  round_->set_counts(1, 0);
  EXPECT_EQ(ErrorOf(counts_), "rounds[0].counts[1] is 0; it must be in [1, 2^63)");
  round_->set_counts(1, ~uint64_t{0});
  EXPECT_EQ(ErrorOf(counts_),
            "rounds[0].counts[1] is 18446744073709551615; it must be in [1, 2^63)");
  round_->set_counts(1, 5);
  for (const uint32_t digit : {0u, 65533u, ~0u}) {
    round_->set_digits(1, digit);
    EXPECT_EQ(ErrorOf(counts_), absl::StrCat("rounds[0].digits[1] is ", digit,
                                             "; digits must ascend and be in [0, 65535]"));
  }
  round_->set_digits(1, 1);
  round_->add_digits(1);
  EXPECT_EQ(ErrorOf(counts_), "rounds[0] has 3 digits and 2 counts; it must have as many of each");
}

// The counts of a weight take at most a MiB for each of its rounds.
TEST_F(ConvertCountsTest, ChecksTheirSize) {
  v1::TensorHeader header;
  header.set_layer("conv");
  header.set_dtype(v1::DATA_TYPE_UINT8);
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{2 << 20}, int64_t{(2 << 20) + 1}}) {
    header.clear_shape();
    header.add_shape(size);
    header.set_byte_length(static_cast<uint64_t>(size));
    const absl::Status status = CheckCounts(header, compression::DataType::kFloat32);
    EXPECT_EQ(status.ok(), size >= 1 && size <= 2 << 20) << status;
  }
  EXPECT_EQ(CheckCounts(header, compression::DataType::kFloat32).message(),
            "byte_length of the counts of 'conv' is 2097153; it must be in [1, 2097152]");
}

}  // namespace
}  // namespace nni_compression::server
