#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compression/exporters/exporter.h"
#include "compression/exporters/safetensors_header.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

// A file as the client gets it, in pieces of `piece` bytes; `tensors` are what it sent.
std::string Stream(const ExportFile& file, const std::vector<at::Tensor>& tensors, int64_t piece) {
  std::string bytes;
  int next_tensor = 0;
  for (const Segment& segment : file.segments()) {
    const size_t before = bytes.size();
    if (segment.tensor) {
      EXPECT_EQ(*segment.tensor, next_tensor++);
      const std::string sent = BytesOf(tensors[*segment.tensor]);
      Buffer buffer = Buffer::Allocate(static_cast<int64_t>(sent.size()));
      std::memcpy(buffer.data(), sent.data(), sent.size());
      EXPECT_THAT(segment.Apply(buffer), IsOk());
      bytes += BytesOf(buffer);
    } else {
      for (int64_t offset = 0; offset < segment.byte_length; offset += piece) {
        std::vector<uint8_t> out(std::min(piece, segment.byte_length - offset));
        segment.fill(offset, absl::MakeSpan(out));
        bytes.append(out.begin(), out.end());
      }
    }
    EXPECT_EQ(static_cast<int64_t>(bytes.size() - before), segment.byte_length);
  }
  EXPECT_EQ(static_cast<int64_t>(bytes.size()), file.byte_length());
  return bytes;
}

// A safetensors file, read by the format's description.
struct Parsed {
  json header;
  std::string data;

  explicit Parsed(const std::string& bytes) {
    uint64_t length;
    std::memcpy(&length, bytes.data(), 8);
    EXPECT_EQ(length % 8, 0u);
    header = json::parse(bytes.substr(8, length));
    data = bytes.substr(8 + length);
    // Offsets cover the data without holes.
    std::set<std::pair<int64_t, int64_t>> spans;
    for (const auto& [name, entry] : header.items()) {
      if (name != "__metadata__") spans.emplace(entry["data_offsets"][0], entry["data_offsets"][1]);
    }
    int64_t end = 0;
    for (const auto& [from, to] : spans) {
      EXPECT_EQ(from, end);
      end = to;
    }
    EXPECT_EQ(end, static_cast<int64_t>(data.size()));
  }

  std::string Tensor(const std::string& name) const {
    const int64_t from = header.at(name)["data_offsets"][0];
    const int64_t to = header.at(name)["data_offsets"][1];
    return data.substr(from, to - from);
  }
};

ExportTensor Announce(const std::string& name, const at::Tensor& tensor,
                      DataType dtype = DataType::kFloat32) {
  return {name, dtype, tensor.sizes().vec(), static_cast<int64_t>(tensor.nbytes())};
}

// A pruner's session over conv1 [2, 5] and conv2 [3], which were pruned, and bias, which is not.
std::unique_ptr<Session> PrunedSession() {
  const json config_list = {{{"sparsity", 0.5}}, {{"exclude", true}, {"op_names", {"bias"}}}};
  auto session =
      TryBind(MakeBinding("level", config_list,
                          {MakeLayer("conv1", {2, 5}), MakeLayer("conv2", {3}, DataType::kFloat16),
                           MakeLayer("bias", {2})}))
          .value();
  EXPECT_THAT(session->SetMask(0, MaskOf("0110101101")), IsOk());
  EXPECT_THAT(session->SetMask(1, MaskOf("001")), IsOk());
  return session;
}

std::vector<ExportFile> PlanFiles(const Session& session, const std::string& format,
                                  const std::vector<ExportTensor>& tensors = {},
                                  const json& options = json::object()) {
  auto plan = FindExporter(format).value()->Plan(session, tensors, options);
  EXPECT_THAT(plan, IsOk());
  return plan.ok() ? std::move(plan->files) : std::vector<ExportFile>();
}

TEST(ExporterTest, AnUnknownFormatGetsTheListAndASuggestion) {
  EXPECT_THAT(
      FindExporter("safetensor"),
      IsInvalid("format is \"safetensor\"; it must be one of compressed-tensors, masks, onnx, pth, "
                "report, safetensors, sparse; did you mean `safetensors`?"));
}

TEST(MasksExporterTest, WritesOneByteAndOneBitAnElement) {
  auto session = PrunedSession();
  const std::vector<ExportFile> files = PlanFiles(*session, "masks");
  ASSERT_EQ(files.size(), 2u);
  for (int64_t piece : {1, 3, 1000}) {
    EXPECT_EQ(files[0].name(), "masks.safetensors");
    const Parsed plain(Stream(files[0], {}, piece));
    EXPECT_EQ(plain.header["conv1"]["dtype"], "U8");
    EXPECT_EQ(plain.header["conv1"]["shape"], json({2, 5}));
    EXPECT_EQ(plain.Tensor("conv1"), std::string("\0\1\1\0\1\0\1\1\0\1", 10));
    EXPECT_EQ(plain.Tensor("conv2"), std::string("\0\0\1", 3));
    EXPECT_FALSE(plain.header.contains("bias"));

    EXPECT_EQ(files[1].name(), "masks.packed.safetensors");
    const Parsed packed(Stream(files[1], {}, piece));
    EXPECT_EQ(packed.header["conv1"]["shape"], json({2}));
    EXPECT_EQ(packed.Tensor("conv1"), BytesOf(session->state(0).mask->bits()));
    EXPECT_EQ(packed.Tensor("conv2"), "\4");
    const json shapes =
        json::parse(packed.header["__metadata__"]["nni_compression.shapes"].get<std::string>());
    EXPECT_EQ(shapes["conv1"], json({2, 5}));
  }
}

TEST(MasksExporterTest, TheFilesStayWhenTheSessionMovesOn) {
  auto session = PrunedSession();
  const std::vector<ExportFile> files = PlanFiles(*session, "masks");
  const std::string before = Stream(files[0], {}, 100);
  ASSERT_THAT(session->SetMask(0, MaskOf("1111111111")), IsOk());
  EXPECT_EQ(Stream(files[0], {}, 100), before);
  session.reset();
  EXPECT_EQ(Stream(files[0], {}, 100), before);
}

TEST(MasksExporterTest, RefusesWhatItCannotDo) {
  const Exporter& masks = *FindExporter("masks").value();
  auto session = PrunedSession();
  const ExportTensor tensor = Announce("conv1", Random({2, 5}, 1));
  EXPECT_THAT(masks.Plan(*session, {tensor}, json::object()),
              IsInvalid(HasSubstr("it must have none")));
  EXPECT_THAT(masks.Plan(*session, {}, {{"compress", true}}),
              IsInvalid(HasSubstr("options has the unknown key \"compress\"")));
  auto fresh = BindOne("level", {{"sparsity", 0.5}}, {4});
  EXPECT_THAT(masks.Plan(*fresh, {}, json::object()),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("\"layer\" has no mask yet")));
  auto quantizer = BindOne("qat", json::object(), {4});
  EXPECT_THAT(masks.Plan(*quantizer, {}, json::object()),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("has no masks")));
}

TEST(SafetensorsExporterTest, WritesZerosIntoPrunedWeightsAndPassesTheRestThrough) {
  auto session = PrunedSession();
  const std::vector<at::Tensor> tensors = {
      Values({-1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, DataType::kFloat32, {2, 5}), Random({2}, 1),
      Values({1, 2, 3}, DataType::kFloat16), Values({5, 6}, DataType::kInt64)};
  const std::vector<ExportFile> files =
      PlanFiles(*session, "safetensors",
                {Announce("conv1", tensors[0]), Announce("bias", tensors[1]),
                 Announce("conv2", tensors[2], DataType::kFloat16),
                 Announce("bn.count", tensors[3], DataType::kInt64)});
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].name(), "model.safetensors");
  session.reset();  // the files own what they need
  const Parsed parsed(Stream(files[0], tensors, 5));
  EXPECT_EQ(parsed.Tensor("conv1"), BytesOf(Values({0, 2, 3, 0, 5, 0, 7, 8, 0, 10})));
  EXPECT_EQ(parsed.Tensor("conv2"), BytesOf(Values({0, 0, 3}, DataType::kFloat16)));
  EXPECT_EQ(parsed.Tensor("bias"), BytesOf(tensors[1]));
  EXPECT_EQ(parsed.Tensor("bn.count"), BytesOf(tensors[3]));
  EXPECT_EQ(parsed.header["conv2"]["dtype"], "F16");
  EXPECT_EQ(parsed.header["bn.count"]["dtype"], "I64");
  EXPECT_EQ(parsed.header["__metadata__"]["format"], "pt");
}

TEST(SafetensorsExporterTest, WritesTheQuantizedValues) {
  auto session = BindOne("qat", {{"quant_bits", 3}}, {4, 4});
  const at::Tensor weight = Random({4, 4}, 2);
  const auto values = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
  const auto files = PlanFiles(*session, "safetensors", {Announce("layer", weight)});
  session.reset();
  EXPECT_EQ(Parsed(Stream(files[0], {weight}, 100)).Tensor("layer"), BytesOf(values->data));
}

// Quantized first and masked then: the scale is that of the whole weight.
TEST(SafetensorsExporterTest, AQuantizedWeightHasZerosWhereTheTrainerGaveAMask) {
  const at::Tensor weight = Values({-8, 1, 2, 3, 4, 7}, DataType::kFloat32, {2, 3});
  for (const char* algorithm : {"naive", "qat", "dorefa"}) {
    auto session = BindOne(algorithm, json::object(), {2, 3});
    auto values = session->QuantizeWeight(0, weight, QuantizeReply::kValues);
    ASSERT_THAT(values, IsOk());
    ASSERT_THAT(session->SetMask(0, MaskOf("011101")), IsOk());
    auto* expected = reinterpret_cast<float*>(values->data.data());
    expected[0] = expected[4] = 0;
    const auto files = PlanFiles(*session, "safetensors", {Announce("layer", weight)});
    EXPECT_EQ(Parsed(Stream(files[0], {weight}, 100)).Tensor("layer"), BytesOf(values->data));
  }
  auto unchanged = BindOne("qat", {{"quant_types", {"output"}}}, {2, 3});
  ASSERT_THAT(unchanged->SetMask(0, MaskOf("011101")), IsOk());
  const auto files = PlanFiles(*unchanged, "safetensors", {Announce("layer", weight)});
  EXPECT_EQ(Parsed(Stream(files[0], {weight}, 100)).Tensor("layer"),
            BytesOf(Values({0, 1, 2, 3, 0, 7})));
}

// Of every type and granularity of codes.
TEST(OnnxExporterTest, CodesThatAreMaskedStandForZero) {
  const at::Tensor weight = Random({4, 6}, 5);
  const std::string kept = "011011011011110110111001";
  for (const json& rule :
       std::vector<json>{{{"quant_bits", 4}},
                         {{"quant_bits", 12}},
                         {{"quant_scheme", "per_channel_symmetric"}},
                         {{"quant_bits", 12}, {"quant_scheme", "per_channel_symmetric"}},
                         {{"quant_scheme", "per_channel_affine"}},
                         {{"quant_scheme", "per_channel_affine"}, {"group_size", 3}}}) {
    auto session = BindOne("qat", rule, {4, 6});
    auto codes = session->QuantizeWeight(0, weight, QuantizeReply::kCodes);
    ASSERT_THAT(codes, IsOk());
    ASSERT_THAT(session->SetMask(0, MaskOf(kept)), IsOk());
    std::string expected = BytesOf(codes->data);
    const QuantizationParameters& p = *codes->parameters;
    const size_t size = ByteLength(codes->dtype, 1);
    for (size_t i = 0; i < kept.size(); ++i) {
      if (kept[i] == '1') continue;
      const size_t per_number = kept.size() / p.zero_point.size();
      std::memcpy(&expected[i * size], &p.zero_point[i / per_number], size);
    }
    const auto files = PlanFiles(*session, "onnx", {Announce("layer", weight)});
    EXPECT_EQ(Parsed(Stream(files[0], {weight}, 100)).Tensor("layer.codes"), expected) << rule;
  }
}

// The file is planned before the weight comes, whatever was answered before.
TEST(OnnxExporterTest, DorefasValuesAreWrittenWhetherOrNotTheWeightIsZero) {
  const at::Tensor zeros = Values({0, 0, 0, 0}, DataType::kFloat32, {2, 2});
  const at::Tensor others = Values({1, -2, 3, -4}, DataType::kFloat32, {2, 2});
  for (const auto& [asked, written] : {std::pair(zeros, others), std::pair(others, zeros)}) {
    auto session = BindOne("dorefa", json::object(), {2, 2});
    ASSERT_THAT(session->QuantizeWeight(0, asked, QuantizeReply::kCodes), IsOk());
    const auto files = PlanFiles(*session, "onnx", {Announce("layer", written)});
    EXPECT_EQ(Parsed(Stream(files[0], {written}, 100)).Tensor("layer"),
              BytesOf(session->QuantizeWeight(0, written, QuantizeReply::kValues)->data));
  }
}

TEST(CompressedTensorsExporterTest, RefusesDorefaWhateverWasAnsweredLast) {
  auto session =
      TryBind(MakeBinding("dorefa", {json::object()}, {MakeLayer("fc.weight", {2, 2})})).value();
  const at::Tensor zeros = Values({0, 0, 0, 0}, DataType::kFloat32, {2, 2});
  const auto plan = [&] {
    return FindExporter("compressed-tensors")
        .value()
        ->Plan(*session, {Announce("fc.weight", zeros)}, json::object());
  };
  EXPECT_THAT(plan(), IsInvalid(HasSubstr("is quantized by DoReFa's formula")));
  ASSERT_THAT(session->QuantizeWeight(0, zeros, QuantizeReply::kCodes), IsOk());
  EXPECT_THAT(plan(), IsInvalid(HasSubstr("is quantized by DoReFa's formula")));
}

// Every algorithm and granularity: a layer that was asked for, one that never was, and one whose
// weight was another.
TEST(ExporterTest, FilesDependOnTheWeightsSentAndNotOnEarlierAnswers) {
  const at::Tensor weight = Random({4, 6}, 1);
  const std::vector<std::pair<std::string, json>> rules = {
      {"naive", json::object()},
      {"dorefa", {{"quant_bits", 3}}},
      {"qat", {{"quant_bits", 4}}},
      {"qat", {{"quant_scheme", "per_tensor_symmetric"}}},
      {"qat", {{"quant_scheme", "per_channel_affine"}, {"quant_bits", 4}}},
      {"qat", {{"quant_scheme", "per_channel_symmetric"}, {"group_size", 2}}},
      {"qat", {{"quant_scheme", "per_channel_affine"}, {"group_size", 3}, {"quant_bits", 2}}}};
  for (const auto& [algorithm, rule] : rules) {
    for (const std::string format : {"onnx", "compressed-tensors", "safetensors", "pth"}) {
      if (algorithm == "dorefa" && format == "compressed-tensors") continue;
      std::vector<std::string> results;
      for (const double earlier : {-1.0, 0.0, 1e-3}) {  // none, zeros, small ones
        auto session =
            TryBind(MakeBinding(algorithm, {rule}, {MakeLayer("fc.weight", {4, 6})})).value();
        if (earlier >= 0) {
          const at::Tensor other = Random({4, 6}, 2, DataType::kFloat32, earlier);
          ASSERT_THAT(session->QuantizeWeight(0, other, QuantizeReply::kCodes), IsOk());
        }
        std::string bytes;
        for (const ExportFile& file :
             PlanFiles(*session, format, {Announce("fc.weight", weight)})) {
          const std::string whole = Stream(file, {weight}, 1000);
          EXPECT_EQ(Stream(file, {weight}, 1), whole);
          bytes += whole;
        }
        results.push_back(bytes);
      }
      EXPECT_EQ(results[1], results[0]) << algorithm << rule << format;
      EXPECT_EQ(results[2], results[0]) << algorithm << rule << format;
    }
  }
}

TEST(SafetensorsExporterTest, RefusesAQuantizedWeightThatIsNotFiniteOrTooEarly) {
  auto early = BindOne("qat", {{"quant_start_step", 5}}, {2});
  const at::Tensor weight = Values({1, 2});
  const auto transform = [&](const Session& session) {
    const auto files = PlanFiles(session, "safetensors", {Announce("layer", weight)});
    Buffer buffer = Buffer::Allocate(8);
    std::memset(buffer.data(), 0xff, 8);
    return files[0].segments()[1].transform(buffer);
  };
  EXPECT_THAT(transform(*BindOne("qat", json::object(), {2})),
              IsInvalid(HasSubstr("element 0 is")));
  const auto files = PlanFiles(*early, "safetensors", {Announce("layer", weight)});
  Buffer buffer = Buffer::Allocate(8);
  std::memcpy(buffer.data(), weight.data_ptr(), 8);
  EXPECT_THAT(files[0].segments()[1].transform(buffer),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("before its start step")));
}

TEST(SafetensorsExporterTest, RefusesTensorsThatDoNotFitTheSession) {
  const Exporter& exporter = *FindExporter("safetensors").value();
  auto session = PrunedSession();
  const ExportTensor conv1 = Announce("conv1", Random({2, 5}, 1));
  const ExportTensor conv2 =
      Announce("conv2", Random({3}, 1, DataType::kFloat16), DataType::kFloat16);
  EXPECT_THAT(exporter.Plan(*session, {conv1}, json::object()),
              IsInvalid(HasSubstr("tensors lack the weight of layer \"conv2\"")));
  EXPECT_THAT(
      exporter.Plan(*session, {conv1, Announce("conv2", Random({4}, 1))}, json::object()),
      IsInvalid(AllOf(HasSubstr("tensors[1], the weight of layer \"conv2\", is float32 [4]"),
                      HasSubstr("it must be float16 [3]"))));
  EXPECT_THAT(exporter.Plan(*session, {conv1, conv2, conv1}, json::object()),
              IsInvalid(HasSubstr("tensors[2].name is \"conv1\"; names must be unique")));
  EXPECT_THAT(exporter.Plan(*session, {conv1, conv2, Announce("__metadata__", Random({1}, 1))},
                            json::object()),
              IsInvalid(HasSubstr("__metadata__")));
  EXPECT_THAT(
      exporter.Plan(*session, {conv1, conv2, Announce("a\nb", Random({1}, 1))}, json::object()),
      IsInvalid(HasSubstr("tensors[2].name")));
  EXPECT_THAT(exporter.Plan(*session, {conv1, conv2}, {{"dtype", "float16"}}),
              IsInvalid(HasSubstr("options has the unknown key \"dtype\"")));
}

TEST(SafetensorsExporterTest, CallsTensorsWhatTheOptionsSay) {
  auto session = PrunedSession();
  const std::vector<at::Tensor> tensors = {Random({2, 5}, 1), Random({3}, 1, DataType::kFloat16)};
  const std::vector<ExportTensor> sent = {Announce("conv1", tensors[0]),
                                          Announce("conv2", tensors[1], DataType::kFloat16)};
  const auto files =
      PlanFiles(*session, "safetensors", sent, {{"names", {{"conv1", "conv1.weight"}}}});
  const Parsed parsed(Stream(files[0], tensors, 100));
  EXPECT_TRUE(parsed.header.contains("conv1.weight"));
  EXPECT_FALSE(parsed.header.contains("conv1"));
  EXPECT_TRUE(parsed.header.contains("conv2"));
  const Exporter& exporter = *FindExporter("safetensors").value();
  const auto refused = [&](const json& names) {
    return exporter.Plan(*session, sent, {{"names", names}});
  };
  EXPECT_THAT(refused({{"conv3", "a"}}), IsInvalid(HasSubstr("options.names has \"conv3\"")));
  EXPECT_THAT(refused({{"conv1", 3}}), IsInvalid(HasSubstr("must be a string")));
  EXPECT_THAT(refused({{"conv1", "conv2"}}), IsInvalid(HasSubstr("names must be unique")));
  EXPECT_THAT(refused("conv1"), IsInvalid(HasSubstr("must be an object")));
}

TEST(SafetensorsExporterTest, WritesShardsWithAnIndexWhereOneFileWouldBeTooLarge) {
  auto session = PrunedSession();
  const std::vector<at::Tensor> tensors = {Random({2, 5}, 1), Random({3}, 1, DataType::kFloat16),
                                           Random({2}, 1), Random({4}, 1)};
  const std::vector<ExportTensor> sent = {
      Announce("conv1", tensors[0]), Announce("conv2", tensors[1], DataType::kFloat16),
      Announce("bias", tensors[2]), Announce("more", tensors[3])};
  // 40, 6, 8 and 16 bytes.
  const auto files = PlanFiles(*session, "safetensors", sent, {{"max_shard_bytes", 16}});
  ASSERT_EQ(files.size(), 4u);
  EXPECT_EQ(files[0].name(), "model-00001-of-00003.safetensors");
  EXPECT_EQ(files[2].name(), "model-00003-of-00003.safetensors");
  EXPECT_EQ(files[3].name(), "model.safetensors.index.json");
  const json index = json::parse(Stream(files[3], {}, 7));
  EXPECT_EQ(index["metadata"]["total_size"], 70);
  EXPECT_EQ(index["weight_map"], json({{"conv1", files[0].name()},
                                       {"conv2", files[1].name()},
                                       {"bias", files[1].name()},
                                       {"more", files[2].name()}}));
  EXPECT_EQ(PlanFiles(*session, "safetensors", sent, {{"max_shard_bytes", 70}}).size(), 1u);
  EXPECT_THAT(FindExporter("safetensors").value()->Plan(*session, sent, {{"max_shard_bytes", 0}}),
              IsInvalid(HasSubstr("options.max_shard_bytes is 0")));
}

TEST(SparseExporterTest, WritesTheKeptElementsBitForBitAndTheBitmask) {
  auto session = PrunedSession();
  // A kept zero, a kept negative zero and pruned ones; "0110101101".
  const std::vector<at::Tensor> tensors = {
      Values({-0.0, 0.0, -0.0, 4, 5, 6, 7, 8, 9, 10}, DataType::kFloat32, {2, 5}), Random({2}, 1),
      Values({1, 2, 3}, DataType::kFloat16)};
  const auto files = PlanFiles(*session, "sparse",
                               {Announce("conv1", tensors[0]), Announce("bias", tensors[1]),
                                Announce("conv2", tensors[2], DataType::kFloat16)});
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].name(), "model.sparse.safetensors");
  const Mask mask = *session->state(0).mask;
  session.reset();
  const Parsed parsed(Stream(files[0], tensors, 3));
  EXPECT_EQ(parsed.header["conv1.values"]["shape"], json({6}));
  EXPECT_EQ(parsed.Tensor("conv1.values"), BytesOf(Values({0.0, -0.0, 5, 7, 8, 10})));
  EXPECT_EQ(parsed.Tensor("conv1.bitmask"), BytesOf(mask.bits()));
  EXPECT_EQ(parsed.Tensor("conv2.values"), BytesOf(Values({3}, DataType::kFloat16)));
  EXPECT_EQ(parsed.Tensor("bias"), BytesOf(tensors[1]));
  EXPECT_EQ(json::parse(parsed.header["__metadata__"]["nni_compression.shapes"].get<std::string>()),
            json({{"conv1", {2, 5}}, {"conv2", {3}}}));
}

TEST(SparseExporterTest, ALayerThatIsPrunedAwayHasNoValues) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  ASSERT_THAT(session->SetMask(0, MaskOf("0000")), IsOk());
  const at::Tensor weight = Random({4}, 1);
  const auto files = PlanFiles(*session, "sparse", {Announce("layer", weight)});
  const Parsed parsed(Stream(files[0], {weight}, 100));
  EXPECT_EQ(parsed.Tensor("layer.values"), "");
  EXPECT_EQ(parsed.Tensor("layer.bitmask"), std::string(1, '\0'));
}

TEST(SparseExporterTest, RefusesAQuantizer) {
  auto session = BindOne("qat", json::object(), {4});
  EXPECT_THAT(FindExporter("sparse").value()->Plan(*session, {Announce("layer", Random({4}, 1))},
                                                   json::object()),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("has no masks")));
}

TEST(PthExporterTest, WritesOnlyWhatPyTorchHasATypeFor) {
  auto session = BindOne("qat", json::object(), {4});
  const ExportTensor counter{"counter", DataType::kUInt16, {2}, 4};
  EXPECT_THAT(FindExporter("pth").value()->Plan(
                  *session, {Announce("layer", Random({4}, 1)), counter}, json::object()),
              IsInvalid(HasSubstr("tensor \"counter\" is uint16")));
}

json Report(const Session& session, const std::vector<ExportTensor>& sent,
            const std::vector<at::Tensor>& tensors) {
  auto plan = FindExporter("report").value()->Plan(session, sent, {{"bins", 4}});
  EXPECT_THAT(plan, IsOk());
  for (size_t t = 0; t < tensors.size(); ++t) {
    const std::string bytes = BytesOf(tensors[t]);
    Buffer buffer = Buffer::Allocate(static_cast<int64_t>(bytes.size()));
    std::memcpy(buffer.data(), bytes.data(), bytes.size());
    EXPECT_THAT(plan->observe(static_cast<int>(t), buffer), IsOk());
  }
  const auto files = plan->conclude();
  EXPECT_THAT(files.status(), IsOk());
  EXPECT_EQ(files->at(0).name(), "report.json");
  EXPECT_EQ(files->at(1).name(), "report.html");
  return json::parse(Stream(files->at(0), {}, 1000));
}

TEST(ReportExporterTest, SaysWhatBecameOfPrunedLayers) {
  auto session = PrunedSession();
  const std::vector<at::Tensor> tensors = {
      Values({-1, 2, 3, 4, 5, 6, 7, 8, 9, 11}, DataType::kFloat32, {2, 5}),
      Values({1, 2, 3}, DataType::kFloat16)};
  const json report = Report(
      *session, {Announce("conv1", tensors[0]), Announce("conv2", tensors[1], DataType::kFloat16)},
      tensors);
  const json& conv1 = report["layers"][0];
  EXPECT_EQ(conv1["name"], "conv1");
  EXPECT_EQ(conv1["op_type"], "Linear");
  EXPECT_EQ(conv1["target_sparsity"], 0.5);
  EXPECT_EQ(conv1["achieved_sparsity"], 0.4);
  EXPECT_EQ(conv1["filters"], 2);
  EXPECT_EQ(conv1["removed_filters"], 0);
  EXPECT_EQ(conv1["bytes_before"], 40);
  EXPECT_EQ(conv1["bytes_after"], 6 * 4 + 2);
  // Gone are -1, 4, 6 and 9.
  EXPECT_DOUBLE_EQ(conv1["mse"].get<double>(), (1 + 16 + 36 + 81) / 10.0);
  EXPECT_NEAR(conv1["sqnr_db"].get<double>(), 10 * std::log10(406 / 134.0), 1e-12);
  EXPECT_EQ(conv1["histogram"]["before"], json({1, 3, 3, 3}));
  EXPECT_EQ(conv1["histogram"]["after"], json({4, 2, 2, 2}));
  EXPECT_EQ(report["layers"][2]["compressed"], false);
  EXPECT_EQ(report["totals"]["elements"], 13);
  EXPECT_EQ(report["totals"]["pruned"], 6);
  EXPECT_EQ(report["totals"]["bytes_before"], 46);
}

TEST(ReportExporterTest, CountsTheFiltersThatAMaskRemoves) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4, 2});
  const at::Tensor weight = Random({4, 2}, 1);
  ASSERT_THAT(session->SetMask(0, MaskOf("00011000")), IsOk());
  const json report = Report(*session, {Announce("layer", weight)}, {weight});
  EXPECT_EQ(report["layers"][0]["filters"], 4);
  EXPECT_EQ(report["layers"][0]["removed_filters"], 2);
}

TEST(ReportExporterTest, SaysWhatBecameOfQuantizedLayers) {
  auto session = BindOne("qat", {{"quant_bits", 2}}, {4});
  const at::Tensor weight = Values({0, 1, 2, 2.5});
  const json report = Report(*session, {Announce("layer", weight)}, {weight});
  const json& layer = report["layers"][0];
  EXPECT_EQ(layer["bits"], 2);
  EXPECT_EQ(layer["scale"]["count"], 1);
  EXPECT_EQ(layer["bytes_after"], 1 + 8);
  EXPECT_GT(layer["mse"].get<double>(), 0);
  EXPECT_FALSE(report["totals"].contains("pruned"));
}

TEST(ReportExporterTest, SaysHowOutputsAreQuantizedAndWhatAGivenMaskRemoves) {
  const json rule = {{"quant_types", {"weight", "output", "input"}}, {"quant_bits", 4}};
  auto session = BindOne("qat", rule, {4});
  const at::Tensor weight = Values({0, 1, 2, 2.5});
  ASSERT_THAT(session->ObserveActivation(0, Activation::kOutput, Range{{-1}, {2}}), IsOk());
  ASSERT_THAT(session->SetMask(0, MaskOf("0111")), IsOk());
  const json report = Report(*session, {Announce("layer", weight)}, {weight});
  const json& layer = report["layers"][0];
  EXPECT_EQ(layer["output"], json({{"bits", 4},
                                   {"scale", 3.0f / 15},
                                   {"zero_point", 5},
                                   {"code_min", 0},
                                   {"code_max", 15},
                                   {"minimum", -1.0},
                                   {"maximum", 2.0}}));
  EXPECT_FALSE(layer.contains("input")) << "no range was seen";
  EXPECT_EQ(layer["achieved_sparsity"], 0.25);
  EXPECT_EQ(report["totals"]["pruned"], 1);
}

TEST(ReportExporterTest, DrawsTheCurveOfAgp) {
  auto session = BindOne("agp", {{"final_sparsity", 0.8}, {"end_epoch", 10}}, {100});
  const at::Tensor weight = Random({100}, 1);
  ASSERT_THAT(session->UpdateEpoch(4), IsOk());
  ASSERT_THAT(session->CalcMask(0, weight), IsOk());
  const json report = Report(*session, {Announce("layer", weight)}, {weight});
  ASSERT_EQ(report["curves"].size(), 1u);
  const json& curve = report["curves"][0];
  EXPECT_EQ(curve["epoch"], 4);
  EXPECT_EQ(curve["epochs"].size(), 11u);
  EXPECT_EQ(curve["targets"][0], 0);
  EXPECT_EQ(curve["targets"][10], 0.8);
  EXPECT_EQ(curve["targets"][4], report["layers"][0]["target_sparsity"]);
}

// By every finite number of every type.
TEST(ReportExporterTest, SurvivesTheLargestAndTheSmallestNumbers) {
  const json qat2 = {{"quant_bits", 2}};
  const json agp = {{"initial_sparsity", 0.5}, {"final_sparsity", 0.5}, {"end_epoch", 5}};
  const std::vector<std::pair<std::string, json>> algorithms = {{"level", {{"sparsity", 0.5}}},
                                                                {"agp", agp},
                                                                {"qat", qat2},
                                                                {"naive", json::object()},
                                                                {"dorefa", qat2}};
  const std::vector<std::pair<DataType, double>> largest = {
      {DataType::kFloat16, 65504},
      {DataType::kBFloat16, 255 * std::ldexp(1.0, 120)},
      {DataType::kFloat32, std::numeric_limits<float>::max()},
      {DataType::kFloat64, std::numeric_limits<double>::max()}};
  for (const auto& [dtype, most] : largest) {
    for (const auto& [algorithm, rule] : algorithms) {
      const bool pruner = algorithm == "level" || algorithm == "agp";
      // Quantizers compute in float32.
      const double top = pruner ? most : std::min(most, double{std::numeric_limits<float>::max()});
      for (const std::vector<double>& values :
           std::vector<std::vector<double>>{{top, -top, 1, 2},
                                            {-0.61 * top, top, 0, 0},
                                            {top, top, top, top},
                                            {0, -0.0, 0, 0},
                                            {5e-324, -1e-45, 6e-8, 0}}) {
        auto session = BindOne(algorithm, rule, {4}, dtype);
        const at::Tensor weight = Values(values, dtype);
        if (pruner) {
          ASSERT_THAT(session->CalcMask(0, weight), IsOk());
        }
        const json report = Report(*session, {Announce("layer", weight, dtype)}, {weight});
        SCOPED_TRACE(absl::StrCat(DataTypeName(dtype), " ", report.dump()));
        const json& layer = report["layers"][0];
        for (const char* side : {"before", "after"}) {
          int64_t sum = 0;
          for (const json& count : layer["histogram"][side]) sum += count.get<int64_t>();
          EXPECT_EQ(sum, 4);
        }
        EXPECT_TRUE(layer["histogram"]["minimum"].is_number());
        EXPECT_TRUE(layer["histogram"]["maximum"].is_number());
        EXPECT_TRUE(layer["sqnr_db"].is_number() || layer["sqnr_db"].is_null());
        if (values[1] == -top && pruner) {
          // Of {top, -top, 1, 2} the two small ones go.
          EXPECT_GT(layer["sqnr_db"].get<double>(), 60);
        }
      }
    }
  }
}

TEST(ReportExporterTest, ACurveHasAnEndAtEveryEpoch) {
  for (const int64_t epoch : {int64_t{0}, int64_t{1}, int64_t{499}, int64_t{500}, int64_t{501},
                              kMaxCounter, std::numeric_limits<int64_t>::max()}) {
    Binding binding = MakeBinding("agp", {{{"final_sparsity", 0.8}, {"end_epoch", 2}}},
                                  {MakeLayer("layer", {4})});
    binding.clock.epoch = epoch;  // as a stored session may have it
    auto session = TryBind(binding).value();
    const at::Tensor weight = Random({4}, 1);
    ASSERT_THAT(session->CalcMask(0, weight), IsOk());
    const json curve = Report(*session, {Announce("layer", weight)}, {weight})["curves"][0];
    EXPECT_EQ(curve["epochs"].size(), curve["targets"].size());
    EXPECT_LE(curve["epochs"].size(), 500u);
    EXPECT_GE(curve["epochs"].size(), std::min<size_t>(250, static_cast<size_t>(epoch)));
    EXPECT_EQ(curve["epochs"][0], 0);
    for (size_t i = 1; i < curve["epochs"].size(); ++i) {
      EXPECT_GT(curve["epochs"][i].get<int64_t>(), curve["epochs"][i - 1].get<int64_t>());
    }
    EXPECT_LE(curve["epochs"].back().get<int64_t>(), std::max<int64_t>(2, epoch));
  }
}

// The text of a report is reserved before it exists.
TEST(ReportExporterTest, TakesNoMoreMemoryThanItSays) {
  const std::string quoted(500, '"'), bracket(500, '<');
  for (const auto& [algorithm, rule] : std::vector<std::pair<std::string, json>>{
           {"level", {{"sparsity", 0.3}}},
           {"qat", {{"quant_bits", 16}}},
           {"qat", {{"quant_types", {"weight", "output", "input"}}}},
           {"qat", {{"quant_scheme", "per_channel_affine"}}},
           {"naive", json::object()},
           {"dorefa", json::object()}}) {
    for (const int64_t rows : {1, 300}) {
      for (const int bins : {1, 1000}) {
        std::vector<Layer> layers;
        std::vector<ExportTensor> sent;
        const at::Tensor weight = Random({rows, 40}, 1, DataType::kFloat32, 1e-30);
        for (const std::string& name : {quoted, bracket}) {
          layers.push_back(MakeLayer(name, {rows, 40}));
          sent.push_back(Announce(name, weight));
        }
        auto session = TryBind(MakeBinding(algorithm, {rule}, layers)).value();
        for (int i = 0; i < 2; ++i) {
          if (algorithm == "level") {
            ASSERT_THAT(session->CalcMask(i, weight), IsOk());
          }
          for (const Activation activation : {Activation::kOutput, Activation::kInput}) {
            if (!session->Quantizes(i, activation)) continue;
            const Range range = {{-1.2345678e-20f}, {3.4028234e38f}};
            ASSERT_THAT(session->ObserveActivation(i, activation, range), IsOk());
          }
        }
        auto plan = FindExporter("report").value()->Plan(*session, sent, {{"bins", bins}});
        ASSERT_THAT(plan, IsOk());
        const int64_t reserved = plan->memory_needed();
        Buffer buffer = Buffer::Allocate(rows * 160);
        std::memcpy(buffer.data(), BytesOf(weight).data(), rows * 160);
        for (int t : {1, 0}) ASSERT_THAT(plan->observe(t, buffer), IsOk());
        const auto files = plan->conclude().value();
        EXPECT_LE(files[0].byte_length(), reserved) << rule << " " << rows << " " << bins;
        const json report = json::parse(Stream(files[0], {}, 10'000));
        EXPECT_EQ(report["layers"][1]["name"], bracket);
        EXPECT_EQ(report["layers"][1]["elements"], rows * 40);
        EXPECT_TRUE(report["layers"][1].contains("histogram"));
      }
    }
  }
}

// All of a session at once, and then one layer after another.
TEST(ExporterTest, PlansOfManyLayersCanBeCancelled) {
  constexpr int kLayers = 300;
  std::vector<Layer> layers;
  std::vector<ExportTensor> sent;
  for (int i = 0; i < kLayers; ++i) {
    const std::string name = absl::StrCat("l", i, ".weight");
    layers.push_back(MakeLayer(name, {1, 1}));
    sent.push_back({name, DataType::kFloat32, {1, 1}, 4});
  }
  for (const std::string format :
       {"compressed-tensors", "masks", "onnx", "pth", "report", "safetensors", "sparse"}) {
    const bool pruner = format == "masks" || format == "sparse";
    const json rule = pruner ? json{{"sparsity", 0.5}} : json::object();
    auto session = TryBind(MakeBinding(pruner ? "level" : "qat", {rule}, layers)).value();
    for (int i = 0; pruner && i < kLayers; ++i)
      ASSERT_THAT(session->SetMask(i, MaskOf("1")), IsOk());
    const auto tensors = format == "masks" ? std::vector<ExportTensor>() : sent;
    int polls = 0;
    const Exporter& exporter = *FindExporter(format).value();
    const auto count = [&] {
      ++polls;
      return false;
    };
    ASSERT_THAT(exporter.Plan(*session, tensors, json::object(), count), IsOk());
    EXPECT_GE(polls, kLayers) << format;
    for (const int last : {1, polls / 2, polls}) {
      int left = last;
      EXPECT_THAT(exporter.Plan(*session, tensors, json::object(), [&] { return --left == 0; }),
                  Fails(absl::StatusCode::kCancelled, "cancelled"))
          << format;
      EXPECT_EQ(left, 0) << format;
    }
  }
}

TEST(ReportExporterTest, ANameOfALayerCannotEndThePagesData) {
  auto session = TryBind(MakeBinding("level", {{{"sparsity", 0.5}}},
                                     {MakeLayer("</script><script>alert(1)", {2})}))
                     .value();
  ASSERT_THAT(session->SetMask(0, MaskOf("01")), IsOk());
  const at::Tensor weight = Values({1, 2});
  auto plan = FindExporter("report").value()->Plan(
      *session, {Announce("</script><script>alert(1)", weight)}, json::object());
  ASSERT_THAT(plan, IsOk());
  const std::string page = Stream(plan->conclude().value()[1], {}, 1000);
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
}

TEST(ReportExporterTest, RefusesAWeightThatIsNotFinite) {
  auto session = PrunedSession();
  const std::vector<ExportTensor> sent = {
      Announce("conv1", Random({2, 5}, 1)),
      Announce("conv2", Random({3}, 1, DataType::kFloat16), DataType::kFloat16)};
  auto plan = FindExporter("report").value()->Plan(*session, sent, json::object());
  ASSERT_THAT(plan, IsOk());
  Buffer buffer = Buffer::Allocate(40);
  std::memset(buffer.data(), 0xff, 40);
  EXPECT_THAT(plan->observe(0, buffer), IsInvalid(HasSubstr("conv1")));
}

TEST(SafetensorsExporterTest, AsksForMasksFirst) {
  auto session = BindOne("level", {{"sparsity", 0.5}}, {4});
  EXPECT_THAT(FindExporter("safetensors")
                  .value()
                  ->Plan(*session, {Announce("layer", Random({4}, 1))}, json::object()),
              Fails(absl::StatusCode::kFailedPrecondition, HasSubstr("call CalcMask first")));
}

TEST(SafetensorsHeaderTest, RefusesTypesThatTheFormatLacks) {
  EXPECT_THAT(SafetensorsHeader({{"a", DataType::kBit, {8}, 1}}, {}),
              IsInvalid(HasSubstr("tensors[0].dtype is bit")));
}

TEST(SafetensorsHeaderTest, EscapesNames) {
  const std::string header =
      SafetensorsHeader({{"a\"b\\c", DataType::kFloat32, {1}, 4}}, {{"k", "v"}}).value();
  EXPECT_EQ(header.size() % 8, 0u);
  EXPECT_TRUE(Parsed(header + "1234").header.contains("a\"b\\c"));
}

}  // namespace
}  // namespace nni_compression::compression
