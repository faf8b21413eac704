#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "compression/extensions/loader.h"
#include "tests/compression/testing.h"

namespace nni_compression::compression {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;

std::string ScriptFolder(const std::string& name) { return absl::StrCat(TEST_SCRIPTS, "/", name); }

absl::Status TryScripts(const std::string& folder) {
  Registry registry = Registry::Builtin();
  return LoadScripts(folder, &registry);
}

class ScriptTest : public testing::Test {
 protected:
  ScriptTest() {
    std::string pattern = testing::TempDir() + "/scriptsXXXXXX";
    folder_ = mkdtemp(pattern.data());
    EXPECT_THAT(LoadScripts(ScriptFolder("misbehaving"), &registry_), IsOk());
  }
  ~ScriptTest() override { fs::remove_all(folder_); }

  std::unique_ptr<Session> Bind(const std::string& algorithm, const json& rule = json::object()) {
    auto session = Session::Bind(
        registry_, MakeBinding(algorithm, json::array({rule}), {MakeLayer("fc", {2, 3})}));
    EXPECT_THAT(session, IsOk());
    return *std::move(session);
  }

  std::string folder_;
  Registry registry_;
};

TEST_F(ScriptTest, OptionsAreTheFieldsOfTheScriptsTuple) {
  const AlgorithmInfo& info = **registry_.Find("counter");
  EXPECT_EQ(info.source, "counter.pt");
  EXPECT_EQ(info.summary, "Keeps everything; its state counts the calls.");
  std::vector<std::string> rows;
  for (const OptionSpec& option : info.options) {
    rows.push_back(absl::StrCat(option.name, ": ", OptionTypeName(option.type), " = ",
                                option.default_value.dump(), " in ", OptionRange(option)));
  }
  EXPECT_THAT(rows, testing::ElementsAre(HasSubstr("strength: number = 0.5"),
                                         HasSubstr("times: integer = 2"),
                                         HasSubstr("quick: boolean = false"),
                                         "mode: string = \"plain\" in one of plain, fancy",
                                         HasSubstr("names: list of strings"),
                                         "levels: list of numbers = [1.0,2.0] in [0, inf)"));
}

TEST_F(ScriptTest, TheWeightIsUntouchedWhateverTheScriptDoesToItsArgument) {
  const at::Tensor weight = Values({1, 2, 3, 4, 5, 6}, DataType::kFloat32, {2, 3});
  EXPECT_THAT(Bind("counter")->CalcMask(0, weight), IsOk());
  EXPECT_EQ(weight.sum().item<float>(), 21);
}

TEST_F(ScriptTest, AttributesLastBetweenCallsAndAreSavedWithTheSession) {
  auto session = Bind("counter");
  const at::Tensor weight = Random({2, 3}, 1);
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "011111");
  ASSERT_THAT(session->Step(1), IsOk());
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "001111");
  auto other = Bind("counter");
  ASSERT_THAT(other->Load(session->SaveGlobal(), {session->SaveLayer(0)}), IsOk());
  ASSERT_THAT(other->Step(2), IsOk());
  EXPECT_EQ(Bits(other->CalcMask(0, weight)->mask), "000111");
}

TEST_F(ScriptTest, GradientsReachTheScript) {
  auto session = BindOne("moving", {{"sparsity", 0.5}}, {4});
  const at::Tensor weight = Values({1, 1, 1, 1});
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "0011");  // ties by index
  // Weights 1 and 3 are moved towards 0, the others away.
  ASSERT_THAT(session->AddGradient(0, Values({-1, 2, -1, 2})), IsOk());
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_TRUE(session->IsStale(0));
  EXPECT_EQ(Bits(session->CalcMask(0, weight)->mask), "1010");
  EXPECT_THAT(session->AddGradient(0, Values({1, 2})), IsInvalid(HasSubstr("shape")));
  EXPECT_THAT(Bind("counter")->AddGradient(0, Random({2, 3}, 1)),
              IsInvalid(HasSubstr("does not use gradients")));
}

TEST_F(ScriptTest, AnErrorHasTheScriptsOwnMessageAndTheSessionStays) {
  auto session = Bind("raises");
  const std::string before = StateOf(*session);
  EXPECT_THAT(
      session->CalcMask(0, Random({2, 3}, 1)),
      Fails(absl::StatusCode::kInternal, AllOf(HasSubstr("calc_mask of the script failed"),
                                               HasSubstr("epoch 0 is too early for Linear"),
                                               Not(HasSubstr("Traceback")), Not(HasSubstr("\n")))));
  EXPECT_EQ(StateOf(*session), before);
  ASSERT_THAT(session->UpdateEpoch(1), IsOk());
  EXPECT_THAT(session->CalcMask(0, Random({2, 3}, 1)), IsOk());
}

TEST_F(ScriptTest, AMaskOfAnotherShapeIsAnError) {
  EXPECT_THAT(Bind("wrong_shape")->CalcMask(0, Random({2, 3}, 1)),
              Fails(absl::StatusCode::kInternal,
                    HasSubstr("returned a tensor of shape [7] and dtype Float; it must return")));
}

TEST_F(ScriptTest, AMaskWithNanAndAScaleOfZeroAreErrors) {
  const at::Tensor weight = Random({2, 3}, 1);
  EXPECT_THAT(Bind("nan_mask")->CalcMask(0, weight),
              Fails(absl::StatusCode::kInternal, HasSubstr("returned a mask with NaN")));
  EXPECT_THAT(Bind("zero_scale")->QuantizeWeight(0, weight, QuantizeReply::kCodes),
              Fails(absl::StatusCode::kInternal, HasSubstr("returned the scale 0")));
}

TEST_F(ScriptTest, RefusesWhatIsNoScriptWithItsFile) {
  EXPECT_THAT(TryScripts(ScriptFolder("signature")),
              IsInvalid(AllOf(HasSubstr("signature.pt"), HasSubstr("it must be (self, Tensor"))));
  EXPECT_THAT(TryScripts(ScriptFolder("no_method")),
              IsInvalid(HasSubstr("calc_mask and quantize_weight")));
  EXPECT_THAT(TryScripts(ScriptFolder("built_in_name")),
              Fails(absl::StatusCode::kAlreadyExists,
                    HasSubstr("level.pt: the algorithm \"level\" exists already")));
  std::ofstream(folder_ + "/text.pt") << "not an archive";
  EXPECT_THAT(TryScripts(folder_),
              IsInvalid(AllOf(HasSubstr("text.pt"), HasSubstr("cannot load"))));
}

TEST_F(ScriptTest, RefusesATruncatedScript) {
  const std::string file = folder_ + "/moving.pt";
  const auto size = fs::file_size(ScriptFolder("good") + "/moving.pt");
  for (const auto part : {size - 1, size / 2, size / 4}) {
    fs::copy(ScriptFolder("good") + "/moving.pt", file, fs::copy_options::overwrite_existing);
    fs::resize_file(file, part);
    EXPECT_THAT(TryScripts(folder_), IsInvalid(HasSubstr("moving.pt"))) << part;
  }
}

}  // namespace
}  // namespace nni_compression::compression
