// The streaming calls through a real server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/tensors/weight_cache.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class StreamsTest : public ::testing::Test {
 protected:
  explicit StreamsTest(server::ServerOptions options = {}) : server_(std::move(options)) {}

  v1::CompressionService::Stub& stub() { return server_.stub(); }

  std::string BindLevel(const std::map<std::string, std::vector<int64_t>>& layers) {
    return Bind(stub(), BindRequest("level", {{"sparsity", 0.5}}, layers));
  }
  std::string BindQat(const std::map<std::string, std::vector<int64_t>>& layers,
                      const std::map<std::string, double>& options = {},
                      const std::string& scheme = "per_tensor_affine") {
    v1::BindModelRequest request = BindRequest("qat", options, layers);
    (*request.mutable_config_list(0)->mutable_fields())["quant_scheme"].set_string_value(scheme);
    return Bind(stub(), request);
  }

  TestServer server_;
};

const char kLayer[] = "fc";

// TensorHeader.digest.
std::string DigestOf(const v1::TensorHeader& header, const std::string& bytes) {
  server::TensorDigest digest(header);
  digest.Add(reinterpret_cast<const uint8_t*>(bytes.data()), static_cast<int64_t>(bytes.size()));
  return digest.Finish();
}

std::string FourFloats() { return Bytes({1, 4, 3, 2}); }

TEST_F(StreamsTest, CalcMaskAnswersASmallCallInOneMessage) {
  const std::string id = BindLevel({{kLayer, {4}}});
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id).Tensor(Header(9, kLayer, {4}), FourFloats()));
  v1::CalcMaskResponse reply;
  ASSERT_TRUE(stream.Read(&reply)) << "before the half-close";
  ASSERT_EQ(reply.results_size(), 1);
  EXPECT_EQ(reply.results(0).answers(), 9u);
  EXPECT_EQ(reply.results(0).layer(), kLayer);
  EXPECT_EQ(reply.results(0).target_sparsity(), 0.5);
  EXPECT_EQ(reply.results(0).achieved_sparsity(), 0.5);
  ASSERT_EQ(reply.headers_size(), 1);
  EXPECT_EQ(reply.headers(0).role(), v1::TENSOR_ROLE_MASK);
  EXPECT_EQ(reply.headers(0).dtype(), v1::DATA_TYPE_BIT);
  EXPECT_THAT(reply.headers(0).shape(), ElementsAre(4));
  EXPECT_EQ(PayloadOf(reply, reply.headers(0).index()), std::string(1, 0b0110));
  ASSERT_EQ(reply.commits_size(), 1);
  EXPECT_EQ(reply.commits(0).byte_length(), 1u);
  stream.HalfClose();
  EXPECT_FALSE(stream.Read(&reply));
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(StreamsTest, CalcMaskTakesATensorOfManyMessages) {
  const int64_t n = 3 << 20;
  const std::string id = BindLevel({{kLayer, {n}}});
  std::vector<float> weight(n);
  for (int64_t i = 0; i < n; ++i) weight[i] = static_cast<float>((i * 2654435761u) % n);
  const std::string bytes = Bytes(weight);
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id).Add(Header(0, kLayer, {n})));
  for (size_t at = 0; at < bytes.size(); at += 3000000) {
    stream.Send(MaskMessage().Chunk(0, at, bytes.substr(at, 3000000)));
  }
  stream.Send(MaskMessage().Commit(0, bytes.size()));
  stream.HalfClose();
  const v1::CalcMaskResponse reply = stream.ReadAll();
  ASSERT_TRUE(stream.Finish().ok());
  const std::string mask = PayloadOf(reply, 0);
  ASSERT_EQ(mask.size(), static_cast<size_t>(n / 8));
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_EQ((mask[i >> 3] >> (i & 7)) & 1, weight[i] >= static_cast<float>(n / 2)) << i;
  }
}

TEST_F(StreamsTest, AMessageOfExactlyFourMebibytesPasses) {
  const int64_t n = 1 << 20;
  const std::string id = BindLevel({{kLayer, {n}}});
  MaskMessage message;
  message.Open(id).Add(Header(0, kLayer, {n})).Chunk(0, 0, "");
  const size_t frame = message.proto().ByteSizeLong();
  size_t payload = (4 << 20) - frame;
  const auto fill = [&] {
    message.proto().mutable_chunks(0)->set_payload(std::string(payload, 0));
    return message.proto().ByteSizeLong();
  };
  while (fill() > size_t{4 << 20}) --payload;
  ASSERT_EQ(message.proto().ByteSizeLong(), size_t{4 << 20});
  MaskStream stream(stub());
  ASSERT_TRUE(stream.Send(message));
  stream.Send(MaskMessage().Chunk(0, payload, std::string(n * 4 - payload, 0)).Commit(0, n * 4));
  stream.HalfClose();
  EXPECT_EQ(stream.ReadAll().results_size(), 1);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(StreamsTest, AMaskOfTheTrainerIsTakenAndAnswered) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::TensorHeader header = Header(0, kLayer, {4}, v1::TENSOR_ROLE_MASK);
  header.set_dtype(v1::DATA_TYPE_BIT);
  header.set_byte_length(1);
  v1::CalcMaskResponse reply;
  ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Tensor(header, "\x0e"), &reply).ok());
  EXPECT_EQ(reply.results(0).achieved_sparsity(), 0.25);
  EXPECT_EQ(PayloadOf(reply, 0), "\x0e");
}

TEST_F(StreamsTest, AnotherEpochThanTheSessionsIsAFailedPrecondition) {
  const std::string id = BindLevel({{kLayer, {4}}});
  MaskMessage message;
  message.Open(id).Tensor(Header(0, kLayer, {4}), FourFloats());
  message.proto().mutable_open()->set_epoch(3);
  v1::CalcMaskResponse reply;
  EXPECT_EQ(CalcMask(stub(), message, &reply).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(reply.results_size(), 0);
}

TEST_F(StreamsTest, AHeaderWithANewDigestIsAnsweredWithSend) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::TensorHeader header = Header(0, kLayer, {4});
  header.set_digest(DigestOf(header, FourFloats()));
  MaskStream stream(stub());
  stream.Send(MaskMessage().Open(id).Add(header));
  v1::CalcMaskResponse reply;
  ASSERT_TRUE(stream.Read(&reply));
  ASSERT_EQ(reply.answers_size(), 1);
  EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_SEND);
  stream.Send(MaskMessage().Chunk(0, 0, FourFloats()).Commit(0, 16));
  ASSERT_TRUE(stream.Read(&reply));
  EXPECT_EQ(reply.results_size(), 1);
}

// What the server keeps, as a client in any language would use it.
class KnownWeightsTest : public StreamsTest {
 protected:
  // Whether FindWeights knows the fingerprint.
  bool MayHave(const std::string& session, const std::string& fingerprint) {
    v1::FindWeightsRequest request;
    request.set_session_id(session);
    request.add_fingerprints(fingerprint);
    grpc::ClientContext context;
    context.AddMetadata("nni-route", "test");
    v1::FindWeightsResponse response;
    EXPECT_TRUE(stub().FindWeights(&context, request, &response).ok());
    return response.may_have_size() == 1 && response.may_have(0);
  }

  // Sends FourFloats with a fingerprint, and waits until they are kept.
  void Keep() {
    const std::string id = BindLevel({{kLayer, {4}}});
    v1::TensorHeader header = Header(0, kLayer, {4});
    header.set_fingerprint("a fingerprint");
    v1::CalcMaskResponse reply;
    ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Tensor(header, FourFloats()), &reply).ok());
    ASSERT_TRUE(Eventually([&] { return MayHave(id, "a fingerprint"); }));
  }

  v1::TensorHeader Named(const std::string& digest) {
    v1::TensorHeader header = Header(0, kLayer, {4});
    header.set_digest(digest);
    return header;
  }

  // The reply to a header and a commit, without a payload.
  v1::CalcMaskResponse Refer(const v1::TensorHeader& header) {
    const std::string id = BindLevel({{kLayer, {4}}});
    v1::CalcMaskResponse reply;
    EXPECT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Add(header).Commit(0, 16), &reply).ok());
    return reply;
  }
};

TEST_F(KnownWeightsTest, AWeightThatCameBeforeNeedsNoPayload) {
  Keep();
  const auto reply = Refer(Named(DigestOf(Header(0, kLayer, {4}), FourFloats())));
  ASSERT_EQ(reply.answers_size(), 1);
  EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_HAVE);
  ASSERT_EQ(reply.results_size(), 1);
  EXPECT_EQ(PayloadOf(reply, reply.headers(0).index()), std::string(1, 0b0110));
}

TEST_F(KnownWeightsTest, ADigestOfBytesThatNeverCameIsAnsweredWithSendAndNothingElse) {
  const auto reply = Refer(Named(std::string(32, 'd')));
  ASSERT_EQ(reply.answers_size(), 1);
  EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_SEND);
  EXPECT_EQ(reply.results_size(), 0);
}

// The bytes that are kept belong to one dtype and one shape, whatever a header says.
TEST_F(KnownWeightsTest, ADigestOfATensorOfAnotherKindIsAnsweredWithSend) {
  Keep();
  const std::string digest = DigestOf(Header(0, kLayer, {4}), FourFloats());
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{2}, {3}, {5}, {256}, {100000}, {2, 2}, {4, 1}}) {
    const std::string id = BindLevel({{kLayer, shape}});
    v1::TensorHeader header = Header(0, kLayer, shape);
    header.set_digest(digest);
    v1::CalcMaskResponse reply;
    ASSERT_TRUE(
        CalcMask(stub(), MaskMessage().Open(id).Add(header).Commit(0, header.byte_length()), &reply)
            .ok());
    ASSERT_EQ(reply.answers_size(), 1);
    EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_SEND) << header.shape(0);
    EXPECT_EQ(reply.results_size(), 0);
  }
  v1::BindModelRequest request = BindRequest("level", {{"sparsity", 0.5}}, {{kLayer, {4}}});
  for (const v1::DataType dtype : {v1::DATA_TYPE_FLOAT16, v1::DATA_TYPE_FLOAT64}) {
    request.mutable_layers(0)->set_dtype(dtype);
    const uint64_t bytes = dtype == v1::DATA_TYPE_FLOAT16 ? 8 : 32;
    const std::string id = Bind(stub(), request);
    v1::TensorHeader header = Header(0, kLayer, {4});
    header.set_dtype(dtype);
    header.set_byte_length(bytes);
    header.set_digest(digest);
    v1::CalcMaskResponse reply;
    ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Add(header).Commit(0, bytes), &reply).ok());
    ASSERT_EQ(reply.answers_size(), 1);
    EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_SEND);
  }
}

TEST_F(KnownWeightsTest, ADigestThatBytesDoNotHaveIsDataLossAndKeepsNothing) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::TensorHeader header = Named(std::string(32, 'd'));
  header.set_fingerprint("a fingerprint");
  v1::CalcMaskResponse reply;
  const grpc::Status status =
      CalcMask(stub(), MaskMessage().Open(id).Tensor(header, FourFloats()), &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(status.error_message(), HasSubstr("digest of tensor 0"));
  EXPECT_FALSE(MayHave(id, "a fingerprint"));
  EXPECT_EQ(Refer(Named(std::string(32, 'd'))).answers(0).answer(), v1::TensorAnswer::ANSWER_SEND);
}

TEST_F(KnownWeightsTest, OneFingerprintForTwoWeightsLeadsToNoMixUp) {
  Keep();
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::TensorHeader header = Header(0, kLayer, {4});
  header.set_fingerprint("a fingerprint");
  v1::CalcMaskResponse reply;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(header, Bytes({4, 1, 2, 3})), &reply).ok());
  EXPECT_EQ(PayloadOf(reply, reply.headers(0).index()), std::string(1, 0b1001));
}

TEST_F(KnownWeightsTest, AWeightOutlivesTheSessionThatBroughtIt) {
  Keep();
  server_.Advance(absl::Hours(10));  // all leases end
  const auto reply = Refer(Named(DigestOf(Header(0, kLayer, {4}), FourFloats())));
  EXPECT_EQ(reply.answers(0).answer(), v1::TensorAnswer::ANSWER_HAVE);
}

class KnownWeightsOfTenantsTest : public StreamsTest {
 protected:
  KnownWeightsOfTenantsTest() : StreamsTest(Options()) {}

  static server::ServerOptions Options() {
    server::ServerOptions options;
    options.authenticator = TenantFromMetadata();
    return options;
  }

  // One session of the tenant. With a payload the weight is sent with its digest, otherwise it is
  // only referred to.
  v1::TensorAnswer::Answer AnswerTo(const std::string& tenant, bool with_payload) {
    grpc::ClientContext context;
    context.AddMetadata("tenant", tenant);
    v1::BindModelResponse bound;
    EXPECT_TRUE(
        stub()
            .BindModel(&context, BindRequest("level", {{"sparsity", 0.5}}, {{kLayer, {4}}}), &bound)
            .ok());
    v1::TensorHeader header = Header(0, kLayer, {4});
    header.set_digest(DigestOf(header, FourFloats()));

    Stream<v1::CalcMaskRequest, v1::CalcMaskResponse> stream([&](grpc::ClientContext* call) {
      call->AddMetadata("tenant", tenant);
      return stub().CalcMask(call);
    });
    MaskMessage message = MaskMessage().Open(bound.session_id());
    stream.Send(with_payload ? message.Tensor(header, FourFloats())
                             : message.Add(header).Commit(0, 16));
    stream.HalfClose();
    const auto reply = stream.ReadAll();
    EXPECT_TRUE(stream.Finish().ok());
    EXPECT_EQ(reply.answers_size(), 1);
    return reply.answers_size() == 1 ? reply.answers(0).answer()
                                     : v1::TensorAnswer::ANSWER_UNSPECIFIED;
  }
};

TEST_F(KnownWeightsOfTenantsTest, ATenantCannotTellWhatAnotherOneHasSent) {
  EXPECT_EQ(AnswerTo("first", /*with_payload=*/true), v1::TensorAnswer::ANSWER_SEND);
  EXPECT_EQ(AnswerTo("first", /*with_payload=*/false), v1::TensorAnswer::ANSWER_HAVE);
  EXPECT_EQ(AnswerTo("second", /*with_payload=*/false), v1::TensorAnswer::ANSWER_SEND);
  EXPECT_EQ(AnswerTo("second", /*with_payload=*/true), v1::TensorAnswer::ANSWER_SEND);
  EXPECT_EQ(AnswerTo("second", /*with_payload=*/false), v1::TensorAnswer::ANSWER_HAVE);
}

TEST_F(KnownWeightsTest, TheKeptWeightsShapeHasToFitTheLayer) {
  Keep();
  const std::string id = BindLevel({{kLayer, {2, 2}}});
  v1::TensorHeader header = Header(0, kLayer, {4});
  header.set_digest(DigestOf(header, FourFloats()));
  v1::CalcMaskResponse reply;
  ASSERT_TRUE(CalcMask(stub(), MaskMessage().Open(id).Add(header).Commit(0, 16), &reply).ok());
  ASSERT_EQ(reply.results_size(), 1);
  EXPECT_THAT(reply.results(0).error().message(), HasSubstr("shape"));
}

TEST_F(KnownWeightsTest, FindWeightsNeedsASessionAndAReasonableQuestion) {
  v1::FindWeightsRequest request;
  request.set_session_id("nobody's");
  v1::FindWeightsResponse response;
  grpc::ClientContext first;
  first.AddMetadata("nni-route", "test");
  EXPECT_EQ(stub().FindWeights(&first, request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  for (int i = 0; i < 65537; ++i) request.add_fingerprints("12345678");
  grpc::ClientContext second;
  second.AddMetadata("nni-route", "test");
  const grpc::Status status = stub().FindWeights(&second, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("65537 fingerprints; at most 65536"));
}

TEST_F(KnownWeightsTest, AFingerprintOfAnotherLengthIsRefused) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::TensorHeader header = Header(0, kLayer, {4});
  header.set_fingerprint("short");
  v1::CalcMaskResponse reply;
  const grpc::Status status =
      CalcMask(stub(), MaskMessage().Open(id).Tensor(header, FourFloats()), &reply);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("fingerprint of tensor 0 has 5 bytes"));
}

TEST_F(StreamsTest, ABadLayerIsAnsweredAndTheOthersGoOn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  v1::BindModelRequest request = BindRequest(
      "level", {{"sparsity", 0.5}}, {{"good", {4}}, {"inf", {4}}, {"nan", {4}}, {"none", {4}}});
  auto& names = *(*request.add_config_list()->mutable_fields())["op_names"].mutable_list_value();
  names.add_values()->set_string_value("none");
  (*request.mutable_config_list(1)->mutable_fields())["exclude"].set_bool_value(true);
  const std::string id = Bind(stub(), request);
  const int64_t before = server_.server().memory_reserved();
  v1::TensorHeader dtype = Header(4, "good", {4});
  dtype.set_dtype(v1::DATA_TYPE_FLOAT16);
  v1::TensorHeader length = Header(5, "good", {4});
  length.set_byte_length(15);
  v1::TensorHeader role = Header(6, "good", {4}, v1::TENSOR_ROLE_GRADIENT);
  MaskMessage message;
  message.Open(id)
      .Tensor(Header(0, "nan", {4}), Bytes({1, 2, nan, 4}))
      .Tensor(Header(1, "unknown", {4}), FourFloats())
      .Tensor(Header(2, "none", {4}), FourFloats())
      .Tensor(Header(3, "good", {2, 2}), FourFloats())
      .Tensor(dtype, FourFloats())
      .Tensor(length, FourFloats().substr(1))
      .Tensor(role, FourFloats())
      .Tensor(Header(7, "inf", {4}), Bytes({-inf, 1, 2, 3}))
      .Tensor(Header(8, "good", {4}), FourFloats());
  v1::CalcMaskResponse reply;
  const grpc::Status status = CalcMask(stub(), message, &reply);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(reply.results_size(), 9);
  std::map<uint32_t, v1::MaskResult> results;
  for (const v1::MaskResult& result : reply.results()) results[result.answers()] = result;
  EXPECT_THAT(results[0].error().message(), HasSubstr("nan"));
  EXPECT_THAT(results[0].error().message(), HasSubstr("2"));
  EXPECT_EQ(results[1].error().code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_THAT(results[2].error().message(), HasSubstr("not compressed"));
  EXPECT_THAT(results[3].error().message(), HasSubstr("is [2, 2]; it must be [4]"));
  EXPECT_THAT(results[4].error().message(), HasSubstr("is float16; it must be float32"));
  EXPECT_THAT(results[5].error().message(), HasSubstr("is 15; it must be 16"));
  EXPECT_THAT(results[6].error().message(),
              HasSubstr("TENSOR_ROLE_WEIGHT or TENSOR_ROLE_COUNTS or TENSOR_ROLE_MASK"));
  EXPECT_EQ(results[7].error().code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_FALSE(results[8].has_error());
  EXPECT_EQ(PayloadOf(reply, 8), std::string(1, 0b0110));
  EXPECT_TRUE(server_.MemoryReturnsTo(before));
  v1::GetSessionResponse session;
  ASSERT_TRUE(GetSession(stub(), id, &session).ok());
  EXPECT_EQ(session.session().achieved_sparsity(), 2.0 / 12) << "the others stay as they were";
}

TEST_F(StreamsTest, AWrongKindOfSessionIsAFailedPrecondition) {
  const std::string pruner = BindLevel({{kLayer, {4}}});
  const std::string quantizer = BindQat({{kLayer, {4}}});
  v1::CalcMaskResponse masks;
  v1::QuantizeWeightResponse codes;
  EXPECT_EQ(
      CalcMask(stub(),
               MaskMessage().Open(quantizer).Tensor(Header(0, kLayer, {4}), Bytes({-1, 2, 3, 5})),
               &masks)
          .error_code(),
      grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(RunCall<QuantizeStream>(stub(), QuantizeMessage().Open(pruner), &codes).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(StreamsTest, QuantizeWeightAnswersCodesAndParameters) {
  const std::string id = BindQat({{kLayer, {4}}});
  v1::QuantizeWeightResponse reply;
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(),
                  QuantizeMessage().Open(id).Tensor(Header(3, kLayer, {4}), Bytes({-1, 2, 3, 5})),
                  &reply)
                  .ok());
  ASSERT_EQ(reply.results_size(), 1);
  const v1::QuantizationParameters& parameters = reply.results(0).parameters();
  EXPECT_EQ(parameters.formula(), v1::FORMULA_AFFINE);
  EXPECT_EQ(parameters.bits(), 8u);
  EXPECT_THAT(parameters.scale(), ElementsAre(6.0f / 255));
  EXPECT_THAT(parameters.zero_point(), ElementsAre(42));
  EXPECT_EQ(reply.results(0).tensors(), 1u);
  ASSERT_EQ(reply.headers_size(), 1);
  EXPECT_EQ(reply.headers(0).role(), v1::TENSOR_ROLE_CODES);
  EXPECT_EQ(reply.headers(0).answers(), 3u);
  // 5 * 255 / 6 is 212.5, and goes to the even 212.
  EXPECT_EQ(PayloadOf(reply, reply.headers(0).index()), std::string("\x00\x7f\xaa\xfe", 4));
}

TEST_F(StreamsTest, QuantizeWeightAnswersValuesOrParametersOnly) {
  const std::string id = BindQat({{kLayer, {4}}});
  QuantizeMessage message;
  message.Open(id).Tensor(Header(0, kLayer, {4}), Bytes({1, 2, 3, 5}));
  message.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_VALUES);
  v1::QuantizeWeightResponse values;
  ASSERT_TRUE(RunCall<QuantizeStream>(stub(), message, &values).ok());
  EXPECT_EQ(values.headers(0).role(), v1::TENSOR_ROLE_WEIGHT);
  EXPECT_EQ(values.headers(0).dtype(), v1::DATA_TYPE_FLOAT32);
  EXPECT_EQ(Floats(PayloadOf(values, 0)), (std::vector<float>{1, 2, 3, 5}));

  message.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_PARAMETERS);
  v1::QuantizeWeightResponse parameters;
  ASSERT_TRUE(RunCall<QuantizeStream>(stub(), message, &parameters).ok());
  EXPECT_EQ(parameters.headers_size(), 0);
  EXPECT_EQ(parameters.results(0).tensors(), 0u);
  EXPECT_EQ(parameters.results(0).parameters().scale(0), 5.0f / 255);
}

TEST_F(StreamsTest, PerChannelParametersComeAsTensors) {
  const std::string id = BindQat({{kLayer, {2, 2}}}, {}, "per_channel_affine");
  v1::QuantizeWeightResponse reply;
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(),
                  QuantizeMessage().Open(id).Tensor(Header(0, kLayer, {2, 2}), Bytes({0, 1, 0, 2})),
                  &reply)
                  .ok());
  EXPECT_EQ(reply.results(0).tensors(), 3u);
  EXPECT_EQ(reply.results(0).parameters().channel_axis(), 0u);
  EXPECT_EQ(reply.results(0).parameters().scale_size(), 0);
  ASSERT_EQ(reply.headers_size(), 3);
  EXPECT_EQ(reply.headers(1).role(), v1::TENSOR_ROLE_SCALE);
  EXPECT_EQ(reply.headers(2).role(), v1::TENSOR_ROLE_ZERO_POINT);
  EXPECT_EQ(Floats(PayloadOf(reply, reply.headers(1).index())),
            (std::vector<float>{1.0f / 255, 2.0f / 255}));
}

TEST_F(StreamsTest, ARangeGetsTheParametersOfItsWeight) {
  const std::string id = BindQat({{kLayer, {4}}});
  v1::QuantizeWeightResponse weight, range;
  ASSERT_TRUE(RunCall<QuantizeStream>(
                  stub(),
                  QuantizeMessage().Open(id).Tensor(Header(0, kLayer, {4}), Bytes({-1, 2, 3, 5})),
                  &weight)
                  .ok());
  ASSERT_TRUE(
      RunCall<QuantizeStream>(stub(),
                              QuantizeMessage().Open(id).Tensor(
                                  Header(0, kLayer, {2}, v1::TENSOR_ROLE_RANGE), Bytes({-1, 5})),
                              &range)
          .ok());
  EXPECT_EQ(range.results(0).parameters().SerializeAsString(),
            weight.results(0).parameters().SerializeAsString());
  EXPECT_EQ(range.headers_size(), 0);
}

TEST_F(StreamsTest, BeforeItsStartStepAWeightStaysUnquantized) {
  const std::string id = BindQat({{kLayer, {4}}}, {{"quant_start_step", 2}});
  const QuantizeMessage message =
      QuantizeMessage().Open(id).Tensor(Header(0, kLayer, {4}), FourFloats());
  v1::QuantizeWeightResponse early, late;
  ASSERT_TRUE(RunCall<QuantizeStream>(stub(), message, &early).ok());
  EXPECT_TRUE(early.results(0).unquantized());
  EXPECT_EQ(early.headers_size(), 0);
  v1::StepResponse step;
  StepMessage two;
  two.Open(id).proto().mutable_open()->set_step(2);
  ASSERT_TRUE(Step(stub(), two, &step).ok());
  EXPECT_THAT(step.stale_layers(), ElementsAre(kLayer));
  ASSERT_TRUE(RunCall<QuantizeStream>(stub(), message, &late).ok());
  EXPECT_FALSE(late.results(0).unquantized());
  EXPECT_EQ(late.headers_size(), 1);
}

StepMessage StepWithRange(const std::string& id, int64_t step, const std::vector<float>& range) {
  StepMessage message;
  message.Open(id).Tensor(Header(0, kLayer, {2}, v1::TENSOR_ROLE_RANGE), Bytes(range));
  message.proto().mutable_open()->set_step(step);
  return message;
}

TEST_F(StreamsTest, StepAppliesRangesOncePerStep) {
  const std::string id = Bind(stub(), BindRequest("naive", {}, {{kLayer, {4}}}));
  v1::StepResponse first, repeated, next;
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 1, {-127, 1}), &first).ok());
  ASSERT_EQ(first.parameters_size(), 1);
  EXPECT_EQ(first.parameters(0).parameters().scale(0), 1.0f);
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 1, {-254, 1}), &repeated).ok());
  EXPECT_EQ(repeated.step(), 1);
  EXPECT_EQ(repeated.parameters(0).parameters().scale(0), 1.0f) << "the step was applied before";
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 2, {-254, 1}), &next).ok());
  EXPECT_EQ(next.parameters(0).parameters().scale(0), 2.0f);
}

TEST_F(StreamsTest, StepAnswersABadRangeAndTakesTheOthers) {
  const std::string id = Bind(stub(), BindRequest("naive", {}, {{"a", {4}}, {"b", {4}}}));
  StepMessage message;
  message.Open(id)
      .Tensor(Header(5, "a", {2}, v1::TENSOR_ROLE_RANGE), Bytes({1, -1}))
      .Tensor(Header(1, "c", {2}, v1::TENSOR_ROLE_RANGE), Bytes({0, 1}))
      .Tensor(Header(3, "b", {2}, v1::TENSOR_ROLE_RANGE), Bytes({0, 127}));
  v1::StepResponse response;
  ASSERT_TRUE(Step(stub(), message, &response).ok());
  ASSERT_EQ(response.parameters_size(), 3) << "in their order";
  EXPECT_EQ(response.parameters(0).error().code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(response.parameters(1).error().code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(response.parameters(2).parameters().scale(0), 1.0f);
}

TEST_F(StreamsTest, ALayerWithABadRangeTakesPartAgainInTheNextStep) {
  const std::string id = Bind(stub(), BindRequest("naive", {}, {{kLayer, {4}}}));
  v1::StepResponse response;
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 1, {1, -1}), &response).ok());
  EXPECT_EQ(response.parameters(0).error().code(), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 1, {0, 127}), &response).ok());
  EXPECT_FALSE(response.parameters(0).has_parameters()) << "the step was applied";
  ASSERT_TRUE(Step(stub(), StepWithRange(id, 2, {0, 127}), &response).ok());
  EXPECT_EQ(response.parameters(0).parameters().scale(0), 1.0f);
}

TEST_F(StreamsTest, StepKeepsTheRunningRangeOfOutputsAndARetryChangesNothing) {
  v1::BindModelRequest request = BindRequest("qat", {}, {{kLayer, {4}}});
  auto* types =
      (*request.mutable_config_list(0)->mutable_fields())["quant_types"].mutable_list_value();
  for (const char* type : {"weight", "output"}) types->add_values()->set_string_value(type);
  v1::BindModelResponse bound;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub().BindModel(&context, request, &bound).ok());
  }
  EXPECT_TRUE(bound.plan().needs_step());
  EXPECT_THAT(bound.plan().rules(0).step_inputs(),
              ElementsAre(v1::TENSOR_ROLE_RANGE, v1::TENSOR_ROLE_OUTPUT_RANGE));
  const auto step_with = [&](int64_t step, const std::vector<float>& range, v1::TensorRole role) {
    StepMessage message;
    message.Open(bound.session_id()).Tensor(Header(0, kLayer, {2}, role), Bytes(range));
    message.proto().mutable_open()->set_step(step);
    v1::StepResponse response;
    EXPECT_TRUE(Step(stub(), message, &response).ok());
    EXPECT_EQ(response.parameters_size(), 1);
    return response.parameters(0);
  };
  const auto first = step_with(1, {0, 255}, v1::TENSOR_ROLE_OUTPUT_RANGE);
  EXPECT_EQ(first.role(), v1::TENSOR_ROLE_OUTPUT_RANGE);
  EXPECT_EQ(first.parameters().scale(0), 1.0f);
  const auto retried = step_with(1, {0, 510}, v1::TENSOR_ROLE_OUTPUT_RANGE);
  EXPECT_EQ(retried.parameters().scale(0), 1.0f) << "the step was applied before";
  EXPECT_THAT(retried.range(), ElementsAre(0.0f, 255.0f));
  const auto next = step_with(2, {0, 510}, v1::TENSOR_ROLE_OUTPUT_RANGE);
  EXPECT_EQ(next.range(1), 0.99f * 255 + 0.01f * 510);
  const auto refused = step_with(3, {0, 1}, v1::TENSOR_ROLE_INPUT_RANGE);
  EXPECT_EQ(refused.error().code(), grpc::StatusCode::INVALID_ARGUMENT);

  v1::GetSessionRequest get;
  get.set_session_id(bound.session_id());
  v1::GetSessionResponse report;
  grpc::ClientContext context;
  ASSERT_TRUE(stub().GetSession(&context, get, &report).ok());
  EXPECT_EQ(report.session().layers(0).output().scale(0), next.parameters().scale(0));
  EXPECT_FALSE(report.session().layers(0).has_input());
}

TEST_F(StreamsTest, AStepThatFailsChangesNothing) {
  const std::string id = Bind(stub(), BindRequest("naive", {}, {{kLayer, {4}}}));
  StepMessage broken = StepWithRange(id, 1, {0, 127});
  broken.proto().mutable_commits(0)->set_crc32(1);
  v1::StepResponse response;
  EXPECT_EQ(Step(stub(), broken, &response).error_code(), grpc::StatusCode::DATA_LOSS);
  v1::GetSessionResponse session;
  ASSERT_TRUE(GetSession(stub(), id, &session).ok());
  EXPECT_EQ(session.session().step(), 0);
}

// The files of an export, by name.
std::map<std::string, std::string> Files(const v1::ExportResponse& response) {
  std::map<std::string, std::string> files;
  for (const v1::FileHeader& file : response.files()) {
    files[file.name()] = PayloadOf(response, file.index());
    EXPECT_EQ(files[file.name()].size(), file.byte_length());
  }
  EXPECT_EQ(response.commits_size(), response.files_size());
  return files;
}

// The header of a safetensors file, and the bytes after it.
std::pair<nlohmann::json, std::string> ParseSafetensors(const std::string& file) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  return {nlohmann::json::parse(file.substr(8, length)), file.substr(8 + length)};
}

std::string TensorIn(const std::string& file, const std::string& name) {
  const auto [header, data] = ParseSafetensors(file);
  const auto offsets = header.at(name).at("data_offsets");
  return data.substr(offsets[0].get<size_t>(), offsets[1].get<size_t>() - offsets[0].get<size_t>());
}

TEST_F(StreamsTest, ExportsMasks) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, kLayer, {4}), FourFloats()), &masks)
          .ok());
  ExportMessage message;
  message.Open(id).proto().mutable_open()->set_format("masks");
  v1::ExportResponse response;
  const grpc::Status status = RunCall<ExportStream>(stub(), message, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto files = Files(response);
  ASSERT_TRUE(files.count("masks.safetensors"));
  ASSERT_TRUE(files.count("masks.packed.safetensors"));
  const auto [header, data] = ParseSafetensors(files.at("masks.safetensors"));
  EXPECT_NE(data.find(std::string("\x00\x01\x01\x00", 4)), std::string::npos) << header;
}

TEST_F(StreamsTest, ExportsCompressedWeightsBesideOtherTensors) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, kLayer, {4}), FourFloats()), &masks)
          .ok());
  const int64_t before = server_.server().memory_reserved();
  const int64_t n = 5 << 18;
  const std::string large(n * 4, 'L');
  ExportStream stream(stub());
  ExportMessage open;
  open.Open(id).Add(Header(0, kLayer, {4})).Add(Header(1, "bias", {n}));
  open.proto().mutable_open()->set_format("safetensors");
  stream.Send(open);
  stream.Send(ExportMessage().Chunk(0, 0, FourFloats()).Commit(0, 16));
  for (size_t at = 0; at < large.size(); at += 1 << 20) {
    stream.Send(ExportMessage().Chunk(1, at, large.substr(at, 1 << 20)));
  }
  stream.Send(ExportMessage().Commit(1, large.size()));
  stream.HalfClose();
  const v1::ExportResponse response = stream.ReadAll();
  const grpc::Status status = stream.Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  const std::string file = Files(response).at("model.safetensors");
  EXPECT_EQ(Floats(TensorIn(file, kLayer)), (std::vector<float>{0, 4, 3, 0}));
  EXPECT_EQ(TensorIn(file, "bias"), large);
  // Less where the call before it had not given back all of its own yet.
  EXPECT_TRUE(Eventually([&] { return server_.server().memory_reserved() <= before; }));
}

TEST_F(StreamsTest, AnExportReservesWhatItKeepsBesideItsTensors) {
  constexpr int kLayers = 1000;
  server::ServerOptions options;
  options.memory_budget = 5 << 20;
  TestServer server(options);
  std::map<std::string, std::vector<int64_t>> layers;
  ExportMessage message;
  MaskMessage ask;
  for (int i = 0; i < kLayers; ++i) {
    const std::string name = absl::StrCat("layer", i);
    layers[name] = {1};
    message.Tensor(Header(static_cast<uint32_t>(i), name, {1}), Bytes({1}));
    ask.Tensor(Header(static_cast<uint32_t>(i), name, {1}), Bytes({1}));
  }
  const std::string id = Bind(server.stub(), BindRequest("level", {{"sparsity", 0.5}}, layers));
  v1::CalcMaskResponse masks;
  ASSERT_TRUE(CalcMask(server.stub(), ask.Open(id), &masks).ok());
  const int64_t before = server.server().memory_reserved();
  message.Open(id).proto().mutable_open()->set_format("report");
  auto& bins = (*message.proto().mutable_open()->mutable_options()->mutable_fields())["bins"];
  for (const int count : {1000, 10}) {
    bins.set_number_value(count);
    v1::ExportResponse response;
    const grpc::Status status = RunCall<ExportStream>(server.stub(), message, &response);
    if (count == 10) {
      ASSERT_TRUE(status.ok()) << status.error_message();
      EXPECT_EQ(Files(response).size(), 2u);
    } else {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
      EXPECT_THAT(status.error_message(), HasSubstr("the bookkeeping of the export"));
    }
    EXPECT_TRUE(Eventually([&] { return server.server().memory_reserved() <= before; }));
  }
}

TEST_F(StreamsTest, AnExportNeedsTheBytesOfATensorWhateverItsDigest) {
  const std::string id = BindLevel({{kLayer, {4}}});
  v1::CalcMaskResponse mask;
  ASSERT_TRUE(
      CalcMask(stub(), MaskMessage().Open(id).Tensor(Header(0, kLayer, {4}), FourFloats()), &mask)
          .ok());
  for (const std::string format : {"safetensors", "report"}) {
    v1::TensorHeader header = Header(0, kLayer, {4});
    header.set_digest(std::string(32, 'd'));
    ExportMessage message;
    message.Open(id).Add(header).Commit(0, 16);
    message.proto().mutable_open()->set_format(format);
    v1::ExportResponse response;
    const grpc::Status status = RunCall<ExportStream>(stub(), message, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << format;
    EXPECT_THAT(status.error_message(), HasSubstr("tensor 0 was committed without its bytes"));
    EXPECT_TRUE(Files(response).empty());
  }
  // Who waits for the answer is told to send.
  v1::TensorHeader header = Header(0, kLayer, {4});
  header.set_digest(DigestOf(header, FourFloats()));
  ExportMessage message;
  message.Open(id).Add(header).Chunk(0, 0, FourFloats()).Commit(0, 16);
  message.proto().mutable_open()->set_format("safetensors");
  v1::ExportResponse response;
  const grpc::Status status = RunCall<ExportStream>(stub(), message, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Files(response).size(), 1u);
}

TEST_F(StreamsTest, AnExportsOptionsAreNestedNoDeeperThanOtherFields) {
  const std::string id = BindLevel({{kLayer, {4}}});
  ExportMessage message;
  message.Open(id).proto().mutable_open()->set_format("masks");
  google::protobuf::Struct* options = message.proto().mutable_open()->mutable_options();
  for (int i = 0; i < 20; ++i) options = (*options->mutable_fields())["o"].mutable_struct_value();
  v1::ExportResponse response;
  const grpc::Status status = RunCall<ExportStream>(stub(), message, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("is not a valid"));
}

TEST_F(StreamsTest, AnExportThatCannotBeIsRefused) {
  const std::string id = BindLevel({{kLayer, {4}}});
  const auto status = [&](const std::string& format,
                          const std::function<void(ExportMessage&)>& change) {
    ExportMessage message;
    message.Open(id).proto().mutable_open()->set_format(format);
    change(message);
    v1::ExportResponse response;
    return RunCall<ExportStream>(stub(), message, &response);
  };
  const auto nothing = [](ExportMessage&) {};
  EXPECT_EQ(status("onnx", nothing).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status("masks", nothing).error_code(), grpc::StatusCode::FAILED_PRECONDITION)
      << "there is no mask yet";
  EXPECT_THAT(status("safetensors",
                     [](ExportMessage& m) {
                       m.Tensor(Header(0, kLayer, {2, 2}), FourFloats());
                     })
                  .error_message(),
              HasSubstr("is [2, 2]; it must be [4]"));
  EXPECT_THAT(status("safetensors",
                     [](ExportMessage& m) { m.Tensor(Header(0, "a\nb", {4}), FourFloats()); })
                  .error_message(),
              HasSubstr("control character"));
  EXPECT_THAT(status("safetensors",
                     [](ExportMessage& m) { m.Add(Header(0, "x", {1})).Add(Header(1, "x", {1})); })
                  .error_message(),
              HasSubstr("unique"));
  EXPECT_THAT(status("safetensors",
                     [](ExportMessage& m) {
                       m.Add(Header(0, "x", {1})).Add(Header(1, "y", {1}));
                       m.Chunk(1, 0, "1234").Commit(1, 4).Chunk(0, 0, "1234").Commit(0, 4);
                     })
                  .error_message(),
              HasSubstr("in the order of the headers"));
  v1::GetSessionResponse session;
  EXPECT_TRUE(GetSession(stub(), id, &session).ok());
}

}  // namespace
}  // namespace nni_compression::testing
