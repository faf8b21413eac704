#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "nni/compression/v1/compression.pb.h"
#include "proto/wire/frames.h"

namespace nni_compression::wire {
namespace {

using ::nni::compression::v1::CalcMaskRequest;
using ::nni::compression::v1::Chunk;
using ::nni::compression::v1::TensorHeader;
using ::testing::HasSubstr;

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// A message whose bytes are spread over slices of `slice_bytes`.
grpc::ByteBuffer Split(const std::string& bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size(); i += slice_bytes) {
    slices.emplace_back(bytes.substr(i, slice_bytes));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

grpc::ByteBuffer Whole(const std::string& bytes) { return Split(bytes, bytes.size() + 1); }

// What a reader sees in a message, every field consumed.
absl::StatusOr<CalcMaskRequest> ReadAll(const grpc::ByteBuffer& message) {
  MessageReader reader(std::move(message));
  CalcMaskRequest request;
  while (true) {
    const auto field = reader.Next();
    if (!field.ok()) return field.status();
    absl::Status status;
    switch (*field) {
      case 0:
        return request;
      case kOpenOrResult:
        status = reader.Parse(request.mutable_open());
        break;
      case kHeader:
        status = reader.Parse(request.add_headers());
        break;
      case kChunk: {
        const auto chunk = reader.BeginChunk();
        if (!chunk.ok()) return chunk.status();
        std::vector<uint8_t> payload(chunk->payload_bytes);
        status = reader.ReadPayload(absl::MakeSpan(payload));
        Chunk* out = request.add_chunks();
        out->set_index(chunk->index);
        out->set_offset(chunk->offset);
        out->set_payload(payload.data(), payload.size());
        break;
      }
      case kCommit:
        status = reader.Parse(request.add_commits());
        break;
      default:
        status = reader.Skip();
    }
    if (!status.ok()) return status;
  }
}

CalcMaskRequest Sample(int64_t payload_bytes) {
  CalcMaskRequest request;
  request.mutable_open()->set_session_id("0123456789abcdef");
  TensorHeader* header = request.add_headers();
  header->set_index(300);
  header->set_layer("conv1");
  header->add_shape(payload_bytes);
  Chunk* chunk = request.add_chunks();
  chunk->set_index(300);
  chunk->set_offset(uint64_t{1} << 40);
  chunk->set_payload(std::string(payload_bytes, 'p'));
  request.add_commits()->set_index(300);
  return request;
}

void ExpectMalformed(const std::string& bytes, absl::string_view why) {
  const auto read = ReadAll(Whole(bytes));
  ASSERT_FALSE(read.ok()) << read->DebugString();
  EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr(std::string(why)));
}

TEST(MessageWriterTest, WritesWhatProtobufReads) {
  for (const int64_t payload_bytes : {1, 1000, 1024, 1025, 300000}) {
    const CalcMaskRequest sample = Sample(payload_bytes);
    MessageWriter writer;
    CalcMaskRequest fields = sample;
    fields.clear_chunks();
    writer.Append(fields);
    writer.AppendChunk(300, uint64_t{1} << 40, grpc::Slice(sample.chunks(0).payload()));
    const int64_t announced = writer.byte_size();
    const std::string bytes = Flatten(writer.Finish());
    EXPECT_EQ(static_cast<int64_t>(bytes.size()), announced);
    CalcMaskRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes));
    EXPECT_EQ(parsed.SerializeAsString(), sample.SerializeAsString());
  }
}

TEST(MessageWriterTest, JoinsPartialMessagesIntoOne) {
  const CalcMaskRequest sample = Sample(5000);
  CalcMaskRequest open, headers, commits;
  *open.mutable_open() = sample.open();
  *headers.mutable_headers() = sample.headers();
  *commits.mutable_commits() = sample.commits();
  MessageWriter writer;
  writer.Append(open);
  writer.Append(headers);
  writer.AppendChunk(300, sample.chunks(0).offset(), grpc::Slice(sample.chunks(0).payload()));
  writer.Append(commits);
  CalcMaskRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(Flatten(writer.Finish())));
  EXPECT_EQ(parsed.SerializeAsString(), sample.SerializeAsString());
}

TEST(MessageWriterTest, AliasesALargePayload) {
  const std::string payload(100000, 'x');
  MessageWriter writer;
  writer.AppendChunk(1, 0, grpc::Slice(payload.data(), payload.size(), grpc::Slice::STATIC_SLICE));
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(writer.Finish().Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(slices[1].begin(), reinterpret_cast<const uint8_t*>(payload.data()));
}

TEST(MessageWriterTest, DropsTheSliceOfASmallPayloadAtOnce) {
  int dropped = 0;
  std::string payload(kInlineBytes, 'x');
  MessageWriter writer;
  writer.AppendChunk(
      1, 0,
      grpc::Slice(
          payload.data(), payload.size(), [](void* n) { ++*static_cast<int*>(n); }, &dropped));
  EXPECT_EQ(dropped, 1);
  CalcMaskRequest parsed;
  ASSERT_TRUE(parsed.ParseFromString(Flatten(writer.Finish())));
  EXPECT_EQ(parsed.chunks(0).payload(), payload);
}

TEST(MessageWriterTest, IsEmptyAfterFinish) {
  MessageWriter writer;
  EXPECT_TRUE(writer.empty());
  writer.Append(Sample(10));
  EXPECT_FALSE(writer.empty());
  writer.Finish();
  EXPECT_TRUE(writer.empty());
  EXPECT_EQ(Flatten(writer.Finish()), "");
}

TEST(MessageReaderTest, ReadsWhatProtobufWritesHoweverItIsSliced) {
  const CalcMaskRequest sample = Sample(5000);
  const std::string bytes = sample.SerializeAsString();
  for (const size_t slice_bytes : {1, 2, 3, 7, 64, 4096, 100000}) {
    const auto read = ReadAll(Split(bytes, slice_bytes));
    ASSERT_TRUE(read.ok()) << read.status() << " with slices of " << slice_bytes;
    EXPECT_EQ(read->SerializeAsString(), bytes);
  }
}

TEST(MessageReaderTest, ReadsAnEmptyMessage) {
  const auto read = ReadAll(Whole(""));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ByteSizeLong(), 0u);
  const auto invalid = ReadAll(grpc::ByteBuffer());
  ASSERT_TRUE(invalid.ok()) << invalid.status();
  EXPECT_EQ(invalid->ByteSizeLong(), 0u);
}

TEST(MessageReaderTest, RefusesEveryTruncation) {
  const std::string bytes = Sample(100).SerializeAsString();
  int whole_prefixes = 0;
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A prefix that ends between two fields is a message of its own.
    CalcMaskRequest parsed;
    const bool valid = parsed.ParseFromString(bytes.substr(0, n));
    const auto read = ReadAll(Split(bytes.substr(0, n), 5));
    EXPECT_EQ(read.ok(), valid) << "prefix of " << n << " bytes";
    whole_prefixes += valid;
  }
  EXPECT_EQ(whole_prefixes, 4);
}

TEST(MessageReaderTest, RefusesAHugeLengthWithoutAllocating) {
  ExpectMalformed(std::string("\x1a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 10), "truncated");
  // A chunk of 12 bytes whose payload claims 2^40.
  ExpectMalformed(std::string("\x1a\x08\x1a\x80\x80\x80\x80\x80\x20zzzz", 13), "truncated");
}

TEST(MessageReaderTest, RefusesWrongWireTypes) {
  ExpectMalformed(std::string("\x10\x05", 2), "wire type 0");              // headers as varint
  ExpectMalformed(std::string("\x1d\x01\x02\x03\x04", 5), "wire type 5");  // chunks as fixed32
  ExpectMalformed(std::string("\x1a\x02\x0a\x00", 4), "wire type 2");  // a chunk's index as bytes
  ExpectMalformed(std::string("\x1a\x02\x18\x01", 4), "wire type 0");  // a payload as varint
  ExpectMalformed(std::string("\x4b\x4c", 2), "wire type 3");          // a group
  ExpectMalformed(std::string("\x4e", 1), "wire type 6");              // no wire type at all
  ExpectMalformed(std::string("\x02\x00", 2), "field number 0");
}

TEST(MessageReaderTest, RefusesAPayloadThatIsNotLast) {
  // payload "p", then offset 1
  ExpectMalformed(std::string("\x1a\x05\x1a\x01p\x10\x01", 7), "not its last field");
  // two payloads
  ExpectMalformed(std::string("\x1a\x06\x1a\x01p\x1a\x01q", 8), "not its last field");
}

TEST(MessageReaderTest, RefusesAPayloadThatReachesPastItsChunk) {
  ExpectMalformed(std::string("\x1a\x03\x1a\x05pqrst", 9), "not its last field");
  // A field of the chunk ends beyond the chunk but inside the message.
  ExpectMalformed(std::string("\x1a\x02\x22\x03pqr", 7), "truncated");
}

TEST(MessageReaderTest, RefusesAChunkIndexAbove32Bits) {
  ExpectMalformed(std::string("\x1a\x06\x08\x80\x80\x80\x80\x10", 8), "index");
}

TEST(MessageReaderTest, ReadsAChunkWithoutAPayload) {
  const auto read = ReadAll(Whole(std::string("\x1a\x02\x08\x07\x1a\x00\x1a\x02\x1a\x00", 10)));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->chunks_size(), 3);
  EXPECT_EQ(read->chunks(0).index(), 7u);
  for (const Chunk& chunk : read->chunks()) EXPECT_EQ(chunk.payload(), "");
}

TEST(MessageReaderTest, SkipsFieldsThatItDoesNotKnow) {
  std::string bytes("\x48\x96\x01", 3);  // 9: varint
  bytes += std::string(
      "\x51"
      "12345678",
      9);  // 10: fixed64
  bytes += std::string(
      "\x5d"
      "1234",
      5);  // 11: fixed32
  bytes += std::string(
      "\x62\x03"
      "abc",
      5);                                                        // 12: bytes
  bytes += std::string("\x1a\x07\x20\x05\x08\x07\x1a\x01p", 9);  // a chunk with a field 4
  const auto read = ReadAll(Whole(bytes));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->chunks_size(), 1);
  EXPECT_EQ(read->chunks(0).index(), 7u);
  EXPECT_EQ(read->chunks(0).payload(), "p");
}

TEST(MessageReaderTest, SkipsAPayload) {
  CalcMaskRequest sample = Sample(5000);
  MessageReader reader(Split(sample.SerializeAsString(), 100));
  std::vector<int> fields;
  while (true) {
    const auto field = reader.Next();
    ASSERT_TRUE(field.ok()) << field.status();
    if (*field == 0) break;
    fields.push_back(*field);
    if (*field == kChunk) {
      ASSERT_TRUE(reader.BeginChunk().ok());
      ASSERT_TRUE(reader.SkipPayload().ok());
    } else {
      ASSERT_TRUE(reader.Skip().ok());
    }
  }
  EXPECT_THAT(fields, ::testing::ElementsAre(1, 2, 3, 4));
}

TEST(MessageReaderTest, RefusesADestinationOfAnotherSize) {
  MessageReader reader(Whole(Sample(100).SerializeAsString()));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(reader.Next().ok());
    ASSERT_TRUE(reader.Skip().ok());
  }
  ASSERT_EQ(*reader.Next(), kChunk);
  ASSERT_EQ(reader.BeginChunk()->payload_bytes, 100);
  std::vector<uint8_t> small(99);
  EXPECT_EQ(reader.ReadPayload(absl::MakeSpan(small)).code(), absl::StatusCode::kInternal);
}

TEST(MessageReaderTest, RefusesAFieldThatIsNotItsMessage) {
  CalcMaskRequest sample;
  sample.add_headers()->set_layer("conv1");
  std::string bytes = sample.SerializeAsString();
  bytes[bytes.size() - 1] = '\xff';  // no longer UTF-8
  ExpectMalformed(bytes, "not a valid nni.compression.v1.TensorHeader");
}

TEST(MessageReaderTest, RefusesAFieldLargerThanAllowed) {
  CalcMaskRequest sample;
  sample.add_headers()->set_layer(std::string(kMaxFieldBytes + 1, 'n'));
  ExpectMalformed(sample.SerializeAsString(), "at most 1048576");
}

TEST(MessageReaderTest, RefusesAMessageLargerThanAllowed) {
  CalcMaskRequest sample;
  sample.add_chunks()->set_payload(std::string(kMaxMessageBytes, 'p'));
  ExpectMalformed(sample.SerializeAsString(), "at most 4194304");
}

TEST(MessageReaderTest, RefusesDeepNesting) {
  nni::compression::v1::ExportRequest request;
  auto* list =
      (*request.mutable_open()->mutable_options()->mutable_fields())["a"].mutable_list_value();
  for (int depth = 0; depth < 40; ++depth) list = list->add_values()->mutable_list_value();
  MessageReader reader(Whole(request.SerializeAsString()));
  ASSERT_EQ(*reader.Next(), kOpenOrResult);
  nni::compression::v1::ExportRequest::Open open;
  EXPECT_EQ(reader.Parse(&open).code(), absl::StatusCode::kInvalidArgument);
}

TEST(MessageReaderTest, CopiesPayloadsFromManyChunksOfOneMessage) {
  MessageWriter writer;
  std::string expected;
  for (int i = 0; i < 50; ++i) {
    const std::string payload(i * 97 + 1, static_cast<char>('a' + i % 26));
    writer.AppendChunk(i, expected.size(), grpc::Slice(payload));
    expected += payload;
  }
  const auto read = ReadAll(writer.Finish());
  ASSERT_TRUE(read.ok()) << read.status();
  std::string joined;
  for (const Chunk& chunk : read->chunks()) {
    EXPECT_EQ(chunk.offset(), joined.size());
    joined += chunk.payload();
  }
  EXPECT_EQ(joined, expected);
}

}  // namespace
}  // namespace nni_compression::wire
