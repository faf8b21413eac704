// The seeds of every fuzzer, and a fixed number of mutations of them: a fuzzer in small.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/targets.h"

namespace nni_compression::fuzz {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr int kMutants = 3000;
constexpr size_t kLargest = 4096;  // bytes of a mutant

struct Case {
  const char* name;
  Target target;
};

std::vector<Bytes> Seeds(const std::string& name) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(CORPUS) + "/" + name)) {
    paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> seeds;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return seeds;
}

class Mutator {
 public:
  explicit Mutator(std::vector<Bytes> seeds) : seeds_(std::move(seeds)) {}

  Bytes Next() {
    Bytes mutant = Seed();
    for (size_t changes = 1 + Below(4); changes > 0; --changes) Change(mutant);
    mutant.resize(std::min(mutant.size(), kLargest));
    return mutant;
  }

 private:
  size_t Below(size_t bound) { return random_() % bound; }
  const Bytes& Seed() { return seeds_[Below(seeds_.size())]; }

  void Change(Bytes& bytes) {
    const size_t at = Below(bytes.size() + 1);
    const auto position = bytes.begin() + static_cast<ptrdiff_t>(at);
    const auto rest = static_cast<size_t>(bytes.end() - position);
    switch (Below(5)) {
      case 0:
        if (rest > 0) *position = static_cast<uint8_t>(*position ^ (1 << Below(8)));
        break;
      case 1:
        if (rest > 0) *position = kExtremes[Below(std::size(kExtremes))];
        break;
      case 2:
        bytes.erase(position,
                    position + static_cast<ptrdiff_t>(Below(std::min<size_t>(rest, 16) + 1)));
        break;
      case 3: {
        const Bytes piece(position,
                          position + static_cast<ptrdiff_t>(Below(std::min<size_t>(rest, 64) + 1)));
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(Below(bytes.size() + 1)), piece.begin(),
                     piece.end());
        break;
      }
      default: {  // the end of another seed
        const Bytes& other = Seed();
        bytes.erase(position, bytes.end());
        bytes.insert(bytes.end(),
                     other.begin() + static_cast<ptrdiff_t>(std::min(at, other.size())),
                     other.end());
      }
    }
  }

  static constexpr uint8_t kExtremes[] = {0x00, 0x01, 0x7f, 0x80, 0xff, '"', '[', '{', '-', '9'};

  std::vector<Bytes> seeds_;
  std::mt19937_64 random_{1};
};

class FuzzTest : public testing::TestWithParam<Case> {};

TEST_P(FuzzTest, SeedsAreTakenAndNoMutantDoesHarm) {
  const std::vector<Bytes> seeds = Seeds(GetParam().name);
  ASSERT_GE(seeds.size(), 3u);
  for (size_t i = 0; i < seeds.size(); ++i) EXPECT_TRUE(GetParam().target(seeds[i])) << i;
  Mutator mutator(seeds);
  int taken = 0;
  for (int i = 0; i < kMutants; ++i) taken += GetParam().target(mutator.Next());
  // Neither all nor none: the mutants get past the first check, and not past every one.
  EXPECT_GT(taken, kMutants / 100);
  EXPECT_LT(taken, kMutants);
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzTest,
                         testing::Values(Case{"config_list", ConfigList}, Case{"frames", Frames},
                                         Case{"safetensors", Safetensors}, Case{"state", State}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nni_compression::fuzz
