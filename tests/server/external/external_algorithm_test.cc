// External algorithms in a real server: what hangs or throws harms nobody else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "server/storage/memory_storage.h"
#include "tests/testing/test_server.h"

namespace nni_compression::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr absl::Duration kTimeout = absl::Seconds(30);

// What the pruner "external" does, by layer: "hang" waits for `release`, "throw" throws, any other
// layer is kept whole. Outlives threads that were given up.
struct Control {
  Latch hanging;
  Latch release;
  Latch back;
  std::atomic<bool> hangs{false};
  std::atomic<int> gradients{0};
};

class ExternalPruner : public compression::Pruner {
 public:
  explicit ExternalPruner(std::shared_ptr<Control> control) : control_(std::move(control)) {
    traits_.observes = {compression::Observation::Kind::kGradient};
  }

  absl::StatusOr<compression::Mask> CalcMask(const compression::Layer& layer,
                                             const compression::Weight& weight,
                                             compression::LayerState& state,
                                             compression::Clock) const override {
    if (layer.name == "throw") throw std::runtime_error("I give up");
    if (layer.name == "hang") {
      control_->hanging.Set();
      control_->release.Wait();
      // All that it was given is still there.
      EXPECT_EQ(weight.values.sum().item<float>(), 3);
      state.opaque = "late";
      control_->back.Set();
    }
    return compression::Mask::Ones(layer.elements);
  }

  absl::Status Observe(const compression::Layer&, const compression::Observation& observation,
                       compression::Clock, compression::LayerState&) const override {
    EXPECT_EQ(observation.gradient.sum().item<float>(), 3);
    ++control_->gradients;
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<Control> control_;
};

// Decides about all layers of a rule together, and hangs.
class HangingJointPruner : public compression::Pruner {
 public:
  explicit HangingJointPruner(std::shared_ptr<Control> control) : control_(std::move(control)) {
    traits_.joint = true;
  }

  absl::StatusOr<compression::Mask> CalcMask(const compression::Layer&, const compression::Weight&,
                                             compression::LayerState&,
                                             compression::Clock) const override {
    return absl::InternalError("never called");
  }

  absl::StatusOr<std::vector<compression::Mask>> CalcMasks(
      std::vector<compression::JointLayer>& layers, compression::Clock) const override {
    control_->hanging.Set();
    control_->release.Wait();
    for (compression::JointLayer& layer : layers) {
      EXPECT_EQ(layer.weight.values.sum().item<float>(), 3);
      layer.state.opaque = "late";
    }
    control_->back.Set();
    return absl::InternalError("too late");
  }

 private:
  const std::shared_ptr<Control> control_;
};

// "naive", which hangs once it is told to.
class HangingQuantizer : public compression::Quantizer {
 public:
  HangingQuantizer(std::unique_ptr<compression::Compressor> naive, std::shared_ptr<Control> control)
      : naive_(std::move(naive)), control_(std::move(control)) {
    traits_.bits = naive_->traits().bits;
  }

  absl::StatusOr<compression::QuantizedWeight> QuantizeWeight(
      const compression::Layer& layer, const compression::Weight& weight,
      compression::QuantizeReply reply, compression::Clock clock,
      compression::LayerState& state) const override {
    if (control_->hangs) {
      control_->hanging.Set();
      control_->release.Wait();
    }
    return naive().QuantizeWeight(layer, weight, reply, clock, state);
  }

 private:
  const compression::Quantizer& naive() const {
    return static_cast<const compression::Quantizer&>(*naive_);
  }

  const std::unique_ptr<compression::Compressor> naive_;
  const std::shared_ptr<Control> control_;
};

// The algorithm "hanging" of a plugin.
compression::AlgorithmInfo Hanging(const std::shared_ptr<Control>& control) {
  compression::AlgorithmInfo info = **compression::Registry::Builtin().Find("naive");
  info.name = "hanging";
  info.source = "hanging.so";
  info.create = [control, naive = info.create](const compression::Options& options)
      -> absl::StatusOr<std::unique_ptr<compression::Compressor>> {
    auto made = naive(options);
    if (!made.ok()) return made.status();
    return std::make_unique<HangingQuantizer>(*std::move(made), control);
  };
  return info;
}

// Answers a byte too few for weights that begin with a number below 0.
class ShortQuantizer : public compression::Quantizer {
 public:
  ShortQuantizer() { traits_.bits = 8; }

  absl::StatusOr<compression::QuantizedWeight> QuantizeWeight(
      const compression::Layer& layer, const compression::Weight& weight,
      compression::QuantizeReply reply, compression::Clock,
      compression::LayerState&) const override {
    compression::QuantizedWeight answer;
    answer.parameters.emplace();
    answer.parameters->scale = {1};
    answer.parameters->zero_point = {0};
    if (reply == compression::QuantizeReply::kValues) answer.dtype = layer.dtype;
    const bool bad = *static_cast<const float*>(weight.values.data_ptr()) < 0;
    answer.data = compression::Buffer::Allocate(
        compression::ByteLength(answer.dtype, layer.elements) - static_cast<int64_t>(bad));
    std::memset(answer.data.data(), 0, static_cast<size_t>(answer.data.size()));
    return answer;
  }
};

using Create = decltype(compression::AlgorithmInfo::create);

class ExternalTest : public ::testing::Test {
 protected:
  ExternalTest() { Restart(); }
  ~ExternalTest() override {
    server_.reset();
    control_->release.Set();
  }

  void Restart() {
    Restart([control = control_](const compression::Options&) {
      return std::make_unique<ExternalPruner>(control);
    });
  }

  void Restart(Create create,
               compression::AlgorithmKind kind = compression::AlgorithmKind::kPruner) {
    server_.reset();
    compression::AlgorithmInfo info;
    info.name = "external";
    info.kind = kind;
    info.source = "external.so";
    info.create = std::move(create);
    server::ServerOptions options;
    options.algorithm_timeout = kTimeout;
    options.compute_threads = 1;
    options.storage = storage_;
    server_ = std::make_unique<TestServer>(options, std::vector{info, Hanging(control_)});
  }

  std::string Bound() {
    return Bind(server_->stub(),
                BindRequest("external", {}, {{"fine", {2}}, {"hang", {2}}, {"throw", {2}}}));
  }

  static MaskMessage Ask(const std::string& session, const std::string& layer) {
    MaskMessage message;
    message.Open(session).Tensor(Header(0, layer, {2}), Bytes({1, 2}));
    return message;
  }

  // How the layer's result failed.
  v1::LayerError Error(const std::string& session, const std::string& layer) {
    v1::CalcMaskResponse response;
    EXPECT_TRUE(CalcMask(server_->stub(), Ask(session, layer), &response).ok());
    EXPECT_EQ(response.results_size(), 1);
    return response.results(0).error();
  }

  v1::Algorithm Listed() {
    grpc::ClientContext context;
    v1::ListAlgorithmsResponse response;
    EXPECT_TRUE(server_->stub().ListAlgorithms(&context, {}, &response).ok());
    for (const v1::Algorithm& algorithm : response.algorithms()) {
      if (algorithm.name() == "external") return algorithm;
    }
    return {};
  }

  // One Step with a gradient of the layer "fine".
  v1::LayerParameters StepWithGradient(const std::string& session, int64_t step,
                                       const std::vector<int64_t>& shape) {
    StepMessage message;
    message.Open(session).Tensor(Header(0, "fine", shape, v1::TENSOR_ROLE_GRADIENT), Bytes({1, 2}));
    message.proto().mutable_open()->set_step(step);
    v1::StepResponse response;
    const grpc::Status status = Step(server_->stub(), message, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.parameters_size(), 1);
    return response.parameters(0);
  }

  const std::shared_ptr<Control> control_ = std::make_shared<Control>();
  const std::shared_ptr<server::Storage> storage_ = std::make_shared<server::MemoryStorage>();
  std::unique_ptr<TestServer> server_;
};

TEST_F(ExternalTest, AnAlgorithmOfAPluginAnswersAsAnyOther) {
  EXPECT_EQ(Error(Bound(), "fine").code(), 0);
  EXPECT_EQ(Listed().source(), "external.so");
  EXPECT_EQ(Listed().refusal(), "");
}

TEST_F(ExternalTest, WhatThrowsIsThatLayersErrorWithAlgorithmAndLayer) {
  const std::string session = Bound();
  const v1::LayerError error = Error(session, "throw");
  EXPECT_EQ(error.code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(error.message(), "external on layer \"throw\": I give up");
  EXPECT_EQ(Error(session, "fine").code(), 0);
}

TEST_F(ExternalTest, AnExportOfAnAnswerThatIsTooShortIsInternalAndTakesNothingOfTheNextTensor) {
  Restart([](const compression::Options&) { return std::make_unique<ShortQuantizer>(); },
          compression::AlgorithmKind::kQuantizer);
  const std::string session = Bind(
      server_->stub(), BindRequest("external", {}, {{"a.weight", {1, 2}}, {"b.weight", {1, 2}}}));
  QuantizeMessage ask;
  ask.Open(session)
      .Tensor(Header(0, "a.weight", {1, 2}), Bytes({1, 2}))
      .Tensor(Header(1, "b.weight", {1, 2}), Bytes({1, 2}));
  ask.proto().mutable_open()->set_reply(v1::QuantizeWeightRequest::REPLY_CODES);
  v1::QuantizeWeightResponse codes;
  ASSERT_TRUE(RunCall<QuantizeStream>(server_->stub(), ask, &codes).ok());
  ASSERT_EQ(codes.results(0).error().code(), 0) << codes.results(0).error().message();
  for (const char* format : {"onnx", "compressed-tensors", "safetensors", "pth", "report"}) {
    for (const float first : {-1.0f, 1.0f}) {
      ExportMessage message;
      message.Open(session)
          .Tensor(Header(0, "a.weight", {1, 2}), Bytes({first, 2}))
          .Tensor(Header(1, "b.weight", {1, 2}), Bytes({1, 2}));
      message.proto().mutable_open()->set_format(format);
      v1::ExportResponse response;
      const grpc::Status status = RunCall<ExportStream>(server_->stub(), message, &response);
      if (first > 0) {
        EXPECT_TRUE(status.ok()) << format << ": " << status.error_message();
      } else {
        EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL) << format;
        EXPECT_THAT(status.error_message(), HasSubstr("answered layer \"a.weight\" with"));
      }
    }
  }
}

TEST_F(ExternalTest, AHangEndsAtTheServersBoundAndTheAlgorithmIsRefusedFromThenOn) {
  const std::string session = Bound();
  const std::string other = Bound();
  MaskStream hung(server_->stub());
  hung.Send(Ask(session, "hang"));
  hung.HalfClose();
  control_->hanging.Wait();

  // Others go on meanwhile, of this algorithm too, although there is one compute thread.
  const std::string level =
      Bind(server_->stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"fc", {2}}}));
  EXPECT_EQ(Error(level, "fc").code(), 0);
  EXPECT_EQ(Error(other, "fine").code(), 0);

  server_->Advance(kTimeout);
  const v1::CalcMaskResponse response = hung.ReadAll();
  EXPECT_TRUE(hung.Finish().ok());
  EXPECT_EQ(response.results(0).error().code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(response.results(0).error().message(),
              AllOf(HasSubstr("external on layer \"hang\""), HasSubstr("30s")));

  const v1::LayerError refused = Error(other, "throw");
  EXPECT_EQ(refused.code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.message(), HasSubstr("is disabled until the server is restarted"));
  EXPECT_THAT(Listed().refusal(), HasSubstr("no answer on layer \"hang\" within 30s"));
  grpc::ClientContext context;
  v1::BindModelResponse bound;
  EXPECT_EQ(server_->stub()
                .BindModel(&context, BindRequest("external", {}, {{"fine", {2}}}), &bound)
                .error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(CloseSession(server_->stub(), session).ok());

  // Whoever comes back late finds all that it owned, and changes nothing.
  control_->release.Set();
  control_->back.Wait();
}

TEST_F(ExternalTest, AHangOfAJointDecisionEndsLikewiseForAllLayers) {
  Restart([control = control_](const compression::Options&) {
    return std::make_unique<HangingJointPruner>(control);
  });
  const std::string session =
      Bind(server_->stub(), BindRequest("external", {}, {{"a", {2}}, {"b", {2}}}));
  MaskMessage message;
  message.Open(session)
      .Tensor(Header(0, "a", {2}), Bytes({1, 2}))
      .Tensor(Header(1, "b", {2}), Bytes({1, 2}));
  MaskStream hung(server_->stub());
  hung.Send(message);
  hung.HalfClose();
  control_->hanging.Wait();
  server_->Advance(kTimeout);
  const v1::CalcMaskResponse response = hung.ReadAll();
  EXPECT_TRUE(hung.Finish().ok());
  ASSERT_EQ(response.results_size(), 2);
  for (const v1::MaskResult& result : response.results()) {
    EXPECT_EQ(result.error().code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(result.error().message(), HasSubstr("external on the layers of a rule: no answer"));
  }
  EXPECT_THAT(Listed().refusal(), HasSubstr("no answer on the layers of a rule within 30s"));
  control_->release.Set();
  control_->back.Wait();
}

TEST_F(ExternalTest, AnExportThatWaitsForExternalCodeHoldsUpNobody) {
  const std::string session = Bind(server_->stub(), BindRequest("hanging", {}, {{"fc", {2}}}));
  const std::string level =
      Bind(server_->stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"fc", {2}}}));
  QuantizeMessage weight;
  weight.Open(session).Tensor(Header(0, "fc", {2}), Bytes({1, 2}));
  v1::QuantizeWeightResponse quantized;
  ASSERT_TRUE(RunCall<QuantizeStream>(server_->stub(), weight, &quantized).ok());

  control_->hangs = true;
  ExportMessage message;
  message.Open(session).Tensor(Header(0, "fc", {2}), Bytes({1, 2}));
  message.proto().mutable_open()->set_format("safetensors");
  ExportStream exported(server_->stub());
  exported.Send(message);
  exported.HalfClose();
  control_->hanging.Wait();
  EXPECT_EQ(Error(level, "fc").code(), 0) << "although there is one compute thread";
  control_->release.Set();
  exported.ReadAll();
  const grpc::Status status = exported.Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ExternalTest, ACallFailsAtItsOwnDeadlineTooAndItsHangIsFoundOutAllTheSame) {
  const std::string session = Bound();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
  const auto hung = server_->stub().CalcMask(&context);
  auto message = Ask(session, "hang");
  hung->Write(message.proto());
  hung->WritesDone();
  EXPECT_EQ(hung->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  control_->hanging.Wait();
  EXPECT_EQ(Listed().refusal(), "");
  server_->Advance(kTimeout);
  // Its turn comes after that of the call that hangs.
  EXPECT_EQ(Error(session, "fine").code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(Listed().refusal(), HasSubstr("on layer \"hang\""));
}

TEST_F(ExternalTest, GradientsReachItThroughStepOncePerStep) {
  const std::string session = Bound();
  for (const int64_t step : {5, 5, 6}) {
    const v1::LayerParameters answer = StepWithGradient(session, step, {2});
    EXPECT_EQ(answer.role(), v1::TENSOR_ROLE_GRADIENT);
    EXPECT_EQ(answer.error().code(), 0) << answer.error().message();
  }
  EXPECT_EQ(control_->gradients, 2);
  v1::GetSessionResponse described;
  ASSERT_TRUE(GetSession(server_->stub(), session, &described).ok());
  EXPECT_THAT(described.plan().rules(0).step_inputs(),
              ::testing::ElementsAre(v1::TENSOR_ROLE_GRADIENT));
}

TEST_F(ExternalTest, AGradientOfAnotherShapeOrThatNobodyWantsIsAnError) {
  const v1::LayerError shape = StepWithGradient(Bound(), 1, {1, 2}).error();
  EXPECT_EQ(shape.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(shape.message(), HasSubstr("shape"));
  const std::string level =
      Bind(server_->stub(), BindRequest("level", {{"sparsity", 0.5}}, {{"fine", {2}}}));
  const v1::LayerError unwanted = StepWithGradient(level, 1, {2}).error();
  EXPECT_EQ(unwanted.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unwanted.message(), HasSubstr("level does not use gradients"));
}

TEST_F(ExternalTest, ASessionOutlivesItsServer) {
  const std::string session = Bound();
  EXPECT_EQ(Error(session, "fine").code(), 0);
  Restart();
  EXPECT_EQ(Error(session, "throw").code(), grpc::StatusCode::INTERNAL);
  v1::GetSessionResponse described;
  ASSERT_TRUE(GetSession(server_->stub(), session, &described).ok());
  EXPECT_EQ(described.session().algorithm(), "external");
}

TEST_F(ExternalTest, ASessionThatAnotherPluginWouldNotBindIsNotDamaged) {
  const std::string session = Bound();
  Restart([](const compression::Options&) { return absl::InvalidArgumentError("not this way"); });
  v1::GetSessionResponse described;
  const grpc::Status status = GetSession(server_->stub(), session, &described);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(),
              AllOf(HasSubstr("cannot be bound again: "), HasSubstr("not this way")));
  Restart();
  EXPECT_EQ(Error(session, "fine").code(), 0);
}

TEST_F(ExternalTest, AServerWithAHungAlgorithmDrains) {
  MaskStream hung(server_->stub());
  hung.Send(Ask(Bound(), "hang"));
  hung.HalfClose();
  control_->hanging.Wait();
  server_->server().Drain(absl::ZeroDuration());
  const v1::CalcMaskResponse response = hung.ReadAll();
  // Its call was cancelled, or was told.
  const grpc::Status status = hung.Finish();
  EXPECT_TRUE(!status.ok() || response.results(0).error().code() == grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace nni_compression::testing
